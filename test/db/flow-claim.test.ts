/** What the claim leaves alone because it could not be called now, and what it takes past it. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Claim, Store } from '../../src/queue/ports.js';
import { claim, claimOne, fromNow, openQueue, settlement, type TestQueue } from '../support/store.js';

let queue: TestQueue;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
  store = queue.store();
});
afterEach(async () => {
  await queue.query("select broadcast_open_gate('service')");
  await queue.clear();
});
afterAll(() => queue.close());

const ids = (claims: readonly Claim[]) => claims.map(({ job }) => job.id);
const ofBot = (bot: string, columns = {}) => queue.insert({ job_data: { broadcast_id: '1', bot_id: bot }, ...columns });
const close = (key: string, ms: number) => queue.query('select broadcast_close_gate($1, $2)', [key, ms]);
const nextDue = async (others = 10) => (await store.claim(randomUUID(), new Map(), others)).nextDueMs;

/** Due since an hour ago, a millisecond after another. */
async function dueOf(bot: string, count: number, priority = 0): Promise<void> {
  await queue.query(
    `insert into broadcast_queue_jobs (job_type, job_data, priority, scheduled_at)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n, 'bot_id', $1::text), $3::smallint,
            now() - interval '1 hour' + n * interval '1 millisecond'
     from generate_series(1, $2::integer) n`,
    [bot, count, priority],
  );
}

/** Opens the breaker, and lets its pause pass. */
async function halfOpen(): Promise<void> {
  await queue.query(`update broadcast_queue_services
    set opened_at = now() - interval '1 minute', open_until = now() - interval '1 second', probes = 0`);
}

describe('jobs that name a bot', () => {
  test('stand in one line with those that name none: priority, then time due, then id', async () => {
    const early = '2026-01-01T00:00:00Z';
    const late = '2026-01-01T00:00:00.000001Z';
    const a = await ofBot('x', { scheduled_at: late });
    const b = await queue.insert({ scheduled_at: late });
    const c = await ofBot('y', { scheduled_at: early });
    const d = await queue.insert({ scheduled_at: early, priority: -1 });
    const e = await ofBot('x', { scheduled_at: late });
    const f = await queue.insert({ scheduled_at: late, priority: 3 });
    const g = await ofBot('z', { scheduled_at: early, priority: 2 });
    const h = await ofBot('z', { scheduled_at: early, priority: -1 });
    const line = [f, g, c, a, b, e, d, h].map(({ id }) => id);
    expect(ids(await claim(store, 3))).toEqual(line.slice(0, 3));
    expect(ids(await claim(store, 4))).toEqual(line.slice(3, 7));
    expect(ids(await claim(store, 4))).toEqual(line.slice(7));
  });

  test('are told by whatever the id is: a number, a long text, quotes', async () => {
    const long = 'x'.repeat(300);
    for (const bot_id of [7, long, '', `"'\\`]) await queue.insert({ job_data: { bot_id } });
    expect((await claim(store)).map(({ bot }) => bot)).toEqual(['7', long.slice(0, 100), null, `"'\\`]);
  });

  test('are no such jobs where the payload is no object or the id is null', async () => {
    for (const data of ['[1]', '"bot_id"', '{"bot_id": null}', '{"bot": {"bot_id": 1}}']) {
      await queue.insert({ job_data: data });
    }
    expect((await claim(store)).map(({ bot }) => bot)).toEqual([null, null, null, null]);
  });

  test('come one for each of 2,000 bots, in order, however many are asked for', async () => {
    await queue.query(
      `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
       select 'send_broadcast', jsonb_build_object('bot_id', n), now() - n * interval '1 second'
       from generate_series(1, 2000) n`,
    );
    const bots = (await claim(store, 700)).map(({ bot }) => Number(bot));
    for (let more = 1; more > 0; ) {
      const next = await claim(store, 700);
      bots.push(...next.map(({ bot }) => Number(bot)));
      more = next.length;
    }
    expect(bots).toEqual(Array.from({ length: 2000 }, (_, n) => 2000 - n));
  });
});

describe('a bot that may not be called', () => {
  const SHUT: Record<string, () => Promise<unknown>> = {
    'whose gate is closed': () => close('bot:shut', 5000),
    'whose limit has given its next seconds away': () =>
      queue.query(
        `insert into broadcast_queue_limits (key, per_second, next_free_at)
         values ('bot:shut', 1, now() + interval '5.1 seconds')`,
      ),
  };
  const SAYS_WHEN = Object.entries(SHUT);

  test.each(SAYS_WHEN)('%s is passed over by itself, and the claim says when to look again', async (_, shut) => {
    await shut();
    const closed = await ofBot('shut', { priority: 9 });
    const other = await ofBot('open');
    const plain = await queue.insert();
    const { claims, nextDueMs } = await store.claim(randomUUID(), new Map(), 10);
    expect(ids(claims)).toEqual([other.id, plain.id]);
    expect(nextDueMs).toBeGreaterThan(3000);
    expect(nextDueMs).toBeLessThanOrEqual(5000);
    expect(await queue.job(closed.id)).toEqual(closed);
  });

  test.each(SAYS_WHEN)('%s, with 6,000 jobs at the head of the line, stands in nobody’s way', async (_, shut) => {
    await shut();
    await dueOf('shut', 6000);
    const later = await ofBot('b', { scheduled_at: fromNow('-1 minute') });
    const sooner = await ofBot('c', { scheduled_at: fromNow('-2 minutes') });
    const plain = await queue.insert();
    const { claims, nextDueMs } = await store.claim(randomUUID(), new Map(), 3);
    expect(ids(claims)).toEqual([sooner.id, later.id, plain.id]);
    expect(nextDueMs).toBeGreaterThan(3000);
  });

  test('is called again as soon as its gate is open', async () => {
    await close('bot:shut', 3_600_000);
    const row = await ofBot('shut');
    expect(await claim(store)).toEqual([]);
    expect(
      await queue.query("select broadcast_open_gate('bot:shut') as was, broadcast_open_gate('bot:x') as other"),
    ).toEqual([{ was: true, other: false }]);
    expect((await claimOne(store)).job.id).toBe(row.id);
  });

  test('does not hide when another one behind it opens', async () => {
    await close('bot:shut', 60_000);
    await close('bot:soon', 2000);
    await dueOf('shut', 500);
    await ofBot('soon', { scheduled_at: fromNow('-1 minute') });
    expect(await nextDue(5)).toBeLessThanOrEqual(2000);
  });

  test('is found among thousands that have work for tomorrow only', async () => {
    await close('bot:shut', 60_000);
    await dueOf('shut', 1000);
    await queue.query(
      `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
       select 'send_broadcast', jsonb_build_object('bot_id', 'tomorrow ' || n), now() + interval '1 day'
       from generate_series(1, 3000) n`,
    );
    const last = await ofBot('zzz');
    expect(ids(await claim(store, 5))).toEqual([last.id]);
  });
});

describe('a bot with all the jobs at once that it may have', () => {
  test('stands in nobody’s way, with 6,000 jobs at the head of the line', async () => {
    await queue.query("select broadcast_set_limit('bot:busy', null, 1)");
    await dueOf('busy', 6000);
    const other = await ofBot('other', { scheduled_at: fromNow('-1 minute') });
    const first = await claim(store, 5);
    expect(first.map(({ bot }) => bot)).toEqual(['busy', 'other']);
    expect(first[1]?.job.id).toBe(other.id);
    const next = await ofBot('other', { scheduled_at: fromNow('-1 minute') });
    expect(ids(await claim(store, 5))).toEqual([next.id]);
  });

  test('is held to it over several priorities and queues in one claim', async () => {
    await queue.query("select broadcast_set_limit('bot:busy', null, 2)");
    await ofBot('busy', { priority: 1 });
    const low = await queue.insert({ priority: -1 });
    const high = await ofBot('busy', { priority: 2 });
    await ofBot('busy', { priority: 0 });
    await ofBot('busy', { queue_name: 'aside' });
    const claims = await claim(store, 10);
    expect(claims.filter(({ bot }) => bot === 'busy')).toHaveLength(2);
    expect(ids(claims)).toEqual(expect.arrayContaining([low.id, high.id]));
  });

  test('leaves its slots to the next in line, of whatever priority', async () => {
    await queue.query("select broadcast_set_limit('bot:busy', null, 1)");
    const one = await ofBot('busy', { priority: 5 });
    await ofBot('busy', { priority: 1 });
    const plain = await queue.insert({ priority: 0 });
    expect(ids(await claim(store, 2))).toEqual([one.id, plain.id]);
  });

  test('goes on in another queue while a queue that it waits in is full', async () => {
    await queue.query("select broadcast_set_limit('bot:busy', null, 1), broadcast_set_limit('queue:full', null, 1)");
    await queue.insert({ queue_name: 'full' });
    await claimOne(store);
    await ofBot('busy', { queue_name: 'full', priority: 9 });
    const elsewhere = await ofBot('busy', { queue_name: 'roomy' });
    expect(ids(await claim(store))).toEqual([elsewhere.id]);
  });
});

describe("while the service's gate is closed or its breaker open", () => {
  test.each([
    ['gate', () => close('service', 4000)],
    [
      'breaker',
      () =>
        queue.query("update broadcast_queue_services set opened_at = now(), open_until = now() + interval '4 seconds'"),
    ],
  ])('%s: nothing is claimed but from the queue that calls nobody, and the claim says until when', async (_, shut) => {
    await shut();
    const waits = [await queue.insert(), await ofBot('x'), await queue.insert({ queue_name: 'retries' })];
    const cleans = [
      await queue.insert({ queue_name: 'cleanup', job_type: 'cleanup_queue' }),
      await queue.insert({ queue_name: 'cleanup', job_type: 'cleanup_queue' }),
    ];
    const { claims, nextDueMs } = await store.claim(randomUUID(), new Map(), 10);
    expect(ids(claims)).toEqual(cleans.map(({ id }) => id));
    expect(nextDueMs).toBeGreaterThan(2000);
    expect(nextDueMs).toBeLessThanOrEqual(4000);
    await queue.query("select broadcast_open_gate('service')");
    expect(ids(await claim(store)).sort()).toEqual(waits.map(({ id }) => id).sort());
  });

  test('a queue whose limit has given its next seconds away waits alone', async () => {
    await queue.query(
      `insert into broadcast_queue_limits (key, per_second, next_free_at)
       values ('queue:slow', 1, now() + interval '3.1 seconds')`,
    );
    await queue.insert({ queue_name: 'slow' });
    const other = await queue.insert();
    const { claims, nextDueMs } = await store.claim(randomUUID(), new Map(), 10);
    expect(ids(claims)).toEqual([other.id]);
    expect(nextDueMs).toBeGreaterThan(2000);
    expect(nextDueMs).toBeLessThanOrEqual(3000);
  });

  test('a paused queue stays so when the gate opens', async () => {
    await queue.query("select broadcast_pause_queue('broadcasts')");
    await close('bot:x', 1);
    await ofBot('x');
    await queue.insert();
    expect(await claim(store)).toEqual([]);
  });
});

describe('while the breaker is half open', () => {
  test('of many claims at once one takes one job, and the next probe waits twice as long', async () => {
    await halfOpen();
    for (let n = 0; n < 10; n++) await queue.insert({ queue_name: n % 2 === 0 ? 'broadcasts' : 'retries' });
    const claims = await Promise.all(Array.from({ length: 8 }, (_, n) => claim(queue.store(`worker ${n}`))));
    expect(claims.flat()).toHaveLength(1);
    const probe = await queue.query(
      `select probes, ceil(extract(epoch from open_until - clock_timestamp()) - 0.1)::integer as pause
       from broadcast_queue_services`,
    );
    expect(probe).toEqual([{ probes: 1, pause: 2 }]);
    expect(await claim(store)).toEqual([]);
    expect(await nextDue()).toBeLessThanOrEqual(2000);
    expect(claims.flat()[0]?.troubled).toBe(true);
  });

  test('pauses double up to eight seconds', async () => {
    const pauses: number[] = [];
    for (let n = 0; n < 5; n++) await queue.insert();
    await halfOpen();
    for (let n = 0; n < 5; n++) {
      await queue.query("update broadcast_queue_services set open_until = now() - interval '1 second'");
      await claimOne(store);
      const [row] = await queue.query<{ pause: number }>(
        'select ceil(extract(epoch from open_until - clock_timestamp()) - 0.1)::integer as pause from broadcast_queue_services',
      );
      pauses.push(row?.pause ?? 0);
    }
    expect(pauses).toEqual([2, 4, 8, 8, 8]);
  });

  test('a job that has probed ten times probes once a minute', async () => {
    await halfOpen();
    await queue.insert({ outage_calls: 10 });
    await queue.insert();
    await claimOne(store);
    expect(await nextDue()).toBeGreaterThan(50_000);
  });

  test('cleaning up goes on, and is no probe', async () => {
    await halfOpen();
    for (let n = 0; n < 3; n++) await queue.insert({ queue_name: 'cleanup', job_type: 'cleanup_queue', priority: 9 });
    expect(await claim(store)).toHaveLength(3);
    expect(await queue.query('select probes from broadcast_queue_services')).toEqual([{ probes: 0 }]);
    const probe = await queue.insert();
    await queue.insert({ queue_name: 'cleanup', job_type: 'cleanup_queue' });
    expect(ids(await claim(store))).toContain(probe.id);
    expect(await queue.query('select probes from broadcast_queue_services')).toEqual([{ probes: 1 }]);
  });

  test('the probe is a job that calls: what is out of its hours or expired does not stand for it', async () => {
    await halfOpen();
    const [hours] = await queue.query<{ shut: object }>(
      `select jsonb_build_object('from', to_char(now() at time zone 'UTC' + interval '2 hours', 'HH24:00'),
                                 'to', to_char(now() at time zone 'UTC' + interval '3 hours', 'HH24:00'),
                                 'time_zone', 'UTC') as shut`,
    );
    for (let n = 0; n < 3; n++) await queue.insert({ send_window: hours?.shut, priority: 9 });
    await queue.insert({ expires_at: fromNow('-1 second'), priority: 9 });
    const real = await queue.insert({ priority: 1 });
    await queue.insert({ priority: 0 });
    const claims = await claim(store);
    expect(claims).toHaveLength(5);
    expect(claims.filter(({ windowWaitMs, expired }) => windowWaitMs === null && !expired)).toMatchObject([
      { job: { id: real.id } },
    ]);
  });

  test('different jobs probe by turns', async () => {
    const rows: string[] = [];
    for (let n = 0; n < 3; n++) rows.push((await queue.insert({ scheduled_at: '2026-01-01T00:00:00Z' })).id);
    const probed: string[] = [];
    for (let n = 0; n < 6; n++) {
      await halfOpen();
      const probe = await claimOne(store);
      probed.push(probe.job.id);
      const word = { status: 'retry', dueInMs: 60_000, attempts: 'refund', errorCode: 'http_503' } as const;
      await store.settle([settlement(probe, word)], [probe.leaseId]);
      // Its pause is over, and it stands behind the others.
      await queue.query('update broadcast_queue_jobs set next_retry_at = $2 where id = $1', [
        probe.job.id,
        `2026-01-02T00:00:0${n}Z`,
      ]);
    }
    expect(probed).toEqual([...rows, ...rows]);
  });
});

test('an unknown time zone breaks no claim', async () => {
  const session = await queue.session();
  await session.query('set session_replication_role = replica');
  await session.query(
    `insert into broadcast_queue_jobs (job_type, job_data, send_window)
     values ('send_broadcast', '{}', '{"from": "09:00", "to": "10:00", "time_zone": "Europe/Atlantis"}')`,
  );
  const plain = await queue.insert();
  const claims = await claim(store);
  expect(claims.map(({ windowWaitMs }) => windowWaitMs)).toEqual([null, null]);
  expect(ids(claims)).toContain(plain.id);
  expect(
    await store.settle(
      claims.map((claimed) => settlement(claimed)),
      [],
    ),
  ).toEqual(['settled', 'settled']);
});
