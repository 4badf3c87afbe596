/** Sending again to some of the people, and what the service runs by itself (an operation) in the database. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Settlement } from '../../src/queue/ports.js';
import {
  claimOne,
  fromNow,
  type JobRow,
  msBetween,
  openQueue,
  settlement,
  sqlState,
  type TestQueue,
} from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

const OPERATION = '/operations/7';

const resend = (row: JobRow, scope: string | null) =>
  queue.query('select broadcast_resend($1, $2) as answer', [row.job_id, scope]);
const resume = (row: JobRow, scope: string | null) =>
  queue.query('select broadcast_resume($1, $2) as answer', [row.job_id, scope]);
const abandoned = () => queue.query('select job, operation_url, tries from broadcast_queue_abandoned order by id');

/** What a broadcast that has gone through a lot leaves in its row. */
const USED = {
  attempts: 2,
  epoch: 5,
  step_seq: 6,
  step_cursor: 'page 7',
  progress: { processed: 40, failed: 4 },
  started_at: fromNow('-2 hours'),
  stalled_calls: 3,
  stalled_since: fromNow('-1 hour'),
  outage_calls: 7,
  previous_failure: 'timeout',
  error_code: 'http_500',
  error_message: 'it broke',
  hold_reason: 'so it was',
  flags: ['incomplete', 'possible_duplicate'],
};
const RESENDABLE: Record<string, Readonly<Record<string, unknown>>> = {
  pending: {},
  retry: { status: 'retry', next_retry_at: fromNow('1 hour') },
  paused: { status: 'paused', paused_from: 'processing', next_retry_at: fromNow('1 hour') },
  completed: { status: 'completed', completed_at: fromNow('-1 hour') },
  failed: { status: 'failed', completed_at: fromNow('-1 hour') },
  cancelled: { status: 'cancelled', completed_at: fromNow('-1 hour') },
};

describe('a resend', () => {
  test.each(Object.entries(RESENDABLE))(
    'of a %s job begins a new step for the scope, due at once',
    async (_, columns) => {
      const before = await queue.insert({ ...USED, ...columns });
      expect(await resend(before, 'failed')).toEqual([{ answer: 'pending' }]);
      const after = await queue.job(before.id);
      expect(after).toMatchObject({
        status: 'pending',
        attempts: 0,
        epoch: 6,
        step_seq: 7,
        step_cursor: null,
        step_scope: 'failed',
        progress: { processed: 40, failed: 4 },
        started_at: before.started_at,
        completed_at: null,
        next_retry_at: null,
        stalled_calls: 0,
        stalled_since: null,
        outage_calls: 0,
        previous_failure: null,
        paused_from: null,
        hold_reason: null,
        error_code: null,
        error_message: null,
        flags: ['possible_duplicate'],
      });
      expect(msBetween(after.updated_at, after.due_at)).toBeLessThanOrEqual(0);
      expect(await claimOne(queue.store())).toMatchObject({
        first: false,
        processed: 40,
        job: { attempt: 1, epoch: 7, step: { seq: 7, cursor: null, scope: 'failed', previousFailure: null } },
      });
      expect(await abandoned()).toEqual([]);
    },
  );

  test.each(['pending', 'failed', 'unknown', 'all'])('may be for %s', async (scope) => {
    const row = await queue.insert({ status: 'completed', step_scope: 'failed' });
    await resend(row, scope);
    expect((await claimOne(queue.store())).job.step.scope).toBe(scope);
  });

  test.each(['everybody', '', 'ALL', null])('is refused for the scope %j, and changes nothing', async (scope) => {
    const row = await queue.insert({ status: 'completed' });
    await expect(resend(row, scope)).rejects.toThrow('it is pending, failed, unknown or all');
    expect(await sqlState(resend(row, scope))).toBe('22023');
    expect(await queue.job(row.id)).toEqual(row);
  });

  test('is refused while it runs or is between slices: pause it first', async () => {
    const between = await queue.insert({ status: 'processing', step_seq: 2, next_retry_at: fromNow('1 hour') });
    const runs = await queue.insert();
    await claimOne(queue.store());
    for (const row of [await queue.job(between.id), await queue.job(runs.id)]) {
      await expect(resend(row, 'all')).rejects.toThrow('pause it first');
      expect(await sqlState(resend(row, 'all'))).toBe('55000');
      expect(await queue.job(row.id)).toEqual(row);
    }
    await queue.query('select broadcast_pause($1)', [between.job_id]);
    expect(await resend(between, 'all')).toEqual([{ answer: 'pending' }]);
  });

  test('is refused while another job with the same key lives', async () => {
    const row = await queue.insert({ status: 'completed', unique_key: 'k' });
    await queue.insert({ unique_key: 'k' });
    expect(await sqlState(resend(row, 'failed'))).toBe('23505');
  });

  test('knows no job of an unknown id', async () => {
    const row = await queue.insert();
    await queue.clear();
    expect(await sqlState(resend(row, 'all'))).toBe('P0002');
  });

  test('leaves the operation that it replaces to be ended', async () => {
    const row = await queue.insert({ status: 'retry', operation_url: OPERATION });
    await resend(row, 'pending');
    expect(await queue.job(row.id)).toMatchObject({ operation_url: null });
    expect(await abandoned()).toEqual([{ job: row.job_id, operation_url: OPERATION, tries: 0 }]);
  });
});

describe('a resume with a scope', () => {
  test('is a resend of the paused job', async () => {
    const row = await queue.insert({ ...USED, ...RESENDABLE.paused });
    expect(await resume(row, 'unknown')).toEqual([{ answer: 'pending' }]);
    expect(await queue.job(row.id)).toMatchObject({ step_seq: 7, step_cursor: null, step_scope: 'unknown', epoch: 6 });
  });

  test('is refused with a scope that is none, and of a job that is not paused', async () => {
    const paused = await queue.insert({ status: 'paused' });
    expect(await sqlState(resume(paused, 'some'))).toBe('22023');
    for (const status of ['pending', 'retry', 'completed', 'failed', 'cancelled']) {
      const row = await queue.insert({ status });
      expect(await sqlState(resume(row, 'all'))).toBe('55000');
      expect(await queue.job(row.id)).toEqual(row);
    }
  });

  test('is refused while the job still runs towards its pause', async () => {
    const { id } = await queue.insert();
    await claimOne(queue.store());
    const { job_id } = await queue.job(id);
    await queue.query('select broadcast_pause($1)', [job_id]);
    const pausing = await queue.job(id);
    expect(await sqlState(resume(pausing, 'all'))).toBe('55000');
    expect(await queue.job(id)).toEqual(pausing);
    expect(await resume(pausing, null)).toEqual([{ answer: 'processing' }]);
  });

  test('without one goes on at the cursor', async () => {
    const row = await queue.insert({ ...USED, ...RESENDABLE.paused });
    expect(await resume(row, null)).toEqual([{ answer: 'processing' }]);
    expect(await queue.job(row.id)).toMatchObject({ step_seq: 6, step_cursor: 'page 7', step_scope: 'all', epoch: 5 });
  });
});

describe('an operation', () => {
  /** Claims the next job, and settles it. */
  async function settleNext(change: Partial<Settlement>): Promise<JobRow> {
    const store = queue.store();
    const claimed = await claimOne(store);
    expect(await store.settle([settlement(claimed, change)], [claimed.leaseId])).toEqual(['settled']);
    return queue.job(claimed.job.id);
  }
  const polled = { status: 'processing', dueInMs: 0, attempts: 'refund', operation: OPERATION } as const;

  test('is kept from poll to poll, and whoever claims the job is told of it', async () => {
    await queue.insert();
    expect(await settleNext(polled)).toMatchObject({ status: 'processing', operation_url: OPERATION, attempts: 0 });
    expect((await claimOne(queue.store('another'))).job.step).toMatchObject({ seq: 0, operation: OPERATION });
  });

  test.each([
    ['a failed poll', { status: 'retry', dueInMs: 0, operation: OPERATION } as const, OPERATION],
    ['its end', { status: 'completed' } as const, null],
    ['its failure', { status: 'retry', dueInMs: 0, errorCode: 'service_failed' } as const, null],
  ])('after %s is kept or forgotten as the settlement says', async (_, word, left) => {
    await queue.insert();
    await settleNext(polled);
    expect((await settleNext(word)).operation_url).toBe(left);
    expect(await abandoned()).toEqual([]);
  });

  test('whose worker dies costs an attempt and repeats nothing: no possible duplicate', async () => {
    await queue.insert();
    const plain = await queue.insert({ priority: -1 });
    const { id } = await settleNext(polled);
    for (let n = 0; n < 2; n++) await claimOne(queue.store());
    await queue.expireLeases();
    await queue.reaper({ ambiguous: 'pause' }).reap();
    expect(await queue.job(id)).toMatchObject({ status: 'retry', flags: [], operation_url: OPERATION, attempts: 1 });
    expect(await queue.job(plain.id)).toMatchObject({ status: 'paused', flags: ['possible_duplicate'] });
  });

  test('of a claim that was never begun is polled on, not begun anew', async () => {
    await queue.insert();
    await settleNext(polled);
    const claimed = await claimOne(queue.store());
    await queue.store().release([claimed.leaseId]);
    expect(await queue.job(claimed.job.id)).toMatchObject({ status: 'processing', operation_url: OPERATION });
  });

  test.each(['waiting for a poll', 'in a poll', 'paused', 'after a failed poll'])(
    'of a job that is cancelled %s is left to be ended',
    async (place) => {
      await queue.insert();
      const row = await settleNext({ ...polled, ...(place === 'after a failed poll' && { status: 'retry' }) });
      if (place === 'in a poll') await claimOne(queue.store());
      if (place === 'paused') await queue.query('select broadcast_pause($1)', [row.job_id]);
      await queue.query('select broadcast_cancel($1)', [row.job_id]);
      expect(await queue.job(row.id)).toMatchObject({ status: 'cancelled', operation_url: null });
      expect(await abandoned()).toEqual([{ job: row.job_id, operation_url: OPERATION, tries: 0 }]);
    },
  );

  test('there is none to end where the cancelled job had none', async () => {
    const row = await queue.insert();
    await queue.query('select broadcast_cancel($1)', [row.job_id]);
    expect(await abandoned()).toEqual([]);
  });

  test('survives a pause and its resume', async () => {
    await queue.insert();
    const row = await settleNext(polled);
    await queue.query('select broadcast_pause($1)', [row.job_id]);
    expect(await resume(row, null)).toEqual([{ answer: 'processing' }]);
    expect((await claimOne(queue.store())).job.step.operation).toBe(OPERATION);
  });
});
