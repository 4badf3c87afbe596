/** Which jobs a claim takes, how many and in what order. What it makes of them is in claimed.test.ts. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { jobStore } from '../../src/db/jobs.js';
import { openDatabase } from '../../src/db/pool.js';
import type { Claim, Store } from '../../src/queue/ports.js';
import { claim, claimOne, fromNow, openQueue, SETTINGS, type TestQueue, worker } from '../support/store.js';

let queue: TestQueue;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
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

/** Anything that has its say, even where no job is, makes it the whole claim's turn. */
const CLAIMS: [string, string][] = [
  ['the usual claim', 'select'],
  ['the whole claim', "select broadcast_set_limit('queue:elsewhere', 1000)"],
];

describe.each(CLAIMS)('by %s', (_, prepare) => {
  beforeAll(() => {
    store = queue.store();
  });
  beforeEach(() => queue.query(prepare));

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
        pooled: false,
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
});

describe('the usual claim gives way to', () => {
  const RIVALS: [string, string, number][] = [
    ['a limit', "select broadcast_set_limit('queue:broadcasts', null, 2)", 1],
    ['a pause', "insert into broadcast_queue_pauses (queue_name) values ('broadcasts')", 0],
    ['the gate of the service', "select broadcast_close_gate('service', 60000)", 0],
    [
      'an open breaker',
      "update broadcast_queue_services set opened_at = now(), open_until = now() + interval '1 minute'",
      0,
    ],
    [
      'a job of a bot, which stands where it should',
      `insert into broadcast_queue_jobs (job_type, job_data, priority) values ('send_broadcast', '{"bot_id": "shop"}', 9)`,
      3,
    ],
  ];

  afterEach(() => queue.query('update broadcast_queue_services set opened_at = null, open_until = null'));

  test.each(RIVALS)('%s', async (_, appears, taken) => {
    const daemon = queue.store();
    await queue.insert();
    expect(await claim(daemon, 10)).toHaveLength(1);
    await queue.insert();
    await queue.insert();
    await queue.query(appears);
    const claims = await claim(daemon, 10);
    expect(claims).toHaveLength(taken);
    if (taken === 3) expect(claims[0]?.bot).toBe('shop');
  });
});
