/** Limits: messages a second by grants that follow one another, and jobs at once over all daemons. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { flowStore } from '../../src/db/flow.js';
import type { FlowStore, GrantAnswer } from '../../src/queue/ports.js';
import { claim, claimOne, openQueue, settlement, sqlState, type TestQueue, worker } from '../support/store.js';
import { until } from '../support/until.js';

let queue: TestQueue;
let flow: FlowStore;

beforeAll(async () => {
  queue = await openQueue();
  flow = flowStore(queue.database, worker('worker'));
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

const limit = (key: string, perSecond: number | null, maxConcurrent: number | null = null) =>
  queue.query('select broadcast_set_limit($1, $2, $3)', [key, perSecond, maxConcurrent]);

type Granted = Extract<GrantAnswer, { kind: 'granted' }>;

async function granted(name: string, bot: string | null, most = 1000, by = flow): Promise<Granted> {
  const answer = await by.grant(name, bot, most);
  if (answer.kind !== 'granted') throw new Error(`not granted: ${JSON.stringify(answer)}`);
  return answer;
}

/** In how many milliseconds the last grant of a limit ends. */
async function freeIn(key: string): Promise<number> {
  const [row] = await queue.query<{ ms: number }>(
    `select extract(epoch from next_free_at - clock_timestamp())::float8 * 1000 as ms
     from broadcast_queue_limits where key = $1`,
    [key],
  );
  return row?.ms ?? Number.NaN;
}

describe('a grant', () => {
  test('is about a second’s worth of the limit, to begin now, and the limit is given away for as long', async () => {
    await limit('queue:broadcasts', 30);
    expect(await granted('broadcasts', null)).toMatchObject({ items: 30, perSecond: 30, lastsMs: 1000 });
    expect(await freeIn('queue:broadcasts')).toBeGreaterThan(900);
    expect(await freeIn('queue:broadcasts')).toBeLessThanOrEqual(1100);
  });

  test.each([
    ['is of no more people than the call can reach', 30, 7, { items: 7, perSecond: 30 }],
    ['of a slow limit is one person', 0.5, 1000, { items: 1, perSecond: 0.5, lastsMs: 2000 }],
    ['of a broken rate is of whole people', 2.5, 1000, { items: 2, perSecond: 2.5, lastsMs: 800 }],
  ])('%s', async (_, rate, most, expected) => {
    await limit('queue:broadcasts', rate);
    expect(await granted('broadcasts', null, most)).toMatchObject(expected);
  });

  test('under two limits keeps to the slower one, and takes its people from both', async () => {
    await limit('queue:broadcasts', 100);
    await limit('bot:shop', 20);
    expect(await granted('broadcasts', 'shop')).toMatchObject({ items: 20, perSecond: 20, lastsMs: 1000 });
    expect(await freeIn('bot:shop')).toBeGreaterThan(900);
    // Twenty of a hundred: the queue is free for another bot after a fifth of a second.
    expect(await freeIn('queue:broadcasts')).toBeLessThanOrEqual(300);
    expect(await flow.grant('broadcasts', 'shop', 1000)).toMatchObject({ kind: 'later' });
    expect(await flow.grant('others', 'shop', 1000)).toMatchObject({ kind: 'later' });
  });

  test('is not asked for where no limit of a rate governs: none, another’s, one of jobs at once', async () => {
    await limit('bot:other', 1);
    await limit('queue:broadcasts', null, 5);
    expect(await flow.grant('broadcasts', 'shop', 10)).toEqual({ kind: 'no limit' });
    expect(await flow.grant('broadcasts', null, 10)).toEqual({ kind: 'no limit' });
  });

  test('comes later while the time is given away, and says when to ask', async () => {
    await limit('queue:broadcasts', 10);
    await granted('broadcasts', null);
    const answer = await flow.grant('broadcasts', null, 1000);
    expect(answer).toMatchObject({ kind: 'later' });
    const { waitMs } = answer as { waitMs: number }; // the kind says so
    expect(waitMs).toBeGreaterThan(700);
    expect(waitMs).toBeLessThanOrEqual(990);
  });

  test('comes later while the gate of its bot or of the service is closed, and takes nothing', async () => {
    await limit('bot:shop', 10);
    for (const key of ['bot:shop', 'service']) {
      await queue.query('select broadcast_close_gate($1, 3000)', [key]);
      const answer = await flow.grant('broadcasts', 'shop', 5);
      expect(answer).toEqual({ kind: 'later', waitMs: expect.any(Number) });
      expect((answer as { waitMs: number }).waitMs).toBeGreaterThan(2500); // the line above says that it is there
      await queue.query('delete from broadcast_queue_gates');
    }
    expect(await granted('broadcasts', 'shop', 5)).toMatchObject({ items: 5 });
  });

  test('obeys a changed limit from the next one on, also where a slow one had given minutes away', async () => {
    await limit('queue:broadcasts', 0.01);
    const slow = await granted('broadcasts', null);
    await flow.used(slow.receipt, 1, 1);
    expect(await freeIn('queue:broadcasts')).toBeGreaterThan(90_000);
    await limit('queue:broadcasts', 50);
    expect(await freeIn('queue:broadcasts')).toBeLessThanOrEqual(1000);
    expect(await flow.pace('broadcasts', null)).toBe(50);
    await queue.query('update broadcast_queue_limits set next_free_at = clock_timestamp()');
    expect(await granted('broadcasts', null)).toMatchObject({ items: 50, perSecond: 50 });
  });

  test('is not needed any more once the limit is dropped', async () => {
    await limit('queue:broadcasts', 1);
    const before = await granted('broadcasts', null);
    expect(await queue.query("select broadcast_drop_limit('queue:broadcasts') as was")).toEqual([{ was: true }]);
    expect(await queue.query("select broadcast_drop_limit('queue:broadcasts') as was")).toEqual([{ was: false }]);
    expect(await flow.grant('broadcasts', null, 10)).toEqual({ kind: 'no limit' });
    await flow.used(before.receipt, 1, 0);
  });
});

describe('what a grant was not used for', () => {
  test('goes back: the next one begins that much sooner', async () => {
    await limit('queue:broadcasts', 10);
    await limit('bot:shop', 5);
    const grant = await granted('broadcasts', 'shop');
    await flow.used(grant.receipt, grant.items, 1);
    expect(await freeIn('bot:shop')).toBeLessThanOrEqual(300);
    expect(await freeIn('bot:shop')).toBeGreaterThan(0);
    expect(await freeIn('queue:broadcasts')).toBeLessThanOrEqual(200);
  });

  test('never brings back time that has passed', async () => {
    await limit('queue:broadcasts', 10);
    const grant = await granted('broadcasts', null);
    await queue.query("update broadcast_queue_limits set next_free_at = next_free_at - interval '1 minute'");
    const receipt = JSON.stringify(
      Object.fromEntries(
        (
          await queue.query<{ key: string; at: string }>(
            'select key, next_free_at::text as at from broadcast_queue_limits',
          )
        ).map(({ key, at }) => [key, at]),
      ),
    );
    await flow.used(receipt, grant.items, 0);
    expect(await freeIn('queue:broadcasts')).toBeGreaterThan(-1000);
  });

  test('is lost where somebody was granted the time after it', async () => {
    await limit('queue:broadcasts', 1000);
    const first = await granted('broadcasts', null, 50);
    await queue.query('update broadcast_queue_limits set held_until = null');
    await granted('broadcasts', null, 50);
    const before = await queue.query('select next_free_at::text from broadcast_queue_limits');
    await flow.used(first.receipt, 50, 0);
    expect(await queue.query('select next_free_at::text from broadcast_queue_limits')).toEqual(before);
  });

  test('is waited for after a call that ended late, for a while', async () => {
    await limit('queue:broadcasts', 100);
    await queue.query('update broadcast_queue_limits set late = 1');
    const { receipt } = await granted('broadcasts', null, 10);
    await queue.query('select pg_sleep(0.12)');
    expect(await flow.grant('broadcasts', null, 10)).toMatchObject({ kind: 'later' });
    await flow.used(receipt, 10, 10);
    await granted('broadcasts', null, 10);
    await queue.query(
      "update broadcast_queue_limits set late = 1, next_free_at = now(), held_until = now() - interval '1 second'",
    );
    await granted('broadcasts', null, 10);
  });

  test('counts as late a tenth of a second after its time; always late is not waited for', async () => {
    await limit('queue:broadcasts', 1000);
    const late = async () => (await queue.query('select late from broadcast_queue_limits'))[0]?.late;
    for (let n = 1; n <= 3; n++) {
      const { receipt } = await granted('broadcasts', null, 10);
      await queue.query('select pg_sleep(0.15)');
      await flow.used(receipt, 10, 10);
      expect(await late()).toBe(n);
    }
    const beside = [await granted('broadcasts', null, 50), await granted('broadcasts', null, 50)];
    for (const { receipt } of beside) await flow.used(receipt, 50, 50);
    expect(await late()).toBe(0);
  });

  test('is not waited for on a limit that does not set the pace', async () => {
    await limit('queue:broadcasts', 1000);
    for (const bot of ['a', 'b']) await limit(`bot:${bot}`, 10);
    await queue.query('update broadcast_queue_limits set late = 1');
    await granted('broadcasts', 'a');
    await queue.query('select pg_sleep(0.03)');
    await granted('broadcasts', 'b');
  });

  test('wakes those who wait for the limit', async () => {
    await limit('queue:broadcasts', 10);
    const grant = await granted('broadcasts', null);
    const session = await queue.session();
    await session.query('listen broadcast_queue');
    const heard = new Promise((resolve) => session.once('notification', resolve));
    await flow.used(grant.receipt, grant.items, 0);
    expect(await heard).toMatchObject({ channel: 'broadcast_queue', payload: '' });
    await session.query('unlisten *');
  });

  test('locks its limits in the order in which the grants do, so that neither waits for the other for ever', async () => {
    const bot = 'whose-key-is-longer-than-that-of-the-queue';
    await limit('queue:q', 10);
    await limit(`bot:${bot}`, 10);
    const grant = await granted('q', bot);
    // A grant that has got half of what it wants.
    const session = await queue.session();
    const lock = 'select from broadcast_queue_limits where key = $1 for no key update nowait';
    await session.query('begin');
    await session.query(lock, [`bot:${bot}`]);
    const returned = flow.used(grant.receipt, grant.items, 0);
    await until('the return waits', async () => {
      const waiting = await queue.query(
        "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
      );
      return waiting.length > 0;
    });
    await session.query(lock, ['queue:q']);
    await session.query('commit');
    await returned;
    expect(await freeIn('queue:q')).toBeLessThan(200);
  });

  test('can be less than nothing: a call that reached more than granted has used what comes next', async () => {
    await limit('queue:broadcasts', 10);
    const grant = await granted('broadcasts', null);
    await flow.used(grant.receipt, grant.items, 30);
    expect(await freeIn('queue:broadcasts')).toBeGreaterThan(2800);
    await flow.used(grant.receipt, grant.items, 1e15);
    expect(await freeIn('queue:broadcasts')).toBeLessThan(3_700_000);
  });
});

describe('many who ask at once', () => {
  test('get no more in any stretch of time than the limit allows and a slice, under two limits, and lock nobody out', async () => {
    // The bot's key sorts before the queue's, and is longer: the two orders in which locks might be taken.
    const RATES = { 'queue:q': 900, 'bot:a-name-that-is-long': 500, 'bot:b': 700 };
    for (const [key, rate] of Object.entries(RATES)) await limit(key, rate);
    const given: { key: string; at: number; items: number }[] = [];
    const start = performance.now();
    const asker = async (bot: string) => {
      while (performance.now() - start < 2500) {
        const answer = await flow.grant('q', bot, 40);
        if (answer.kind !== 'granted') continue;
        // Not before it was answered, as the daemon sees it.
        const at = performance.now() + answer.waitMs;
        const used = given.length % 3 === 0 ? 10 : answer.items;
        await flow.used(answer.receipt, answer.items, used);
        for (const key of ['queue:q', `bot:${bot}`]) given.push({ key, at, items: used });
      }
    };
    const bots = Object.keys(RATES)
      .filter((key) => key.startsWith('bot:'))
      .map((key) => key.slice(4));
    await Promise.all(Array.from({ length: 8 }, (_, n) => asker(bots[n % 2] ?? '')));
    for (const [key, rate] of Object.entries(RATES)) {
      const grants = given.filter((grant) => grant.key === key).sort((one, other) => one.at - other.at);
      for (const [from, first] of grants.entries()) {
        let sum = 0;
        for (const grant of grants.slice(from)) {
          sum += grant.items;
          // What is granted up to a tenth of a second ahead arrives a little unevenly.
          expect(sum).toBeLessThanOrEqual((rate * (grant.at - first.at + 100)) / 1000 + 40);
        }
      }
    }
    const total = given.filter(({ key }) => key === 'queue:q').reduce((sum, { items }) => sum + items, 0);
    // Nine hundred a second were to be had for two and a half.
    expect(total).toBeGreaterThan(900 * 2.5 * 0.5);
  });

  test('are no slower with 10,000 limits than with one', async () => {
    const crowd = await openQueue();
    const ways = [queue, crowd].map((one) => ({
      flow: flowStore(one.database, worker('worker')),
      store: one.store(),
      times: [] as number[],
    }));
    for (const one of [queue, crowd]) {
      await one.query(`select broadcast_set_limit(key, 1e6) from unnest(array['queue:broadcasts', 'bot:shop']) key`);
      await one.query(`insert into broadcast_queue_jobs (job_type, job_data)
        select 'send_broadcast', jsonb_build_object('bot_id', case when n % 2 = 0 then 'shop' else 'free' end)
        from generate_series(1, 1000) n`);
    }
    await crowd.query(`insert into broadcast_queue_limits (key, per_second, max_concurrent)
      select case when n % 2 = 0 then 'bot:' else 'queue:q' end || n, 10, 10 from generate_series(1, 10000) n`);
    // By turns, so that whatever else the machine does slows down both.
    for (let n = 0; n < 120; n++) {
      for (const { flow, store, times } of ways) {
        const begun = performance.now();
        const { receipt, items } = await granted('broadcasts', 'shop', 1, flow);
        await flow.used(receipt, items, 0);
        const [first, ...more] = await claim(store, 4);
        if (!first) throw new Error('there was nothing to claim');
        await store.release([first.leaseId]);
        if (n >= 20) times.push(performance.now() - begun);
        expect(more).toHaveLength(3);
      }
    }
    const [alone = 0, among] = ways.map(({ times }) => times.sort((one, other) => one - other)[50]);
    expect((among ?? Number.NaN) / alone).toBeLessThan(2);
    await crowd.close();
  });
});

describe('a limit', () => {
  test.each([
    ['of a strange key', ['shop', 1, null]],
    ['of no queue', ['queue:Not One', 1, null]],
    ['of nothing', ['queue:a', null, null]],
    ['of no messages a second', ['queue:a', 0, null]],
    ['of less than no messages', ['queue:a', -1, null]],
    ['of no number', ['queue:a', Number.NaN, null]],
    ['of no jobs at once', ['queue:a', null, 0]],
  ])('%s is refused', async (_, values) => {
    expect(await sqlState(queue.query('select broadcast_set_limit($1, $2, $3)', values))).toBe('22023');
    expect(await queue.query('select from broadcast_queue_limits')).toEqual([]);
  });

  test('says who set it; and setting it again sets both of its members', async () => {
    await queue.query("select broadcast_set_limit('bot:shop', 5, 2, 'alice')");
    await queue.query("select broadcast_set_limit('bot:shop', null, 3, updated_by => 'bob')");
    expect(await queue.query('select key, per_second, max_concurrent, updated_by from broadcast_queue_limits')).toEqual(
      [{ key: 'bot:shop', per_second: null, max_concurrent: 3, updated_by: 'bob' }],
    );
  });
});

describe('a limit of jobs at once', () => {
  test.each([
    ['queue:broadcasts', 5],
    ['bot:shop', 3],
  ])('for %s is never exceeded by twelve daemons that claim all the time, and is reached', async (key, most) => {
    await limit(key, 1e6, most);
    await queue.query(`insert into broadcast_queue_jobs (job_type, job_data, priority)
      select 'send_broadcast', '{"bot_id": "shop"}', n % 2 from generate_series(1, 120) n`);
    let running = 0;
    let highest = 0;
    let over = 0;
    let done = 0;
    const deadline = performance.now() + 15_000;
    await Promise.all(
      Array.from({ length: 12 }, async (_, n) => {
        const store = queue.store(`worker ${n}`);
        while (done < 120 && performance.now() < deadline) {
          const claims = await claim(store, 2);
          running += claims.length;
          highest = Math.max(highest, running);
          if (running > most) over++;
          // Others use the limit's row meanwhile, as grants do.
          await flow.grant('broadcasts', 'shop', 1);
          if (claims.length === 0) continue;
          running -= claims.length;
          done += claims.length;
          await store.settle(
            claims.map((claimed) => settlement(claimed)),
            [claims[0]?.leaseId ?? ''],
          );
        }
      }),
    );
    expect({ done, over, highest }).toEqual({ done: 120, over: 0, highest: most });
  });

  const FREES: Record<string, () => Promise<unknown>> = {
    async settle() {
      const store = queue.store();
      const [row] = await queue.query<{ id: string; lease_id: string }>(
        "select id, lease_id from broadcast_queue_jobs where status = 'processing'",
      );
      const claimed = held.find(({ job }) => job.id === row?.id);
      if (!claimed) throw new Error('it was never claimed');
      return store.settle([settlement(claimed)], [claimed.leaseId]);
    },
    'the reaper': async () => {
      await queue.expireLeases();
      await queue.reaper().reap();
    },
    cancel: () => queue.query("select broadcast_cancel(job_id) from broadcast_queue_jobs where status = 'processing'"),
    'a higher limit': () => limit('queue:broadcasts', null, 2),
    'no limit': () => queue.query("select broadcast_drop_limit('queue:broadcasts')"),
  };
  let held: Awaited<ReturnType<typeof claim>>;

  test.each(Object.entries(FREES))('has room again after %s', async (_, free) => {
    await limit('queue:broadcasts', null, 1);
    await queue.insert();
    held = [await claimOne(queue.store())];
    const next = await queue.insert({ scheduled_at: '2026-01-01T00:00:00Z' });
    expect(await claim(queue.store())).toEqual([]);
    await free();
    expect((await claimOne(queue.store())).job.id).toBe(next.id);
  });

  test('says to look again at once when another claim was at the limit in the same moment', async () => {
    await limit('queue:broadcasts', null, 5);
    await queue.insert();
    const session = await queue.session();
    await session.query('begin');
    await session.query('select from broadcast_queue_limits for update');
    const { claims, nextDueMs } = await queue.store().claim(randomUUID(), new Map(), 5);
    expect([claims, nextDueMs]).toEqual([[], expect.any(Number)]);
    expect(nextDueMs).toBeLessThanOrEqual(20);
    await session.query('commit');
    expect(await claim(queue.store())).toHaveLength(1);
  });
});
