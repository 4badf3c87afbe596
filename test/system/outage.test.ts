import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { killPrograms, startProgram } from '../support/daemon.js';
import { held, replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createTemplate, makeDatabase, type TestDatabase } from '../support/postgres.js';
import { type PrivateServer, startServer } from '../support/server.js';
import { gate, until } from '../support/until.js';

/** How long the database is away in the long outage; `npm run test:all` takes the full half minute. */
const OUTAGE_MS = process.env.LONG_TESTS === '1' ? 30_000 : 6000;

let server: PrivateServer;
let database: TestDatabase;
let service: ScriptedServer;

beforeAll(async () => {
  server = await startServer();
  await createTemplate(server.url);
});
afterAll(() => server.close());
beforeEach(async () => {
  service = await startHttpServer();
  database = await makeDatabase(server.url, 'template broadcastd_template');
});
afterEach(async () => {
  await killPrograms();
  await service.close();
  await database.drop();
});

const start = (env: Record<string, string> = {}) =>
  startProgram({ DATABASE_URL: database.url, BROADCAST_SERVICE_URL: service.url, ...env });

const insert = (from: number, to: number) =>
  database.query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n) from generate_series($1::integer, $2::integer) n`,
    [from, to],
  );

const unfinished = async () => {
  const rows = await database.query<{ n: number }>(
    `select count(*)::integer as n from broadcast_queue_jobs where status not in ('completed', 'failed', 'cancelled')`,
  );
  return rows[0]?.n ?? Number.NaN;
};

test('PostgreSQL restarted five times under load: nothing lost, nothing failed, no attempt consumed', async () => {
  const calls = new Map<string, number>();
  service.otherwise(({ headers }) => {
    const key = String(headers['idempotency-key']);
    calls.set(key, (calls.get(key) ?? 0) + 1);
    return held(new Promise((resolve) => setTimeout(resolve, 25)), replyJson(200, { sent: 1 }));
  });
  const env = { CONCURRENCY: '*=10', LEASE_MS: '3000' };
  await Promise.all([start(env), start(env)]);
  let next = 1;
  for (const mode of ['fast', 'immediate', 'fast', 'immediate', 'fast'] as const) {
    await insert(next, next + 299);
    next += 300;
    await service.received(service.requests.length + 40);
    await server.halt(mode);
    await server.resume();
  }
  await until('all jobs ended', async () => (await unfinished()) === 0, 40_000);

  const rows = await database.query(
    `select status, attempts, count(*)::integer as n from broadcast_queue_jobs group by 1, 2`,
  );
  expect(rows).toEqual([{ status: 'completed', attempts: 1, n: next - 1 }]);
  // What was called but could not be written down in time is not called again: the settlement waits for the database.
  expect(calls.size).toBe(next - 1);
  expect([...calls.values()].filter((count) => count > 1)).toEqual([]);
}, 90_000);

test('after a long time without a database the daemon is there, settles what it held, and listens within 2 s', async () => {
  const daemon = await start({ LEASE_MS: '2000' });
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  const answer = gate();
  service.next(held(answer.opened, replyJson(200, { sent: 7 })));
  await insert(1, 1);
  await service.received(1);

  await server.halt('fast');
  answer.open();
  await daemon.line(({ msg }) => msg.startsWith('the database does not answer'));
  await daemon.line(({ msg }) => msg.startsWith('not listening'));
  expect((await fetch(`${daemon.url}/livez`)).status).toBe(200);
  await new Promise((resolve) => setTimeout(resolve, OUTAGE_MS));
  const seen = daemon.lines.length;
  await server.resume();
  const backAt = performance.now();
  await until('it listens again', async () => daemon.lines.slice(seen).some(({ msg }) => msg.startsWith('listening')));
  expect(performance.now() - backAt).toBeLessThan(2000);

  const [row] = await until('the job is settled', async () => {
    const rows = await database.query(`select * from broadcast_queue_jobs where status <> 'processing'`);
    return rows.length > 0 && rows;
  });
  expect(row).toMatchObject({ status: 'completed', attempts: 1, result: { sent: 7 }, flags: [] });
  await insert(2, 2);
  await service.received(2);
}, 90_000);

test('an outage is told in a few lines, however long it lasts', async () => {
  const daemon = await start({ POLL_INTERVAL_MS: '100' });
  await server.halt('fast');
  await daemon.line(({ msg }) => msg.startsWith('the database does not answer'));
  await new Promise((resolve) => setTimeout(resolve, 4000));
  expect(daemon.lines.filter(({ level }) => level === 'error').length).toBeLessThanOrEqual(30);
  await server.resume();
  await daemon.line(({ msg }) => msg === 'the database answers again');
}, 30_000);

test('connections cut by an administrator are replaced and nothing is lost', async () => {
  const daemon = await start({ CONCURRENCY: '*=5' });
  service.otherwise(() => held(new Promise((resolve) => setTimeout(resolve, 20)), replyJson(200, { sent: 1 })));
  await insert(1, 300);
  for (let storm = 1; storm <= 5; storm++) {
    await service.received(storm * 40);
    await database.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where application_name like 'broadcastd %' and datname = current_database()`,
    );
  }
  await until('all jobs ended', async () => (await unfinished()) === 0, 30_000);
  const rows = await database.query(
    `select status, attempts, count(*)::integer as n from broadcast_queue_jobs group by 1, 2`,
  );
  expect(rows).toEqual([{ status: 'completed', attempts: 1, n: 300 }]);
  expect(service.requests).toHaveLength(300);
  expect(daemon.lines.some(({ msg }) => msg === 'uncaught error: ending')).toBe(false);
}, 60_000);
