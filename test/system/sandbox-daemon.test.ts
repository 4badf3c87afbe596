/** The daemon and the sandbox at level 2, as real processes: killed, paused and cancelled in mid-broadcast. */
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import pg from 'pg';
import { killPrograms, startProgram } from '../support/daemon.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { received, report } from '../support/sandbox-calls.js';
import { type SpawnedSandbox, spawnSandbox } from '../support/sandbox-spawn.js';
import { freePort } from '../support/server.js';
import { until } from '../support/until.js';

const LEASE_MS = 2000;
const BROADCAST = '7';
let database: TestDatabase;
let port: number;
let sandbox: SpawnedSandbox;

beforeEach(async () => {
  database = await createDatabase();
  port = await freePort();
});
afterEach(async () => {
  await killPrograms();
  await sandbox.kill();
  await database.drop();
});

test('killed in mid-slice and started again: nobody twice, the uncertain listed, the daemon finishes', async () => {
  await startSandbox({ perSecond: 400 });
  await startDaemon({ BROADCAST_SERVICE_MAX_ITEMS: '200' });
  const jobId = await enqueue();
  await until('two slices are done', async () => (await progressOf(jobId)).processed >= 400);

  // Holding rows in `sending` keeps the sandbox from settling them before it dies.
  const observer = new pg.Client({ connectionString: database.url });
  await observer.connect();
  await observer.query('begin');
  const sending = await until('a batch is under way', async () => {
    const { rowCount } = await observer.query(
      `select from broadcast_sandbox.ledger where state = 'sending' and exists (
         select from broadcast_sandbox.deliveries as d where d.user_id = ledger.user_id) for update`,
    );
    return rowCount;
  });
  await sandbox.kill();
  // A statement that it has sent would still be carried out: its connections die with it.
  await observer.query(
    `select pg_terminate_backend(pid) from pg_stat_activity
     where datname = current_database() and application_name like 'broadcastd-sandbox%'`,
  );
  await observer.query('rollback');
  await observer.end();
  await startSandbox({ perSecond: 2000 });

  await completed(jobId);
  const progress = await progressOf(jobId);
  expect(progress.unknown).toBeGreaterThanOrEqual(sending);
  expect(progress).toMatchObject({ total: 1000, processed: 1000 });
  const { sent, failed, skipped, unknown, duplicates } = await report(sandbox.url, BROADCAST);
  expect(duplicates).toBe(0);
  expect({ sent, failed, skipped, unknown }).toEqual({
    sent: progress.sent,
    failed: progress.failed,
    skipped: progress.skipped,
    unknown: progress.unknown,
  });
  expect(await unreached()).toBe(0);
}, 30_000);

test('paused at 40 % it stops after the slice; resumed, by other daemons, it ends with exact counts', async () => {
  await startSandbox({ perSecond: 1000 });
  const daemon = await startDaemon({ BROADCAST_SERVICE_MAX_ITEMS: '100' });
  const jobId = await enqueue();
  await until('40 % are done', async () => (await progressOf(jobId)).processed >= 400);
  await database.query('select broadcast_pause($1)', [jobId]);
  await until('it is paused', async () => (await rowOf(jobId)).status === 'paused');

  const paused = await progressOf(jobId);
  expect(paused.processed).toBeLessThan(1000);
  const { sent, failed, skipped, sending } = await report(sandbox.url, BROADCAST);
  expect({ handled: sent + failed + skipped, sending }).toEqual({ handled: paused.processed, sending: 0 });
  const calls = (await received(sandbox.url)).length;
  await database.query('select pg_sleep(1)');
  expect((await received(sandbox.url)).length).toBe(calls);
  expect((await report(sandbox.url, BROADCAST)).sent).toBe(sent);
  daemon.signal('SIGTERM');
  expect(await daemon.ended).toBe(0);
  await startDaemon({ BROADCAST_SERVICE_MAX_ITEMS: '100' });
  expect((await rowOf(jobId)).status).toBe('paused');

  await database.query('select broadcast_resume($1)', [jobId]);
  await completed(jobId);
  expect(await progressOf(jobId)).toMatchObject({ total: 1000, processed: 1000, sent: 900, skipped: 50, failed: 50 });
  expect((await report(sandbox.url, BROADCAST)).duplicates).toBe(0);
}, 30_000);

test('cancelled in the middle of a long slice, no delivery follows later than a short one would take', async () => {
  await startSandbox({ perSecond: 200 });
  await startDaemon({ BROADCAST_SERVICE_MAX_ITEMS: '1000' });
  const jobId = await enqueue();
  await until('it sends', async () => (await report(sandbox.url, BROADCAST)).sent > 40);
  await database.query('select broadcast_cancel($1)', [jobId]);
  const { completed_at: cancelledAt } = await rowOf(jobId);
  await until('the slice ends', async () => (await received(sandbox.url))[0]?.answered_status === 202);

  const [last] = await database.query<{ late_ms: number; people: number }>(
    `select extract(epoch from max(delivered_at) - $1)::float8 * 1000 as late_ms, count(*)::integer as people
     from broadcast_sandbox.deliveries`,
    [cancelledAt],
  );
  expect(last?.late_ms).toBeLessThan(1000);
  expect(last?.people).toBeLessThan(360);
  const { sent, sending, duplicates } = await report(sandbox.url, BROADCAST);
  expect({ sent, sending, duplicates }).toEqual({ sent: last?.people, sending: 0, duplicates: 0 });
}, 30_000);

test('a dry run through the daemon ends with the size of the audience, and nobody gets anything', async () => {
  await startSandbox({ perSecond: 200 });
  await startDaemon({ BROADCAST_SERVICE_LEVEL: '2' });
  const [job] = await database.query<{ job_id: string }>(
    `select job_id from broadcast_enqueue('send_broadcast', '{"broadcast_id": 7}', dry_run => true)`,
  );
  await completed(job?.job_id ?? '');
  const [row] = await database.query('select result from broadcast_queue_jobs');
  expect(row?.result).toEqual({ status: 'completed', dry_run: true, audience: 1000, estimated_seconds: 5 });
  expect(await report(sandbox.url, BROADCAST)).toMatchObject({ sent: 0, failed: 0, skipped: 0, sending: 0 });
});

test('two daemons, 20,000 people, a daemon killed twice and the sandbox once: nobody twice, nobody forgotten', async () => {
  await startSandbox({ perSecond: 4000, recipients: 20_000 });
  const start = () => startDaemon({ BROADCAST_SERVICE_MAX_ITEMS: '2000' });
  const daemons = [await start(), await start()];
  const jobId = await enqueue();
  const seen: number[] = [];
  const reaches = (processed: number) =>
    until(
      `${processed} are processed`,
      async () => {
        const now = (await progressOf(jobId)).processed;
        seen.push(now);
        return now >= processed;
      },
      30_000,
    );
  const killHolder = async () => {
    const pid = await until('a daemon has a call open, and the sandbox sends', () => holderWhileSending());
    const holder = daemons.find((daemon) => daemon.pid === pid);
    holder?.signal('SIGKILL');
    expect(await holder?.ended).toBe('SIGKILL');
    daemons.push(await start());
  };

  await reaches(2000);
  await killHolder();
  await reaches(8000);
  await until('the sandbox sends', holderWhileSending);
  await sandbox.kill();
  await startSandbox({ perSecond: 4000 });
  await reaches(12_000);
  await killHolder();
  await reaches(20_000);
  await completed(jobId);

  expect(seen).toEqual([...seen].sort((one, other) => one - other));
  const progress = await progressOf(jobId);
  expect(progress).toMatchObject({ total: 20_000, processed: 20_000 });
  expect(progress.unknown).toBeLessThanOrEqual(200);
  expect(progress.sent + progress.failed + progress.skipped + progress.unknown).toBe(20_000);
  const { duplicates, sent, unknown, sending } = await report(sandbox.url, BROADCAST);
  expect({ duplicates, sent, unknown, sending }).toEqual({
    duplicates: 0,
    sent: progress.sent,
    unknown: progress.unknown,
    sending: 0,
  });
  expect(await unreached()).toBe(0);
}, 90_000);

async function hundredThousand(): Promise<void> {
  await startSandbox({ perSecond: 5000, recipients: 100_000 });
  const start = () => startDaemon({});
  const daemons = [await start(), await start()];
  const timed = async (broadcast: string) => {
    const startedAt = performance.now();
    const jobId = await enqueue(broadcast);
    await completed(jobId, 180_000);
    return { jobId, ms: performance.now() - startedAt };
  };
  const undisturbed = await timed('8');

  let kills = 0;
  let restarts = 0;
  let isOver = false;
  const seen: number[] = [];
  const job = timed(BROADCAST).finally(() => {
    isOver = true;
  });
  const wait = (ms: number) => database.query('select pg_sleep($1)', [ms / 1000]);
  const watch = (async () => {
    while (!isOver) {
      const [row] = await database.query<{ processed: number | null }>(
        `select (progress ->> 'processed')::integer as processed from broadcast_queue_jobs
           where job_data ->> 'broadcast_id' = $1`,
        [BROADCAST],
      );
      seen.push(row?.processed ?? 0);
      await wait(100);
    }
  })();
  const killDaemons = (async () => {
    for (let next = 0; !isOver; next = 1 - next) {
      await wait(8000);
      if (isOver) return;
      daemons[next]?.signal('SIGKILL');
      await daemons[next]?.ended;
      kills++;
      daemons[next] = await start();
    }
  })();
  const killSandbox = (async () => {
    for (const after of [6000, 11_000]) {
      await wait(after);
      await sandbox.kill();
      restarts++;
      await startSandbox({ perSecond: 5000 });
    }
  })();
  const { jobId, ms } = await job;
  await Promise.all([watch, killDaemons, killSandbox]);

  expect(kills).toBeGreaterThanOrEqual(3);
  expect(restarts).toBe(2);
  expect(ms).toBeLessThanOrEqual(undisturbed.ms + kills * (LEASE_MS + 2000) + restarts * 5000);
  expect(seen).toEqual([...seen].sort((one, other) => one - other));
  const progress = await progressOf(jobId);
  expect(progress).toMatchObject({ total: 100_000, processed: 100_000 });
  expect(progress.sent + progress.failed + progress.skipped + progress.unknown).toBe(100_000);
  // One open batch of the sandbox's each time that it was killed.
  expect(progress.unknown).toBeLessThanOrEqual(restarts * 125);
  const { duplicates, sending } = await report(sandbox.url, BROADCAST);
  expect({ duplicates, sending }).toEqual({ duplicates: 0, sending: 0 });
  expect(await unreached()).toBe(0);
}

if (process.env.LONG_TESTS === '1') {
  test(
    '100,000 people at 5,000 a second, a daemon killed every eight seconds, the sandbox twice: nobody twice, in time',
    hundredThousand,
    300_000,
  );
}

/** On the same port each time, as a service keeps its address. */
async function startSandbox(options: { perSecond: number; recipients?: number }): Promise<void> {
  sandbox = await spawnSandbox(database.url, { port, ...options });
}

const startDaemon = (env: Record<string, string>) =>
  startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: `http://127.0.0.1:${port}`,
    LEASE_MS: String(LEASE_MS),
    POLL_INTERVAL_MS: '500',
    RETRY_BASE_DELAY_MS: '200',
    ...env,
  });

async function enqueue(broadcast = BROADCAST): Promise<string> {
  const [row] = await database.query<{ job_id: string }>(
    `insert into broadcast_queue_jobs (job_type, job_data, max_attempts) values ('send_broadcast', $1, 5)
     returning job_id`,
    [{ broadcast_id: broadcast }],
  );
  return row?.job_id ?? '';
}

async function rowOf(jobId: string) {
  const [row] = await database.query<{ status: string; completed_at: Date | null; progress: object | null }>(
    'select status, completed_at, progress from broadcast_queue_jobs where job_id = $1',
    [jobId],
  );
  return row ?? { status: 'gone', completed_at: null, progress: null };
}

async function progressOf(jobId: string) {
  const { progress } = await rowOf(jobId);
  return { total: 0, processed: 0, sent: 0, failed: 0, skipped: 0, unknown: 0, ...progress };
}

function completed(jobId: string, withinMs = 30_000): Promise<boolean> {
  return until('it is completed', async () => (await rowOf(jobId)).status === 'completed', withinMs);
}

/** The process whose call is open, while a batch of it is delivered and not yet settled. */
async function holderWhileSending(): Promise<number | null> {
  const [row] = await database.query<{ pid: string }>(
    `select split_part(reverse(worker_id), '-', 2) as pid from broadcast_queue_leases
     where exists (select from broadcast_sandbox.ledger as l join broadcast_sandbox.deliveries using (user_id)
                   where l.state = 'sending')`,
  );
  return row ? Number([...row.pid].reverse().join('')) : null;
}

/** People who could have been reached, were not, and are not listed as unknown either. */
async function unreached(): Promise<number> {
  const [row] = await database.query<{ people: number }>(
    `select count(*)::integer as people from broadcast_sandbox.users as u
     where opted_out_at is null and not (blocked_bot or deactivated or flaky)
       and not exists (select from broadcast_sandbox.deliveries as d
                       where d.user_id = u.user_id and d.broadcast_id = $1)
       and not exists (select from broadcast_sandbox.ledger as l
                       where l.user_id = u.user_id and l.broadcast_id = $1 and l.state = 'unknown')`,
    [BROADCAST],
  );
  return row?.people ?? 0;
}
