/** Gates: nobody calls until they open. What the claim makes of them is in flow-claim.test.ts. */
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { claimOne, openQueue, sqlState, type TestQueue } from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

const close = (key: string, ms: number, reason: string | null = null) =>
  queue.query('select broadcast_close_gate($1, $2, $3)', [key, ms, reason]);

interface Gate extends Record<string, unknown> {
  key: string;
  seconds: number;
  reason: string | null;
  closed_at: Date;
}

const gates = () =>
  queue.query<Gate>(
    `select key, round(extract(epoch from closed_until - clock_timestamp()))::integer as seconds, reason, closed_at
     from broadcast_queue_gates order by key`,
  );

test('a gate is closed for as long as was asked, with the reason', async () => {
  await close('bot:shop', 30_000, 'HTTP 429');
  await close('service', 5000);
  expect(await gates()).toMatchObject([
    { key: 'bot:shop', seconds: 30, reason: 'HTTP 429' },
    { key: 'service', seconds: 5, reason: null },
  ]);
});

test('one that is closed for longer stays so, and a longer time wins; it is closed since the first', async () => {
  await close('service', 30_000, 'first');
  const [first] = await gates();
  await close('service', 10_000, 'shorter');
  expect(await gates()).toMatchObject([{ seconds: 30, reason: 'first' }]);
  await close('service', 60_000, 'longer');
  expect(await gates()).toMatchObject([{ seconds: 60, reason: 'longer', closed_at: first?.closed_at }]);
});

test('one that had opened is closed anew', async () => {
  await queue.query(
    `insert into broadcast_queue_gates values ('service', now() - interval '1 minute', 'old', now() - interval '1 hour')`,
  );
  await close('service', 10_000, 'new');
  const [gate] = await gates();
  expect(gate).toMatchObject({ seconds: 10, reason: 'new' });
  expect(Date.now() - (gate?.closed_at.getTime() ?? 0)).toBeLessThan(60_000);
});

test('a long reason is kept short', async () => {
  await close('service', 1000, 'x'.repeat(10_000));
  expect((await gates())[0]?.reason).toHaveLength(500);
});

test('daemons that close the same gate at once wait for the longest', async () => {
  await Promise.all(Array.from({ length: 20 }, (_, n) => close('bot:shop', ((n * 7) % 20) * 1000 + 1000)));
  expect(await gates()).toMatchObject([{ seconds: 20 }]);
});

test('opening a gate says whether it was closed, and wakes the daemons', async () => {
  const session = await queue.session();
  await session.query('listen broadcast_queue');
  const heard = new Promise((resolve) => session.once('notification', resolve));
  await close('bot:shop', 30_000);
  await queue.query(`insert into broadcast_queue_gates values ('bot:open', now() - interval '1 second')`);
  const open = (key: string) => queue.query('select broadcast_open_gate($1) as was', [key]);
  expect(await open('bot:shop')).toEqual([{ was: true }]);
  expect(await open('bot:shop')).toEqual([{ was: false }]);
  expect(await open('bot:open')).toEqual([{ was: false }]);
  expect(await open('service')).toEqual([{ was: false }]);
  expect(await gates()).toEqual([]);
  expect(await heard).toMatchObject({ channel: 'broadcast_queue', payload: '' });
  await session.query('unlisten *');
});

test('a gate cannot be closed for no time at all', async () => {
  expect(await sqlState(queue.query("select broadcast_close_gate('service', null)"))).toBe('23502');
});

test('an empty bot_id names no bot', async () => {
  await queue.insert({ job_data: { broadcast_id: 1, bot_id: '' } });
  expect((await claimOne(queue.store())).bot).toBeNull();
});
