import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { DataRefused } from '../../src/errors.js';
import type { Settlement, Store } from '../../src/queue/ports.js';
import { claim, claimOne, fromNow, msBetween, openQueue, settlement, type TestQueue } from '../support/store.js';

let queue: TestQueue;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
  store = queue.store();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

/** Inserts a job, claims it, settles it, and returns the row. */
async function settled(change: Partial<Settlement>, columns: Readonly<Record<string, unknown>> = {}) {
  await queue.insert(columns);
  return settleNext(change);
}

async function settleNext(change: Partial<Settlement>) {
  const claimed = await claimOne(store);
  expect(await store.settle([settlement(claimed, change)], [claimed.leaseId])).toEqual(['settled']);
  return queue.job(claimed.job.id);
}

describe('a settlement', () => {
  test('completes a job: its result is kept, its last error is not', async () => {
    const row = await settled(
      { status: 'completed', result: '{"sent": 3}', progress: { processed: 3, sent: 3 } },
      { status: 'retry', error_message: 'it had failed', error_code: 'timeout' },
    );
    expect(row).toMatchObject({
      status: 'completed',
      result: { sent: 3 },
      progress: { processed: 3, sent: 3 },
      error_message: null,
      error_code: null,
      completed_at: row.updated_at,
      next_retry_at: null,
      due_at: null,
    });
  });

  test('fails a job, with the error in words and as a code', async () => {
    const row = await settled({ status: 'failed', errorCode: 'http_400', errorMessage: 'no such broadcast' });
    expect(row).toMatchObject({
      status: 'failed',
      error_code: 'http_400',
      error_message: 'no such broadcast',
      attempts: 1,
      completed_at: row.updated_at,
      due_at: null,
    });
  });

  test('cancels a job that its service called off', async () => {
    const row = await settled({ status: 'cancelled', errorCode: 'cancelled', errorMessage: 'called off' });
    expect(row).toMatchObject({ status: 'cancelled', error_message: 'called off', completed_at: row.updated_at });
  });

  test("lets a job retry after the wait, by the database's clock", async () => {
    const row = await settled({ status: 'retry', dueInMs: 60_000, errorCode: 'timeout', previousFailure: 'timeout' });
    expect(row).toMatchObject({ status: 'retry', previous_failure: 'timeout', attempts: 1, completed_at: null });
    expect(Math.round(msBetween(row.updated_at, row.due_at) / 100)).toBe(600);
    expect(row.next_retry_at).toEqual(row.due_at);
  });

  test('holds a job with its reason', async () => {
    const row = await settled({ status: 'retry', dueInMs: 5000, attempts: 'refund', holdReason: 'quiet hours' });
    expect(row).toMatchObject({ status: 'retry', hold_reason: 'quiet hours', attempts: 0 });
    expect((await queue.job(row.id)).due_at).not.toBeNull();
  });

  test('ends a slice: the step moves on, nobody holds it, and it takes its place in line', async () => {
    const row = await settled({
      status: 'processing',
      dueInMs: 0,
      nextCursor: 'page 2',
      attempts: 'refund',
      progress: { processed: 100, total: 250 },
    });
    expect(row).toMatchObject({
      status: 'processing',
      lease_id: null,
      step_seq: 1,
      step_cursor: 'page 2',
      attempts: 0,
      progress: { processed: 100, total: 250 },
    });
    expect(await claimOne(store)).toMatchObject({
      first: false,
      processed: 100,
      job: { attempt: 1, epoch: 2, step: { seq: 1, cursor: 'page 2' } },
    });
  });

  test('keeps step, progress and result where it says nothing about them', async () => {
    const columns = { step_seq: 3, step_cursor: 'c', progress: { processed: 5 }, result: { a: 1 } };
    expect(await settled({ status: 'retry', dueInMs: 0 }, columns)).toMatchObject(columns);
  });

  test('hands a job back that was never called, as if nothing had been', async () => {
    const before = await queue.insert({ scheduled_at: fromNow('-1 hour') });
    const row = await settleNext({ status: 'pending', attempts: 'refund', unstarted: true });
    expect(row).toMatchObject({ status: 'pending', attempts: 0, started_at: null, due_at: before.scheduled_at });
    expect(await claimOne(store)).toMatchObject({ first: true, job: { attempt: 1, epoch: 2 } });
  });

  test.each(['pending', 'retry', 'processing'] as const)(
    'pauses a job, and a resume leads to %s',
    async (pausedFrom) => {
      const row = await settled({ status: 'paused', pausedFrom, holdReason: 'look at it' });
      expect(row).toMatchObject({ status: 'paused', paused_from: pausedFrom, hold_reason: 'look at it', due_at: null });
      await queue.query('select broadcast_resume($1)', [row.job_id]);
      expect((await claimOne(store)).job.id).toBe(row.id);
    },
  );

  test('sets the count of attempts back when the call made progress', async () => {
    const row = await settled(
      { status: 'processing', dueInMs: 0, attempts: 'reset' },
      { status: 'retry', attempts: 2 },
    );
    expect(row.attempts).toBe(0);
  });

  test('adds its flags to those that are there, each once', async () => {
    const row = await settled(
      { flags: ['possible_duplicate', 'incomplete', 'untracked'] },
      { flags: ['untracked', 'incomplete'] },
    );
    expect(row.flags).toEqual(['incomplete', 'possible_duplicate', 'untracked']);
  });

  test('raises the epoch above what the service has seen, but never lowers it', async () => {
    expect((await settled({ status: 'retry', dueInMs: 0, raiseEpochAbove: 40 })).epoch).toBe(40);
    expect((await settleNext({ status: 'retry', dueInMs: 0, raiseEpochAbove: 7 })).epoch).toBe(41);
  });

  test('leaves room for later claims, however high an epoch the service asks for', async () => {
    for (const raiseEpochAbove of [2 ** 31 - 1, Number.MAX_SAFE_INTEGER]) {
      await settled({ status: 'retry', dueInMs: 0, raiseEpochAbove });
      expect(await settleNext({ status: 'completed' })).toMatchObject({ status: 'completed', epoch: 2_000_000_001 });
    }
  });

  test('is written with its secrets made unreadable', async () => {
    const discreet = queue.store('discreet', { masked: (text) => text.replaceAll('sesame', '***') });
    await queue.insert();
    const claimed = await claimOne(discreet);
    await discreet.settle([settlement(claimed, { result: '{"key": "sesame"}', errorMessage: 'no sesame' })], []);
    expect(await queue.job(claimed.job.id)).toMatchObject({ result: { key: '***' }, error_message: 'no ***' });
  });
});

describe('calls without progress', () => {
  test('are counted, with the time of the first; progress starts the count over', async () => {
    const stalled = { status: 'retry', dueInMs: 0, stalled: 'call' } as const;
    const first = await settled(stalled, { max_attempts: 9 });
    expect(first.stalled_calls).toBe(1);
    const second = await settleNext(stalled);
    expect(second).toMatchObject({ stalled_calls: 2, stalled_since: first.stalled_since });
    expect(await settleNext({ status: 'pending', attempts: 'refund' })).toMatchObject({
      stalled_calls: 2,
      stalled_since: first.stalled_since,
    });
    expect(await settleNext({ status: 'processing', dueInMs: 0 })).toMatchObject({
      stalled_calls: 0,
      stalled_since: null,
    });
  });
});

describe('the history', () => {
  test('has no row for a settlement that asks for none', async () => {
    await settled({ status: 'completed' });
    expect(await queue.attempts()).toEqual([]);
  });

  test('tells of the attempt as it was, before the next one', async () => {
    const row = await settled({
      status: 'retry',
      dueInMs: 0,
      errorCode: 'http_503',
      errorMessage: 'busy',
      httpStatus: 503,
      record: 'retry',
      ranMs: 3000,
    });
    const [entry] = await queue.attempts();
    expect(entry).toMatchObject({
      job: row.id,
      epoch: 1,
      attempt: 1,
      step_seq: 0,
      worker_id: 'worker',
      outcome: 'retry',
      error_code: 'http_503',
      error_message: 'busy',
      http_status: 503,
    });
    const [ran] = await queue.query<{ seconds: number }>(
      'select round(extract(epoch from finished_at - started_at))::integer as seconds from broadcast_queue_attempts',
    );
    expect(ran).toEqual({ seconds: 3 });
  });

  test('says why a job is held', async () => {
    await settled({ status: 'retry', dueInMs: 0, holdReason: 'quiet hours', record: 'held' });
    expect(await queue.attempts()).toMatchObject([{ outcome: 'held', error_message: 'quiet hours' }]);
  });
});

describe('a batch', () => {
  test('is answered in its order, and forgets the leases that are finished with it', async () => {
    for (let n = 0; n < 3; n++) await queue.insert({ max_attempts: n + 1 });
    const first = await claim(store, 2);
    const second = await claim(store, 1);
    const [one, two, three] = [...first, ...second];
    if (!one || !two || !three) throw new Error('three jobs were to be claimed');
    await queue.query('select broadcast_cancel($1)', [two.job.jobId]);
    const answers = await store.settle(
      [settlement(three, { result: '3' }), settlement(two, { result: '2' }), settlement(one, { result: '1' })],
      [three.leaseId],
    );
    expect(answers).toEqual(['settled', 'cancelled', 'settled']);
    expect((await queue.jobs()).map(({ status, result }) => [status, result])).toEqual([
      ['completed', 1],
      ['cancelled', null],
      ['completed', 3],
    ]);
    expect((await queue.leases()).map(({ lease_id }) => lease_id)).toEqual([one.leaseId]);
  });

  test('of none still forgets the leases', async () => {
    await queue.insert();
    const { leaseId } = await claimOne(store);
    expect(await store.settle([], [leaseId])).toEqual([]);
    expect(await queue.leases()).toEqual([]);
  });

  test.each([
    ['a NUL in a result', { result: '{"text": "\\u0000"}' }],
    ['a result that is no JSON', { result: '{' }],
    ['a NUL in an error', { errorMessage: 'a\u0000b' }],
    ['half of a surrogate pair', { result: '"\\ud800"' }],
  ])('with %s in it is refused as data, and nothing of it applies', async (_, change) => {
    await queue.insert();
    await queue.insert();
    const claims = await claim(store);
    const before = [await queue.jobs(), await queue.leases()];
    const batch = claims.map((claimed, n) => settlement(claimed, n === 1 ? change : { record: 'failed' }));
    await expect(store.settle(batch, [claims[0]?.leaseId ?? ''])).rejects.toThrow(DataRefused);
    expect([await queue.jobs(), await queue.leases()]).toEqual(before);
    expect(await queue.attempts()).toEqual([]);
  });
});
