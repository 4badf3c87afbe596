import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { killPrograms, type Program, startProgram } from '../support/daemon.js';
import { hang, held, reply, replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { gate, until } from '../support/until.js';

const LEASE_MS = 2000;
let database: TestDatabase;
let service: ScriptedServer;

beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database.drop());
beforeEach(async () => {
  service = await startHttpServer();
});
afterEach(async () => {
  await killPrograms();
  await service.close();
});

const start = (env: Record<string, string> = {}) =>
  startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    LEASE_MS: String(LEASE_MS),
    POLL_INTERVAL_MS: '500',
    ...env,
  });

async function insertBroadcast(id: number): Promise<string> {
  const rows = await database.query<{ job_id: string }>(
    `insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', $1) returning job_id`,
    [{ broadcast_id: id }],
  );
  return rows[0]?.job_id ?? '';
}

async function row(jobId: string) {
  const rows = await database.query('select * from broadcast_queue_jobs where job_id = $1', [jobId]);
  return rows[0] ?? {};
}

/** Which of two daemons has begun the job. */
async function holderOf(jobId: string, daemons: readonly Program[]): Promise<{ holder: Program; other: Program }> {
  return Promise.race(
    daemons.map(async (holder, i) => {
      await holder.line(({ msg, job_id }) => msg === 'job started' && job_id === jobId);
      // There are two.
      return { holder, other: daemons[1 - i] as Program };
    }),
  );
}

test('a job whose daemon is killed in mid-call starts again within lease + 2 s, with the same key', async () => {
  const daemons = [await start(), await start()];
  service.next(hang());
  const jobId = await insertBroadcast(1);
  await service.received(1);
  const { holder, other } = await holderOf(jobId, daemons);

  holder.signal('SIGKILL');
  const killedAt = performance.now();
  await holder.ended;
  await service.received(2);
  const startedAgainAfterMs = performance.now() - killedAt;

  expect(startedAgainAfterMs).toBeLessThan(LEASE_MS + 2000);
  const [first, second] = service.requests;
  expect(second?.headers['idempotency-key']).toBe(first?.headers['idempotency-key']);
  expect(Number(second?.headers['x-job-epoch'])).toBeGreaterThan(Number(first?.headers['x-job-epoch']));
  expect(JSON.parse(second?.body ?? '').step.previous_failure).toBe('lease_expired');
  await other.line(({ msg, job_id }) => msg === 'job completed' && job_id === jobId);
  expect(await row(jobId)).toMatchObject({
    status: 'completed',
    attempts: 2,
    error_message: null,
    flags: ['possible_duplicate'],
  });
  const history = await database.query('select outcome, attempt from broadcast_queue_attempts where job = $1', [
    (await row(jobId)).id,
  ]);
  expect(history).toEqual([{ outcome: 'lease_expired', attempt: 1 }]);
});

test.each([
  ['success', reply(200)],
  ['failure', replyJson(400, { detail: 'no such broadcast' })],
])('a daemon stopped past its lease and continued changes nothing: its late %s is refused', async (_kind, late) => {
  const daemons = [await start(), await start()];
  const answerLate = gate();
  service.next(held(answerLate.opened, late), replyJson(200, { sent: 42 }));
  const jobId = await insertBroadcast(2);
  await service.received(1);
  const { holder, other } = await holderOf(jobId, daemons);

  holder.signal('SIGSTOP');
  await service.received(2);
  await other.line(({ msg, job_id }) => msg === 'job completed' && job_id === jobId);
  const settled = await row(jobId);
  answerLate.open();
  holder.signal('SIGCONT');

  await holder.line(({ msg, job_id }) => msg.startsWith('lease lost') && job_id === jobId);
  expect(await row(jobId)).toEqual(settled);
  expect(settled).toMatchObject({ status: 'completed', result: { sent: 42 } });
});

test('a daemon continued after its lease was taken aborts its open call at the next heartbeat', async () => {
  const daemons = [await start(), await start()];
  const never = new Promise(() => {});
  service.next(held(never, reply(200)));
  const jobId = await insertBroadcast(3);
  await service.received(1);
  const { holder, other } = await holderOf(jobId, daemons);

  holder.signal('SIGSTOP');
  await other.line(({ msg, job_id }) => msg === 'job completed' && job_id === jobId);
  holder.signal('SIGCONT');

  await service.disconnected(service.requests[0]?.connection ?? 0);
  await holder.line(({ msg, job_id }) => msg.startsWith('lease lost') && job_id === jobId);
});

test('a cancelled job is aborted in mid-call within a second, and its row stays cancelled', async () => {
  // With a lease this long the next heartbeat is ten seconds away.
  const daemon = await start({ LEASE_MS: '30000' });
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  service.next(hang());
  const jobId = await insertBroadcast(4);
  await service.received(1);

  await database.query('select broadcast_cancel($1)', [jobId]);
  const cancelledAt = performance.now();

  await service.disconnected(service.requests[0]?.connection ?? 0);
  expect(performance.now() - cancelledAt).toBeLessThan(1000);
  await daemon.line(({ msg, job_id }) => msg.startsWith('job cancelled while it was called') && job_id === jobId);
  expect(await row(jobId)).toMatchObject({ status: 'cancelled', lease_id: null, epoch: 2 });
});

test('a job that kills its daemon every time ends as failed instead of circling', async () => {
  service.otherwise(hang());
  const jobId = await insertBroadcast(5);
  await database.query('update broadcast_queue_jobs set max_attempts = 2 where job_id = $1', [jobId]);
  for (const attempt of [1, 2]) {
    const daemon = await start();
    await service.received(attempt);
    daemon.signal('SIGKILL');
    await daemon.ended;
  }
  await start();
  const failed = await until('the job failed', async () => {
    const now = await row(jobId);
    return now.status === 'failed' && now;
  });
  expect(failed).toMatchObject({ attempts: 2, error_code: 'lease_expired' });
  expect(failed.error_message).toMatch(/stopped renewing its lease/);
  expect(service.requests).toHaveLength(2);
});
