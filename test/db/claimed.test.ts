/** What a claim makes of a row, and what it tells of it. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Store } from '../../src/queue/ports.js';
import { claim, claimOne, fromNow, openQueue, settlement, type TestQueue } from '../support/store.js';

let queue: TestQueue;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
  store = queue.store();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

describe('a claimed job', () => {
  test('is processing under a fresh lease that names it, its worker and its end', async () => {
    const [one, two] = [await queue.insert(), await queue.insert()];
    const [claimed] = await claim(queue.store('somebody'));
    expect(await queue.job(one.id)).toMatchObject({
      status: 'processing',
      lease_id: claimed?.leaseId,
      attempts: 1,
      epoch: 1,
      due_at: null,
    });
    const [lease] = await queue.query(
      `select lease_id, worker_id, job_ids, expires_at between now() + interval '50 seconds' and now() + interval '60 seconds'
         as lasts from broadcast_queue_leases`,
    );
    expect(lease).toEqual({
      lease_id: claimed?.leaseId,
      worker_id: 'somebody',
      job_ids: [one.id, two.id],
      lasts: true,
    });
  });

  test('has a higher epoch and one attempt more with every claim', async () => {
    await queue.insert();
    const seen: number[][] = [];
    for (let round = 0; round < 3; round++) {
      const claimed = await claimOne(store);
      seen.push([claimed.job.epoch, claimed.job.attempt]);
      await store.settle([settlement(claimed, { status: 'retry', dueInMs: 0 })], [claimed.leaseId]);
    }
    expect(seen).toEqual([
      [1, 1],
      [2, 2],
      [3, 3],
    ]);
  });

  test('starts over at attempt 1 when somebody set it back to pending with its attempts spent', async () => {
    await queue.insert({ attempts: 3, max_attempts: 3 });
    expect((await claimOne(store)).job.attempt).toBe(1);
  });

  test('keeps its count when it was set back to pending with attempts left', async () => {
    await queue.insert({ attempts: 1, max_attempts: 3 });
    expect((await claimOne(store)).job.attempt).toBe(2);
  });

  test('is expired when its time passed before the first call, and never later', async () => {
    const expires = { expires_at: fromNow('-1 second') };
    await queue.insert(expires);
    expect(await claimOne(store)).toMatchObject({ expired: true, first: true });
    await queue.insert({ ...expires, started_at: fromNow('-1 hour') });
    expect(await claimOne(store)).toMatchObject({ expired: false, first: false });
    await queue.insert({ expires_at: fromNow('1 minute') });
    expect(await claimOne(store)).toMatchObject({ expired: false, first: true });
  });

  test("carries the row's payload as Postgres holds it, its step, its wait and the database's clock", async () => {
    await queue.insert({
      job_data: '{"broadcast_id": 9007199254740993, "x": [1.50, null]}',
      status: 'processing',
      next_retry_at: fromNow('-5 seconds'),
      step_seq: 4,
      step_cursor: 'here',
      step_scope: 'failed',
      previous_failure: 'timeout',
      progress: { processed: 70 },
      stalled_calls: 2,
      stalled_since: fromNow('-1 minute'),
    });
    const claimed = await claimOne(store);
    expect(claimed.job.payload).toBe('{"x": [1.50, null], "broadcast_id": 9007199254740993}');
    expect(claimed.job.step).toEqual({
      seq: 4,
      cursor: 'here',
      scope: 'failed',
      previousFailure: 'timeout',
      operation: null,
    });
    expect(claimed).toMatchObject({ processed: 70, stalledCalls: 2, oversizeBytes: null });
    expect(Math.round(claimed.stalledForMs / 10_000)).toBe(6);
    expect(Math.round(claimed.waitedMs / 5000)).toBe(1);
    const [now] = await queue.query<{ ms: number }>(
      'select extract(epoch from clock_timestamp())::float8 * 1000 as ms',
    );
    expect(Math.abs(claimed.job.databaseNow() - (now?.ms ?? 0))).toBeLessThan(2000);
  });

  test('does not keep others from being claimed by what somebody wrote into its progress', async () => {
    for (const progress of ['{"processed": "many"}', '{"processed": 1e999}', '[]', '"x"', 'null']) {
      await queue.insert({ progress });
    }
    expect((await claim(store)).map(({ processed }) => processed)).toEqual([0, expect.any(Number), 0, 0, 0]);
  });

  test('does not mind columns that the bot added', async () => {
    await queue.query("alter table broadcast_queue_jobs add column bot_note text default 'mine'");
    const row = await queue.insert({ bot_note: 'yours' });
    const claimed = await claimOne(store);
    expect(await store.settle([settlement(claimed)], [claimed.leaseId])).toEqual(['settled']);
    expect(await queue.job(row.id)).toMatchObject({ status: 'completed', bot_note: 'yours' });
    await queue.query('alter table broadcast_queue_jobs drop column bot_note');
  });
});
