import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { jobStore } from '../../src/db/jobs.js';
import { openDatabase } from '../../src/db/pool.js';
import type { Claim, Store } from '../../src/queue/ports.js';
import { claim, claimOne, fromNow, openQueue, SETTINGS, settlement, type TestQueue, worker } from '../support/store.js';

let queue: TestQueue;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
  store = queue.store();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

const ids = (claims: readonly Claim[]) => claims.map(({ job }) => job.id);

async function insertDue(count: number): Promise<void> {
  await queue.query(
    `insert into broadcast_queue_jobs (job_type, job_data, priority, queue_name)
     select 'send_broadcast', '{}', n % 3, case when n % 2 = 0 then 'broadcasts' else 'other' end
     from generate_series(1, $1::integer) n`,
    [count],
  );
}

describe('the order of claims', () => {
  test('is priority, then the time due, then the id', async () => {
    const early = '2026-01-01T00:00:00Z';
    const late = '2026-01-01T00:00:00.000001Z';
    const a = await queue.insert({ scheduled_at: late });
    const b = await queue.insert({ scheduled_at: late, priority: 5 });
    const c = await queue.insert({ scheduled_at: early, priority: 5 });
    const d = await queue.insert({ scheduled_at: early });
    const e = await queue.insert({ scheduled_at: late });
    const f = await queue.insert({ scheduled_at: early, priority: -5 });
    expect(ids(await claim(store, 6))).toEqual([c, b, d, a, e, f].map(({ id }) => id));
  });

  test('holds across claims of one', async () => {
    const low = await queue.insert({ scheduled_at: '2026-01-01T00:00:00Z' });
    const high = await queue.insert({ priority: 1 });
    expect((await claimOne(store)).job.id).toBe(high.id);
    expect((await claimOne(store)).job.id).toBe(low.id);
  });

  test('puts a retry and a waiting slice in by the time that they are due again', async () => {
    const third = await queue.insert({ scheduled_at: fromNow('-1 minute') });
    const second = await queue.insert({ status: 'processing', next_retry_at: fromNow('-2 minutes') });
    const first = await queue.insert({ status: 'retry', next_retry_at: fromNow('-3 minutes') });
    expect(ids(await claim(store))).toEqual([first.id, second.id, third.id]);
  });

  test('lets a due job pass future ones of a higher priority', async () => {
    await queue.query(`insert into broadcast_queue_jobs (job_type, job_data, priority, scheduled_at)
      select 'send_broadcast', '{}', 1 + n % 5, now() + interval '1 hour' from generate_series(1, 50) n`);
    const due = await queue.insert();
    expect(ids(await claim(store))).toEqual([due.id]);
  });
});

describe('the number of jobs claimed', () => {
  test('is the free slots of each queue, and `others` for each queue not named', async () => {
    for (const name of ['a', 'b', 'c', 'd', 'e']) {
      for (const priority of [0, 1, 1]) await queue.insert({ queue_name: name, priority });
    }
    const { claims } = await store.claim(
      randomUUID(),
      new Map([
        ['a', 2],
        ['b', 0],
        ['e', -1],
        ['none', 5],
      ]),
      1,
    );
    const perQueue = new Map<string, number>();
    for (const { job } of claims) perQueue.set(job.queue, (perQueue.get(job.queue) ?? 0) + 1);
    expect([...perQueue].sort()).toEqual([
      ['a', 2],
      ['c', 1],
      ['d', 1],
    ]);
  });

  test('is never more than asked, by whatever plan, and nobody gets a job twice', async () => {
    await insertDue(10_000);
    const url = new URL(queue.url);
    url.searchParams.set('options', '-c enable_hashjoin=off -c enable_mergejoin=off');
    const nested = openDatabase({
      url: url.href,
      schema: 'public',
      applicationName: 'nested loops',
      connectionsMax: 4,
      statementTimeoutMs: 15_000,
    });
    const claimers = Array.from({ length: 8 }, (_, n) =>
      n < 4 ? queue.store(`worker ${n}`) : jobStore(nested, worker(`worker ${n}`), SETTINGS),
    );
    const taken: string[] = [];
    const sizes = new Set<number>();
    await Promise.all(
      claimers.map(async (claimer) => {
        while (true) {
          const claims = await claim(claimer, 60);
          if (claims.length === 0) return;
          for (const name of ['broadcasts', 'other']) {
            sizes.add(claims.filter(({ job }) => job.queue === name).length);
          }
          taken.push(...ids(claims));
        }
      }),
    );
    await nested.close();
    expect(Math.max(...sizes)).toBe(60);
    expect(taken).toHaveLength(10_000);
    expect(new Set(taken).size).toBe(10_000);
    expect(await queue.query('select distinct attempts, epoch from broadcast_queue_jobs')).toEqual([
      { attempts: 1, epoch: 1 },
    ]);
  });
});

describe('rows that somebody else holds', () => {
  test('are skipped while they are locked for update, and claimed afterwards', async () => {
    const locked = await queue.insert({ priority: 9 });
    const free = await queue.insert();
    const session = await queue.session();
    await session.query('begin');
    await session.query('select from broadcast_queue_jobs where id = $1 for update', [locked.id]);
    expect(ids(await claim(store))).toEqual([free.id]);
    await session.query('commit');
    expect(ids(await claim(store))).toEqual([locked.id]);
  });

  test('are claimed in spite of a lock as a foreign key takes it', async () => {
    const row = await queue.insert();
    const session = await queue.session();
    await session.query('begin');
    await session.query('select from broadcast_queue_jobs where id = $1 for key share', [row.id]);
    expect(ids(await claim(store))).toEqual([row.id]);
    await session.query('commit');
  });

  test('are claimed after their commit, also when later ones went first', async () => {
    const session = await queue.session();
    await session.query('begin');
    await session.query("insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', '{}')");
    const later = await queue.insert();
    expect(ids(await claim(store))).toEqual([later.id]);
    await session.query('commit');
    const [earlier] = await claim(store);
    expect(BigInt(earlier?.job.id ?? -1)).toBe(BigInt(later.id) - 1n);
  });
});

describe('what is not claimed', () => {
  test.each([
    ['a job due in the future', { scheduled_at: fromNow('1 minute') }],
    ['a retry before its time', { status: 'retry', next_retry_at: fromNow('1 minute') }],
    ['a paused job', { status: 'paused' }],
    ['a completed job', { status: 'completed' }],
    ['a failed job', { status: 'failed' }],
    ['a cancelled job', { status: 'cancelled' }],
    ['a job under a lease', { status: 'processing', lease_id: randomUUID() }],
    ['a slice that waits', { status: 'processing', next_retry_at: fromNow('1 minute') }],
  ])('%s', async (_, columns) => {
    const before = await queue.insert(columns);
    expect(await claim(store)).toEqual([]);
    expect(await queue.job(before.id)).toEqual(before);
    expect(await queue.leases()).toEqual([]);
  });

  test('a job that was claimed already', async () => {
    await queue.insert();
    expect(await claim(store)).toHaveLength(1);
    expect(await claim(queue.store('another'))).toEqual([]);
  });
});

describe('the time until the next job is due', () => {
  const nextDue = async (free = new Map<string, number>(), others = 1) =>
    (await store.claim(randomUUID(), free, others)).nextDueMs;

  test('is null when nothing waits', async () => {
    await queue.insert({ status: 'paused' });
    expect(await nextDue()).toBeNull();
  });

  test('is that of the earliest, of whatever priority and queue', async () => {
    await queue.insert({ scheduled_at: fromNow('1 hour'), priority: 7 });
    await queue.insert({ status: 'retry', next_retry_at: fromNow('20 seconds'), queue_name: 'z' });
    await queue.insert();
    const ms = await nextDue();
    expect(ms).toBeGreaterThan(10_000);
    expect(ms).toBeLessThanOrEqual(20_000);
  });

  test('does not look at queues without a free slot', async () => {
    await queue.insert({ scheduled_at: fromNow('1 hour') });
    expect(await nextDue(new Map([['broadcasts', 0]]))).toBeNull();
  });

  test('copes with a job that is parked for ever, and with one that was always due', async () => {
    await queue.insert({ scheduled_at: 'infinity' });
    const always = await queue.insert({ scheduled_at: '-infinity' });
    const { claims, nextDueMs } = await store.claim(randomUUID(), new Map(), 1);
    expect(ids(claims)).toEqual([always.id]);
    expect(nextDueMs).toBe(Number.POSITIVE_INFINITY);
  });
});

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
    expect(claimed.job.step).toEqual({ seq: 4, cursor: 'here', scope: 'failed', previousFailure: 'timeout' });
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
