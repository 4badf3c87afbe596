import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Row } from '../../src/db/pool.js';
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

async function running(): Promise<JobRow> {
  const { id } = await queue.insert();
  await claimOne(queue.store('runner'));
  return queue.job(id);
}

/** Where a job may be, as an operator finds it. */
const PLACES = {
  pending: () => queue.insert({ scheduled_at: fromNow('1 hour') }),
  retry: () => queue.insert({ status: 'retry', attempts: 2, next_retry_at: fromNow('1 hour') }),
  'between slices': () => queue.insert({ status: 'processing', step_seq: 2, next_retry_at: fromNow('1 hour') }),
  running,
  pausing: async () => {
    const { id, job_id } = await running();
    await queue.query('select broadcast_pause($1)', [job_id]);
    return queue.job(id);
  },
  paused: () => queue.insert({ status: 'paused', paused_from: 'retry', next_retry_at: fromNow('1 hour') }),
  completed: () => queue.insert({ status: 'completed', completed_at: fromNow('-1 hour') }),
  failed: () => queue.insert({ status: 'failed', attempts: 3, completed_at: fromNow('-1 hour') }),
  cancelled: () => queue.insert({ status: 'cancelled', completed_at: fromNow('-1 hour') }),
} satisfies Record<string, () => Promise<JobRow>>;

const WRONG_STATUS = '55000';
const NO_SUCH_JOB = 'P0002';

/** What each function answers in each place, or the SQLSTATE that it refuses with. */
const TABLE: Record<keyof typeof PLACES, Record<'pause' | 'resume' | 'cancel' | 'retry', string>> = {
  pending: { pause: 'paused', resume: WRONG_STATUS, cancel: 'cancelled', retry: WRONG_STATUS },
  retry: { pause: 'paused', resume: WRONG_STATUS, cancel: 'cancelled', retry: 'pending' },
  'between slices': { pause: 'paused', resume: WRONG_STATUS, cancel: 'cancelled', retry: WRONG_STATUS },
  running: { pause: 'pausing', resume: WRONG_STATUS, cancel: 'cancelled', retry: WRONG_STATUS },
  pausing: { pause: 'pausing', resume: 'processing', cancel: 'cancelled', retry: WRONG_STATUS },
  paused: { pause: 'paused', resume: 'retry', cancel: 'cancelled', retry: WRONG_STATUS },
  completed: { pause: WRONG_STATUS, resume: WRONG_STATUS, cancel: WRONG_STATUS, retry: WRONG_STATUS },
  failed: { pause: WRONG_STATUS, resume: WRONG_STATUS, cancel: WRONG_STATUS, retry: 'pending' },
  cancelled: { pause: WRONG_STATUS, resume: WRONG_STATUS, cancel: WRONG_STATUS, retry: 'pending' },
};
const CASES = Object.entries(TABLE).flatMap(([place, answers]) =>
  Object.entries(answers).map(([action, answer]) => ({ place, action, answer })),
);

async function call(action: string, jobId: string, ...more: unknown[]): Promise<unknown> {
  const values = [jobId, ...more];
  const parameters = values.map((_, n) => `$${n + 1}`).join(', ');
  const [row] = await queue.query<Row>(`select broadcast_${action}(${parameters}) as answer`, values);
  return row?.answer;
}

/** Puts a job into a place of the table. */
function put(place: string): Promise<JobRow> {
  const make = Object.entries(PLACES).find(([name]) => name === place)?.[1];
  if (!make) throw new Error(`no such place: ${place}`);
  return make();
}

describe.each(CASES)('$action, $place', ({ place, action, answer }) => {
  if (/^[A-Z0-9]{5}$/.test(answer)) {
    test(`is refused with ${answer} and changes nothing`, async () => {
      const row = await put(place);
      expect(await sqlState(call(action, row.job_id))).toBe(answer);
      expect(await queue.job(row.id)).toEqual(row);
    });
  } else {
    test(`answers ${answer}, which is where the job is then`, async () => {
      const row = await put(place);
      expect(await call(action, row.job_id)).toBe(answer);
      const after = await queue.job(row.id);
      expect(after.status).toBe(answer === 'pausing' ? 'processing' : answer);
      expect(after.epoch).toBe(['cancel', 'retry'].includes(action) ? row.epoch + 1 : row.epoch);
    });
  }
});

test.each(['pause', 'resume', 'cancel', 'retry'])('%s knows no job of an unknown id', async (action) => {
  expect(await sqlState(call(action, randomUUID()))).toBe(NO_SUCH_JOB);
});

describe('pause and resume', () => {
  test.each(['pending', 'retry', 'between slices'] as const)('bring a %s job back to where it was', async (place) => {
    const before = await PLACES[place]();
    await call('pause', before.job_id, 'look at it');
    expect(await queue.job(before.id)).toMatchObject({
      paused_from: before.status,
      hold_reason: 'look at it',
      due_at: null,
    });
    await call('resume', before.job_id);
    const after = await queue.job(before.id);
    expect(after).toEqual({ ...before, updated_at: after.updated_at });
    expect(after.due_at).not.toBeNull();
  });

  test('start a job over that somebody paused by a plain UPDATE', async () => {
    const row = await queue.insert();
    await queue.query("update broadcast_queue_jobs set status = 'paused'");
    expect(await call('resume', row.job_id)).toBe('pending');
    expect((await claimOne(queue.store())).job.id).toBe(row.id);
  });

  test('give a job that was paused for making no progress another try', async () => {
    const row = await queue.insert({ status: 'paused', stalled_calls: 50, stalled_since: fromNow('-1 day') });
    await call('resume', row.job_id);
    expect(await queue.job(row.id)).toMatchObject({ stalled_calls: 0, stalled_since: null });
  });

  test('keep the first time and the latest reason of a pause asked for twice', async () => {
    const row = await PLACES.pausing();
    await call('pause', row.job_id, 'really');
    expect(await queue.job(row.id)).toMatchObject({
      pause_requested_at: row.pause_requested_at,
      hold_reason: 'really',
    });
  });
});

describe('cancel', () => {
  test('takes a running job from its holder, and records that what it still does is unknown', async () => {
    const row = await PLACES.running();
    await call('cancel', row.job_id, 'wrong text');
    expect(await queue.job(row.id)).toMatchObject({
      lease_id: null,
      error_code: 'cancelled',
      error_message: 'wrong text; a call was open, and what it sent is not counted',
      completed_at: expect.any(Date),
      due_at: null,
    });
    expect(await queue.attempts()).toMatchObject([
      { job: row.id, epoch: 1, attempt: 1, outcome: 'unknown', worker_id: 'runner' },
    ]);
  });

  test('of a job that does not run leaves no mark in the history, and frees its key', async () => {
    const row = await queue.insert({ unique_key: 'k' });
    await call('cancel', row.job_id);
    expect(await queue.attempts()).toEqual([]);
    expect(await queue.job(row.id)).toMatchObject({ error_message: 'cancelled by an operator', live_key: null });
  });

  test('drops a pause that was asked for', async () => {
    const row = await PLACES.pausing();
    await call('cancel', row.job_id);
    expect(await queue.job(row.id)).toMatchObject({ pause_requested_at: null, hold_reason: null });
  });
});

describe('retry', () => {
  test('starts a failed job anew where its cursor stands, due at once', async () => {
    const row = await queue.insert({
      status: 'failed',
      attempts: 3,
      epoch: 7,
      step_seq: 4,
      step_cursor: 'page 5',
      progress: { processed: 400 },
      completed_at: fromNow('-1 hour'),
      next_retry_at: fromNow('1 hour'),
      stalled_calls: 3,
      stalled_since: fromNow('-1 hour'),
    });
    await call('retry', row.job_id);
    const after = await queue.job(row.id);
    expect(after).toMatchObject({
      status: 'pending',
      attempts: 0,
      epoch: 8,
      step_seq: 4,
      step_cursor: 'page 5',
      progress: { processed: 400 },
      completed_at: null,
      next_retry_at: null,
      stalled_calls: 0,
      stalled_since: null,
    });
    expect(msBetween(after.updated_at, after.due_at)).toBeLessThanOrEqual(0);
    expect(await claimOne(queue.store())).toMatchObject({ processed: 400, job: { attempt: 1, epoch: 9 } });
  });

  test('does not wait for the end of a backoff', async () => {
    const row = await PLACES.retry();
    await call('retry', row.job_id);
    expect((await claimOne(queue.store())).job).toMatchObject({ id: row.id, attempt: 1 });
  });

  test('is refused while another job with the same key lives', async () => {
    const failed = await queue.insert({ status: 'failed', unique_key: 'k' });
    await queue.insert({ unique_key: 'k' });
    expect(await sqlState(call('retry', failed.job_id))).toBe('23505');
  });
});

describe('broadcast_progress', () => {
  const progress = (id: string) => queue.query('select * from broadcast_progress($1)', [id]);

  test('tells counters, percentage and reasons, and why the job waits', async () => {
    const row = await queue.insert({
      progress: { total: 300, processed: 100, sent: 90, skipped: 5, failed: 4, unknown: 1, reasons: { blocked: 4 } },
    });
    const store = queue.store();
    const claimed = await claimOne(store);
    await store.settle([settlement(claimed, { status: 'retry', dueInMs: 0, holdReason: 'quiet hours' })], []);
    expect(await progress(row.job_id)).toEqual([
      {
        status: 'retry',
        attempts: 1,
        total: '300',
        processed: '100',
        sent: '90',
        skipped: '5',
        failed: '4',
        unknown: '1',
        percent: '33.3',
        per_second: null,
        eta_seconds: null,
        reasons: { blocked: 4 },
        error_message: null,
        hold_reason: 'quiet hours',
        progress_at: null,
        updated_at: expect.any(Date),
      },
    ]);
  });

  test('has nothing to say of counters that nobody reported, nor a percentage of nothing', async () => {
    const bare = await queue.insert();
    expect(await progress(bare.job_id)).toMatchObject([{ status: 'pending', processed: null, percent: null }]);
    const empty = await queue.insert({ progress: { total: 0, processed: 0 } });
    expect(await progress(empty.job_id)).toMatchObject([{ total: '0', percent: null }]);
  });

  test('has no row for an unknown job', async () => {
    expect(await progress(randomUUID())).toEqual([]);
  });
});
