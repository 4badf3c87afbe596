import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { claimOne, openQueue, settlement, type TestQueue } from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterAll(() => queue.close());
beforeEach(() => queue.clear());

const TOTAL = 1000;

/** One slice that took so long, as the row remembers it. */
async function slice(seconds: number, processed: number): Promise<void> {
  const store = queue.store();
  const claimed = await claimOne(store);
  await queue.query(
    `update broadcast_queue_jobs set started_at = now() - $1 * interval '1 second',
            progress_at = case when progress_at is not null then now() - $1 * interval '1 second' end`,
    [seconds],
  );
  const gained = processed - claimed.processed;
  await store.settle(
    [
      settlement(claimed, {
        status: processed === TOTAL ? 'completed' : 'processing',
        dueInMs: 0,
        nextCursor: String(processed),
        progress: { total: TOTAL, processed, sent: processed },
        gained,
      }),
    ],
    [claimed.leaseId],
  );
}

async function told(): Promise<{ percent: number; per_second: number | null; eta_seconds: number | null }> {
  const [row] = await queue.query<Record<string, string | null>>(
    'select p.* from broadcast_queue_jobs j, broadcast_progress(j.job_id) p',
  );
  const number = (text: string | null | undefined) => (text === null || text === undefined ? null : Number(text));
  return {
    percent: Number(row?.percent),
    per_second: number(row?.per_second),
    eta_seconds: number(row?.eta_seconds),
  };
}

test('a broadcast at an even pace tells its rate and when it will be done', async () => {
  await queue.insert();
  for (const processed of [100, 200, 300, 400]) await slice(10, processed);
  const { percent, per_second, eta_seconds } = await told();
  expect(percent).toBe(40);
  expect(per_second).toBeCloseTo(10, 0);
  expect(eta_seconds).toBeGreaterThan(55);
  expect(eta_seconds).toBeLessThan(65);
});

test('the rate follows a change of pace within about a minute', async () => {
  await queue.insert();
  for (const processed of [100, 200]) await slice(10, processed);
  await slice(60, 260);
  // After a minute at one a second, 1 − 1/e of the way from ten is behind it.
  expect((await told()).per_second).toBeCloseTo(1 + 9 * Math.exp(-1), 0);
});

test('a slice without progress leaves rate and time alone', async () => {
  await queue.insert();
  await slice(10, 100);
  const before = await queue.query('select progress_rate, progress_at from broadcast_queue_jobs');
  const store = queue.store();
  const claimed = await claimOne(store);
  await store.settle([settlement(claimed, { status: 'retry', dueInMs: 0 })], [claimed.leaseId]);
  expect(await queue.query('select progress_rate, progress_at from broadcast_queue_jobs')).toEqual(before);
});

test('what has ended has no rate and no time to go', async () => {
  await queue.insert();
  await slice(10, 500);
  await slice(10, 1000);
  expect(await told()).toEqual({ percent: 100, per_second: null, eta_seconds: null });
});
