/**
 * Brings the database's schema up to date: the numbered files of sql/, forward only, one transaction each. Any number of
 * processes may do so at once; a transaction-level advisory lock lets one through at a time, also behind a pooler.
 */
import { readdir, readFile } from 'node:fs/promises';
import pg from 'pg';
import { connectionOptions, identifier, translated } from './pool.js';

export interface Migration {
  readonly version: number;
  readonly name: string;
  readonly sql: string;
}

/** The migrations that this version of the daemon brings, in order. */
export async function knownMigrations(): Promise<Migration[]> {
  const folder = new URL('../../sql/', import.meta.url);
  const names = (await readdir(folder)).filter((name) => /^\d{3}_.+\.sql$/.test(name)).sort();
  return Promise.all(
    names.map(async (name) => ({
      version: Number(name.slice(0, 3)),
      name: name.replace(/\.sql$/, ''),
      sql: await readFile(new URL(name, folder), 'utf8'),
    })),
  );
}

/**
 * Applies what is missing. Safe when many processes start at once.
 * @returns the names of the migrations applied by this call, in order
 * @throws DatabaseUnavailable; SchemaError when the schema is newer than this daemon, or the table is not ours
 */
export async function migrate(url: string | null, schema: string): Promise<string[]> {
  const known = await knownMigrations();
  const client = new pg.Client(connectionOptions(url, 'broadcastd migrate'));
  client.on('error', () => {});
  const applied: string[] = [];
  try {
    await client.connect();
    while (await applyNext(client, schema, known, applied));
  } catch (error) {
    throw translated(error);
  } finally {
    await client.end().catch(() => {});
  }
  return applied;
}

/**
 * What stands between this daemon and the schema it finds: the names of the migrations that are missing.
 * @throws as migrate
 */
export async function pendingMigrations(url: string | null, schema: string): Promise<string[]> {
  const known = await knownMigrations();
  const client = new pg.Client(connectionOptions(url, 'broadcastd migrate'));
  client.on('error', () => {});
  try {
    await client.connect();
    const version = await schemaVersion(client, schema, known);
    return known.filter((migration) => migration.version > version).map(({ name }) => name);
  } catch (error) {
    throw translated(error);
  } finally {
    await client.end().catch(() => {});
  }
}

/** The schema and this daemon do not fit together, and what to do about it. */
export class SchemaError extends Error {
  override readonly name = 'SchemaError';
}

async function applyNext(
  client: pg.Client,
  schema: string,
  known: readonly Migration[],
  applied: string[],
): Promise<boolean> {
  await client.query('begin');
  try {
    await client.query('select pg_advisory_xact_lock(hashtextextended($1, 0))', [`broadcastd migrate ${schema}`]);
    // `if not exists` alone asks for the privilege to create one even where the schema is there.
    const { rows } = await client.query('select to_regnamespace($1) as there', [identifier(schema)]);
    if (rows[0]?.there === null) await client.query(`create schema if not exists ${identifier(schema)}`);
    await client.query(`set local search_path = ${identifier(schema)}, pg_temp`);
    const version = await schemaVersion(client, schema, known);
    const next = known.find((migration) => migration.version > version);
    if (next) {
      await client.query(
        `create table if not exists broadcast_queue_migrations (
           version integer primary key, name text not null, applied_at timestamptz not null default now())`,
      );
      await client.query(next.sql);
      await client.query('insert into broadcast_queue_migrations (version, name) values ($1, $2)', [
        next.version,
        next.name,
      ]);
      applied.push(next.name);
    }
    await client.query('commit');
    return next !== undefined;
  } catch (error) {
    await client.query('rollback').catch(() => {});
    throw error;
  }
}

async function schemaVersion(client: pg.Client, schema: string, known: readonly Migration[]): Promise<number> {
  const table = `${identifier(schema)}.broadcast_queue_migrations`;
  const { rows } = await client.query<{ ours: string | null; jobs: string | null }>(
    'select to_regclass($1) as ours, to_regclass($2) as jobs',
    [table, `${identifier(schema)}.broadcast_queue_jobs`],
  );
  if (!rows[0]?.ours) {
    if (!rows[0]?.jobs) return 0;
    throw new SchemaError(
      `the schema "${schema}" has a table broadcast_queue_jobs that broadcastd did not make; ` +
        'rename it, or set DATABASE_SCHEMA to another schema',
    );
  }
  const newest = await client.query<{ version: number }>(`select coalesce(max(version), 0) as version from ${table}`);
  const version = newest.rows[0]?.version ?? 0;
  const mine = known.at(-1)?.version ?? 0;
  if (version > mine) {
    throw new SchemaError(
      `the schema "${schema}" is at version ${version}, this daemon knows versions up to ${mine}: run a newer broadcastd`,
    );
  }
  return version;
}
