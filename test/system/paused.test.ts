/** START_PAUSED: a restored backup or a copy must not send anything before somebody says so. */
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { killPrograms, startProgram } from '../support/daemon.js';
import { type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { until } from '../support/until.js';

let database: TestDatabase;
let service: ScriptedServer;

beforeAll(async () => {
  database = await createDatabase();
  service = await startHttpServer();
});
afterEach(killPrograms);
afterAll(async () => {
  await service.close();
  await database.drop();
});

const start = (env: Record<string, string> = {}) =>
  startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    POLL_INTERVAL_MS: '100',
    ...env,
  });

const statuses = () => database.query('select status, attempts from broadcast_queue_jobs order by id');

test('START_PAUSED claims nothing, in no daemon, until broadcast_resume_queue() lets all go within 2 s', async () => {
  await database.query(
    `insert into broadcast_queue_jobs (job_type, job_data, queue_name)
     values ('send_broadcast', '{"broadcast_id": 1}', 'broadcasts'), ('send_broadcast', '{"broadcast_id": 2}', 'mine')`,
  );
  const paused = await start({ START_PAUSED: 'true' });
  const line = await paused.line(({ msg }) => msg.includes('START_PAUSED'));
  expect(line).toMatchObject({ level: 'warn', msg: expect.stringContaining('SELECT broadcast_resume_queue()') });
  const other = await start();

  // Both have looked at the queue more than once, as their polls and the insert's notification make them.
  const lastScans = await scans();
  await database.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": 3}')`);
  await until('both daemons have polled several times', async () => (await scans()) >= lastScans + 10);
  expect(service.requests).toHaveLength(0);
  expect(await statuses()).toEqual(Array(3).fill({ status: 'pending', attempts: 0 }));

  await database.query('select broadcast_resume_queue()');
  await until('all are sent', async () => (await statuses()).every(({ status }) => status === 'completed'), 2000);
  expect(service.requests).toHaveLength(3);
  for (const daemon of [paused, other]) {
    daemon.signal('SIGTERM');
    expect(await daemon.ended).toBe(0);
  }
});

/** How often the pauses were looked at, which each claim does. */
async function scans(): Promise<number> {
  const [row] = await database.query<{ n: string }>(
    `select seq_scan + coalesce(idx_scan, 0) as n from pg_stat_user_tables where relname = 'broadcast_queue_pauses'`,
  );
  return Number(row?.n ?? 0);
}

test('a daemon restarted without START_PAUSED stays paused, and one restarted with it says so once more', async () => {
  await start({ START_PAUSED: 'true' });
  await killPrograms();
  const again = await start({ START_PAUSED: 'true' });
  await again.line(({ msg }) => msg.includes('broadcast_resume_queue()'));
  expect(await database.query('select queue_name, reason from broadcast_queue_pauses')).toEqual([
    { queue_name: '*', reason: 'START_PAUSED is set' },
  ]);
});
