/** Jobs claimed before there is a slot for them: which these are, what may keep them back, and what a crash costs them. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Store } from '../../src/queue/ports.js';
import { fromNow, openQueue, settlement, type TestQueue } from '../support/store.js';
import { until } from '../support/until.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

/** Due one after the other. */
async function insert(count: number, columns: Readonly<Record<string, unknown>> = {}): Promise<string[]> {
  const ids: string[] = [];
  for (let n = count; n > 0; n--) {
    ids.push((await queue.insert({ scheduled_at: fromNow(`-${n} seconds`), ...columns })).id);
  }
  return ids;
}

async function claim(store: Store, free: number, ahead: number, name = 'broadcasts') {
  const leaseId = randomUUID();
  const answer = await store.claim(leaseId, new Map([[name, free]]), 0, new Map([[name, ahead]]));
  return { ...answer, leaseId, ids: answer.claims.map(({ job }) => job.id) };
}

/** What a crash leaves behind, reaped. */
async function reap() {
  await queue.expireLeases();
  return (await queue.reaper().reap()).reaped;
}

test('a claim brings jobs for the free slots and as many more as it was asked for, in their order', async () => {
  const ids = await insert(6);
  const claimed = await claim(queue.store(), 2, 3);
  expect([claimed.ids, claimed.begun]).toEqual([ids.slice(0, 5), 2]);
});

test('of several queues those for free slots come first, and all come to their end together', async () => {
  const shops = await insert(4, { queue_name: 'shops' });
  const news = await insert(8, { queue_name: 'news' });
  const free = new Map([
    ['news', 1],
    ['shops', 1],
  ]);
  const ahead = new Map([
    ['news', 6],
    ['shops', 3],
  ]);
  const answer = await queue.store().claim(randomUUID(), free, 0, ahead);
  const names = answer.claims.map(({ job }) => job.queue);
  expect(answer.begun).toBe(2);
  expect(names.slice(0, 2).sort()).toEqual(['news', 'shops']);
  // Two of the one for each of the other, wherever one stops.
  for (let n = 2; n <= names.length; n++) {
    const inShops = names.slice(2, n).filter((name) => name === 'shops').length;
    expect(Math.abs(n - 2 - 3 * inShops)).toBeLessThanOrEqual(2);
  }
  expect(answer.claims.filter(({ job }) => job.queue === 'news').map(({ job }) => job.id)).toEqual(news.slice(0, 7));
  expect(answer.claims.filter(({ job }) => job.queue === 'shops').map(({ job }) => job.id)).toEqual(shops);
});

describe('nothing is claimed ahead', () => {
  const set = (text: string) => () => queue.query(text);
  const KEPT_BACK: [string, () => Promise<unknown>, claimed: number][] = [
    ['under a limit of its queue', set("select broadcast_set_limit('queue:broadcasts', 1000)"), 1],
    ['under a limit on jobs at once', set("select broadcast_set_limit('queue:broadcasts', null, 4)"), 1],
    [
      'while calls of the service fail',
      set("update broadcast_queue_services set streak = 1 where name = 'default'"),
      1,
    ],
    ['from a paused queue', set("select broadcast_pause_queue('broadcasts')"), 0],
    ["behind the service's closed gate", set("select broadcast_close_gate('service', 60000)"), 0],
  ];
  afterEach(() => queue.query('select broadcast_queue_service_answers()'));

  test.each(KEPT_BACK)('%s', async (_, bringAbout, claimed) => {
    await insert(3);
    await bringAbout();
    expect((await claim(queue.store(), 1, 2)).ids).toHaveLength(claimed);
  });

  test.each(KEPT_BACK)('%s, also where a claim goes on behind another', async (_, bringAbout, claimed) => {
    await insert(8);
    const store = queue.store();
    expect((await claim(store, 1, 2)).ids).toHaveLength(3);
    await bringAbout();
    // It brings nothing, and the next one looks at everything.
    const further = await claim(store, 1, 2);
    expect(further.ids).toHaveLength(0);
    expect(further.nextDueMs).toBe(0);
    expect((await claim(store, 1, 2)).ids).toHaveLength(claimed);
  });
});

describe('a claim that goes on behind another', () => {
  test('brings what comes next in the line, and says that it looked nowhere else', async () => {
    const ids = await insert(9);
    const store = queue.store();
    expect((await claim(store, 1, 3)).only).toBeUndefined();
    const further = await claim(store, 1, 3);
    expect(further.ids).toEqual(ids.slice(4, 8));
    expect(further.only).toEqual(new Set(['broadcasts']));
  });

  test('never brings what another daemon has', async () => {
    const ids = await insert(10);
    const [one, other] = [queue.store('one'), queue.store('other')];
    const brought: string[] = [];
    for (let n = 0; n < 4; n++) brought.push(...(await claim(one, 1, 1)).ids, ...(await claim(other, 1, 1)).ids);
    expect(brought.sort((a, b) => Number(a) - Number(b))).toEqual(ids);
  });

  test('is followed by one that looks at everything where it finds less than it asked for', async () => {
    await insert(5);
    const store = queue.store();
    await claim(store, 1, 3);
    const early = await queue.insert({ scheduled_at: fromNow('-1 hour') });
    expect(await claim(store, 1, 3)).toMatchObject({ nextDueMs: 0, ids: [expect.any(String)] });
    expect((await claim(store, 1, 3)).ids).toEqual([early.id]);
  });

  test('does not pass over a job of a higher priority once it is told of one', async () => {
    await insert(200);
    const store = queue.store();
    await claim(store, 1, 1);
    const urgent = await queue.insert({ priority: 5 });
    store.lookAnew();
    // Not before three times as long as the last whole claim took.
    await until('it was claimed', async () => (await claim(store, 1, 1)).ids.includes(urgent.id));
    expect((await queue.jobs()).some(({ status }) => status === 'pending')).toBe(true);
  });

  test('is never made for jobs that name a bot', async () => {
    await insert(9, { job_data: { broadcast_id: '1', bot_id: 'shop' } });
    const store = queue.store();
    await claim(store, 1, 3);
    expect((await claim(store, 1, 3)).only).toBeUndefined();
  });
});

describe('when its daemon dies', () => {
  test('a job that was never called is as it was, and one that may have been called has lost an attempt', async () => {
    await insert(4);
    const store = queue.store();
    const claimed = await claim(store, 1, 3);
    expect(await store.begin(new Map([[claimed.leaseId, 2]]))).toEqual(new Set([claimed.leaseId]));
    expect((await reap()).map(({ status }) => status).sort()).toEqual(['pending', 'pending', 'retry', 'retry']);
    const rows = await queue.jobs();
    for (const row of rows.slice(0, 2)) {
      expect(row).toMatchObject({ status: 'retry', attempts: 1, flags: ['possible_duplicate'], lease_id: null });
    }
    for (const row of rows.slice(2)) {
      expect(row).toMatchObject({ status: 'pending', attempts: 0, flags: [], started_at: null, lease_id: null });
      expect(row.error_message).toBeNull();
    }
    expect(await queue.attempts()).toHaveLength(2);
    expect(await queue.leases()).toEqual([]);
  });

  test('a claim that brought nothing ahead has lost all of its jobs, as has one of a daemon that never claims ahead', async () => {
    await insert(4);
    await queue.store().claim(randomUUID(), new Map([['broadcasts', 2]]), 0);
    const { leaseId } = await claim(queue.store(), 2, 0);
    await queue.query('update broadcast_queue_leases set begun = null where lease_id = $1', [leaseId]);
    expect((await reap()).map(({ status }) => status)).toEqual(['retry', 'retry', 'retry', 'retry']);
  });

  test('a job that was never called and is to be paused is paused', async () => {
    await insert(2);
    await claim(queue.store(), 1, 1);
    await queue.query('select broadcast_pause(job_id) from broadcast_queue_jobs');
    await reap();
    expect((await queue.jobs()).map(({ status, attempts }) => [status, attempts])).toEqual([
      ['paused', 1],
      ['paused', 0],
    ]);
  });
});

describe('the word that jobs begin', () => {
  test('is refused once the lease was reaped', async () => {
    await insert(2);
    const store = queue.store();
    const { leaseId } = await claim(store, 1, 1);
    await reap();
    expect(await store.begin(new Map([[leaseId, 2]]))).toEqual(new Set());
  });

  test('never takes back another', async () => {
    await insert(3);
    const store = queue.store();
    const { leaseId } = await claim(store, 1, 2);
    await store.begin(new Map([[leaseId, 3]]));
    await store.begin(new Map([[leaseId, 2]]));
    expect(await queue.leases()).toMatchObject([{ begun: 3 }]);
  });

  test('meets the reaper at the row of the lease: who comes second finds it gone', async () => {
    await insert(2);
    const store = queue.store();
    const { leaseId } = await claim(store, 1, 1);
    const session = await queue.session();
    await session.query('begin');
    await session.query('select from broadcast_queue_leases for update');
    const begins = store.begin(new Map([[leaseId, 2]]));
    await session.query('delete from broadcast_queue_leases');
    await session.query('commit');
    expect(await begins).toEqual(new Set());
  });
});

test('settlements of jobs claimed ahead are fenced like all others', async () => {
  await insert(2);
  const store = queue.store();
  const { claims } = await claim(store, 1, 1);
  await reap();
  expect(
    await store.settle(
      claims.map((each) => settlement(each)),
      [],
    ),
  ).toEqual(['lost', 'lost']);
});
