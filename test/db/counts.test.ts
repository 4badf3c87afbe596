import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { claim, claimOne, fromNow, openQueue, settlement, type TestQueue } from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

const totals = () =>
  queue.query(
    'select queue_name, status, jobs::integer, processing_ms::float8 from broadcast_queue_totals order by 1, 2',
  );

/** What a count over the whole table says. */
const counted = () =>
  queue.query(`select queue_name, status, count(*)::integer as jobs,
      coalesce(sum((extract(epoch from completed_at - started_at) * 1000)::bigint)
        filter (where status = 'completed' and completed_at > started_at), 0)::float8 as processing_ms
    from broadcast_queue_jobs group by 1, 2 order by 1, 2`);

describe('the totals', () => {
  test('are what a count over the table says, after everything that changes jobs, folded or not', async () => {
    const store = queue.store();
    await queue.query(`insert into broadcast_queue_jobs (job_type, job_data, queue_name, scheduled_at)
      select 'send_broadcast', '{"broadcast_id": 1}', case n % 3 when 0 then 'mine' else 'broadcasts' end,
             now() - interval '1 minute' from generate_series(1, 60) n`);
    expect(await totals()).toEqual(await counted());
    const claims = await claim(store, 20);
    expect(await totals()).toEqual(await counted());
    await store.settle(
      claims.map((each, i) => settlement(each, { status: i % 2 ? 'completed' : 'failed' })),
      claims.map(({ leaseId }) => leaseId),
    );
    await store.fold();
    expect(await totals()).toEqual(await counted());
    await claim(store, 5);
    await queue.expireLeases();
    await queue.reaper().reap();
    await queue.query(`select broadcast_retry(job_id) from broadcast_queue_jobs where status = 'failed' limit 3`);
    await queue.query(`select broadcast_pause(job_id) from broadcast_queue_jobs where status = 'pending' limit 3`);
    await queue.query(`select broadcast_cancel(job_id) from broadcast_queue_jobs where status = 'pending' limit 3`);
    await queue.query(`update broadcast_queue_jobs set queue_name = 'moved' where status = 'retry'`);
    await queue.query(`delete from broadcast_queue_jobs where status = 'completed' and id % 2 = 0`);
    expect(await totals()).toEqual(await counted());
    while (await store.fold());
    expect(await queue.query('select from broadcast_queue_differences')).toEqual([]);
    expect(await totals()).toEqual(await counted());
  });

  test('leave out what was rolled back, and wait for nobody', async () => {
    const idle = await queue.session();
    await idle.query(`begin; insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', '{}')`);
    await queue.insert();
    await queue.store().fold();
    expect(await totals()).toMatchObject([{ jobs: 1 }]);
    await idle.query('rollback');
    expect(await totals()).toEqual(await counted());
  });

  test('are right however many fold at once', async () => {
    await Promise.all(Array.from({ length: 50 }, () => queue.insert()));
    await Promise.all(Array.from({ length: 6 }, () => queue.store().fold()));
    expect(await totals()).toEqual(await counted());
  });

  test('are nothing after a TRUNCATE', async () => {
    await queue.insert();
    await queue.query('truncate broadcast_queue_jobs');
    expect(await totals()).toEqual([]);
  });
});

describe('why a job waits', () => {
  const why = async (jobId: string) => {
    const [row] = await queue.query<{ why: string | null }>('select broadcast_why_waiting($1) as why', [jobId]);
    return row?.why;
  };
  /** One that is alive. */
  const aDaemon = (slots: Record<string, number>) => queue.store(JSON.stringify(slots), { slots }).beat(new Map());

  test('an ended or running job, or none, does not wait', async () => {
    await queue.insert();
    const running = await claimOne(queue.store());
    const ended = await queue.insert({ status: 'completed' });
    expect(await Promise.all([running.job.jobId, ended.job_id, randomUUID()].map(why))).toEqual([null, null, null]);
  });

  test.each<[string, Record<string, unknown>, RegExp]>([
    ['due later', { scheduled_at: fromNow('1 hour') }, /^due at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC$/],
    [
      'a retry',
      { status: 'retry', attempts: 1, next_retry_at: fromNow('1 hour'), error_message: 'it hung' },
      /^retry 2 of 3 at .* UTC, after: it hung$/,
    ],
    ['held', { status: 'retry', next_retry_at: fromNow('1 hour'), hold_reason: 'quiet hours' }, /^quiet hours, until /],
    ['paused', { status: 'paused', hold_reason: 'a look first' }, /^paused: a look first$/],
    [
      'at the service',
      { status: 'processing', operation_url: '/o/1', next_retry_at: fromNow('1 hour') },
      /^the service is at it, and is asked again at /,
    ],
  ])('%s', async (_name, columns, sentence) => {
    const { job_id } = await queue.insert(columns);
    expect(await why(job_id)).toMatch(sentence);
  });

  test('a paused queue says by whom and since when', async () => {
    const { job_id } = await queue.insert();
    await queue.query(`select broadcast_pause_queue('broadcasts', 'the API is down', 'alice')`);
    expect(await why(job_id)).toMatch(/^the queue broadcasts is paused by alice since .* UTC: the API is down$/);
    await queue.query(`select broadcast_pause_queue('*', null, 'bob')`);
    expect(await why(job_id)).toMatch(/^all queues are paused by bob since .* UTC$/);
    await queue.query('delete from broadcast_queue_pauses');
  });

  test('gates, the breaker and limits are named', async () => {
    const { job_id } = await queue.insert({ job_data: { broadcast_id: 1, bot_id: 'shop' } });
    await queue.query(`select broadcast_set_limit('queue:broadcasts', 30)`);
    await queue.query(`select broadcast_queue_grant('broadcasts', 'shop', 30)`);
    expect(await why(job_id)).toMatch(/^the limit queue:broadcasts \(30 a second\) is used up until /);
    await queue.query(`select broadcast_close_gate('bot:shop', 60000, 'answered 429')`);
    expect(await why(job_id)).toMatch(/^the gate bot:shop is closed until .* UTC: answered 429$/);
    await queue.query(`update broadcast_queue_services
      set opened_at = now(), open_until = now() + interval '4 seconds', last_error = 'refused'`);
    expect(await why(job_id)).toMatch(/^the breaker is open since .* \(refused\); the next probe goes out at /);
    await queue.query(`update broadcast_queue_services set opened_at = null, open_until = null`);
  });

  test('a limit on jobs at once says how many run', async () => {
    await queue.insert();
    await queue.query(`select broadcast_set_limit('queue:broadcasts', null, 1)`);
    await claimOne(queue.store());
    const { job_id } = await queue.insert();
    expect(await why(job_id)).toBe('1 of 1 jobs at once are running under the limit queue:broadcasts');
  });

  test('no daemon, none with slots, none free', async () => {
    await queue.query('delete from broadcast_queue_workers');
    const { job_id } = await queue.insert({ scheduled_at: fromNow('-1 minute') });
    expect(await why(job_id)).toBe('no daemon is running');
    await aDaemon({ other: 2, '*': 0 });
    expect(await why(job_id)).toBe('no running daemon has slots for the queue broadcasts (CONCURRENCY)');
    await aDaemon({ '*': 2 });
    expect(await why(job_id)).toMatch(/^due since .* UTC: every slot of its queue is busy, or other jobs come first$/);
    const fresh = await queue.insert();
    expect(await why(fresh.job_id)).toBe('due now: it is called as soon as a daemon has taken it');
  });

  test('a window that no daemon has looked at yet is named', async () => {
    const [hours] = await queue.query<{ hours: unknown }>(
      `select jsonb_build_object('from', to_char(now() at time zone 'UTC' + interval '2 hours', 'HH24:MI'),
         'to', to_char(now() at time zone 'UTC' + interval '3 hours', 'HH24:MI'), 'time_zone', 'UTC') as hours`,
    );
    const { job_id } = await queue.insert({ send_window: hours?.hours });
    expect(await why(job_id)).toMatch(/^waiting for its send window, until .* UTC$/);
  });
});
