/**
 * The PostgreSQL that all are measured on: that of BENCH_DATABASE_URL (as a superuser), else a private one from npm, the
 * same that the tests use, but with its durability on. One server for all contestants of a scenario, a fresh database for
 * each of their turns.
 */
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { startServer } from '../../test/support/server.ts';
import { postmasterOf } from './cpu.ts';

/** Of the private server; everything else is as PostgreSQL comes. */
const SETTINGS: Readonly<Record<string, string>> = {
  fsync: 'on',
  shared_buffers: '1GB',
  max_wal_size: '4GB',
  max_connections: '200',
};

export interface Server {
  readonly version: string;
  /** What differs from PostgreSQL's defaults and matters here. */
  readonly settings: Readonly<Record<string, string>>;
  /** Null: not on this machine. */
  readonly postmaster: number | null;
  /** @param template a name that `keep` gave */
  create(template?: string): Promise<Database>;
  /** Lets a database be copied: nobody connects to it any more. */
  keep(database: Database): Promise<string>;
  checkpoint(): Promise<void>;
  close(): Promise<void>;
}

export interface Database {
  readonly name: string;
  readonly url: string;
  readonly client: pg.Client;
  /** Further connections, ended with the database. */
  connect(): Promise<pg.Client>;
  drop(): Promise<void>;
}

/** @param preload for shared_preload_libraries of a private server */
export async function openServer(preload = ''): Promise<Server> {
  const given = process.env.BENCH_DATABASE_URL;
  const flags = Object.entries({ ...SETTINGS, shared_preload_libraries: preload });
  const own = given ? null : await startServer(flags.flatMap(([name, value]) => ['-c', `${name}=${value}`]));
  const url = given ?? own?.url ?? '';
  const admin = await connect(url);
  const { rows } = await admin.query<{ name: string; setting: string }>(
    `select name, current_setting(name) as setting from pg_settings
     where name = any($1) or source in ('command line', 'configuration file') and name ~ '^(autovacuum|checkpoint|wal|work_mem|synchronous)'
     order by name`,
    [[...Object.keys(SETTINGS), 'synchronous_commit', 'full_page_writes']],
  );
  const version = await admin.query<{ server_version: string }>('show server_version');
  const made = new Set<string>();

  return {
    version: version.rows[0]?.server_version ?? '',
    settings: Object.fromEntries(rows.map(({ name, setting }) => [name, setting])),
    postmaster: await postmasterOf(admin),
    async create(template) {
      const name = `bench_${randomBytes(6).toString('hex')}`;
      // A copy of files instead of writing every page into the log: quicker, and nothing that is measured.
      await admin.query(`create database ${name} template ${template ?? 'template0'} strategy file_copy`);
      made.add(name);
      return openDatabase(urlOf(url, name), name, async () => {
        await dropDatabase(admin, name);
        made.delete(name);
      });
    },
    async keep({ name, client }) {
      await client.end();
      return name;
    },
    checkpoint: async () => void (await admin.query('checkpoint')),
    async close() {
      for (const name of made) await dropDatabase(admin, name);
      await admin.end();
      await own?.close();
    },
  };
}

async function openDatabase(url: string, name: string, remove: () => Promise<void>): Promise<Database> {
  const client = await connect(url);
  const further: pg.Client[] = [];
  return {
    name,
    url,
    client,
    async connect() {
      const another = await connect(url);
      further.push(another);
      return another;
    },
    async drop() {
      await Promise.all([client, ...further].map((each) => each.end()));
      await remove();
    },
  };
}

async function dropDatabase(admin: pg.Client, name: string): Promise<void> {
  await admin.query(`drop database if exists ${name} with (force)`);
}

async function connect(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url });
  // A connection that is cut when its database is dropped.
  client.on('error', () => {});
  await client.connect();
  return client;
}

function urlOf(server: string, database: string): string {
  const url = new URL(server);
  url.pathname = `/${database}`;
  return url.href;
}
