/** Limits, gates and the breaker through real daemons: what a service that counts its callers sees. */
import { expect, test } from '@jest/globals';
import { held, reply, replyJson } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { until } from '../support/until.js';

const stage = setStage({ RETRY_BASE_DELAY_MS: '300' });

const insert = (count: number, data: object = {}) =>
  stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', $2::jsonb || jsonb_build_object('broadcast_id', n) from generate_series(1, $1::integer) n`,
    [count, JSON.stringify(data)],
  );

const outcome = () =>
  stage.database.query<{ status: string; attempts: number; n: number }>(
    `select status, attempts, count(*)::integer as n from broadcast_queue_jobs group by 1, 2 order by 1, 2`,
  );

async function allCompleted(withinMs = 10_000): Promise<void> {
  await until(
    'all jobs are completed',
    async () => (await outcome()).every(({ status }) => status === 'completed'),
    withinMs,
  );
}

const listening = async (count: number, env: Record<string, string> = {}) => {
  const daemons = await Promise.all(Array.from({ length: count }, () => stage.start(env)));
  await Promise.all(daemons.map((daemon) => daemon.line(({ msg }) => msg.startsWith('listening'))));
  return daemons;
};

test('after a 429 with Retry-After 5 no replica calls until then, and no attempt is consumed', async () => {
  await listening(3);
  const arrivals: number[] = [];
  let shutUntil = Number.POSITIVE_INFINITY;
  stage.service.otherwise(() => {
    const now = performance.now();
    arrivals.push(now);
    if (arrivals.length === 1) shutUntil = now + 5000;
    return now < shutUntil ? reply(429, '', { 'retry-after': '5' }) : reply(200);
  });
  await insert(30);
  await allCompleted(15_000);
  const [first = 0] = arrivals;
  // What the others had claimed already is on its way for a moment; and the gate opens up to a tenth late.
  const early = arrivals.filter((at) => at > first + 150 && at < first + 5000);
  expect(early).toEqual([]);
  const opened = arrivals.find((at) => at >= first + 5000) ?? Number.NaN;
  expect(opened - first).toBeLessThan(6200);
  expect(await outcome()).toEqual([{ status: 'completed', attempts: 1, n: 30 }]);
}, 30_000);

test("a bot's gate keeps back its own jobs only", async () => {
  await listening(2);
  const calls: Record<string, number[]> = { tired: [], fresh: [] };
  stage.service.otherwise(({ body }) => {
    const bot: string = JSON.parse(body).payload.bot_id;
    calls[bot]?.push(performance.now());
    return bot === 'tired' && calls.tired?.length === 1 ? reply(429, '', { 'retry-after': '2' }) : reply(200);
  });
  await insert(1, { bot_id: 'tired' });
  await stage.service.received(1);
  await until(
    'the gate is closed',
    async () => (await stage.database.query('select from broadcast_queue_gates')).length > 0,
  );
  await insert(20, { bot_id: 'tired' });
  await insert(20, { bot_id: 'fresh' });
  await allCompleted();
  const [first = 0, second = 0] = calls.tired ?? [];
  expect(second - first).toBeGreaterThan(1990);
  expect(Math.max(...(calls.fresh ?? []))).toBeLessThan(second);
  expect(calls.fresh).toHaveLength(20);
});

test('the service is down for a while: a handful of probes, no attempt consumed, full speed within 10 s of its return', async () => {
  const daemons = await listening(2, { RETRY_BASE_DELAY_MS: '60000' });
  let isDown = true;
  const failed: number[] = [];
  stage.service.otherwise(() => {
    if (isDown) failed.push(performance.now());
    return isDown ? reply(502) : reply(200);
  });
  await insert(100);
  const opening = daemons.map((daemon) => daemon.line(({ msg }) => msg.startsWith('breaker opened')));
  await Promise.any(opening);
  const openedAt = performance.now();
  await stage.database.query('select pg_sleep(8)');
  isDown = false;
  const backAt = performance.now();
  await allCompleted();
  expect(performance.now() - backAt).toBeLessThan(10_000);
  // Probes after 1, 2 and 4 s; four slots of calls may have been on their way as it opened.
  const probes = failed.filter((at) => at > openedAt + 300);
  expect(probes.length).toBeGreaterThanOrEqual(2);
  expect(probes.length).toBeLessThanOrEqual(4);
  expect(failed.length - probes.length).toBeLessThanOrEqual(10);
  expect(await outcome()).toEqual([{ status: 'completed', attempts: 1, n: 100 }]);
  await Promise.any(daemons.map((daemon) => daemon.line(({ msg }) => msg.startsWith('breaker closed'))));
  for (const opened of opening) opened.catch(() => {});
}, 60_000);

test('an outage does not make a dead letter of an only job', async () => {
  await listening(1);
  let isDown = true;
  stage.service.otherwise(() => (isDown ? reply(502) : reply(200)));
  await insert(1);
  await stage.service.received(4);
  isDown = false;
  await allCompleted();
  expect(await outcome()).toMatchObject([{ status: 'completed', n: 1 }]);
}, 30_000);

test('a limit on jobs at once holds over all replicas', async () => {
  await stage.database.query(`select broadcast_set_limit('queue:broadcasts', null, 3)`);
  let open = 0;
  let most = 0;
  stage.service.otherwise(() => {
    open++;
    most = Math.max(most, open);
    const done = new Promise<void>((resolve) =>
      setTimeout(() => {
        open--;
        resolve();
      }, 30),
    );
    return held(done, reply(200));
  });
  await insert(60);
  await listening(3, { CONCURRENCY: '*=4' });
  await allCompleted(20_000);
  expect(most).toBe(3);
}, 30_000);

test('a dry run takes nothing from the limit, and says how long it would take under it', async () => {
  await stage.database.query(`select broadcast_set_limit('queue:broadcasts', 10)`);
  stage.service.otherwise(replyJson(200, { status: 'completed', dry_run: true, audience: 1234 }));
  await listening(1, { BROADCAST_SERVICE_LEVEL: '2' });
  await stage.database.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": 1}', dry_run => true)`);
  await allCompleted();
  const rows = await stage.database.query('select result, flags from broadcast_queue_jobs');
  expect(rows).toEqual([
    { result: { status: 'completed', dry_run: true, audience: 1234, estimated_seconds: 124 }, flags: [] },
  ]);
});

test('RATE_LIMITS are the initial limits: what the database has already stays', async () => {
  await stage.database.query(`select broadcast_set_limit('bot:shop', 7)`);
  await stage.start({ RATE_LIMITS: 'queue:broadcasts=30,bot:shop=25' });
  const limits = await stage.database.query('select key, per_second from broadcast_queue_limits order by key');
  expect(limits).toEqual([
    { key: 'bot:shop', per_second: 7 },
    { key: 'queue:broadcasts', per_second: 30 },
  ]);
});

test('the level that the service has claimed is kept, so that a new daemon knows it before its first call', async () => {
  const first = await stage.start();
  stage.service.next(reply(200, '', { 'x-broadcast-level': '2' }));
  await insert(1);
  await allCompleted();
  await until('the level is kept', async () => {
    const [row] = await stage.database.query<{ level: number | null }>('select level from broadcast_queue_services');
    return row?.level === 2;
  });
  first.signal('SIGTERM');
  await first.ended;
  stage.service.otherwise(replyJson(200, { status: 'completed', dry_run: true, audience: 5 }));
  await stage.start();
  await stage.database.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": 2}', dry_run => true)`);
  await allCompleted();
});

test('outside its send window a job waits without a slot, and goes as soon as the window is lifted', async () => {
  const [hours] = await stage.database.query<{ hours: unknown }>(
    `select jsonb_build_object('from', to_char(now() at time zone 'UTC' + interval '2 hours', 'HH24:MI'),
       'to', to_char(now() at time zone 'UTC' + interval '3 hours', 'HH24:MI'), 'time_zone', 'UTC') as hours`,
  );
  await stage.database.query(`select broadcast_set_window('broadcasts', $1)`, [JSON.stringify(hours?.hours)]);
  await stage.start();
  await insert(1);
  const [row] = await until('it waits', () =>
    stage.database
      .query(
        `select status, attempts, hold_reason, due_at - now() > '1 hour' as later from broadcast_queue_jobs where status = 'retry'`,
      )
      .then((rows) => (rows.length > 0 ? rows : null)),
  );
  expect(row).toEqual({ status: 'retry', attempts: 0, hold_reason: 'waiting for its send window', later: true });
  expect(stage.service.requests).toHaveLength(0);
  await stage.database.query(`select broadcast_set_window('broadcasts', null)`);
  await allCompleted();
});

test('a call that makes no progress for STUCK_AFTER_MS is told of in the log', async () => {
  const daemon = await stage.start({ STUCK_AFTER_MS: '1000', LEASE_MS: '2000' });
  stage.service.otherwise({ kind: 'hang', when: 'before headers' });
  await insert(1);
  const line = await daemon.line(({ msg }) => msg.startsWith('broadcast is stuck'));
  expect(line).toMatchObject({ level: 'warn', broadcast_id: '1' });
  expect(line.stuck_ms).toBeGreaterThanOrEqual(1000);
});
