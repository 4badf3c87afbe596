import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Store } from '../../src/queue/ports.js';
import { claim, claimOne, openQueue, settlement, type TestQueue } from '../support/store.js';

let queue: TestQueue;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
  store = queue.store('lost one');
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

/** Claims a job of these columns, does something to it, and lets its lease run out. */
async function abandoned(columns: Readonly<Record<string, unknown>>, meanwhile = 'select $1::uuid'): Promise<string> {
  const { id, job_id } = await queue.insert(columns);
  await claimOne(store);
  await queue.query(meanwhile, [job_id]);
  await queue.expireLeases();
  return id;
}

describe('the reaper', () => {
  test('lets a job whose worker was lost try again at once; the attempt counts', async () => {
    const id = await abandoned({ flags: ['untracked'] });
    const { reaped } = await queue.reaper().reap();
    const row = await queue.job(id);
    expect(reaped).toEqual([{ jobId: row.job_id, type: 'send_broadcast', status: 'retry', workerId: 'lost one' }]);
    expect(row).toMatchObject({
      status: 'retry',
      lease_id: null,
      attempts: 1,
      epoch: 1,
      error_code: 'lease_expired',
      previous_failure: 'lease_expired',
      error_message: 'the worker lost one stopped renewing its lease in mid-call',
      flags: ['possible_duplicate', 'untracked'],
      stalled_calls: 1,
      stalled_since: expect.any(Date),
      completed_at: null,
    });
    expect(await queue.leases()).toEqual([]);
    expect(await claimOne(store)).toMatchObject({ first: false, job: { id, attempt: 2, epoch: 2 } });
  });

  test('writes the lost attempt into the history', async () => {
    const id = await abandoned({ step_seq: 3, status: 'processing' });
    await queue.reaper().reap();
    expect(await queue.attempts()).toMatchObject([
      {
        job: id,
        epoch: 1,
        attempt: 1,
        step_seq: 3,
        worker_id: 'lost one',
        outcome: 'lease_expired',
        error_code: 'lease_expired',
        started_at: expect.any(Date),
      },
    ]);
  });

  const pause = 'select broadcast_pause($1::uuid)';
  const spent = { attempts: 2, max_attempts: 3, status: 'retry' };
  test.each([
    ['fails a job whose attempts are spent', spent, undefined, 'retry', { status: 'failed', attempts: 3 }],
    [
      'pauses a job when that was asked for',
      {},
      pause,
      'retry',
      { status: 'paused', paused_from: 'retry', hold_reason: 'paused by an operator', pause_requested_at: null },
    ],
    [
      'pauses a job when that was asked for, also with its attempts spent',
      spent,
      pause,
      'retry',
      { status: 'paused', paused_from: 'pending', attempts: 3, completed_at: null },
    ],
    [
      'pauses a broadcast that may have been sent, where that is the policy',
      spent,
      undefined,
      'pause',
      {
        status: 'paused',
        paused_from: 'pending',
        completed_at: null,
        hold_reason:
          'the service may have carried it out: its worker stopped answering; resume it to call again, or cancel it',
      },
    ],
    [
      'lets a job that sends nothing try again under every policy',
      { job_type: 'process_retries' },
      undefined,
      'pause',
      { status: 'retry', paused_from: null, hold_reason: null },
    ],
  ] as const)('%s', async (_, columns, meanwhile, ambiguous, expected) => {
    const id = await abandoned(columns, meanwhile);
    await queue.reaper({ ambiguous }).reap();
    const row = await queue.job(id);
    expect(row).toMatchObject(expected);
    expect(row.completed_at !== null).toBe(row.status === 'failed');
    expect(row.due_at !== null).toBe(row.status === 'retry');
  });

  test('takes from a lease only what is not settled', async () => {
    for (let n = 0; n < 3; n++) await queue.insert();
    const [done, cancelled] = await claim(store);
    if (!done || !cancelled) throw new Error('three jobs were to be claimed');
    await store.settle([settlement(done)], []);
    await queue.query('select broadcast_cancel($1)', [cancelled.job.jobId]);
    await queue.expireLeases();
    expect((await queue.reaper().reap()).reaped).toHaveLength(1);
    expect((await queue.jobs()).map(({ status }) => status)).toEqual(['completed', 'cancelled', 'retry']);
  });

  test('does not touch a job that was set back by hand and claimed by another', async () => {
    const id = await abandoned({}, "update broadcast_queue_jobs set status = 'pending' where job_id = $1");
    const heir = await claimOne(queue.store('heir'));
    expect((await queue.reaper().reap()).reaped).toEqual([]);
    expect(await queue.job(id)).toMatchObject({ status: 'processing', lease_id: heir.leaseId });
    expect(await queue.leases()).toMatchObject([{ lease_id: heir.leaseId }]);
  });

  test('leaves a living lease alone, and says when the next one ends', async () => {
    await queue.insert();
    await queue.insert();
    const [short, long] = [await claimOne(queue.store('short', { leaseMs: 20_000 })), await claimOne(store)];
    const { reaped, nextExpiryMs } = await queue.reaper().reap();
    expect(reaped).toEqual([]);
    expect(nextExpiryMs).toBeGreaterThan(10_000);
    expect(nextExpiryMs).toBeLessThanOrEqual(20_000);
    await queue.query(
      "update broadcast_queue_leases set expires_at = now() - interval '1 second' where lease_id = $1",
      [short.leaseId],
    );
    const second = await queue.reaper().reap();
    expect(second.reaped).toHaveLength(1);
    expect(second.nextExpiryMs).toBeGreaterThan(50_000);
    expect((await queue.job(long.job.id)).status).toBe('processing');
  });

  test('knows of no end when there is no lease', async () => {
    expect(await queue.reaper().reap()).toEqual({ reaped: [], nextExpiryMs: null });
  });

  test('waits a whole lease after a start of the server, so that every holder can renew first', async () => {
    const id = await abandoned({});
    const upForLess = queue.store('patient', { leaseMs: 1_000_000_000 });
    const { reaped, nextExpiryMs } = await upForLess.reap();
    expect(reaped).toEqual([]);
    // And does not look again all the time until then.
    expect(nextExpiryMs).toBeGreaterThan(1_000_000);
    expect((await queue.job(id)).status).toBe('processing');
    expect((await queue.reaper().reap()).reaped).toHaveLength(1);
  });

  test('forgets workers that have not been seen for a day', async () => {
    await store.beat(new Map());
    await queue.store('old').beat(new Map());
    await queue.query(
      "update broadcast_queue_workers set last_seen_at = now() - interval '25 hours' where worker_id = 'old'",
    );
    await queue.reaper().reap();
    expect(await queue.query('select worker_id from broadcast_queue_workers')).toEqual([{ worker_id: 'lost one' }]);
  });
});

test('reapers that work at the same time take each job once, however many leases there are', async () => {
  await queue.query(
    `with job as (
       insert into broadcast_queue_jobs (job_type, job_data, status, lease_id, attempts, epoch)
       select 'send_broadcast', '{}', 'processing', gen_random_uuid(), 1, 1 from generate_series(1, 300)
       returning id, lease_id)
     insert into broadcast_queue_leases (lease_id, worker_id, job_ids, expires_at)
     select lease_id, 'lost one', array[id], now() - interval '1 second' from job`,
  );
  const taken: string[] = [];
  await Promise.all(
    Array.from({ length: 4 }, async () => {
      for (let found = true; found; ) {
        const { reaped } = await queue.reaper().reap();
        taken.push(...reaped.map(({ jobId }) => jobId));
        found = reaped.length > 0;
      }
    }),
  );
  expect(taken).toHaveLength(300);
  expect(new Set(taken).size).toBe(300);
  expect(await queue.attempts()).toHaveLength(300);
  expect(await queue.leases()).toEqual([]);
});
