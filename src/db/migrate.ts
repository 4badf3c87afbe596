/**
 * Brings the database's schema up to date: the numbered files of sql/, forward only, one transaction each. Any number of
 * processes may do so at once; a transaction-level advisory lock lets one through at a time, also behind a pooler.
 * A daemon works with a newer schema than it knows as long as that one says that it still serves it, so old and new
 * daemons run side by side during an upgrade.
 */
import { readdir, readFile } from 'node:fs/promises';
import pg from 'pg';
import { explainOldTable, findOldTable } from './legacy-shape.js';
import { connectionOptions, identifier, translated } from './pool.js';

export interface Migration {
  readonly version: number;
  readonly name: string;
  readonly sql: string;
  /** The oldest schema version that a daemon must know to work with the schema as this migration leaves it. */
  readonly serves: number;
}

/** The migrations that this version of the daemon brings, in order. */
export async function knownMigrations(): Promise<Migration[]> {
  const folder = new URL('../../sql/', import.meta.url);
  const names = (await readdir(folder)).filter((name) => /^\d{3}_.+\.sql$/.test(name)).sort();
  return Promise.all(names.map(async (name) => parsed(name, await readFile(new URL(name, folder), 'utf8'))));
}

/** Every file begins by saying whom it still serves, because whoever writes it has to think of the daemons that run. */
function parsed(file: string, sql: string): Migration {
  const serves = /^-- serves: (\d+)\n/.exec(sql)?.[1];
  if (serves === undefined) throw new Error(`sql/${file} does not begin with "-- serves: N"`);
  return { version: Number(file.slice(0, 3)), name: file.replace(/\.sql$/, ''), sql, serves: Number(serves) };
}

/**
 * Applies what is missing. Safe when many processes start at once.
 * @returns the names of the migrations applied by this call, in order
 * @throws DatabaseUnavailable; SchemaError when the schema is too new for this daemon, or the table is not ours
 */
export async function migrate(url: string | null, schema: string): Promise<string[]> {
  const known = await knownMigrations();
  const applied: string[] = [];
  await connected(url, async (client) => {
    while (await applyNext(client, schema, known, applied));
  });
  return applied;
}

/**
 * What stands between this daemon and the schema it finds: the names of the migrations that are missing.
 * @throws as migrate
 */
export async function pendingMigrations(url: string | null, schema: string): Promise<string[]> {
  const known = await knownMigrations();
  const version = await connected(url, (client) => schemaVersion(client, schema, known));
  return known.filter((migration) => migration.version > version).map(({ name }) => name);
}

/** The schema and this daemon do not fit together, and what to do about it. */
export class SchemaError extends Error {
  override readonly name = 'SchemaError';
}

/** Does some work on a connection of its own. @throws what the work throws, or DatabaseUnavailable */
export async function connected<T>(url: string | null, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client(connectionOptions(url, 'broadcastd migrate'));
  client.on('error', () => {});
  try {
    await client.connect();
    return await work(client);
  } catch (error) {
    throw translated(error);
  } finally {
    await client.end().catch(() => {});
  }
}

/** The first steps of a transaction that migrates: one at a time, inside the schema, which is made if need be. */
export async function enterSchema(client: pg.Client, schema: string): Promise<void> {
  await client.query('select pg_advisory_xact_lock(hashtextextended($1, 0))', [`broadcastd migrate ${schema}`]);
  // `if not exists` alone asks for the privilege to create one even where the schema is there.
  const { rows } = await client.query('select to_regnamespace($1) as there', [identifier(schema)]);
  if (rows[0]?.there === null) await client.query(`create schema if not exists ${identifier(schema)}`);
  await client.query(`set local search_path = ${identifier(schema)}, pg_temp`);
}

/** Applies one migration and records it, inside the caller's transaction, which has entered the schema. */
export async function apply(client: pg.Client, { version, name, sql, serves }: Migration): Promise<void> {
  await client.query(
    `create table if not exists broadcast_queue_migrations (
       version integer primary key, name text not null, serves integer not null,
       applied_at timestamptz not null default now())`,
  );
  await client.query(sql);
  await client.query('insert into broadcast_queue_migrations (version, name, serves) values ($1, $2, $3)', [
    version,
    name,
    serves,
  ]);
}

async function applyNext(
  client: pg.Client,
  schema: string,
  known: readonly Migration[],
  applied: string[],
): Promise<boolean> {
  await client.query('begin');
  try {
    await enterSchema(client, schema);
    const version = await schemaVersion(client, schema, known);
    const next = known.find((migration) => migration.version > version);
    if (next) await apply(client, next).catch((error) => Promise.reject(refusal(next.name, error)));
    await client.query('commit');
    if (next) applied.push(next.name);
    return next !== undefined;
  } catch (error) {
    await client.query('rollback').catch(() => {});
    throw error;
  }
}

/** What PostgreSQL would not have, in words; a missing privilege and a lost connection have words of their own. */
function refusal(name: string, error: unknown): unknown {
  if (!(error instanceof pg.DatabaseError) || !/^42(?!501)/.test(error.code ?? '')) return error;
  return new SchemaError(
    `the migration ${name} does not fit what the schema holds: ${error.message}. It was undone. Rename what another ` +
      'program made under our names; tables of a build from before the first release are not served',
    { cause: error },
  );
}

async function schemaVersion(client: pg.Client, schema: string, known: readonly Migration[]): Promise<number> {
  const table = `${identifier(schema)}.broadcast_queue_migrations`;
  const { rows } = await client.query<{ ours: string | null; jobs: string | null }>(
    'select to_regclass($1) as ours, to_regclass($2) as jobs',
    [table, `${identifier(schema)}.broadcast_queue_jobs`],
  );
  if (!rows[0]?.ours) {
    if (!rows[0]?.jobs) return 0;
    const old = await findOldTable(client, schema);
    if (old) throw new SchemaError(explainOldTable(old));
    throw new SchemaError(
      `the schema "${schema}" has a table broadcast_queue_jobs that broadcastd did not make; ` +
        'rename it, or set DATABASE_SCHEMA to another schema',
    );
  }
  const newest = await client.query<{ version: number; serves: number }>(
    `select coalesce(max(version), 0) as version, coalesce(max(serves), 0) as serves from ${table}`,
  );
  const { version, serves } = newest.rows[0] ?? { version: 0, serves: 0 };
  const mine = known.at(-1)?.version ?? 0;
  if (serves > mine) {
    throw new SchemaError(
      `the schema "${schema}" is at version ${version} and serves daemons that know version ${serves} or newer; ` +
        `this one knows versions up to ${mine}: run a newer broadcastd`,
    );
  }
  return version;
}
