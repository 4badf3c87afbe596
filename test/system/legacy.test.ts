/**
 * The older table, brought over by the real program while its bot goes on. LONG_TESTS=1 takes 200,000 rows instead of
 * 20,000.
 */
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createOldTable, insertEvery, type Loop, pollEvery, updateEvery } from '../support/old-bot.js';
import { createEmptyDatabase, type TestDatabase } from '../support/postgres.js';
import { until } from '../support/until.js';

const ROWS = process.env.LONG_TESTS === '1' ? 200_000 : 20_000;
/** The bot's jobs while we come have broadcast ids from here on; the table's own have their row's id. */
const WRITTEN_FROM = 10_000_000;

let database: TestDatabase;
let service: ScriptedServer;
const loops: Loop[] = [];

beforeAll(async () => {
  database = await createEmptyDatabase();
  service = await startHttpServer();
});
afterAll(async () => {
  await service.close();
  await database.drop();
});
afterEach(async () => {
  await Promise.all(loops.splice(0).map((loop) => loop.stop()));
  await killPrograms();
});

const env = (url: string) => ({ DATABASE_URL: url, BROADCAST_SERVICE_URL: service.url });

/** In every ten rows: 5 completed, 1 failed, 1 cancelled, 1 processing, 1 retry, 1 pending; every tenth of these is young. */
const FILL = `
  insert into broadcast_queue_jobs (queue_name, job_type, job_data, status, attempts, created_at, scheduled_at, updated_at)
  select 'broadcasts', 'send_broadcast', jsonb_build_object('broadcast_id', n, 'text', repeat('x', 100)),
    (array['completed', 'completed', 'completed', 'completed', 'completed', 'failed', 'cancelled', 'processing', 'retry',
           'pending'])[n % 10 + 1], n % 3, at, at, at
  from generate_series(1, $1::integer) n,
    lateral (select now() at time zone 'Europe/Berlin'
      - case when n % 100 = 9 then interval '5 minutes' else interval '2 hours' + n * interval '1 minute' end as at) times`;

test('a table in use is brought over without losing a row or sending an old one again', async () => {
  await createOldTable(database);
  const [{ name } = { name: '' }] = await database.query<{ name: string }>('select current_database() as name');
  // The old bot's NOW() is written in the zone of its sessions.
  await database.query(`alter database ${name} set timezone = 'Europe/Berlin'`);
  await database.query(FILL, [ROWS]);
  await database.query('analyze broadcast_queue_jobs');

  const writer = await insertEvery(database.url, 20, (n) => WRITTEN_FROM + n);
  const updater = await updateEvery(database.url, 20, (n) => n * 10 + 7, 'completed');
  const poller = await pollEvery(database.url, 250);
  loops.push(writer, updater, poller);

  const plan = await runProgram(['migrate', '--plan', '--legacy-timezone', 'Europe/Berlin'], env(database.url));
  expect(plan).toMatchObject({ code: 0, stderr: '' });
  expect(plan.stdout).toMatch(/WARNING: an old worker .*\n.*\n {2}pid \d+, application "old worker", user postgres/);
  expect(plan.stdout).toContain("SELECT * FROM broadcast_queue_jobs WHERE status = 'pending'");

  const before = writer.done;
  const started = performance.now();
  const migrated = await runProgram(['migrate', '--json', '--legacy-timezone', 'Europe/Berlin'], env(database.url));
  const tookMs = performance.now() - started;
  expect(migrated.stderr).toContain('WARNING: an old worker');
  expect(migrated).toMatchObject({ code: 0 });
  const outcome = JSON.parse(migrated.stdout);
  const afterwards = { writes: writer.done, updates: updater.rows };
  await until('the bot went on writing', async () => writer.done > afterwards.writes + 20);
  await until('the bot went on updating', async () => updater.rows > afterwards.updates + 20);
  await Promise.all([writer.stop(), updater.stop(), poller.stop()]);
  expect([...writer.errors, ...updater.errors, ...poller.errors]).toEqual([]);
  // Each of its updates found its row, before, during and after.
  expect(updater.rows).toBe(updater.done);

  const [counts] = await database.query(
    `select (select count(*)::integer from broadcast_queue_jobs) as now,
       (select count(*)::integer from broadcast_queue_jobs_legacy) as backup,
       (select count(*)::integer from broadcast_queue_jobs_legacy o left join broadcast_queue_jobs n using (id, job_id)
        where n.id is null or n.created_at is distinct from o.created_at at time zone 'Europe/Berlin') as lost,
       (select count(*)::integer from broadcast_queue_jobs where status in ('processing', 'retry')) as running`,
  );
  expect(counts).toEqual({ now: ROWS + writer.done, backup: outcome.rows, lost: 0, running: 0 });
  expect(outcome.rows).toBeGreaterThanOrEqual(ROWS + before);
  expect(outcome.pollers).toEqual([expect.objectContaining({ applicationName: 'old worker' })]);

  const young = ROWS / 100;
  const ready = await database.query<{ id: number }>(
    `select (job_data ->> 'broadcast_id')::integer as id from broadcast_queue_jobs where status = 'pending'`,
  );
  expect(ready).toHaveLength(young + writer.done);
  expect(ready.every(({ id }) => id > WRITTEN_FROM || id % 100 === 9)).toBe(true);

  const called: number[] = [];
  service.otherwise(({ body }) => {
    called.push(JSON.parse(body).payload.broadcast_id);
    return replyJson(200, { sent: 1 });
  });
  const daemon = await startProgram({ ...env(database.url), CONCURRENCY: '*=50', LOG_LEVEL: 'info' });
  await until('all are done', async () => called.length >= ready.length, 30_000);
  daemon.signal('SIGTERM');
  expect(await daemon.ended).toBe(0);
  const totals = await database.query(
    `select status, jobs::integer from broadcast_queue_totals where queue_name = 'broadcasts' order by 1`,
  );
  expect(totals).toEqual(
    await database.query(
      `select status, count(*)::integer as jobs from broadcast_queue_jobs where queue_name = 'broadcasts'
       group by 1 order by 1`,
    ),
  );
  const ascending = (a: number, b: number) => a - b;
  expect(called.sort(ascending)).toEqual(ready.map(({ id }) => id).sort(ascending));
  if (process.env.LONG_TESTS === '1') {
    process.stderr.write(
      `${outcome.rows} rows, locked for ${outcome.lockedMs} ms, the command took ${Math.round(tookMs)} ms; ` +
        `${writer.done} inserted (${afterwards.writes - before} during), ${updater.rows} updated, ${called.length} called\n`,
    );
  }
}, 120_000);

test('start will not touch an older table: it says which commands to run, and exits with 1', async () => {
  const old = await createEmptyDatabase();
  try {
    await createOldTable(old);
    for (const AUTO_MIGRATE of ['true', 'false']) {
      const { code, stderr } = await runProgram(['start'], { ...env(old.url), AUTO_MIGRATE });
      expect(code).toBe(1);
      expect(stderr).toContain('"broadcastd migrate --plan --legacy-timezone ZONE"');
      expect(stderr).toContain('"broadcastd migrate --legacy-timezone ZONE"');
    }
    const refused = await runProgram(['migrate'], env(old.url));
    expect(refused).toMatchObject({ code: 1, stdout: '' });
    expect(refused.stderr).toContain('"broadcastd migrate --legacy-timezone Europe/Berlin"');
    expect(await old.query(`select to_regclass('broadcast_queue_migrations') as made`)).toEqual([{ made: null }]);
  } finally {
    await old.drop();
  }
});

test('the plan of an ordinary database names the migrations that are missing, also as JSON', async () => {
  const empty = await createEmptyDatabase();
  try {
    expect((await runProgram(['migrate', '--plan'], env(empty.url))).stdout).toMatch(/^To be applied: 001_jobs.*\.\n$/);
    const json = await runProgram(['migrate', '--plan', '--json'], env(empty.url));
    expect(JSON.parse(json.stdout)).toEqual({
      kind: 'ordinary',
      missing: expect.arrayContaining([expect.stringMatching(/^001_/)]),
    });
    expect(await empty.query(`select to_regclass('broadcast_queue_jobs') as made`)).toEqual([{ made: null }]);
    const done = await runProgram(['migrate', '--legacy-timezone', 'UTC'], env(empty.url));
    expect(done).toMatchObject({ code: 0, stderr: expect.stringContaining('was not needed') });
    expect((await runProgram(['migrate', '--plan'], env(empty.url))).stdout).toBe('The schema is up to date.\n');
  } finally {
    await empty.drop();
  }
});
