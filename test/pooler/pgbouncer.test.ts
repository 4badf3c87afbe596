/**
 * Everything goes through PgBouncer in transaction mode: with LISTEN_DATABASE_URL, and without, when the daemon has to
 * find out by itself and polls. Needs the program `pgbouncer`, so it is not part of `npm test`: `npm run test:pooler`.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { listen, Unheard } from '../../src/db/listener.js';
import { killPrograms, type Program, runProgram, startProgram } from '../support/daemon.js';
import { held, replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { type Pooler, startPgbouncer } from '../support/pgbouncer.js';
import { createDatabase, createEmptyDatabase, serverUrl, type TestDatabase } from '../support/postgres.js';
import { gate, until } from '../support/until.js';

let database: TestDatabase;
let service: ScriptedServer;
let pooler: Pooler;

beforeAll(async () => {
  pooler = await startPgbouncer(serverUrl());
  database = await createDatabase();
});
afterAll(async () => {
  // Without the program there is neither, and that error is the one to be seen.
  await pooler?.close();
  await database?.drop();
});
beforeEach(async () => {
  service = await startHttpServer();
  await database.query('truncate broadcast_queue_jobs, broadcast_queue_attempts, broadcast_queue_leases');
});
afterEach(async () => {
  await killPrograms();
  await service.close();
});

const start = (env: Record<string, string> = {}) =>
  startProgram({
    DATABASE_URL: pooler.through(database.url),
    BROADCAST_SERVICE_URL: service.url,
    RETRY_BASE_DELAY_MS: '200',
    POLL_INTERVAL_MS: '300',
    ...env,
  });

const insert = (from: number, to: number) =>
  database.query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n) from generate_series($1::integer, $2::integer) n`,
    [from, to],
  );

const summary = () =>
  database.query(
    'select status, attempts, count(*)::integer as n from broadcast_queue_jobs group by 1, 2 order by 1, 2',
  );

const allEnded = (ms?: number) =>
  until(
    'all jobs ended',
    async () => {
      const rows = await summary();
      return rows.length > 0 && rows.every(({ status }) => status === 'completed' || status === 'failed');
    },
    ms,
  );

const troubles = ({ lines }: Program) => lines.filter(({ level }) => level === 'error' || level === 'fatal');

describe.each([
  ['with LISTEN_DATABASE_URL', () => ({ LISTEN_DATABASE_URL: database.url })],
  ['by polling alone', () => ({})],
])('behind PgBouncer, %s', (_how, environment) => {
  test('a job is sent, retried after a failure, and no error is told', async () => {
    const daemon = await start(environment());
    service.next(replyJson(500, { detail: 'not yet' }));
    await insert(1, 1);
    await allEnded();
    expect(await summary()).toEqual([{ status: 'completed', attempts: 2, n: 1 }]);
    expect(troubles(daemon)).toEqual([]);
    daemon.signal('SIGTERM');
    expect(await daemon.ended).toBe(0);
  });

  test("a killed daemon's job is taken over, and its late word does not count", async () => {
    const env = { ...environment(), LEASE_MS: '1500' };
    const first = await start(env);
    const answer = gate();
    service.next(held(answer.opened, replyJson(200, { sent: 1 })));
    await insert(1, 1);
    await service.received(1);
    first.signal('SIGKILL');
    await first.ended;
    const second = await start(env);
    await allEnded();
    answer.open();
    expect(service.requests).toHaveLength(2);
    expect(await summary()).toEqual([{ status: 'completed', attempts: 2, n: 1 }]);
    expect(second.lines.some(({ msg }) => msg.startsWith('job taken from a worker'))).toBe(true);
  });

  test('two daemons call 500 jobs once each', async () => {
    const env = { ...environment(), CONCURRENCY: '*=20' };
    const daemons = await Promise.all([start(env), start(env)]);
    await insert(1, 500);
    await allEnded(30_000);
    expect(await summary()).toEqual([{ status: 'completed', attempts: 1, n: 500 }]);
    expect(new Set(service.requests.map(({ headers }) => headers['idempotency-key'])).size).toBe(500);
    expect(service.requests).toHaveLength(500);
    expect(daemons.flatMap(troubles)).toEqual([]);
  }, 60_000);
});

describe('in transaction mode work as well', () => {
  const TOKEN = 'a-token-of-more-than-24-characters';
  const daemonEnv = () => ({ ADMIN_TOKENS: `alice:admin:${TOKEN}`, BROADCAST_SERVICE_LEVEL: '2' });

  const asking = (daemon: Program) => async (method: string, path: string, body?: object, key?: string) => {
    const answer = await fetch(`${daemon.url}/api/admin/queue${path}`, {
      method,
      headers: {
        authorization: `Bearer ${TOKEN}`,
        ...(body ? { 'content-type': 'application/json' } : {}),
        ...(key ? { 'idempotency-key': key } : {}),
      },
      ...(body ? { body: JSON.stringify(body) } : {}),
    });
    const answered: Record<string, unknown> = JSON.parse(await answer.text());
    return { status: answer.status, body: answered };
  };

  test('heartbeats: a call of three leases’ length stays with the daemon that made it', async () => {
    const daemons = await Promise.all([1, 2].map(() => start({ LEASE_MS: '1500', BROADCAST_SERVICE_LEVEL: '1' })));
    const answer = gate();
    service.next(held(answer.opened, replyJson(200, { sent: 1 })));
    await insert(1, 1);
    await service.received(1);
    const began = performance.now();
    await until('three leases have passed', async () => performance.now() - began > 4500, 6000);
    answer.open();
    await allEnded();
    expect(await summary()).toEqual([{ status: 'completed', attempts: 1, n: 1 }]);
    expect(service.requests).toHaveLength(1);
    expect(daemons.flatMap(troubles)).toEqual([]);
  }, 30_000);

  test('limits: two daemons keep to them together, and slices follow one another', async () => {
    const daemons = await Promise.all([start(daemonEnv()), start(daemonEnv())]);
    const ask = asking(daemons[0] as Program);
    expect(await ask('PUT', '/limits/queue:broadcasts', { per_second: 50 })).toMatchObject({ status: 200 });
    const TOTAL = 200;
    let sent = 0;
    service.otherwise(({ body }) => {
      const { step } = JSON.parse(body);
      const here = Math.min(step.max_items, TOTAL - sent);
      sent += here;
      const progress = { total: TOTAL, processed: sent, sent, skipped: 0, failed: 0, unknown: 0, reasons: {} };
      return sent < TOTAL
        ? replyJson(202, { status: 'continue', cursor: String(sent), progress })
        : replyJson(200, { status: 'completed', progress });
    });
    const began = performance.now();
    await insert(1, 1);
    await allEnded(20_000);
    // Four grants of a second: the last one may begin when three are over.
    expect(performance.now() - began).toBeGreaterThan(2900);
    expect(service.requests.every(({ body }) => JSON.parse(body).step.max_items <= 50)).toBe(true);
    expect(await summary()).toMatchObject([{ status: 'completed', n: 1 }]);
    expect(await ask('DELETE', '/limits/queue:broadcasts')).toMatchObject({ status: 200 });
    expect(daemons.flatMap(troubles)).toEqual([]);
  }, 30_000);

  test('the API: what it enqueues, shows, pauses and sends back is what it says', async () => {
    const daemon = await start({ ...daemonEnv(), RETRY_BASE_DELAY_MS: '10' });
    const ask = asking(daemon);
    const request = { job_type: 'send_broadcast', job_data: { broadcast_id: 1 }, max_attempts: 1 };
    expect(await ask('POST', '/broadcasts/pause')).toMatchObject({ status: 200, body: { success: true } });
    const made = await ask('POST', '/jobs', request, 'a-key');
    expect([made.status, (await ask('POST', '/jobs', request, 'a-key')).status]).toEqual([201, 200]);
    expect((await ask('POST', '/jobs', { ...request, priority: 1 }, 'a-key')).status).toBe(409);
    const path = `/job/${made.body.job_id}`;
    expect((await ask('GET', path)).body.waiting_because).toMatch(/^the queue broadcasts is paused by alice/);
    service.next(replyJson(422, { detail: 'no such broadcast' }));
    await ask('POST', '/broadcasts/resume');
    await until('it failed', async () => (await ask('GET', path)).body.status === 'failed');
    expect((await ask('GET', '/broadcasts/failed')).body).toMatchObject({ count: 1 });
    expect(await ask('POST', `${path}/retry`)).toMatchObject({ status: 200, body: { success: true } });
    await until('it is completed', async () => (await ask('GET', path)).body.status === 'completed');
    expect((await ask('GET', '/statistics')).body).toMatchObject({ total_jobs: 1, completed_jobs: 1, failed_jobs: 0 });
    const told = (await ask('GET', '/audit')).body.entries;
    for (const action of ['queue.pause', 'job.enqueue', 'queue.resume', 'job.retry']) {
      expect(told).toContainEqual(expect.objectContaining({ action }));
    }
    const figures = await (await fetch(`${daemon.url}/metrics`)).text();
    expect(figures).toMatch(/^broadcastd_jobs\{[^}]*status="completed"[^}]*\} 1$/m);
    expect(troubles(daemon)).toEqual([]);
  }, 30_000);

  test('doctor, which finds nothing but that notifications do not arrive without a direct connection', async () => {
    const env = {
      DATABASE_URL: pooler.through(database.url),
      BROADCAST_SERVICE_URL: service.url,
      BROADCAST_SERVICE_LEVEL: '1',
    };
    await start(env);
    const examine = async (more: Record<string, string>) => {
      const { stdout, stderr } = await runProgram(['doctor', '--json'], { ...env, ...more });
      expect(stderr).toBe('');
      const { checks }: { checks: { check: string; outcome: string }[] } = JSON.parse(stdout);
      return checks.filter(({ outcome }) => outcome === 'failed').map(({ check }) => check);
    };
    expect(await examine({})).toEqual(['notifications']);
    expect(await examine({ LISTEN_DATABASE_URL: database.url })).toEqual([]);
  }, 30_000);
});

test('with LISTEN_DATABASE_URL a job starts at its notification, long before the next poll', async () => {
  const daemon = await start({ LISTEN_DATABASE_URL: database.url, POLL_INTERVAL_MS: '600000' });
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  await insert(1, 1);
  await allEnded(2000);
});

test('without it the daemon says, once, what is missing and how it goes on', async () => {
  // The service remembers keys, so that this is the only thing to be warned of.
  const daemon = await start({ BROADCAST_SERVICE_LEVEL: '1' });
  await daemon.line(({ msg }) => msg.startsWith('the database connection goes through a pooler'));
  const warning = await daemon.line(({ level }) => level === 'warn');
  expect(warning.msg).toBe(
    'notifications do not arrive, as behind a pooler in transaction mode: set LISTEN_DATABASE_URL to a direct ' +
      'connection; polling every 300 ms meanwhile',
  );
  for (let n = 1; n <= 5; n++) {
    await insert(n, n);
    await allEnded();
  }
  expect(daemon.lines.filter(({ level }) => level !== 'info')).toEqual([warning]);
  expect(daemon.lines.some(({ msg }) => msg.startsWith('listening'))).toBe(false);
  expect(daemon.lines.filter(({ msg }) => msg.includes('through a pooler'))).toHaveLength(1);
}, 30_000);

test('a pooler that drops the startup parameters silently is recognized as well', async () => {
  const lenient = await startPgbouncer(serverUrl(), { ignore_startup_parameters: 'options,statement_timeout' });
  try {
    const daemon = await start({ DATABASE_URL: lenient.through(database.url) });
    const line = await daemon.line(({ msg }) => msg.includes('through a pooler'));
    expect(line.how).toBe('the settings that a connection was opened with are dropped');
    await insert(1, 100);
    await allEnded();
    expect(await summary()).toEqual([{ status: 'completed', attempts: 1, n: 100 }]);
    expect(troubles(daemon)).toEqual([]);
  } finally {
    await killPrograms();
    await lenient.close();
  }
});

test('LISTEN works behind a pooler in session mode, and is used there', async () => {
  const session = await startPgbouncer(serverUrl(), { pool_mode: 'session', default_pool_size: '20' });
  try {
    const daemon = await start({ DATABASE_URL: session.through(database.url), POLL_INTERVAL_MS: '600000' });
    await daemon.line(({ msg }) => msg.startsWith('listening'));
    await insert(1, 1);
    await allEnded(2000);
  } finally {
    await killPrograms();
    await session.close();
  }
});

test('a listener that hears nothing tries again rarely', async () => {
  const told: Error[] = [];
  const listener = listen({
    url: pooler.through(database.url),
    channels: ['broadcast_queue'],
    applicationName: 'broadcastd test',
    notify: async (channel) => void (await database.query("select pg_notify($1, '')", [channel])),
    watchEveryMs: 100,
    answerWithinMs: 100,
    random: Math.random,
  });
  listener.events.on('deaf', (error) => told.push(error));
  try {
    await until('it has noticed', async () => told.length > 0);
    // Three times as long as the longest wait before an ordinary reconnection, with its attempt.
    await new Promise((resolve) => setTimeout(resolve, 3000));
    expect(told).toEqual([expect.any(Unheard)]);
    expect(listener.listening).toBe(false);
  } finally {
    await listener.close();
  }
});

test('migrations go through PgBouncer, from several processes at once', async () => {
  const empty = await createEmptyDatabase();
  try {
    const url = pooler.through(empty.url);
    const runs = await Promise.all(Array.from({ length: 3 }, () => runProgram(['migrate'], { DATABASE_URL: url })));
    expect(runs.map(({ code }) => code)).toEqual([0, 0, 0]);
    expect(runs.filter(({ stdout }) => stdout.includes('001_jobs'))).toHaveLength(1);
    expect(await empty.query('select count(*)::integer as n from broadcast_queue_jobs')).toEqual([{ n: 0 }]);
  } finally {
    await empty.drop();
  }
});
