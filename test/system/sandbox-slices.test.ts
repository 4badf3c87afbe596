/** The sandbox keeps the promises of the service protocol's level 2, call by call: real server, real Postgres. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { type Sandbox, type SandboxOptions, startSandbox } from '../../src/sandbox/server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { type CallAnswer, call, callThrough, eventually, received, report, request } from '../support/sandbox-calls.js';

/** What a broadcast to the thousand sample users comes to. */
const EVERYBODY = {
  total: 1000,
  processed: 1000,
  sent: 900,
  skipped: 50,
  failed: 50,
  unknown: 0,
  reasons: { opted_out: 50, blocked: 30, deactivated: 10, temporarily_unreachable: 10 },
};

let database: TestDatabase;
let sandbox: Sandbox;
let url: string;

beforeAll(async () => {
  database = await createDatabase();
  sandbox = await startSandbox({ databaseUrl: database.url });
  url = sandbox.url;
});

afterAll(async () => {
  await sandbox.close();
  await database.drop();
});

describe('slices', () => {
  test.each([7, 100, 333, 1000, 5000])('of %d people reach everybody exactly once', async (maxItems) => {
    const name = `by ${maxItems}`;
    const answers = await callThrough(url, { job: name, payload: { broadcast_id: name }, maxItems });
    const last = answers.pop();
    expect(answers.map(({ status }) => status)).toEqual(Array(Math.ceil(1000 / maxItems) - 1).fill(202));
    expect(last?.status).toBe(200);
    expect(last?.headers.get('x-broadcast-level')).toBe('2');
    expect(last?.body).toEqual({ status: 'completed', progress: EVERYBODY });
    answers.forEach(({ body }, i) => {
      expect(body.progress).toMatchObject({ total: 1000, processed: maxItems * (i + 1) });
      expect(sumOf(body.progress)).toBe(maxItems * (i + 1));
    });
    expect(await reached(name)).toEqual({ people: 900, deliveries: 900 });
  });

  test('of a segment end with its last member', async () => {
    const payload = { broadcast_id: 'sliced segment', segment_id: 'premium' };
    const type = 'send_segment_broadcast';
    const answers = await callThrough(url, { job: 'segment', type, payload, maxItems: 50 });
    expect(answers).toHaveLength(4);
    expect(answers[3]?.body.progress).toMatchObject({ total: 200, processed: 200 });
  });

  test('at a pace of its own are short, so that there is progress to see', async () => {
    const slow = await startSandbox({ databaseUrl: database.url, perSecond: 50 });
    const { status, body } = await call(slow.url, { job: 'slow', payload: { broadcast_id: 'slow' }, maxItems: 1000 });
    await slow.close();
    expect(status).toBe(202);
    expect(Number(body.progress?.processed)).toBeLessThanOrEqual(150);
    expect(Number(body.progress?.processed)).toBeGreaterThan(0);
  });

  test('go to those who were there at the first one, not to who joined meanwhile', async () => {
    const own = await createDatabase();
    await withSandbox({ databaseUrl: own.url }, async (frozen) => {
      const options = { job: 'frozen', payload: { broadcast_id: 'frozen' }, maxItems: 400 };
      const first = await call(frozen, options);
      await own.query(
        `insert into broadcast_sandbox.users (user_id, language) select i, 'en' from generate_series(1001, 1050) as i`,
      );
      const rest = await callThrough(frozen, { ...options, seq: 1, cursor: String(first.body.cursor) });
      expect(rest.map(({ body }) => body.progress?.total)).toEqual([1000, 1000]);
      expect(rest.at(-1)?.body).toEqual({ status: 'completed', progress: EVERYBODY });
    });
    expect(await own.query('select from broadcast_sandbox.deliveries where user_id > 1000')).toEqual([]);
    await own.drop();
  });

  test('of process_retries stop at its limit and carry the counters on', async () => {
    await callThrough(url, { job: 'drain', type: 'process_retries', payload: { limit: 100_000 } });
    await callThrough(url, { job: 'flaky', payload: { broadcast_id: 'flaky' } });
    const options = { type: 'process_retries', maxItems: 3 };
    const some = await callThrough(url, { job: 'retries-1', ...options, payload: { limit: 4 } });
    expect(some.map(({ body }) => body.progress?.sent)).toEqual([3, 4]);
    const rest = await callThrough(url, { job: 'retries-2', ...options });
    expect(rest.map(({ body }) => [body.progress?.sent, body.progress?.total])).toEqual([
      [3, null],
      [6, null],
      [6, 6],
    ]);
    expect(await report(url, 'flaky')).toMatchObject({ sent: 910, failed: 40, duplicates: 0 });
  });
});

describe('a slice', () => {
  test('that is asked for again gets the stored answer, however far the job has gone since', async () => {
    const options = { job: 'again', payload: { broadcast_id: 'again' }, maxItems: 300 };
    const answers = await callThrough(url, options);
    const cursors = [null, ...answers.map(({ body }) => String(body.cursor))];
    for (const [seq, answer] of answers.entries()) {
      const again = await call(url, { ...options, seq, cursor: cursors[seq] ?? null, epoch: 2, attempt: 2 });
      expect(again.status).toBe(answer.status);
      expect(again.body).toEqual(answer.body);
      expect(again.headers.get('idempotent-replayed')).toBe('true');
    }
    expect(await reached('again')).toEqual({ people: 900, deliveries: 900 });
  });

  test('from an old cursor under a new key reaches nobody again', async () => {
    const options = { job: 'old cursor', payload: { broadcast_id: 'old cursor' }, maxItems: 300 };
    const [first] = await callThrough(url, options);
    const { body } = await call(url, { ...options, seq: 9, cursor: String(first?.body.cursor) });
    expect(body).toEqual({ status: 'completed', progress: EVERYBODY });
    expect(await reached('old cursor')).toEqual({ people: 900, deliveries: 900 });
  });

  test('of an older epoch is refused, and so is a second one while one runs', async () => {
    const options = { job: 'fenced', payload: { broadcast_id: 'fenced' }, maxItems: 200, perSecond: 400, epoch: 5 };
    const running = call(url, options);
    await eventually('it sends', async () => (await report(url, 'fenced')).sent > 0);
    const second = await call(url, { ...options, seq: 1 });
    expect(second).toMatchObject({ status: 409, body: { code: 'in_progress' } });
    expect(second.headers.get('retry-after')).toMatch(/^\d+$/);
    expect((await running).status).toBe(202);
    expect(await call(url, { ...options, seq: 1, epoch: 4 })).toMatchObject({
      status: 409,
      body: { code: 'stale_epoch', epoch: 5 },
    });
  });

  test('ends at the next batch when its caller has gone, and its answer waits for whoever asks again', async () => {
    const options = { job: 'gone', payload: { broadcast_id: 'gone' }, perSecond: 100 };
    const impatient = new AbortController();
    const lost = expect(request(url, { ...options, signal: impatient.signal })).rejects.toThrow();
    await eventually('it sends', async () => (await report(url, 'gone')).sent > 0);
    impatient.abort();
    await lost;
    const ended = await eventually('the slice ends', async () => {
      const calls = await received(url);
      return calls.find(({ job_id, answered_status }) => job_id === 'gone' && answered_status !== null) ?? null;
    });
    expect(ended.answered_status).toBe(202);
    const again = await call(url, { ...options, epoch: 2 });
    expect(again.headers.get('idempotent-replayed')).toBe('true');
    expect(Number(again.body.progress?.processed)).toBeLessThan(100);
    const { sent, failed, skipped, sending } = await report(url, 'gone');
    expect({ handled: sent + failed + skipped, sending }).toEqual({
      handled: again.body.progress?.processed,
      sending: 0,
    });
  });

  test('whose cursor this service never wrote is refused for good', async () => {
    const answer = await call(url, { job: 'forged', payload: { broadcast_id: 'forged' }, cursor: 'page 2' });
    expect(answer).toMatchObject({ status: 422, body: { code: 'bad_cursor', retriable: false } });
  });
});

test('a dry run says how many it would be, and sends to nobody', async () => {
  const options = { job: 'dry', payload: { broadcast_id: 'dry', segment_id: 'new' }, type: 'send_segment_broadcast' };
  const { status, body } = await call(url, { ...options, dryRun: true, perSecond: 30 });
  expect(status).toBe(200);
  expect(body).toEqual({ status: 'completed', dry_run: true, audience: 100, estimated_seconds: 4 });
  expect(await report(url, 'dry')).toMatchObject({ sent: 0, failed: 0, skipped: 0, sending: 0 });
  expect((await call(url, { job: 'wet', payload: { broadcast_id: 'dry' } })).body.progress).toEqual(EVERYBODY);
  const left = await call(url, { ...options, job: 'dry again', dryRun: true });
  expect(left.body).toMatchObject({ audience: 0, estimated_seconds: null });
});

test('a test send goes to its recipients only, and the broadcast reaches them all the same', async () => {
  const payload = { broadcast_id: 'tested', test_recipients: [11, '13', 99_999] };
  const { body } = await call(url, { job: 'test send', payload });
  expect(body).toMatchObject({ status: 'completed', progress: { total: 2, processed: 2, sent: 2 } });
  const people = await database.query(
    `select user_id from broadcast_sandbox.deliveries where job_id = 'test send' order by 1`,
  );
  expect(people).toEqual([{ user_id: '11' }, { user_id: '13' }]);
  expect(await report(url, 'tested')).toMatchObject({ sent: 0 });
  expect((await call(url, { job: 'real send', payload: { broadcast_id: 'tested' } })).body.progress).toEqual(EVERYBODY);
});

test('a variant is chosen by broadcast and person alone, counted in the report, and kept when it is sent again', async () => {
  const payload = { broadcast_id: 'ab', variants: ['a', 'b'] };
  await callThrough(url, { job: 'ab', payload, maxItems: 170 });
  const { variants, sent } = await report(url, 'ab');
  expect(Number(variants.a?.delivered) + Number(variants.b?.delivered)).toBe(sent);
  expect(variants.a?.delivered).toBeGreaterThan(380);
  expect(variants.b?.delivered).toBeGreaterThan(380);
  await call(url, { job: 'ab', payload, seq: 99, scope: 'failed' });
  const [wrong] = await database.query<{ people: number }>(
    `select count(*)::integer as people from broadcast_sandbox.deliveries
     where broadcast_id = 'ab'
       and variant is distinct from (array['a', 'b'])[1 + ('x' || left(md5('ab:' || user_id), 8))::bit(32)::bigint % 2]`,
  );
  expect(wrong?.people).toBe(0);
  expect((await report(url, 'ab')).sent).toBe(910);
});

test('some of those who were reached open the message and some of them click, always the same, per variant too', async () => {
  const options = { job: 'read', payload: { broadcast_id: 'read', variants: ['a', 'b'] } };
  await call(url, { ...options, maxItems: 300 });
  const early = await report(url, 'read');
  await call(url, { ...options, seq: 1 });
  const { sent, delivered, opened, clicked, variants } = await report(url, 'read');
  const { a = nobody, b = nobody } = variants;
  expect(delivered).toBe(sent);
  for (const part of [a, b]) {
    expect(part.opened / part.delivered).toBeGreaterThan(0.2);
    expect(part.opened / part.delivered).toBeLessThan(0.8);
    expect(part.clicked).toBeGreaterThan(0);
    expect(part.clicked).toBeLessThan(part.opened / 2);
  }
  expect({ delivered, opened, clicked }).toEqual({
    delivered: a.delivered + b.delivered,
    opened: a.opened + b.opened,
    clicked: a.clicked + b.clicked,
  });
  expect(early.opened).toBeGreaterThan(0);
  expect(early.opened).toBeLessThan(opened);
  await withSandbox({}, async (other) => {
    expect(await report(other, 'read')).toMatchObject({ delivered, opened, clicked, variants });
  });
  // Whoever gets it a second time has opened it or not.
  await withSandbox({ level: 0 }, async (plain) => {
    await call(plain, options);
    expect(await report(plain, 'read')).toMatchObject({ duplicates: 900, delivered, opened, clicked, variants });
  });
});

const nobody = { delivered: 0, opened: 0, clicked: 0 };

function sumOf(progress: CallAnswer['body']['progress']): number {
  return ['sent', 'skipped', 'failed', 'unknown'].reduce((sum, part) => sum + Number(progress?.[part]), 0);
}

async function reached(broadcastId: string) {
  const [row] = await database.query<{ people: number; deliveries: number }>(
    `select count(distinct user_id)::integer as people, count(*)::integer as deliveries
     from broadcast_sandbox.deliveries where broadcast_id = $1`,
    [broadcastId],
  );
  return row;
}

async function withSandbox(options: Partial<SandboxOptions>, use: (url: string) => Promise<void>): Promise<void> {
  const other = await startSandbox({ databaseUrl: database.url, ...options });
  try {
    await use(other.url);
  } finally {
    await other.close();
  }
}
