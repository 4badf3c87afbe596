import { afterEach, describe, expect, test } from '@jest/globals';
import pg from 'pg';
import { jobStore, pruneBatch } from '../../src/db/jobs.js';
import { type BroughtOver, bringOver } from '../../src/db/legacy.js';
import { checkLegacy, type LegacyPlan, planLegacy } from '../../src/db/legacy-plan.js';
import { findOldTable, type OldTable } from '../../src/db/legacy-shape.js';
import { connected, migrate, pendingMigrations, SchemaError } from '../../src/db/migrate.js';
import { findOldPollers } from '../../src/db/old-pollers.js';
import { openDatabase } from '../../src/db/pool.js';
import { createOldTable, OLD_INSERT, pollEvery } from '../support/old-bot.js';
import { createEmptyDatabase, type TestDatabase } from '../support/postgres.js';
import { claim, SETTINGS, settlement, worker } from '../support/store.js';
import { until } from '../support/until.js';

const opened: TestDatabase[] = [];
const sessions: pg.Client[] = [];

afterEach(async () => {
  await Promise.all(sessions.splice(0).map((session) => session.end()));
  await Promise.all(opened.splice(0).map((database) => database.drop()));
});

async function emptyDatabase(): Promise<TestDatabase> {
  const database = await createEmptyDatabase();
  opened.push(database);
  return database;
}

async function oldDatabase(): Promise<TestDatabase> {
  const database = await emptyDatabase();
  await createOldTable(database);
  return database;
}

async function session(database: TestDatabase): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  sessions.push(client);
  return client;
}

/** As the command does it. */
async function over(
  database: TestDatabase,
  zone: string | null = 'UTC',
  say: (sentence: string) => void = () => {},
): Promise<BroughtOver> {
  return withOld(database, async (client, old) => bringOver(client, old, await checkLegacy(client, old, zone), say));
}

async function plan(database: TestDatabase, zone: string | null = 'UTC'): Promise<LegacyPlan> {
  return withOld(database, async (client, old) => planLegacy(client, old, await checkLegacy(client, old, zone)));
}

function withOld<T>(database: TestDatabase, work: (client: pg.Client, old: OldTable) => Promise<T>): Promise<T> {
  return connected(database.url, async (client) => {
    const old = await findOldTable(client, 'public');
    if (!old) throw new Error('no old table');
    return work(client, old);
  });
}

/** One old row; `at` is its created_at and scheduled_at, counted from now. */
async function row(database: TestDatabase, status: string | null, at = '-2 days', more = ''): Promise<void> {
  await database.query(
    `insert into broadcast_queue_jobs (queue_name, job_type, job_data, status, created_at, scheduled_at)
     values ('broadcasts', 'send_broadcast', '{"broadcast_id": 1}', $1,
             (now() at time zone 'UTC') + $2::interval, (now() at time zone 'UTC') + $2::interval)`,
    [status, at],
  );
  if (more)
    await database.query(
      `update broadcast_queue_jobs set ${more} where id = (select max(id) from broadcast_queue_jobs)`,
    );
}

const jobs = (database: TestDatabase) => database.query('select * from broadcast_queue_jobs order by id');

describe('the rows', () => {
  test('keep their status where it is certain, and are paused with a reason where they may have been sent', async () => {
    const database = await oldDatabase();
    for (const status of ['completed', 'failed', 'cancelled', 'processing', 'retry', 'paused', 'sending', null]) {
      await row(database, status, '-10 minutes');
    }
    for (const at of ['-59 minutes', '-61 minutes', '+3 minutes']) await row(database, 'pending', at);
    await row(database, 'pending', '-3 days', `scheduled_at = (now() at time zone 'UTC') - interval '50 minutes'`);
    await row(database, 'pending', '-3 days', `scheduled_at = (now() at time zone 'UTC') + interval '1 day'`);
    await row(database, 'pending', '-1 minute', 'created_at = null, scheduled_at = null');

    const planned = await plan(database);
    const done = await over(database);
    const maybe = (why: string) => ['paused', 'pending', expect.stringMatching(`^may have been sent already .*${why}`)];
    expect((await jobs(database)).map((job) => [job.status, job.paused_from, job.hold_reason])).toEqual([
      ['completed', null, null],
      ['failed', null, null],
      ['cancelled', null, null],
      maybe('was processing'),
      maybe('waited for a retry'),
      ['paused', 'pending', expect.stringMatching('^it was paused')],
      maybe('status in the old table was "sending"'),
      maybe('had no status'),
      ['pending', null, null],
      maybe('more than an hour'),
      maybe('in the future'),
      ['pending', null, null],
      ['pending', null, null],
      maybe('more than an hour'),
    ]);
    const verdicts: Record<string, number> = {};
    for (const { verdict, rows } of planned.statuses) verdicts[verdict] = (verdicts[verdict] ?? 0) + rows;
    expect(done).toMatchObject({ rows: 14, verdicts });
  });

  test('that are paused say how to resume and how to cancel them, in statements that work', async () => {
    const database = await oldDatabase();
    for (const status of ['processing', 'retry']) await row(database, status);
    await over(database);
    const [first, second] = await jobs(database);
    const statements = (text: string) => text.match(/SELECT \w+\('[0-9a-f-]+'\)/g) ?? [];
    const [resume] = statements(first?.hold_reason);
    const [, cancel] = statements(second?.hold_reason);
    await database.query(resume ?? '');
    await database.query(cancel ?? '');
    expect((await jobs(database)).map(({ status }) => status)).toEqual(['pending', 'cancelled']);
  });

  test.each([
    ['Europe/Berlin', ['2025-03-30', '2025-10-26']],
    ['America/New_York', ['2025-03-09', '2025-11-02']],
  ])('have the right times across the changes of the clock in %s, whatever the sessions say', async (zone, days) => {
    const database = await oldDatabase();
    await database.query(
      `do $$ begin execute format('alter database %I set timezone = ''Asia/Tokyo''', current_database()); end $$`,
    );
    await database.query(
      `insert into broadcast_queue_jobs (queue_name, job_type, job_data, status, created_at, scheduled_at, started_at,
         completed_at, next_retry_at, updated_at)
       select 'broadcasts', 'send_broadcast', '{}', 'completed', at, at, at, at, at, at
       from unnest($1::timestamp[]) day, generate_series(day - interval '3 hours', day + interval '9 hours', '15 minutes') at`,
      [days],
    );
    const planned = await plan(database, zone.toLowerCase());
    await over(database, zone.toLowerCase());
    const [counts] = await database.query(
      `select count(*)::integer as rows, count(*) filter (where
         (n.created_at, n.scheduled_at, n.started_at, n.completed_at, n.next_retry_at, n.updated_at) is distinct from
         (o.created_at at time zone $1, o.scheduled_at at time zone $1, o.started_at at time zone $1,
          o.completed_at at time zone $1, o.next_retry_at at time zone $1, o.updated_at at time zone $1))::integer as wrong
       from broadcast_queue_jobs n join broadcast_queue_jobs_legacy o using (id, job_id)`,
      [zone],
    );
    expect(counts).toEqual({ rows: 98, wrong: 0 });
    // Four quarters of an hour in each of six columns.
    const hour = zone === 'Europe/Berlin' ? ['02', '02'] : ['02', '01'];
    expect(planned).toMatchObject({
      timezone: zone,
      clockChanges: [
        { hour: `${days[0]} ${hour[0]}:00`, shown: 'never', times: 24 },
        { hour: `${days[1]} ${hour[1]}:00`, shown: 'twice', times: 24 },
      ],
    });
    const offset = await database.query(
      `select extract(epoch from (select created_at from broadcast_queue_jobs_legacy where id = n.id) - (n.created_at at time zone 'UTC'))::integer / 3600 as hours
       from broadcast_queue_jobs n where (select to_char(created_at, 'YYYY-MM-DD HH24:MI') from broadcast_queue_jobs_legacy where id = n.id) = $1`,
      [`${days[1]} ${hour[1]}:30`],
    );
    // Standard time.
    expect(offset).toEqual([{ hours: zone === 'Europe/Berlin' ? 1 : -5 }]);
  });

  test('that are not fit for the new table are made fit, and the plan says how many', async () => {
    const database = await emptyDatabase();
    await database.query(`
      create type old_status as enum ('pending', 'completed');
      create table broadcast_queue_jobs (
        id smallint primary key, job_id text, queue_name text, job_type text, job_data text, status old_status,
        attempts bigint, max_attempts bigint, error_message text, result json, scheduled_at timestamptz,
        completed_at timestamptz, created_at timestamptz, bot_id integer);
      insert into broadcast_queue_jobs values
        (1, 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 'Bulk Mails!', 'send_broadcast', '{"broadcast_id": 12345678901234567890}',
         'completed', 1, 3, repeat('ж', 2000), '{"a": "\\u0000"}', null, null, '2025-01-01Z', 5),
        (2, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'status', null, 'see {below}', 'completed', -1, 0, 'x' || repeat('ж', 2000),
         'null', '2025-01-01Z', '2025-01-02Z', null, 6),
        (3, 'job-3', null, repeat('t', 60), null, 'completed', null, null, 'short', null, null, null, null, 7),
        (4, null, '9lives', 'custom', '[1, 2]', 'completed', 3000000000, 3000000000, repeat('ab', 1024), '{"sent": 1}',
         '2025-01-01Z', '2025-01-02Z', '2025-01-01Z', 8)`);
    const planned = await plan(database, null);
    await over(database, null);
    const [one, two, three, four] = await jobs(database);
    const uuid = expect.stringMatching(/^[0-9a-f]{8}-/);
    expect(one).toMatchObject({
      job_id: 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
      queue_name: 'bulk-mails-',
      error_message: 'ж'.repeat(1024),
      result: { legacy_text: '{"a": "\\u0000"}' },
      scheduled_at: new Date('2025-01-01Z'),
      completed_at: new Date('2025-01-01Z'),
    });
    expect(two).toMatchObject({
      job_id: uuid,
      queue_name: 'q-status',
      job_type: 'unknown',
      job_data: { legacy_text: 'see {below}' },
      attempts: 0,
      max_attempts: 3,
      error_message: `x${'ж'.repeat(1023)}`,
      result: null,
      created_at: new Date('2025-01-01Z'),
    });
    expect(two?.job_id).not.toBe(one?.job_id);
    expect(three).toMatchObject({
      job_id: uuid,
      queue_name: 'broadcasts',
      job_type: 't'.repeat(50),
      job_data: {},
      attempts: 0,
      max_attempts: 3,
      error_message: 'short',
      result: null,
      completed_at: expect.any(Date),
    });
    expect(four).toMatchObject({
      queue_name: 'q-9lives',
      job_data: [1, 2],
      attempts: 0,
      max_attempts: 3,
      error_message: 'ab'.repeat(1024),
      result: { sent: 1 },
    });
    const exact = await database.query(
      `select job_data ->> 'broadcast_id' as id from broadcast_queue_jobs where id = 1`,
    );
    expect(exact).toEqual([{ id: '12345678901234567890' }]);

    expect(planned.queuesRenamed).toEqual([
      { from: '9lives', to: 'q-9lives', rows: 1 },
      { from: 'Bulk Mails!', to: 'bulk-mails-', rows: 1 },
      { from: 'status', to: 'q-status', rows: 1 },
    ]);
    const repaired = Object.fromEntries(
      planned.repairs.map(({ what, rows }) => [what.split(' ').slice(0, 3).join(' '), rows]),
    );
    expect(repaired).toEqual({
      'job_id missing or': 2,
      'job_id used before': 1,
      'queue_name changed (see': 4,
      'job_type missing or': 2,
      "job_data missing: '{}'": 1,
      'job_data is not': 1,
      'result is not': 1,
      'attempts missing or': 3,
      'max_attempts missing or': 3,
      'error_message longer than': 2,
      'created_at missing: the': 2,
      'scheduled_at missing: created_at': 2,
      'completed_at missing on': 2,
    });
    expect(planned.columns.filter(({ carried }) => !carried)).toEqual([
      { name: 'bot_id', type: 'integer', default: null, carried: false },
    ]);
  });

  test('may be in a queue of any name: each becomes one that the new table accepts', async () => {
    const database = await emptyDatabase();
    await migrate(database.url, 'public');
    const [check] = await database.query<{ text: string }>(
      `select pg_get_constraintdef(oid) as text from pg_constraint where conname = 'queue_name_is_addressable'`,
    );
    const forbidden = check?.text.split('<> ALL')[1] ?? '';
    const reserved = [...forbidden.matchAll(/'([a-z]+)'::character/g)].map(([, word]) => word);
    expect(reserved).toContain('audit');
    const old = await oldDatabase();
    const names = [
      ...reserved,
      '',
      ' ',
      '-',
      '_x',
      'Ünïcode',
      'ÄÖÜ',
      'x'.repeat(50),
      '0'.repeat(50),
      'a.b/c',
      'STATUS',
      'I',
    ];
    await old.query(
      `insert into broadcast_queue_jobs (queue_name, job_type, job_data, status)
       select name, 'send_broadcast', '{}', 'completed' from unnest($1::text[]) name`,
      [names],
    );
    expect((await over(old)).rows).toBe(names.length);
    expect((await jobs(old)).map(({ queue_name }) => queue_name).slice(0, reserved.length)).toEqual(
      reserved.map((word) => `q-${word}`),
    );
  });

  test('leave room for ids above 2^31, and none of theirs is given out again', async () => {
    const database = await oldDatabase();
    await row(database, 'completed');
    await database.query('update broadcast_queue_jobs set id = 2147483647');
    await over(database);
    expect(await database.query(OLD_INSERT, ['broadcasts', 'send_broadcast', {}, 3])).toMatchObject([
      { id: '2147483648' },
    ]);

    const drawn = await oldDatabase();
    await drawn.query(`select nextval('broadcast_queue_jobs_id_seq') from generate_series(1, 9)`);
    await over(drawn);
    expect(await drawn.query(OLD_INSERT, ['broadcasts', 'send_broadcast', {}, 3])).toMatchObject([{ id: '10' }]);
    expect(await drawn.query(`select nextval('broadcast_queue_jobs_id_seq') as id`)).toEqual([{ id: '11' }]);
  });
});

describe('the table', () => {
  test('is ours as an ordinary migration makes it, and the old one stays as it was under another name', async () => {
    const database = await oldDatabase();
    await row(database, 'retry', '-1 day', `error_message = 'no'`);
    const before = await jobs(database);
    await over(database);
    const fresh = await emptyDatabase();
    await migrate(fresh.url, 'public');
    // NOT NULL is compared by column; its constraints, which PostgreSQL 18 names, may have any name.
    const shape = `
      select pg_get_indexdef(indexrelid) as definition from pg_index where indrelid = 'broadcast_queue_jobs'::regclass
      union all select pg_get_triggerdef(oid) || tgenabled::text from pg_trigger where tgrelid = 'broadcast_queue_jobs'::regclass
      union all select conname || pg_get_constraintdef(oid) from pg_constraint
        where conrelid = 'broadcast_queue_jobs'::regclass and contype <> 'n'
      union all select concat_ws(' ', column_name, data_type, is_nullable, column_default) from information_schema.columns
        where table_name = 'broadcast_queue_jobs'
      union all select pg_get_serial_sequence('broadcast_queue_jobs', 'id') order by 1`;
    expect(await database.query(shape)).toEqual(await fresh.query(shape));
    expect(await database.query('select * from broadcast_queue_jobs_legacy')).toEqual(before);
    expect(await pendingMigrations(database.url, 'public')).toEqual([]);
    expect(await migrate(database.url, 'public')).toEqual([]);
    await database.query('drop table broadcast_queue_jobs_legacy');
  });

  test('belongs to whom it belonged, and who might use it still may', async () => {
    const database = await oldDatabase();
    const suffix = new URL(database.url).pathname.slice(1);
    const [owner, bot, auditor] = [`owner_${suffix}`, `Bot "${suffix}"`, `auditor_${suffix}`];
    const roles = [owner, bot, auditor].map((name) => pg.escapeIdentifier(name));
    await database.query(`
      ${roles.map((role) => `create role ${role};`).join(' ')}
      grant create, usage on schema public to ${roles[0]};
      alter table broadcast_queue_jobs owner to ${roles[0]};
      grant insert, select, update on broadcast_queue_jobs to ${roles[1]};
      grant usage on sequence broadcast_queue_jobs_id_seq to ${roles[1]};
      grant select (job_id, status) on broadcast_queue_jobs to ${roles[2]} with grant option;`);
    const planned = await plan(database);
    expect(planned.grants).toHaveLength(6);
    const privileges = `
      select (select relowner::regrole::text from pg_class where oid = 'broadcast_queue_jobs'::regclass) as owner,
        (select array_agg(a::text order by 1) from pg_class, unnest(relacl) a where oid = 'broadcast_queue_jobs'::regclass) as of_table,
        (select array_agg(a::text order by 1) from pg_class, unnest(relacl) a where oid = 'broadcast_queue_jobs_id_seq'::regclass) as of_sequence,
        (select array_agg(attname || a::text order by 1) from pg_attribute, unnest(attacl) a where attrelid = 'broadcast_queue_jobs'::regclass) as of_columns`;
    const [before] = await database.query(privileges);
    await over(database);
    expect(await database.query(privileges)).toEqual([before]);

    const client = await session(database);
    await client.query(`set role ${roles[1]}`);
    const { rows } = await client.query(OLD_INSERT, ['broadcasts', 'send_broadcast', {}, 3]);
    expect(rows).toHaveLength(1);
    await expect(client.query('delete from broadcast_queue_jobs')).rejects.toThrow('permission denied');
    await client.query('reset role');
    await client.query(`drop owned by ${roles.join(', ')} cascade; drop role ${roles.join(', ')}`);
  });

  test('is the one in which the statements end that waited for it, prepared ones as well', async () => {
    const database = await oldDatabase();
    for (const status of ['pending', 'processing', 'pending']) await row(database, status, '-1 minute');
    const [reader, inserter, updater, preparer] = await Promise.all([1, 2, 3, 4].map(() => session(database)));
    if (!reader || !inserter || !updater || !preparer) throw new Error('no sessions');
    const prepared = { name: 'old', text: `UPDATE broadcast_queue_jobs SET status = 'completed' WHERE id = $1` };
    await preparer.query(prepared, [1]);
    await reader.query('begin; select * from broadcast_queue_jobs');
    const waiting = (n: number) =>
      until(`${n} wait`, async () => {
        const [locks] = await database.query<{ n: number }>(
          `select count(*)::integer as n from pg_locks where not granted and relation = 'broadcast_queue_jobs'::regclass`,
        );
        return locks?.n === n;
      });
    const migrated = over(database);
    await waiting(1);
    const statements = [
      inserter.query(OLD_INSERT, ['broadcasts', 'send_broadcast', { broadcast_id: 9 }, 5]),
      updater.query(`UPDATE broadcast_queue_jobs SET status = 'completed', completed_at = NOW() WHERE id = 2`),
      preparer.query(prepared, [3]),
    ];
    await waiting(4);
    await reader.query('commit');
    expect((await migrated).rows).toBe(3);
    expect((await Promise.all(statements)).map(({ rowCount }) => rowCount)).toEqual([1, 1, 1]);
    expect((await jobs(database)).map(({ id, status }) => [id, status])).toEqual([
      ['1', 'completed'],
      ['2', 'completed'],
      ['3', 'completed'],
      ['4', 'pending'],
    ]);
    expect(await database.query('select count(*)::integer as n from broadcast_queue_jobs_legacy')).toEqual([{ n: 3 }]);
  });

  test('is tried for again when somebody holds it, and the holder is named', async () => {
    const database = await oldDatabase();
    const holder = await session(database);
    await holder.query(`set application_name = 'long report'; begin; select * from broadcast_queue_jobs`);
    const told: string[] = [];
    const migrated = over(database, 'UTC', (sentence) => told.push(sentence));
    await until('it was told', async () => told.length > 0);
    await holder.query('commit');
    expect((await migrated).rows).toBe(0);
    expect(told).toEqual([
      expect.stringMatching(
        /could not be locked in time because of .*pid \d+ "long report", idle in transaction.*\(2 of 5\)/,
      ),
    ]);
  });

  if (process.env.LONG_TESTS === '1') {
    test('is left alone when it stays in use, and nothing was changed', async () => {
      const database = await oldDatabase();
      const holder = await session(database);
      await holder.query('begin; select * from broadcast_queue_jobs');
      await expect(over(database)).rejects.toThrow(/in time because of .*, 5 times\. Nothing was changed\./);
      expect(await database.query(`select to_regclass('broadcast_queue_leases') as made`)).toEqual([{ made: null }]);
    }, 40_000);
  }

  test('is given back at once to a bot that drew an id first and would wait for us while we wait for it', async () => {
    const database = await oldDatabase();
    const bot = await session(database);
    await bot.query(`begin; select nextval('broadcast_queue_jobs_id_seq')`);
    const told: string[] = [];
    const migrated = over(database, 'UTC', (sentence) => told.push(sentence));
    await until('the sequence is waited for', async () => {
      const [waiting] = await database.query(
        `select 1 from pg_locks where not granted and relation = 'broadcast_queue_jobs_id_seq'::regclass`,
      );
      return waiting;
    });
    await bot.query(OLD_INSERT, ['broadcasts', 'send_broadcast', {}, 3]);
    await bot.query('commit');
    expect((await migrated).rows).toBe(1);
    expect(told).toHaveLength(1);
  });

  test('may be in a schema of any name', async () => {
    const database = await oldDatabase();
    await row(database, 'retry');
    await database.query(`create schema "Bot's ""B"""; alter table broadcast_queue_jobs set schema "Bot's ""B"""`);
    const done = await connected(database.url, async (client) => {
      const old = await findOldTable(client, `Bot's "B"`);
      if (!old) throw new Error('no old table');
      return bringOver(client, old, await checkLegacy(client, old, 'UTC'), () => {});
    });
    expect(done.rows).toBe(1);
    const [job] = await database.query(`select hold_reason from "Bot's ""B""".broadcast_queue_jobs`);
    await database.query(/SELECT .*?\)(?=;)/.exec(job?.hold_reason)?.[0] ?? '');
    expect(await database.query(`select status from "Bot's ""B""".broadcast_queue_jobs`)).toEqual([
      { status: 'pending' },
    ]);
  });
});

/** What a count over the table says beside what the daemon and the API are told. */
async function counts(database: TestDatabase) {
  const counted = await database.query(
    `select queue_name, status, count(*)::integer as jobs,
       sum(broadcast_queue_processing_ms(status, started_at, completed_at))::float8 as processing_ms
     from broadcast_queue_jobs group by 1, 2 order by 1, 2`,
  );
  const told = await database.query(
    'select queue_name, status, jobs::integer, processing_ms::float8 from broadcast_queue_totals order by 1, 2',
  );
  return { counted, told };
}

describe('afterwards', () => {
  test('the counts are exact at once, and stay so through the bot’s statements and the daemon’s', async () => {
    const database = await oldDatabase();
    for (const status of ['completed', 'failed', 'cancelled', 'processing', 'retry', 'paused', 'sending']) {
      await row(database, status, '-2 hours', `queue_name = 'mine'`);
      await row(database, status, '-2 hours');
    }
    await row(
      database,
      'completed',
      '-2 hours',
      `started_at = created_at, completed_at = created_at + interval '7 seconds'`,
    );
    for (const at of ['-10 minutes', '-10 minutes', '-3 hours']) await row(database, 'pending', at);
    await over(database);
    const fresh = await counts(database);
    expect(fresh.told).toEqual(fresh.counted);
    expect(fresh.told).toContainEqual({ queue_name: 'broadcasts', status: 'completed', jobs: 2, processing_ms: 7000 });

    await database.query(OLD_INSERT, ['broadcasts', 'send_broadcast', { broadcast_id: 7 }, 3]);
    await database.query(`UPDATE broadcast_queue_jobs SET status = 'completed', updated_at = NOW() WHERE id = 2`);
    const mine = openDatabase({
      ...{ url: database.url, schema: 'public', pooled: false, applicationName: 'broadcastd test' },
      ...{ connectionsMax: 2, statementTimeoutMs: 15_000 },
    });
    try {
      const store = jobStore(mine, worker('worker'), SETTINGS);
      const claims = await claim(store);
      expect(claims).toHaveLength(3);
      await store.settle(
        claims.map((each) => settlement(each)),
        claims.map(({ leaseId }) => leaseId),
      );
      while (await store.fold());
      const old = { completedOlderThanDays: 0, deadOlderThanDays: 0, queue: 'mine', everyQueueAlike: false };
      await database.query(`select broadcast_set_retention('mine', 'failed', 3)`);
      await pruneBatch(mine, old, '0');
    } finally {
      await mine.close();
    }
    const later = await counts(database);
    expect(later.told).toEqual(later.counted);
    // Of the finished ones in this queue, retention keeps the failed one alone.
    const ended = ['completed', 'failed', 'cancelled'];
    const left = later.told.filter((total) => total.queue_name === 'mine' && ended.includes(String(total.status)));
    expect(left).toEqual([{ queue_name: 'mine', status: 'failed', jobs: 1, processing_ms: 0 }]);
  });

  test('bots, windows, limits and sending again know the rows as any others', async () => {
    const database = await oldDatabase();
    await row(database, 'pending', '-10 minutes', `job_data = '{"broadcast_id": 1, "bot_id": "shop"}'`);
    await row(database, 'pending', '-10 minutes', `queue_name = 'nightly'`);
    await row(database, 'completed');
    await over(database);
    const [shop, nightly, done] = await jobs(database);
    expect(shop).toMatchObject({ bot_id: 'shop', names_bot: true });
    const why = async (job: { job_id: string } | undefined) => {
      const [answer] = await database.query<{ why: string }>('select broadcast_why_waiting($1) as why', [job?.job_id]);
      return answer?.why;
    };
    await database.query(`select broadcast_close_gate('bot:shop', 60000, 'slow down')`);
    expect(await why(shop as { job_id: string })).toMatch(/^the gate bot:shop is closed until .*: slow down$/);
    await database.query(`select broadcast_open_gate('bot:shop'), broadcast_set_limit('queue:nightly', 5)`);
    await database.query(
      `select broadcast_set_window('nightly', jsonb_build_object('time_zone', 'UTC',
         'from', to_char(now() at time zone 'UTC' + interval '2 hours', 'HH24:MI'),
         'to', to_char(now() at time zone 'UTC' + interval '3 hours', 'HH24:MI')))`,
    );
    expect(await why(nightly as { job_id: string })).toMatch(/^waiting for its send window, until /);
    await database.query(`select broadcast_resend($1, 'failed')`, [done?.job_id]);
    expect((await jobs(database))[2]).toMatchObject({ status: 'pending', step_seq: 1, step_scope: 'failed', epoch: 1 });
  });
});

describe('nothing is changed', () => {
  /** Every relation and function with its identity, and every row with the transaction that wrote it. */
  const everything = async (database: TestDatabase) => [
    ...(await database.query(
      `select oid, relname, relacl::text, relowner from pg_class where relnamespace = 'public'::regnamespace order by oid`,
    )),
    ...(await database.query(
      `select oid, proname from pg_proc where pronamespace = 'public'::regnamespace order by oid`,
    )),
    ...(await database.query('select xmin::text as written_by, t.* from broadcast_queue_jobs t order by id')),
  ];

  test('by a plan, which says what will be left behind', async () => {
    const database = await oldDatabase();
    await row(database, 'pending');
    await database.query(`
      create view failed_broadcasts as select * from broadcast_queue_jobs where status = 'failed';
      create table receipts (job integer references broadcast_queue_jobs (id));
      alter table broadcast_queue_jobs add column bot_id integer, add constraint known_bot check (bot_id > 0)`);
    const before = await everything(database);
    const planned = await plan(database, 'Europe/Berlin');
    expect(await everything(database)).toEqual(before);
    expect(planned.left.map(({ kind, name }) => `${kind} ${name}`)).toEqual([
      'check known_bot',
      'foreign key to it receipts_job_fkey of receipts',
      'index broadcast_queue_jobs_due',
      'index idx_broadcast_queue_status',
      'trigger broadcast_queue_touch',
      'view failed_broadcasts',
    ]);
    await over(database, 'Europe/Berlin');
  });

  test('by the daemon’s own migration, which names the command', async () => {
    const database = await oldDatabase();
    const before = await everything(database);
    for (const look of [migrate, pendingMigrations]) {
      await expect(look(database.url, 'public')).rejects.toThrow(SchemaError);
      await expect(look(database.url, 'public')).rejects.toThrow('"broadcastd migrate --legacy-timezone ZONE"');
    }
    expect(await everything(database)).toEqual(before);
  });

  test.each<[string, string, string | null, string]>([
    ['without a time zone', '', null, '"broadcastd migrate --legacy-timezone Europe/Berlin"'],
    ['with one that does not exist', '', 'Germany/Berlin', '"Germany/Berlin" (Europe/Berlin?)'],
    ['with one that would end the string', '', "UTC'; drop table x", 'knows no time zone'],
    ['where the backup’s name is taken', 'create table broadcast_queue_jobs_legacy ()', 'UTC', 'drop it or rename it'],
    [
      'where a column is of a strange type',
      'alter table broadcast_queue_jobs alter attempts type text',
      'UTC',
      'its column attempts is of the type text',
    ],
    [
      'where ids are not unique',
      'alter table broadcast_queue_jobs drop constraint broadcast_queue_jobs_pkey; insert into broadcast_queue_jobs select * from broadcast_queue_jobs',
      'UTC',
      '1 of its rows',
    ],
    ['where a name of ours is taken', 'create table broadcast_queue_leases ()', 'UTC', 'Everything was undone'],
    [
      'when the copy has another number of rows',
      `create function lose_rows() returns event_trigger language plpgsql as $$
         begin
           if exists (select from pg_event_trigger_ddl_commands() where object_identity = 'public.broadcast_queue_jobs') then
             create rule lose as on insert to public.broadcast_queue_jobs do instead nothing;
           end if;
         end $$;
       create event trigger lose_rows on ddl_command_end when tag in ('CREATE TABLE') execute function lose_rows()`,
      'UTC',
      'has another number of completed jobs',
    ],
  ])('%s: it refuses and says why', async (_case, preparation, zone, words) => {
    const database = await oldDatabase();
    await row(database, 'completed', '-1 day', 'job_id = null');
    if (preparation) await database.query(preparation);
    const before = await everything(database);
    const refused = over(database, zone);
    await expect(refused).rejects.toThrow(SchemaError);
    await expect(refused).rejects.toThrow(words);
    expect(await everything(database)).toEqual(before);
  });
});

test('an old worker is found by its polling; a forgotten prompt and the bot are not', async () => {
  const database = await oldDatabase();
  const poller = await pollEvery(database.url, 200);
  const prompt = await session(database);
  await prompt.query(`select * from broadcast_queue_jobs where status = 'pending'`);
  const bot = await session(database);
  const inserting = setInterval(() => void bot.query(OLD_INSERT, ['broadcasts', 'send_broadcast', {}, 3]), 100);
  const { pollers } = await connected(database.url, findOldPollers);
  clearInterval(inserting);
  await poller.stop();
  expect(pollers).toEqual([
    {
      pid: expect.any(Number),
      user: 'postgres',
      applicationName: 'old worker',
      clientAddress: expect.stringMatching(/\d/),
      query: expect.stringMatching(/^SELECT \* FROM broadcast_queue_jobs WHERE status = 'pending'.{0,60}$/),
    },
  ]);
  expect((await connected(database.url, findOldPollers)).pollers).toEqual([]);
});

test('sessions that may not be looked into are counted instead of overlooked', async () => {
  const database = await oldDatabase();
  const stranger = await session(database);
  await stranger.query('select 1');
  const name = `migrator_${new URL(database.url).pathname.slice(1)}`;
  await database.query(`create role ${name} login password 'secret'`);
  const url = new URL(database.url);
  url.username = name;
  url.password = 'secret';
  const found = await connected(url.href, findOldPollers);
  expect(found.pollers).toEqual([]);
  expect(found.hiddenSessions).toBeGreaterThanOrEqual(1);
  await database.query(`drop role ${name}`);
});
