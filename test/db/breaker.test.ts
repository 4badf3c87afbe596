/** The breaker's book-keeping: what opens it, what it costs nobody, what closes it. Its probes: flow-claim.test.ts. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { flowStore } from '../../src/db/flow.js';
import type { Claim, FlowStore, ServiceFailure } from '../../src/queue/ports.js';
import { claim, claimOne, fromNow, openQueue, settlement, type TestQueue, worker } from '../support/store.js';
import { until } from '../support/until.js';

let queue: TestQueue;
let flow: FlowStore;

beforeAll(async () => {
  queue = await openQueue();
  flow = flowStore(queue.database, worker('worker'));
});
beforeEach(async () => {
  await queue.clear();
  await queue.query('delete from broadcast_queue_services');
  await queue.query("insert into broadcast_queue_services (name) values ('default')");
});
afterAll(() => queue.close());

/** So many jobs, each claimed by itself. */
async function running(count: number, columns: Readonly<Record<string, unknown>> = {}): Promise<Claim[]> {
  const claims: Claim[] = [];
  for (let n = 0; n < count; n++) {
    await queue.insert({ max_attempts: 10, ...columns });
    claims.push(await claimOne(queue.store()));
  }
  return claims;
}

/** Tells the breaker; a call of this daemon and its failure, unless `what` says otherwise. */
const fails = (claimed: Claim, what: Partial<ServiceFailure> = {}, by = flow) =>
  by.serviceFailed({
    claim: claimed,
    code: 'http_503',
    message: 'busy',
    isLast: false,
    calls: 1,
    failures: 1,
    ...what,
  });

/** As the worker settles a failure: free, or at the cost of an attempt. */
async function settleFailed(claimed: Claim, verdict: { refund: boolean; waitMs: number }): Promise<void> {
  const word = { status: 'retry', errorCode: 'http_503', attempts: verdict.refund ? 'refund' : 'keep' } as const;
  await queue
    .store()
    .settle([settlement(claimed, { ...word, dueInMs: verdict.refund ? verdict.waitMs : 60_000 })], [claimed.leaseId]);
}

const breaker = async () => {
  const [row] = await queue.query<{ open: boolean; streak: number; seconds: number | null; last_error: string | null }>(
    `select opened_at is not null as open, streak, last_error,
            extract(epoch from open_until - clock_timestamp())::float8 as seconds
     from broadcast_queue_services`,
  );
  return row;
};

const at = <T>(from: readonly T[], n: number): T => {
  const one = from[n];
  if (one === undefined) throw new Error(`there is no number ${n}`);
  return one;
};

describe('the breaker opens', () => {
  test('at the fifth failure in a row of two jobs, for a second', async () => {
    const claims = await running(2);
    for (let n = 0; n < 4; n++) {
      expect(await fails(at(claims, n % 2))).toEqual({ refund: false, waitMs: 0, opened: false });
    }
    const fifth = await fails(at(claims, 0), { message: 'no answer' });
    expect(fifth).toMatchObject({ refund: true, opened: true });
    expect(fifth.waitMs).toBeGreaterThan(900);
    expect(fifth.waitMs).toBeLessThanOrEqual(1000);
    expect(await breaker()).toMatchObject({ open: true, streak: 5, last_error: 'no answer' });
  });

  test('not for one job alone, however often it fails, until another one does', async () => {
    const claims = await running(2);
    for (let n = 0; n < 30; n++) expect(await fails(at(claims, 0))).toMatchObject({ opened: false });
    expect(await fails(at(claims, 1))).toMatchObject({ opened: true });
  });

  test('when the only job would be given up though nothing has succeeded since it began to fail', async () => {
    const claims = await running(1);
    expect(await fails(at(claims, 0))).toMatchObject({ opened: false });
    expect(await fails(at(claims, 0), { isLast: true })).toMatchObject({ opened: true, refund: true });
  });

  test('not when a job is given up at the first failure of all', async () => {
    const claims = await running(1);
    expect(await fails(at(claims, 0), { isLast: true })).toEqual({ refund: false, waitMs: 0, opened: false });
  });

  test('at once where the service refuses our credentials', async () => {
    const claims = await running(1);
    expect(await fails(at(claims, 0), { code: 'unauthorized' })).toMatchObject({ opened: true, refund: true });
  });

  test('when half of twenty calls failed, with successes in between, but not of nineteen or with fewer', async () => {
    const claims = await running(1);
    expect(await fails(at(claims, 0), { calls: 19, failures: 19 })).toMatchObject({ opened: false });
    expect(await flow.serviceAnswers()).toBe(false);
    expect(await fails(at(claims, 0), { calls: 21, failures: 10 })).toMatchObject({ opened: false });
    expect(await flow.serviceAnswers()).toBe(false);
    expect(await fails(at(claims, 0), { calls: 20, failures: 10 })).toMatchObject({ opened: true });
  });

  test('when half of the twenty failed that several daemons counted within ten seconds', async () => {
    const [one, two, old] = ['one', 'two', 'old'].map((name) => flowStore(queue.database, worker(name)));
    const claims = await running(1);
    expect(await fails(at(claims, 0), { calls: 15, failures: 15 }, old)).toMatchObject({ opened: false });
    // What somebody counted eleven seconds ago is not of the last ten.
    await queue.query(`update broadcast_queue_services
      set recent = jsonb_set(recent, '{old,at}', to_jsonb((recent #>> '{old,at}')::float8 - 11))`);
    await flow.serviceAnswers();
    expect(await fails(at(claims, 0), { calls: 12, failures: 6 }, one)).toMatchObject({ opened: false });
    await flow.serviceAnswers();
    expect(await fails(at(claims, 0), { calls: 8, failures: 4 }, two)).toMatchObject({ opened: true });
  });

  test('once, though many fail at the same time', async () => {
    const claims = await running(12);
    const verdicts = await Promise.all(claims.map((claimed) => fails(claimed)));
    expect(verdicts.filter(({ opened }) => opened)).toHaveLength(1);
    expect(verdicts.filter(({ refund }) => refund)).toHaveLength(8);
  });

  test('not while successes come between', async () => {
    const claims = await running(2);
    for (let n = 0; n < 12; n++) {
      expect(await fails(at(claims, n % 2))).toMatchObject({ opened: false });
      if (n % 4 === 3) expect(await flow.serviceAnswers()).toBe(false);
    }
    expect(await breaker()).toMatchObject({ open: false, streak: 0 });
  });
});

describe('what an outage costs', () => {
  test('nothing: each failure that led to it is given back, however it stands with its job, and those are due at the probe', async () => {
    const claims = await running(4);
    const [twice, settledOne, unsettled, last] = [0, 1, 2, 3].map((n) => at(claims, n));
    if (!twice || !settledOne || !unsettled || !last) throw new Error('four were claimed');
    await settleFailed(twice, await fails(twice));
    await queue.query('update broadcast_queue_jobs set next_retry_at = now() where id = $1', [twice.job.id]);
    const again = await claimOne(queue.store());
    await settleFailed(again, await fails(again));
    await settleFailed(settledOne, await fails(settledOne));
    const late = await fails(unsettled);
    const verdict = await fails(last);
    expect(verdict).toMatchObject({ opened: true });
    await settleFailed(unsettled, late);
    await settleFailed(last, verdict);
    const rows = await queue.jobs();
    expect(rows.map(({ attempts, outage_calls }) => [attempts, outage_calls])).toEqual([
      [0, 2],
      [0, 1],
      [0, 1],
      [0, 1],
    ]);
    for (const { id, due_at } of rows) {
      if (id !== unsettled.job.id) expect(due_at?.getTime()).toBeLessThan(Date.now() + 5000);
    }
  });

  test('the earlier failures of the job that opened it as well', async () => {
    const [first] = await running(1, { max_attempts: 3 });
    if (!first) throw new Error('one was claimed');
    let claimed = first;
    for (const isLast of [false, false, true]) {
      const verdict = await fails(claimed, { isLast });
      await settleFailed(claimed, verdict);
      if (isLast) continue;
      await queue.query('update broadcast_queue_jobs set next_retry_at = now()');
      claimed = await claimOne(queue.store());
    }
    expect(await queue.jobs()).toMatchObject([{ status: 'retry', attempts: 0, outage_calls: 3 }]);
  });

  test('nothing to a job that failed otherwise, was set back, or is over', async () => {
    const claims = await running(5);
    for (const claimed of claims.slice(0, 4)) await fails(claimed);
    const [otherwise, completed, setBack] = claims;
    if (!otherwise || !completed || !setBack) throw new Error('five were claimed');
    await queue
      .store()
      .settle(
        [
          settlement(otherwise, { status: 'retry', dueInMs: 60_000, errorCode: 'http_500' }),
          settlement(completed),
          settlement(setBack, { status: 'pending', attempts: 'keep' }),
        ],
        [],
      );
    const before = (await queue.jobs()).slice(0, 3);
    expect(await fails(at(claims, 4))).toMatchObject({ opened: true });
    expect((await queue.jobs()).slice(0, 3)).toEqual(before);
  });

  test('nothing for twenty failures of a job, the next ones an attempt each', async () => {
    const [claimed] = await running(1);
    if (!claimed) throw new Error('one was claimed');
    await fails(claimed, { code: 'unauthorized' });
    for (let n = 2; n <= 20; n++) expect(await fails(claimed)).toMatchObject({ refund: true, opened: false });
    for (let n = 0; n < 3; n++) expect(await fails(claimed)).toMatchObject({ refund: false, opened: false });
    expect(await queue.jobs()).toMatchObject([{ outage_calls: 20 }]);
  });

  test('no more than twenty also where earlier failures are given back', async () => {
    const claims = await running(2, { outage_calls: 19, attempts: 5 });
    for (let n = 0; n < 4; n++) await fails(at(claims, 0));
    expect(await fails(at(claims, 1))).toMatchObject({ opened: true, refund: true });
    expect(await queue.jobs()).toMatchObject([
      { attempts: 5, outage_calls: 20 },
      { attempts: 6, outage_calls: 20 },
    ]);
  });

  test('nothing is given to somebody who has lost the job', async () => {
    const [claimed] = await running(1);
    if (!claimed) throw new Error('one was claimed');
    await queue.query('select broadcast_cancel(job_id) from broadcast_queue_jobs');
    expect(await fails(claimed, { code: 'unauthorized' })).toMatchObject({ refund: false, opened: true });
    expect(await queue.jobs()).toMatchObject([{ outage_calls: 0 }]);
  });

  test('the probe that fails waits for the next one’s turn', async () => {
    await running(2).then(async (claims) => {
      for (let n = 0; n < 5; n++) await settleOnce(at(claims, n % 2), n);
    });
    await queue.query("update broadcast_queue_services set open_until = now() - interval '1 second'");
    await queue.query("update broadcast_queue_jobs set next_retry_at = now() - interval '1 second'");
    const [probe, ...more] = await claim(queue.store());
    expect(more).toEqual([]);
    if (!probe) throw new Error('one probes');
    const verdict = await fails(probe);
    expect(verdict).toMatchObject({ refund: true, opened: false });
    expect(verdict.waitMs).toBeGreaterThan(1500);
    expect(verdict.waitMs).toBeLessThanOrEqual(2000);
  });

  /** The last word about each of two jobs settles it. */
  async function settleOnce(claimed: Claim, n: number): Promise<void> {
    const verdict = await fails(claimed);
    if (n >= 3) await settleFailed(claimed, verdict);
  }
});

describe('a success', () => {
  test('closes the breaker and forgets what was, and says so once', async () => {
    const claims = await running(2);
    for (let n = 0; n < 5; n++) await fails(at(claims, n % 2));
    expect(await flow.serviceAnswers()).toBe(true);
    expect(await flow.serviceAnswers()).toBe(false);
    expect(await queue.query('select * from broadcast_queue_services')).toMatchObject([
      { streak: 0, jobs: [], recent: {}, opened_at: null, open_until: null, probes: 0 },
    ]);
  });

  test('brings back at once those who waited for a probe, and nobody else', async () => {
    const claims = await running(5);
    for (const claimed of claims) await settleFailed(claimed, await fails(claimed));
    await queue.query("update broadcast_queue_jobs set next_retry_at = now() + interval '1 minute'");
    const other = await queue.insert({ status: 'retry', next_retry_at: fromNow('1 minute'), error_code: 'http_503' });
    expect(await flow.serviceAnswers()).toBe(true);
    const back: string[] = [];
    await until('all of them are back', async () => {
      back.push(...(await claim(queue.store())).map(({ job }) => job.id));
      return back.length >= claims.length;
    });
    expect(back.sort()).toEqual(claims.map(({ job }) => job.id).sort());
    expect(await queue.job(other.id)).toEqual(other);
  });

  test('wakes the daemons where the breaker was open', async () => {
    const [claimed] = await running(1);
    if (!claimed) throw new Error('one was claimed');
    const session = await queue.session();
    await session.query('listen broadcast_queue');
    await fails(claimed, { code: 'unauthorized' });
    const heard = new Promise((resolve) => session.once('notification', resolve));
    await queue.query("select broadcast_open_gate('service')");
    expect(await heard).toMatchObject({ channel: 'broadcast_queue', payload: '' });
    expect(await breaker()).toMatchObject({ open: false });
    await session.query('unlisten *');
  });

  test('after ten minutes of outage with one job of three attempts finds it alive', async () => {
    const [first] = await running(1, { max_attempts: 3 });
    if (!first) throw new Error('one was claimed');
    let claimed = first;
    let seconds = 0;
    while (seconds < 600) {
      const isLast = claimed.job.attempt >= claimed.job.maxAttempts;
      const verdict = await fails(claimed, { isLast });
      // Were it the last one and not given back, it would be a dead letter now.
      expect(isLast && !verdict.refund).toBe(false);
      await settleFailed(claimed, verdict);
      // The wait, without waiting: the clock of the breaker and of the job goes on by it.
      const [row] = await queue.query<{ wait: number }>(
        'select extract(epoch from next_retry_at - clock_timestamp())::float8 as wait from broadcast_queue_jobs',
      );
      seconds += Math.max(row?.wait ?? 0, 0);
      await queue.query('update broadcast_queue_jobs set next_retry_at = now()');
      await queue.query('update broadcast_queue_services set open_until = now() where opened_at is not null');
      claimed = await claimOne(queue.store());
    }
    await queue.store().settle([settlement(claimed)], [claimed.leaseId]);
    expect(await flow.serviceAnswers()).toBe(true);
    expect(await queue.jobs()).toMatchObject([{ status: 'completed', outage_calls: 0 }]);
  });
});
