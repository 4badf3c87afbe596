/** Each role of deploy/roles.sql does what it is for, and nothing else; and nobody can slip objects of theirs in. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import pg from 'pg';
import { allRoutes } from '../../src/admin/routes.js';
import { jobStore, pruneBatch } from '../../src/db/jobs.js';
import { migrate } from '../../src/db/migrate.js';
import { openDatabase } from '../../src/db/pool.js';
import { pauseQueue } from '../../src/db/reports.js';
import { buildApi, secretOf } from '../support/api.js';
import { createDatabase, createEmptyDatabase, type TestDatabase } from '../support/postgres.js';
import { createRoles, ROLES, type Role, rolesScript, type TestRoles } from '../support/roles.js';
import { SETTINGS, settlement, sqlState, worker } from '../support/store.js';

const PENDING = '00000000-0000-4000-8000-000000000001';
const PAUSED = '00000000-0000-4000-8000-000000000002';
const FAILED = '00000000-0000-4000-8000-000000000003';
const WINDOW = '{"from": "09:00", "to": "21:00", "time_zone": "UTC"}';

let database: TestDatabase;
let roles: TestRoles;
const clients = new Map<Role, pg.Client>();

beforeAll(async () => {
  database = await createDatabase();
  // As it was in every database before PostgreSQL 15.
  await database.query('grant create on schema public to public');
  roles = await createRoles(database);
  await database.query(
    `insert into broadcast_queue_jobs (job_id, job_type, job_data, status, unique_key) values
       ($1, 'send_broadcast', '{"broadcast_id": 1}', 'pending', 'taken'),
       ($2, 'send_broadcast', '{"broadcast_id": 2}', 'paused', null),
       ($3, 'send_broadcast', '{"broadcast_id": 3}', 'failed', null)`,
    [PENDING, PAUSED, FAILED],
  );
  for (const role of ROLES) clients.set(role, await connect(roles.urls[role]));
});
afterAll(async () => {
  await Promise.all([...clients.values()].map((client) => client.end()));
  await roles.drop();
  await database.drop();
});

async function connect(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => {});
  await client.connect();
  return client;
}

/** What becomes of a statement as each role, undone afterwards: the roles that may, and what the others are told. */
async function whoMay(sql: string): Promise<{ allowed: Role[]; refusals: string[] }> {
  const allowed: Role[] = [];
  const refusals = new Set<string>();
  for (const [role, client] of clients) {
    await client.query('begin');
    const state = await sqlState(client.query(sql));
    await client.query('rollback');
    if (state === null) allowed.push(role);
    else refusals.add(state);
  }
  return { allowed, refusals: [...refusals] };
}

const INSUFFICIENT_PRIVILEGE = '42501';

describe('only these may', () => {
  const producers: Role[] = ['enqueuer', 'operator', 'worker'];
  const readers: Role[] = ['operator', 'worker', 'viewer'];
  const operators: Role[] = ['operator', 'worker'];
  const everyRole: Role[] = ['enqueuer', 'operator', 'worker', 'viewer'];

  test.each<[string, string, Role[]]>([
    ['enqueue', `select broadcast_enqueue('send_broadcast', '{"broadcast_id": 9}', delay => '1 h')`, producers],
    ['find the live job of a key', `select broadcast_enqueue('x', '{}', unique_key => 'taken')`, producers],
    [
      'enqueue a batch, some of it there already',
      `select broadcast_enqueue_many('[{"job_type": "x", "job_data": {}, "unique_key": "taken"},
                                       {"job_type": "x", "job_data": {}, "expires_at": "2100-01-01"}]')`,
      producers,
    ],
    [
      'insert a plain row',
      `insert into broadcast_queue_jobs (job_type, job_data, priority, queue_name) values ('x', '{}', null, 'mine')
       returning id, job_id, status, due_at`,
      producers,
    ],
    ['follow a job', `select * from broadcast_progress('${PENDING}')`, everyRole],
    ['read the public columns', 'select job_id, status, attempts, error_message from broadcast_queue_jobs', everyRole],
    ['read every column', 'select * from broadcast_queue_jobs', readers],
    ['pause', `select broadcast_pause('${PENDING}')`, operators],
    ['resume', `select broadcast_resume('${PAUSED}')`, operators],
    ['cancel', `select broadcast_cancel('${PENDING}')`, operators],
    ['retry', `select broadcast_retry('${FAILED}')`, operators],
    ['send again', `select broadcast_resend('${FAILED}', 'failed')`, operators],
    ['resume for some people only', `select broadcast_resume('${PAUSED}', 'pending')`, operators],
    ['ask why a due job waits', `select broadcast_why_waiting('${PENDING}')`, readers],
    ['ask why a paused job waits', `select broadcast_why_waiting('${PAUSED}')`, readers],
    ['try a send window', `select * from broadcast_window_opens('${WINDOW}', now())`, everyRole],
    [
      'insert a job with a send window',
      `insert into broadcast_queue_jobs (job_type, job_data, send_window) values ('x', '{}', '${WINDOW}')`,
      producers,
    ],
    ['read the totals', 'select * from broadcast_queue_totals', readers],
    [
      'retry many at one stroke',
      `select * from broadcast_queue_act('retry', '{${FAILED}}', 'a', 'operator', 'r')`,
      operators,
    ],
    [
      'delete many at one stroke',
      `select * from broadcast_queue_act('delete', '{${FAILED}}', 'a', 'b', 'r')`,
      ['worker'],
    ],
    [
      'enqueue under a key',
      `select * from broadcast_queue_request('a', 'operator', 'r', 'k', '{"job_type": "x", "job_data": {}}')`,
      operators,
    ],
    ['set a limit', `select broadcast_set_limit('queue:mine', 5)`, ['worker']],
    ['drop a limit', `select broadcast_drop_limit('queue:mine')`, ['worker']],
    ['set a window', `select broadcast_set_window('mine', '${WINDOW}')`, ['worker']],
    ['close a gate', `select broadcast_close_gate('service', 1000)`, ['worker']],
    ['open a gate', `select broadcast_open_gate('service')`, ['worker']],
    ['set a retention', `select broadcast_set_retention('mine', 'failed', 3)`, ['worker']],
    ['fold the counts', 'select broadcast_queue_fold(10)', ['worker']],
    [
      'falsify the counts',
      `insert into broadcast_queue_differences (queue_name, status, jobs, processing_ms) values ('mine', 'x', 1, 0)`,
      ['worker'],
    ],
    ['tidy the audit log', 'delete from broadcast_queue_audit', ['worker']],
    ['pause a queue', `select broadcast_pause_queue('mine')`, operators],
    ['resume a queue', `select broadcast_resume_queue('mine')`, operators],
    ['set a job back by hand', `update broadcast_queue_jobs set status = 'pending' where id = 1`, operators],
    ['lock a row', 'select id from broadcast_queue_jobs for update', operators],
    ['change a payload', `update broadcast_queue_jobs set job_data = '{}' where id = 1`, ['worker']],
    ['delete', 'delete from broadcast_queue_jobs where id = 1', ['worker']],
    ['delete a failed job by its name', `select broadcast_delete('${FAILED}')`, ['worker']],
  ])('%s', async (_what, sql, allowed) => {
    expect(await whoMay(sql)).toEqual({ allowed, refusals: [INSUFFICIENT_PRIVILEGE] });
  });

  test.each([
    ...['leases', 'attempts', 'workers', 'schedules', 'pauses', 'migrations', 'limits', 'gates', 'services', 'windows'],
    ...['counts', 'differences', 'audit', 'requests', 'retention', 'abandoned'],
  ])('read the %s', async (name) => {
    expect(await whoMay(`select * from broadcast_queue_${name}`)).toEqual({
      allowed: readers,
      refusals: [INSUFFICIENT_PRIVILEGE],
    });
  });

  test.each([
    ['id', '1000'],
    ['status', `'completed'`],
    ['attempts', '1'],
    ['error_message', `'no'`],
    ['result', `'{}'`],
    ['started_at', 'now()'],
    ['completed_at', 'now()'],
    ['next_retry_at', 'now()'],
    ['created_at', 'now()'],
    ['lease_id', 'gen_random_uuid()'],
    ['epoch', '7'],
    ['stalled_calls', '1'],
    ['step_seq', '1'],
    ['step_cursor', `'x'`],
    ['progress', `'{}'`],
    ['flags', `'{}'`],
  ])('insert a row with a %s of their own', async (column, value) => {
    const sql = `insert into broadcast_queue_jobs (job_type, job_data, ${column}) values ('x', '{}', ${value})`;
    expect(await whoMay(sql)).toEqual({ allowed: ['worker'], refusals: [INSUFFICIENT_PRIVILEGE] });
  });
});

test.each([
  'truncate broadcast_queue_jobs',
  'alter table broadcast_queue_jobs disable trigger all',
  'drop function broadcast_retry(uuid)',
  'create index on broadcast_queue_jobs (status)',
  'insert into broadcast_queue_migrations (version, name, serves) values (99, $$x$$, 1)',
  'create table public.mine (id integer)',
  `create function public.mine() returns integer language sql return 1`,
])('nobody but the owner may %s', async (sql) => {
  expect(await whoMay(sql)).toEqual({ allowed: [], refusals: [INSUFFICIENT_PRIVILEGE] });
});

test('the worker may do everything that the daemon does', async () => {
  const mine = openDatabase({
    url: roles.urls.worker,
    schema: 'public',
    pooled: false,
    applicationName: 'broadcastd test',
    connectionsMax: 2,
    statementTimeoutMs: 15_000,
  });
  try {
    await liveThroughAll(mine);
  } finally {
    await mine.close();
    await database.query(`delete from broadcast_queue_jobs where job_id not in ($1, $2, $3)`, [
      PENDING,
      PAUSED,
      FAILED,
    ]);
    await database.query('delete from broadcast_queue_pauses');
  }
});

/** Every statement of the daemon's, once. */
async function liveThroughAll(mine: ReturnType<typeof openDatabase>): Promise<void> {
  const store = jobStore(mine, worker('a worker'), SETTINGS);
  await store.tick({ name: 'x', type: 'process_retries', data: '{}' }, new Date());
  const held = await store.claim(randomUUID(), new Map(), 10);
  const [claimed] = held.claims;
  if (!claimed) throw new Error('there was nothing to claim');
  expect(await store.beat(new Map([[claimed.leaseId, [claimed.job.id]]]))).toEqual(new Set([claimed.job.id]));
  expect(await store.settle([settlement(claimed, { record: 'done' })], [])).toEqual(['settled']);
  await store.release([claimed.leaseId]);
  await store.claim(randomUUID(), new Map(), 10);
  const late = jobStore(mine, worker('a worker'), { ...SETTINGS, leaseMs: 1 });
  await mine.query(`update "${mine.schema}".broadcast_queue_leases set expires_at = now() - interval '1 second'`);
  await late.reap();
  await pruneBatch(mine, { completedOlderThanDays: 0, deadOlderThanDays: 0, queue: null, everyQueueAlike: false }, '0');
  await pauseQueue(mine, 'mine', 'a test', 'a worker');
  await askAll(mine);
  await store.leave();
}

/** Every route of the API, once, as somebody who may use each; none may fail for lack of a privilege. */
async function askAll(mine: ReturnType<typeof openDatabase>): Promise<void> {
  const faults: Error[] = [];
  const app = buildApi(mine, { redacted: ['phone'], onError: (error) => faults.push(error) });
  const id = randomUUID();
  const bodies: Readonly<Record<string, object>> = {
    'POST /jobs': { job_type: 'x', job_data: {} },
    'POST /job/:jobId/resend': { scope: 'all' },
    'POST /:queueName/cleanup': { daysOld: 3000 },
    'PUT /:queueName/window': { from: '09:00', to: '21:00', time_zone: 'UTC' },
    'PUT /limits/:key': { per_second: 5 },
    'POST /failures/retry': { job_type: 'x', error_code: null, message: '' },
    'POST /failures/discard': { job_type: 'x', error_code: null, message: '' },
  };
  try {
    for (const { method, url } of allRoutes('0').filter(({ url }) => !url.endsWith('/events'))) {
      const path = url.replace(':jobId', id).replace(':queueName', 'mine').replace('limits/:key', 'limits/queue:mine');
      const bulk = /\/jobs\/(retry|cancel|delete)$/.test(url) ? { ids: [id] } : {};
      const answer = await app.inject({
        ...{ method, url: path.replace(':key', 'service') },
        headers: { authorization: `Bearer ${secretOf('admin')}`, 'idempotency-key': 'a-key' },
        payload: bodies[`${method} ${url.replace('/api/admin/queue', '')}`] ?? bulk,
      });
      expect([method, url, answer.statusCode < 500 && answer.statusCode !== 400]).toEqual([method, url, true]);
    }
    expect(faults).toEqual([]);
  } finally {
    await app.close();
  }
}

test.each(['enqueuer', 'operator'] as const)('what the %s changes is counted', async (role) => {
  const count = async () => {
    const [row] = await database.query<{ told: number; counted: number }>(
      `select (select sum(jobs)::integer from broadcast_queue_totals) as told,
              (select count(*)::integer from broadcast_queue_jobs) as counted`,
    );
    return row;
  };
  const before = await count();
  await clients.get(role)?.query(`select broadcast_enqueue('x', '{}', queue => 'mine')`);
  const after = await count();
  expect(after?.told).toBe(after?.counted);
  expect(after?.counted).toBe((before?.counted ?? 0) + 1);
});

test('no table of ours is forgotten: the worker may write each, the viewer read each', async () => {
  const forbidden = (role: Role, privilege: string) =>
    database.query<{ name: string }>(
      `select relname as name from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v')
         and not has_table_privilege($1, oid, $2) order by 1`,
      [new URL(roles.urls[role]).username, privilege],
    );
  expect(await forbidden('viewer', 'select')).toEqual([]);
  for (const privilege of ['insert', 'delete']) {
    expect(await forbidden('worker', privilege)).toEqual([{ name: 'broadcast_queue_migrations' }]);
  }
  // What the audit log says stays as it was said.
  const kept = [{ name: 'broadcast_queue_audit' }, { name: 'broadcast_queue_migrations' }];
  expect(await forbidden('worker', 'update')).toEqual(kept);
});

test('running the script again changes nothing, and takes away what was granted beyond it', async () => {
  const privileges = () =>
    database.query(
      `select relname as name, relacl::text as acl from pg_class where relname like 'broadcast%'
       union all select attname, attacl::text from pg_attribute where attacl is not null
       union all select proname, proacl::text from pg_proc where proname like 'broadcast%' order by 1, 2`,
    );
  const before = await privileges();
  await database.query('grant delete on broadcast_queue_jobs to public');
  await database.query('grant execute on all functions in schema public to public');
  await roles.apply();
  expect(await privileges()).toEqual(before);
});

test('the owner of the tables cannot be made one of the roles by mistake', async () => {
  const client = await connect(database.url);
  const [{ owner } = { owner: '' }] = await database.query<{ owner: string }>('select current_user as owner');
  await client.query("select set_config('broadcastd.enqueuer', $1, false)", [owner]);
  await expect(client.query(await rolesScript())).rejects.toThrow(`the role "${owner}" owns the tables`);
  await client.end();
});

describe('objects that somebody else made are not used in place of ours', () => {
  let other: TestDatabase;

  afterEach(() => other?.drop());

  test("a temporary table of the job table's name", async () => {
    const bot = clients.get('enqueuer');
    await bot?.query(
      'create temporary table broadcast_queue_jobs (job_id uuid, queue_name text, live_key text, job_data jsonb)',
    );
    await bot?.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": "temporary"}')`);
    const rows = await database.query(
      `select 1 from broadcast_queue_jobs where job_data ->> 'broadcast_id' = 'temporary'`,
    );
    expect(rows).toHaveLength(1);
    await bot?.query('drop table pg_temp.broadcast_queue_jobs');
  });

  test('operators and functions in "public" that fit better, with the queue in a schema of its own', async () => {
    other = await createEmptyDatabase();
    await migrate(other.url, 'queue_a');
    for (const [name, left, right] of [
      ['=', 'varchar', 'varchar'],
      ['<>', 'varchar', 'varchar'],
      ['||', 'varchar', 'varchar'],
      ['->>', 'jsonb', 'jsonb'],
      ['->', 'jsonb', 'jsonb'],
    ]) {
      const trap = `public.trap_${left}_${right}`;
      await other.query(
        `create or replace function ${trap}(${left}, ${right}) returns boolean language plpgsql as
         $$ begin raise exception 'hijacked' using errcode = 'ZZ999'; end $$`,
      );
      await other.query(`create operator public.${name} (leftarg = ${left}, rightarg = ${right}, function = ${trap})`);
    }
    await other.query(
      `create function public.starts_with(varchar, text) returns boolean language plpgsql as
       $$ begin raise exception 'hijacked' using errcode = 'ZZ999'; end $$`,
    );
    // The trap is a real one.
    expect(await sqlState(other.query(`select 'a'::varchar = 'a'`))).toBe('ZZ999');

    const add = `select (queue_a.broadcast_enqueue('send_segment_broadcast', '{"broadcast_id": 1, "segment_id": 2}')).job_id`;
    const [row] = await other.query<{ job_id: string }>(add);
    for (const sql of [
      add,
      `select queue_a.broadcast_enqueue_many('[{"job_type": "send_broadcast", "job_data": {"broadcast_id": 1}}]')`,
      `select queue_a.broadcast_usual_key('send_broadcast', '{"broadcast_id": 1}')`,
      `select * from queue_a.broadcast_progress('${row?.job_id}')`,
      `select queue_a.broadcast_pause('${row?.job_id}')`,
      `select queue_a.broadcast_resume('${row?.job_id}')`,
      `select queue_a.broadcast_cancel('${row?.job_id}')`,
      `select queue_a.broadcast_retry('${row?.job_id}')`,
      'select queue_a.broadcast_pause_queue()',
      'select queue_a.broadcast_resume_queue()',
    ]) {
      expect([sql, await sqlState(other.query(sql))]).toEqual([sql, null]);
    }

    const mine = openDatabase({
      url: other.url,
      schema: 'queue_a',
      pooled: false,
      applicationName: 'broadcastd test',
      connectionsMax: 2,
      statementTimeoutMs: 15_000,
    });
    try {
      await liveThroughAll(mine);
    } finally {
      await mine.close();
    }
  });
});
