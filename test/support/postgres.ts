/**
 * Where the tests' PostgreSQL comes from: TEST_DATABASE_URL, else the embedded server from npm, else (TESTCONTAINERS=1)
 * a container. One server per run, one template database with the schema in it, one database per test file made from
 * the template: NOTIFY does not cross databases.
 */
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { migrate } from '../../src/db/migrate.js';

const TEMPLATE = 'broadcastd_template';

export interface TestDatabase {
  readonly url: string;
  query<R extends pg.QueryResultRow>(text: string, values?: unknown[]): Promise<R[]>;
  /** Ends the connections of this object and drops the database, whoever is still connected. */
  drop(): Promise<void>;
}

/** An empty queue with the newest schema. */
export function createDatabase(): Promise<TestDatabase> {
  return makeDatabase(serverUrl(), `template ${TEMPLATE}`);
}

/** A database without our schema in it. */
export function createEmptyDatabase(): Promise<TestDatabase> {
  return makeDatabase(serverUrl(), '');
}

/** Called once per run, before the tests. */
export async function createTemplate(server: string): Promise<void> {
  await onServer(server, async (client) => {
    await client.query(`drop database if exists ${TEMPLATE} with (force)`);
    await client.query(`create database ${TEMPLATE}`);
  });
  await migrate(urlOf(server, TEMPLATE), 'public');
}

export async function makeDatabase(server: string, from: string): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString('hex')}`;
  await onServer(server, (client) => client.query(`create database ${name} ${from}`));
  const url = urlOf(server, name);
  const pool = new pg.Pool({ connectionString: url, max: 4 });
  pool.on('error', () => {});
  return {
    url,
    async query<R extends pg.QueryResultRow>(text: string, values: unknown[] = []) {
      return (await pool.query<R>(text, values)).rows;
    },
    async drop() {
      await pool.end();
      await onServer(server, (client) => client.query(`drop database if exists ${name} with (force)`));
    },
  };
}

export const SERVER_VARIABLE = 'BROADCASTD_TEST_SERVER';

/** Where the tests' server is. */
export function serverUrl(): string {
  const url = process.env[SERVER_VARIABLE];
  if (!url) throw new Error(`${SERVER_VARIABLE} is not set: the tests' global setup did not run`);
  return url;
}

async function onServer(server: string, work: (client: pg.Client) => Promise<unknown>): Promise<void> {
  const client = new pg.Client({ connectionString: server });
  await client.connect();
  try {
    // Two files may copy the template at once only one after the other.
    await client.query('select pg_advisory_lock(4242)');
    await work(client);
  } finally {
    await client.end();
  }
}

function urlOf(server: string, database: string): string {
  const url = new URL(server);
  url.pathname = `/${database}`;
  return url.href;
}
