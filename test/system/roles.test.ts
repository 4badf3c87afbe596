/** The daemon, the migration and the bot as three roles, none of which may do more than its part. */
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import pg from 'pg';
import { killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createEmptyDatabase, type TestDatabase } from '../support/postgres.js';
import { createRoles, type TestRoles } from '../support/roles.js';
import { until } from '../support/until.js';

let database: TestDatabase;
let roles: TestRoles;
let service: ScriptedServer;

beforeAll(async () => {
  database = await createEmptyDatabase();
  service = await startHttpServer();
  const { code } = await runProgram(['migrate'], { MIGRATE_DATABASE_URL: database.url, DATABASE_URL: database.url });
  expect(code).toBe(0);
  roles = await createRoles(database);
});
afterEach(killPrograms);
afterAll(async () => {
  await service.close();
  await roles.drop();
  await database.drop();
});

const asBot = async (sql: string) => {
  const bot = new pg.Client({ connectionString: roles.urls.enqueuer });
  await bot.connect();
  try {
    return (await bot.query(sql)).rows;
  } finally {
    await bot.end();
  }
};

test('a daemon without DDL sends what a bot that may only enqueue has enqueued', async () => {
  const daemon = await startProgram({
    DATABASE_URL: roles.urls.worker,
    AUTO_MIGRATE: 'false',
    BROADCAST_SERVICE_URL: service.url,
    RETRY_BASE_DELAY_MS: '100',
  });
  service.next(replyJson(500, { detail: 'not yet' }), replyJson(200, { sent: 1 }));
  const [row] = await asBot(`select job_id from broadcast_enqueue('send_broadcast', '{"broadcast_id": 1}')`);
  const [done] = await until('it is sent', async () => {
    const rows = await asBot(`select * from broadcast_progress('${row.job_id}') where status = 'completed'`);
    return rows.length > 0 && rows;
  });
  expect(done).toMatchObject({ status: 'completed', attempts: 2 });
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  expect(daemon.lines.filter(({ level }) => level === 'error')).toEqual([]);
  daemon.signal('SIGTERM');
  expect(await daemon.ended).toBe(0);
});

test('AUTO_MIGRATE does no harm to a worker without DDL, where there is nothing to migrate', async () => {
  await startProgram({ DATABASE_URL: roles.urls.worker, BROADCAST_SERVICE_URL: service.url });
});

test('the daemon migrates as the owner and then works as the worker, where MIGRATE_DATABASE_URL is the owner', async () => {
  await database.query('delete from broadcast_queue_jobs');
  const daemon = await startProgram({
    DATABASE_URL: roles.urls.worker,
    MIGRATE_DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
  });
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  const users = await database.query<{ user: string }>(
    `select distinct usename as user from pg_stat_activity
     where datname = current_database() and application_name like 'broadcastd %'`,
  );
  expect(users).toEqual([{ user: new URL(roles.urls.worker).username }]);
});

test('a daemon that may not even look at the tables says so and ends', async () => {
  const { code, stderr } = await runProgram(['start'], {
    DATABASE_URL: roles.urls.outsider,
    AUTO_MIGRATE: 'false',
    BROADCAST_SERVICE_URL: service.url,
  });
  expect(code).toBe(1);
  expect(stderr).toMatch(/permission denied for table broadcast_queue_migrations/);
  expect(stderr).toMatch(/deploy\/roles\.sql/);
  expect(stderr).not.toMatch(/ at .*\.js/);
});
