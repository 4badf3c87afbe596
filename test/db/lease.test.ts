/** How a lease lives and ends: the heartbeat, the release. The reaper has a file of its own. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { statements } from '../../src/db/statements.js';
import type { Claim, Store } from '../../src/queue/ports.js';
import { claim, claimOne, openQueue, settlement, type TestQueue } from '../support/store.js';
import { until } from '../support/until.js';

let queue: TestQueue;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
  store = queue.store();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

async function claimNew(count: number): Promise<[Claim, ...Claim[]]> {
  for (let n = 0; n < count; n++) await queue.insert();
  const [first, ...others] = await claim(store, count);
  if (!first || others.length !== count - 1) throw new Error('not everything was claimed');
  return [first, ...others];
}

/** The leases as a heartbeat names them. */
function held(...claims: readonly Claim[]): Map<string, string[]> {
  const leases = new Map<string, string[]>();
  for (const { leaseId, job } of claims) leases.set(leaseId, [...(leases.get(leaseId) ?? []), job.id]);
  return leases;
}

/** Of each lease, the oldest first, whether it lasts. */
async function lasting(): Promise<boolean[]> {
  const rows = await queue.query<{ lasts: boolean }>(
    `select expires_at > now() + interval '30 seconds' as lasts from broadcast_queue_leases order by created_at`,
  );
  return rows.map(({ lasts }) => lasts);
}

async function reapAll(): Promise<void> {
  await queue.expireLeases();
  await queue.reaper().reap();
}

describe('a heartbeat', () => {
  test('renews the leases that it names and no others', async () => {
    const first = await claimNew(2);
    await claimNew(1);
    await queue.expireLeases();
    expect(await store.beat(held(...first))).toEqual(new Set(first.map(({ job }) => job.id)));
    expect(await lasting()).toEqual([true, false]);
  });

  test('answers only with the jobs asked for that are still held', async () => {
    const claims = await claimNew(4);
    const [one, two, three, four] = claims;
    await queue.query('select broadcast_cancel($1)', [two?.job.jobId]);
    await queue.query("update broadcast_queue_jobs set status = 'pending' where id = $1", [three?.job.id]);
    await queue.query('select broadcast_pause($1)', [four?.job.jobId]);
    const leases = new Map([[one.leaseId, [...claims.map(({ job }) => job.id), '999999']]]);
    expect(await store.beat(leases)).toEqual(new Set([one.job.id, four?.job.id]));
  });

  test('does not bring a reaped lease back', async () => {
    const [claimed] = await claimNew(1);
    await reapAll();
    expect(await store.beat(held(claimed))).toEqual(new Set());
    expect(await queue.leases()).toEqual([]);
    expect(await queue.job(claimed.job.id)).toMatchObject({ status: 'retry', lease_id: null });
  });

  test("of a zombie neither holds the job nor renews its new holder's lease", async () => {
    const [zombie] = await claimNew(1);
    await reapAll();
    const heir = await claimOne(queue.store('heir'));
    expect(heir.job.id).toBe(zombie.job.id);
    await queue.expireLeases();
    expect(await store.beat(held(zombie))).toEqual(new Set());
    expect(await lasting()).toEqual([false]);
    expect((await queue.reaper().reap()).reaped).toHaveLength(1);
  });

  test('that meets the reaper waits for it, and finds the lease gone', async () => {
    const [claimed] = await claimNew(1);
    await queue.expireLeases();
    const session = await queue.session();
    await session.query('begin');
    await session.query(statements('public').reap, [1, false]);
    const answer = store.beat(held(claimed));
    await until('the heartbeat waits', async () => {
      return (await queue.query('select from pg_locks where not granted')).length > 0;
    });
    await session.query('commit');
    expect(await answer).toEqual(new Set());
  });

  test('that came first keeps the reaper off', async () => {
    await claimNew(1);
    await queue.expireLeases();
    const session = await queue.session();
    await session.query('begin');
    await session.query("update broadcast_queue_leases set expires_at = now() + interval '1 minute'");
    expect((await queue.reaper().reap()).reaped).toEqual([]);
    await session.query('commit');
    expect((await queue.reaper().reap()).reaped).toEqual([]);
  });

  test('lists the worker, and keeps it listed as alive until it leaves', async () => {
    const lively = queue.store('lively', { slots: { broadcasts: 3 } });
    await lively.beat(new Map());
    await store.beat(new Map());
    await queue.query("update broadcast_queue_workers set last_seen_at = now() - interval '1 hour'");
    await lively.beat(new Map());
    expect(
      await queue.query(`select worker_id, version, host, pid, slots, last_seen_at > now() - interval '1 minute' as alive
        from broadcast_queue_workers order by worker_id`),
    ).toEqual([
      { worker_id: 'lively', version: '0.0.0', host: 'test', pid: 1, slots: { broadcasts: 3 }, alive: true },
      { worker_id: 'worker', version: '0.0.0', host: 'test', pid: 1, slots: { '*': 10 }, alive: false },
    ]);
    await lively.leave();
    expect(await queue.query('select worker_id from broadcast_queue_workers')).toEqual([{ worker_id: 'worker' }]);
  });
});

describe('a release', () => {
  test('hands back what was never begun, as it was and at no charge', async () => {
    const [{ leaseId, job }] = await claimNew(2);
    expect(await store.release([leaseId])).toBe(2);
    expect(await queue.job(job.id)).toMatchObject({
      status: 'pending',
      lease_id: null,
      attempts: 0,
      started_at: null,
      epoch: 1,
    });
    expect(await queue.leases()).toEqual([]);
    expect(await claimOne(store)).toMatchObject({ first: true, job: { id: job.id, attempt: 1, epoch: 2 } });
  });

  test('leaves a sliced job between its slices, due at once, with its step', async () => {
    const row = await queue.insert({ status: 'processing', step_seq: 2, step_cursor: 'c', attempts: 1 });
    const { leaseId } = await claimOne(store);
    await store.release([leaseId]);
    expect(await queue.job(row.id)).toMatchObject({
      status: 'processing',
      lease_id: null,
      step_cursor: 'c',
      attempts: 1,
    });
    expect((await claimOne(store)).job.step.seq).toBe(2);
  });

  test('does not forget that a job has been called before', async () => {
    await claimNew(1);
    await reapAll();
    const second = await claimOne(store);
    await store.release([second.leaseId]);
    expect(await claimOne(store)).toMatchObject({ first: false, job: { attempt: 2 } });
  });

  test('takes only what the lease still holds', async () => {
    const [done, cancelled, open] = await claimNew(3);
    await store.settle([settlement(done)], []);
    await queue.query('select broadcast_cancel($1)', [cancelled?.job.jobId]);
    expect(await store.release([done.leaseId, randomUUID()])).toBe(1);
    expect((await queue.jobs()).map(({ status }) => status)).toEqual(['completed', 'cancelled', 'pending']);
    expect(await store.settle([settlement(open ?? done)], [])).toEqual(['lost']);
  });

  test('of a lease that was reaped does nothing', async () => {
    const [{ leaseId }] = await claimNew(1);
    await reapAll();
    const before = await queue.jobs();
    expect(await store.release([leaseId])).toBe(0);
    expect(await queue.jobs()).toEqual(before);
  });
});
