/** Whose word counts: a settlement by somebody who lost the job, one that comes twice, one that meets an operator. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Claim, SettleAnswer, Settlement, Store } from '../../src/queue/ports.js';
import { claimOne, type JobRow, msBetween, openQueue, settlement, type TestQueue } from '../support/store.js';
import { until } from '../support/until.js';

let queue: TestQueue;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
  store = queue.store();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

const plain = (assignments: string) => () => queue.query(`update broadcast_queue_jobs set ${assignments}`);
const call = (name: string) => () => queue.query(`select ${name}(job_id) from broadcast_queue_jobs`);
const reap = async () => {
  await queue.expireLeases();
  await queue.reaper().reap();
};
const claimAgain = async (before: () => Promise<unknown>) => {
  await before();
  await claimOne(queue.store('another'));
};

/** Each way of losing a job and what its late words are answered, and each kind of late word. */
const LOSSES: [string, () => Promise<unknown>, SettleAnswer][] = [
  ['an operator cancelled it', call('broadcast_cancel'), 'cancelled'],
  ['an operator cancelled and retried it', () => call('broadcast_cancel')().then(call('broadcast_retry')), 'lost'],
  ['it was reaped', reap, 'lost'],
  ['it was reaped and claimed again', () => claimAgain(reap), 'lost'],
  ['somebody set it to pending by a plain UPDATE', plain("status = 'pending'"), 'lost'],
  ['somebody set it to pending and it was claimed again', () => claimAgain(plain("status = 'pending'")), 'lost'],
  [
    'its lease was released',
    async () => store.release((await queue.leases()).map((row) => String(row.lease_id))),
    'lost',
  ],
  ['its row was deleted', () => queue.query('delete from broadcast_queue_jobs'), 'lost'],
];
const WORDS: Partial<Settlement>[] = [
  { status: 'completed', result: '"late"', progress: { processed: 1 }, record: 'late' },
  { status: 'failed', errorMessage: 'late', record: 'failed' },
  { status: 'retry', dueInMs: 0, errorMessage: 'late', attempts: 'reset', raiseEpochAbove: 99 },
  { status: 'processing', dueInMs: 0, nextCursor: 'late' },
  { status: 'pending', attempts: 'refund', unstarted: true },
  { status: 'paused', pausedFrom: 'retry', holdReason: 'late', flags: ['untracked'] },
];

describe('a late word is lost and changes nothing', () => {
  test.each(LOSSES)('when %s', async (_, lose, answer) => {
    await queue.insert();
    const claimed = await claimOne(store);
    await lose();
    const before = [await queue.jobs(), await queue.attempts()];
    for (const word of WORDS) {
      expect([word.status, await store.settle([settlement(claimed, word)], [])]).toEqual([word.status, [answer]]);
      expect([await queue.jobs(), await queue.attempts()]).toEqual(before);
    }
  });

  test('when it names a lease that never held the job', async () => {
    await queue.insert();
    const claimed = await claimOne(store);
    const before = await queue.jobs();
    expect(await store.settle([settlement({ ...claimed, leaseId: randomUUID() })], [])).toEqual(['lost']);
    expect(await queue.jobs()).toEqual(before);
  });

  test('when the cancel that it meets is committed first', async () => {
    const row = await queue.insert();
    const claimed = await claimOne(store);
    const session = await queue.session();
    await session.query('begin');
    await session.query('select broadcast_cancel($1)', [row.job_id]);
    const answer = store.settle([settlement(claimed)], []);
    await until('the settlement waits for the cancel', async () => {
      const waiting = await queue.query("select from pg_locks where not granted and locktype = 'transactionid'");
      return waiting.length > 0;
    });
    await session.query('commit');
    expect(await answer).toEqual(['lost']);
    expect((await queue.job(row.id)).status).toBe('cancelled');
  });
});

describe('the same settlement again', () => {
  test.each(['completed', 'failed', 'retry', 'cancelled', 'paused'] as const)(
    'is known when it was %s',
    async (status) => {
      const row = await queue.insert();
      const claimed = await claimOne(store);
      const word = settlement(claimed, { status, dueInMs: status === 'retry' ? 0 : null, record: status });
      expect(await store.settle([word], [claimed.leaseId])).toEqual(['settled']);
      const before = [await queue.job(row.id), await queue.attempts()];
      expect(await store.settle([word], [claimed.leaseId])).toEqual(['already']);
      expect([await queue.job(row.id), await queue.attempts()]).toEqual(before);
    },
  );

  test.each(['processing', 'pending'] as const)('changes nothing when it was %s', async (status) => {
    const row = await queue.insert();
    const claimed = await claimOne(store);
    const word = settlement(claimed, { status, dueInMs: 0, attempts: 'refund', nextCursor: 'next' });
    expect(await store.settle([word], [])).toEqual(['settled']);
    const before = await queue.job(row.id);
    expect(await store.settle([word], [])).toEqual(['lost']);
    expect(await queue.job(row.id)).toEqual(before);
  });

  test('is lost once the job was claimed again', async () => {
    await queue.insert();
    const claimed = await claimOne(store);
    const word = settlement(claimed, { status: 'retry', dueInMs: 0 });
    await store.settle([word], []);
    await claimOne(store);
    expect(await store.settle([word], [])).toEqual(['lost']);
  });
});

describe('a pause asked for while the job runs', () => {
  async function pausedInMidCall(reason: string | null, change: Partial<Settlement>): Promise<[Claim, JobRow]> {
    const { id, job_id } = await queue.insert();
    const claimed = await claimOne(store);
    expect(await queue.query('select broadcast_pause($1, $2) as answer', [job_id, reason])).toEqual([
      { answer: 'pausing' },
    ]);
    expect(await queue.job(id)).toMatchObject({ status: 'processing', lease_id: claimed.leaseId, epoch: 1 });
    expect(await store.settle([settlement(claimed, change)], [claimed.leaseId])).toEqual(['settled']);
    return [claimed, await queue.job(id)];
  }

  test.each([
    ['retry', { dueInMs: 60_000, errorMessage: 'busy', stalled: 'call' }],
    ['processing', { dueInMs: 0, nextCursor: 'next', progress: { processed: 1 } }],
    ['pending', { attempts: 'refund', unstarted: true }],
  ] as const)('holds back what would go on as %s, until it is resumed', async (status, change) => {
    const [, row] = await pausedInMidCall(null, { status, ...change });
    expect(row).toMatchObject({
      status: 'paused',
      paused_from: status,
      hold_reason: 'paused by an operator',
      pause_requested_at: null,
      due_at: null,
    });
    await queue.query('select broadcast_resume($1)', [row.job_id]);
    const resumed = await queue.job(row.id);
    expect(resumed).toMatchObject({ status, paused_from: null, hold_reason: null });
    expect(resumed.due_at).toEqual(status === 'pending' ? row.scheduled_at : row.next_retry_at);
    if (status === 'retry') expect(msBetween(row.updated_at, resumed.due_at)).toBeGreaterThan(59_000);
  });

  test('keeps the reason that the operator gave', async () => {
    const [, row] = await pausedInMidCall('wrong text', { status: 'retry', dueInMs: 0, holdReason: 'quiet hours' });
    expect(row.hold_reason).toBe('wrong text');
  });

  test.each(['completed', 'failed', 'cancelled'] as const)('does not undo a result: %s wins', async (status) => {
    const [, row] = await pausedInMidCall('wrong text', { status });
    expect(row).toMatchObject({ status, paused_from: null, hold_reason: null, pause_requested_at: null });
  });

  test('is forgotten when it is resumed before the call ends', async () => {
    const { id, job_id } = await queue.insert();
    const claimed = await claimOne(store);
    await queue.query('select broadcast_pause($1)', [job_id]);
    await queue.query('select broadcast_resume($1)', [job_id]);
    await store.settle([settlement(claimed, { status: 'retry', dueInMs: 0 })], []);
    expect(await queue.job(id)).toMatchObject({ status: 'retry', hold_reason: null });
  });

  test('holds for the next claim as well when the lease is released', async () => {
    const { id, job_id } = await queue.insert();
    const { leaseId } = await claimOne(store);
    await queue.query('select broadcast_pause($1)', [job_id]);
    expect(await store.release([leaseId])).toBe(1);
    expect(await queue.job(id)).toMatchObject({
      status: 'paused',
      paused_from: 'pending',
      attempts: 0,
      started_at: null,
      hold_reason: 'paused by an operator',
      pause_requested_at: null,
    });
  });
});
