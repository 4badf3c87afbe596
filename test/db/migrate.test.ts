import { afterEach, describe, expect, test } from '@jest/globals';
import pg from 'pg';
import { jobStore } from '../../src/db/jobs.js';
import { knownMigrations, migrate, pendingMigrations, SchemaError } from '../../src/db/migrate.js';
import { openDatabase } from '../../src/db/pool.js';
import { DatabaseUnavailable } from '../../src/errors.js';
import { createEmptyDatabase, type TestDatabase } from '../support/postgres.js';
import { claim, claimOne, SETTINGS, settlement, sqlState, worker } from '../support/store.js';

const opened: TestDatabase[] = [];

afterEach(async () => {
  await Promise.all(opened.splice(0).map((database) => database.drop()));
});

async function emptyDatabase(): Promise<TestDatabase> {
  const database = await createEmptyDatabase();
  opened.push(database);
  return database;
}

const allNames = async () => (await knownMigrations()).map(({ name }) => name);

/** Every relation, type and function of ours, in whatever schema. */
async function ours(database: TestDatabase): Promise<string[]> {
  const rows = await database.query<{ name: string }>(
    `select relname::text as name from pg_class where relname like 'broadcast\\_%'
     union all select typname::text from pg_type where typname like 'broadcast\\_%'
     union all select proname::text from pg_proc where proname like 'broadcast\\_%' order by name`,
  );
  return rows.map(({ name }) => name);
}

describe('migrating', () => {
  test.each([1, 2, 3, 4, 5])('by eight at once applies each migration once (round %i)', async () => {
    const database = await emptyDatabase();
    const applied = await Promise.all(Array.from({ length: 8 }, () => migrate(database.url, 'public')));
    expect(applied.flat().sort()).toEqual(await allNames());
    const recorded = await database.query('select name from broadcast_queue_migrations order by version');
    expect(recorded.map(({ name }) => name)).toEqual(await allNames());
    expect(await pendingMigrations(database.url, 'public')).toEqual([]);
  });

  test('says what is missing, and has nothing to do the second time', async () => {
    const database = await emptyDatabase();
    expect(await pendingMigrations(database.url, 'public')).toEqual(await allNames());
    expect(await ours(database)).toEqual([]);
    expect(await migrate(database.url, 'public')).toEqual(await allNames());
    const before = await ours(database);
    expect(await migrate(database.url, 'public')).toEqual([]);
    expect(await ours(database)).toEqual(before);
  });

  test('leaves nothing behind when it fails on the way, and works once the cause is gone', async () => {
    const database = await emptyDatabase();
    await database.query('create function broadcast_pause(uuid, text default null) returns text return null');
    const before = await ours(database);
    const refused = migrate(database.url, 'public');
    expect(await sqlState(refused)).toBe('42723');
    await expect(refused).rejects.toThrow(
      /^the migration 001_jobs does not fit what the schema holds: .*"broadcast_pause" already exists.* It was undone\./,
    );
    expect(await ours(database)).toEqual(before);
    await database.query('drop function broadcast_pause');
    expect(await migrate(database.url, 'public')).toEqual(await allNames());
  });

  test('refuses a table of the same name that is not ours, and does not touch it', async () => {
    const database = await emptyDatabase();
    await database.query('create table broadcast_queue_jobs (mine integer)');
    const before = await ours(database);
    for (const look of [migrate, pendingMigrations]) {
      await expect(look(database.url, 'public')).rejects.toThrow(SchemaError);
      await expect(look(database.url, 'public')).rejects.toThrow('set DATABASE_SCHEMA to another schema');
    }
    expect(await ours(database)).toEqual(before);
    expect(await migrate(database.url, 'queue_a')).toEqual(await allNames());
  });

  test('refuses a schema that a newer version made', async () => {
    const database = await emptyDatabase();
    await migrate(database.url, 'public');
    await database.query(
      "insert into broadcast_queue_migrations (version, name, serves) values (999, '999_later', 999)",
    );
    for (const look of [migrate, pendingMigrations]) {
      await expect(look(database.url, 'public')).rejects.toThrow(/at version 999.*run a newer broadcastd/);
    }
  });

  test('asks for no privilege where there is nothing to do', async () => {
    const database = await emptyDatabase();
    await migrate(database.url, 'public');
    const role = `worker_${new URL(database.url).pathname.slice(1)}`;
    await database.query(`create role ${role} login password 'secret'`);
    await database.query(`grant select, insert, update, delete on all tables in schema public to ${role}`);
    const url = new URL(database.url);
    url.username = role;
    url.password = 'secret';
    expect(await migrate(url.href, 'public')).toEqual([]);
    expect(await pendingMigrations(url.href, 'public')).toEqual([]);
    expect(await sqlState(migrate(url.href, 'queue_a'))).toBe('42501');
    await database.query(`drop owned by ${role}`);
    await database.query(`drop role ${role}`);
  });

  test('says so when there is no database', async () => {
    const { url } = await emptyDatabase();
    const nobody = new URL(url);
    nobody.pathname = '/no_such_database_at_all';
    await expect(migrate(nobody.href, 'public')).rejects.toThrow('no_such_database_at_all');
    nobody.port = '1';
    await expect(migrate(nobody.href, 'public')).rejects.toThrow(DatabaseUnavailable);
  });
});

describe('a schema of its own', () => {
  test('can be one of several, each with its own jobs', async () => {
    const database = await emptyDatabase();
    const schemas = ['public', 'queue_a', 'Queue "B"'];
    const applied = await Promise.all(schemas.map((schema) => migrate(database.url, schema)));
    expect(applied).toEqual(await Promise.all(schemas.map(allNames)));
    await database.query(`select queue_a.broadcast_enqueue('send_broadcast', '{}')`);
    const counts = await database.query(
      `select (select count(*)::integer from public.broadcast_queue_jobs) as public,
              (select count(*)::integer from queue_a.broadcast_queue_jobs) as a,
              (select count(*)::integer from "Queue ""B""".broadcast_queue_jobs) as b`,
    );
    expect(counts).toEqual([{ public: 0, a: 1, b: 0 }]);
  });

  test.each(['', 'pg_catalog', 'decoy, public', 'decoy, pg_catalog, queue_a'])(
    'works for callers with the search path "%s"',
    async (path) => {
      const database = await emptyDatabase();
      await migrate(database.url, 'queue_a');
      await database.query(
        'create schema decoy create table broadcast_queue_jobs (id integer) create table broadcast_queue_leases (id integer)',
      );
      const session = new pg.Client({ connectionString: database.url });
      await session.connect();
      await session.query("select set_config('search_path', $1, false)", [path]);
      const one = async (text: string, values: unknown[] = []) => (await session.query(text, values)).rows[0];

      const data = { broadcast_id: 1 };
      const { job_id } = await one(`select * from queue_a.broadcast_enqueue('send_broadcast', $1)`, [data]);
      expect(await one(`select * from queue_a.broadcast_enqueue('send_broadcast', $1)`, [data])).toMatchObject({
        job_id,
        inserted: false,
      });
      const batch = JSON.stringify([{ job_type: 'send_broadcast', job_data: data }]);
      expect(await one('select * from queue_a.broadcast_enqueue_many($1)', [batch])).toEqual({
        job_id,
        inserted: false,
      });
      for (const [name, answer] of [
        ['pause', 'paused'],
        ['resume', 'pending'],
        ['cancel', 'cancelled'],
        ['retry', 'pending'],
      ]) {
        expect(await one(`select queue_a.broadcast_${name}($1) as answer`, [job_id])).toEqual({ answer });
      }
      expect(await one('select * from queue_a.broadcast_progress($1)', [job_id])).toMatchObject({ status: 'pending' });
      const nulls = await one(
        `insert into queue_a.broadcast_queue_jobs (id, job_type, job_data) values (null, 'send_broadcast', '{}') returning id`,
      );
      expect(nulls.id).toBe('4');
      await session.end();
    },
  );

  test('is where the daemon works', async () => {
    const { url } = await emptyDatabase();
    await migrate(url, 'queue_a');
    const database = openDatabase({
      pooled: false,
      url,
      schema: 'queue_a',
      applicationName: 'test',
      connectionsMax: 2,
      statementTimeoutMs: 5000,
    });
    const store = jobStore(database, worker('worker'), { ...SETTINGS, leaseMs: 1 });
    const schedule = { name: 's', type: 'cleanup_queue', data: '{}', priority: 0 };
    expect(await store.tick(schedule, new Date(0))).toBe(true);
    const claimed = await claimOne(store);
    expect(await store.beat(new Map([[claimed.leaseId, [claimed.job.id]]]))).toEqual(new Set([claimed.job.id]));
    expect(await store.release([claimed.leaseId])).toBe(1);
    const [again] = await claim(store);
    expect(again && (await store.settle([settlement(again)], [again.leaseId]))).toEqual(['settled']);
    expect(await store.reap()).toEqual({ reaped: [], nextExpiryMs: null });
    await store.leave();
    await database.close();
  });
});
