/** Schedules and the deletion of old jobs. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { pruneBatch } from '../../src/db/jobs.js';
import { jobPruner } from '../../src/db/pruner.js';
import { Interrupted } from '../../src/errors.js';
import { claimOne, fromNow, openQueue, settlement, type TestQueue } from '../support/store.js';
import { until } from '../support/until.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

describe('a tick of a schedule', () => {
  const schedule = { name: 'nightly', type: 'cleanup_queue', data: '{"days_old": 7}' };
  const at = (minute: number) => new Date(Date.UTC(2026, 0, 1, 2, minute));

  async function finishAll(): Promise<void> {
    await queue.query("update broadcast_queue_jobs set status = 'completed'");
  }

  test('enqueues one job, in the queue usual for its type, however many daemons see it', async () => {
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, n) => queue.store(`worker ${n}`).tick(schedule, at(0))),
    );
    expect(answers.filter(Boolean)).toHaveLength(1);
    expect(await queue.jobs()).toMatchObject([
      { queue_name: 'cleanup', job_type: 'cleanup_queue', job_data: { days_old: 7 }, priority: 0, status: 'pending' },
    ]);
  });

  test('is used up for ever, also when its job is done', async () => {
    const store = queue.store();
    expect(await store.tick(schedule, at(5))).toBe(true);
    await finishAll();
    expect([await store.tick(schedule, at(5)), await store.tick(schedule, at(0))]).toEqual([false, false]);
    expect(await store.tick(schedule, at(10))).toBe(true);
  });

  test('is passed over while the job of the last one lives', async () => {
    const store = queue.store();
    await store.tick(schedule, at(0));
    const claimed = await claimOne(store);
    expect(await store.tick(schedule, at(5))).toBe(false);
    await store.settle([settlement(claimed)], [claimed.leaseId]);
    expect(await store.tick(schedule, at(10))).toBe(true);
  });

  test('does not meet that of another schedule', async () => {
    const store = queue.store();
    expect(await store.tick(schedule, at(0))).toBe(true);
    expect(await store.tick({ ...schedule, name: 'hourly' }, at(0))).toBe(true);
  });
});

describe('pruning', () => {
  const WHAT = { completedOlderThanDays: 7, deadOlderThanDays: 30, queue: null, everyQueueAlike: false };
  const never = new AbortController().signal;
  const prune = (what = {}) => jobPruner(queue.database).prune({ ...WHAT, ...what }, never);

  const finished = (status: string, days: number, columns = {}) =>
    queue.insert({ status, completed_at: fromNow(`-${days} days`), created_at: fromNow('-90 days'), ...columns });

  test('deletes completed jobs after one limit, and failed and cancelled ones after another', async () => {
    for (const status of ['completed', 'failed', 'cancelled']) {
      for (const days of [6, 8, 29, 31]) await finished(status, days);
    }
    expect(await prune()).toBe(3 + 1 + 1);
    const left = await queue.query(
      `select status, round(extract(epoch from now() - completed_at) / 86400)::integer as days
       from broadcast_queue_jobs order by id`,
    );
    expect(left.map(({ status, days }) => `${status} ${days}`)).toEqual([
      'completed 6',
      ...['failed 6', 'failed 8', 'failed 29'],
      ...['cancelled 6', 'cancelled 8', 'cancelled 29'],
    ]);
  });

  test('never deletes a job that lives, however old', async () => {
    for (const status of ['pending', 'processing', 'retry', 'paused']) await finished(status, 365);
    expect(await prune()).toBe(0);
  });

  test('deletes from the queue named only', async () => {
    await finished('completed', 8, { queue_name: 'mine' });
    await finished('completed', 8);
    expect(await prune({ queue: 'mine' })).toBe(1);
    expect(await queue.jobs()).toMatchObject([{ queue_name: 'broadcasts' }]);
  });

  test('keeps to the retention of a queue and status that has its own', async () => {
    await queue.query(`select broadcast_set_retention('logs', 'completed', 0.5),
      broadcast_set_retention('legal', 'completed', 3650), broadcast_set_retention('legal', 'failed', 3650)`);
    for (const queue_name of ['logs', 'legal', 'broadcasts']) {
      for (const days of [1, 8]) await finished('completed', days, { queue_name });
      await finished('failed', 31, { queue_name });
    }
    expect(await prune()).toBe(2 + 1 + 0 + 1 + 1);
    const left = await queue.query('select queue_name, status from broadcast_queue_jobs order by id');
    expect(left.map(({ queue_name, status }) => `${queue_name} ${status}`)).toEqual([
      ...['legal completed', 'legal completed', 'legal failed'],
      'broadcasts completed',
    ]);
    await queue.query(`select broadcast_set_retention('legal', 'completed', null)`);
    expect(await prune()).toBe(1);
  });

  test('asked for days of its own, it takes the completed of every queue alike', async () => {
    await queue.query(`select broadcast_set_retention('legal', 'completed', 3650)`);
    await finished('completed', 8, { queue_name: 'legal' });
    expect(await prune({ everyQueueAlike: true })).toBe(1);
  });

  test('spares a job that was sent back while it looked', async () => {
    const { job_id } = await finished('failed', 31);
    const session = await queue.session();
    await session.query('begin');
    await session.query('select broadcast_retry($1)', [job_id]);
    const pruned = prune();
    await until('it waits for the row', async () => (await waiting()) > 0);
    await session.query('commit');
    expect(await pruned).toBe(0);
  });

  const waiting = async () =>
    (await queue.query(`select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`))
      .length;

  test('takes the history of a job with it, and no other', async () => {
    const [gone, kept] = [await finished('failed', 31), await finished('failed', 1)];
    for (const { id } of [gone, kept]) {
      await queue.query(
        "insert into broadcast_queue_attempts (job, epoch, attempt, outcome) values ($1, 1, 1, 'failed')",
        [id],
      );
    }
    await prune();
    expect(await queue.attempts()).toMatchObject([{ job: kept.id }]);
  });

  test('goes through as many batches as it takes', async () => {
    await queue.query(
      `insert into broadcast_queue_jobs (job_type, job_data, status, completed_at, created_at)
       select 'send_broadcast', '{}', case when n % 2 = 0 then 'completed' else 'paused' end,
              now() - interval '60 days', now() - interval '60 days'
       from generate_series(1, 2500) n`,
    );
    const [first] = await queue.jobs();
    const batch = await pruneBatch(queue.database, WHAT, '0');
    expect(batch).toEqual({ deleted: 500, lastId: String(BigInt(first?.id ?? 0) + 999n) });
    expect(await prune()).toBe(750);
  });

  test('stops between batches when it is told to', async () => {
    const stop = AbortSignal.abort('shutdown');
    await expect(jobPruner(queue.database).prune(WHAT, stop)).rejects.toThrow(Interrupted);
  });
});
