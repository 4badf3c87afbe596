/** Daemon N beside daemon N + 1: the next version is a copy of the built program with one migration more. */

import { cp, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { knownMigrations } from '../../src/db/migrate.js';
import { killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { insertEvery } from '../support/old-bot.js';
import { createDatabase, createEmptyDatabase, type TestDatabase } from '../support/postgres.js';
import { until } from '../support/until.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const folders: string[] = [];
let database: TestDatabase;
let service: ScriptedServer;
let mine: number;

beforeAll(async () => {
  mine = (await knownMigrations()).length;
});
beforeEach(async () => {
  database = await createDatabase();
  service = await startHttpServer();
});
afterEach(async () => {
  await killPrograms();
  await service.close();
  await database.drop();
});
afterAll(async () => {
  for (const folder of folders) await rm(folder, { recursive: true, force: true });
});

/** @returns the path of the program of the next version */
async function nextVersion(serves: number, sql: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'broadcastd-next-'));
  folders.push(folder);
  for (const name of ['dist', 'sql', 'package.json'])
    await cp(join(root, name), join(folder, name), { recursive: true });
  await symlink(join(root, 'node_modules'), join(folder, 'node_modules'));
  const number = String(mine + 1).padStart(3, '0');
  await writeFile(join(folder, 'sql', `${number}_next.sql`), `-- serves: ${serves}\n${sql}`);
  return join(folder, 'dist', 'main.js');
}

const env = () => ({ DATABASE_URL: database.url, BROADCAST_SERVICE_URL: service.url, POLL_INTERVAL_MS: '300' });

const EXPAND = `
  alter table broadcast_queue_jobs add column colour text not null default 'blue';
  create table broadcast_queue_colours (name text primary key);`;

test('old and new daemons share the queue while the new one has already migrated it', async () => {
  const older = await startProgram(env());
  const newer = await startProgram(env(), await nextVersion(1, EXPAND));
  expect(newer.lines.find(({ msg }) => msg === 'migration applied')?.migration).toMatch(/_next$/);
  service.otherwise(replyJson(200, { sent: 1 }));
  await until('both have completed some', async () => {
    await database.query(
      `insert into broadcast_queue_jobs (job_type, job_data)
       select 'send_broadcast', '{"broadcast_id": 1}' from generate_series(1, 20)`,
    );
    return [older, newer].every(({ lines }) => lines.some(({ msg }) => msg === 'job completed'));
  });
  await until('all completed', async () => {
    const left = await database.query(`select 1 from broadcast_queue_jobs where status <> 'completed' limit 1`);
    return left.length === 0;
  });
  const again = await startProgram(env());
  expect(again.lines.some(({ msg }) => msg === 'migration applied')).toBe(false);
});

test('a daemon that the schema no longer serves says so and ends, and loses nothing', async () => {
  const applied = await runProgram(['migrate'], { DATABASE_URL: database.url }, await nextVersion(mine + 1, EXPAND));
  expect(applied.stdout).toMatch(/_next/);
  const { code, stderr } = await runProgram(['start'], env());
  expect(code).toBe(1);
  expect(stderr).toContain(
    `is at version ${mine + 1} and serves daemons that know version ${mine + 1} or newer; ` +
      `this one knows versions up to ${mine}: run a newer broadcastd`,
  );
});

const EVERY_STATE = `
  insert into broadcast_queue_jobs (job_type, job_data, status, next_retry_at, started_at, completed_at)
  select 'send_broadcast', jsonb_build_object('broadcast_id', n),
    (array['pending', 'retry', 'processing', 'paused', 'completed', 'failed', 'cancelled'])[n % 7 + 1],
    case when n % 7 in (1, 2) then now() end, case when n % 7 > 0 then now() - interval '9 seconds' end,
    case when n % 7 > 3 then now() end
  from generate_series(1, 350) n`;

test.each([1, 3])(
  'jobs in every state are brought from version %i to the newest, while the bot inserts',
  async (from) => {
    const older = await createEmptyDatabase();
    try {
      await older.query(
        'create table broadcast_queue_migrations (version integer primary key, name text not null, serves integer not null, applied_at timestamptz not null default now())',
      );
      for (const { version, name, sql, serves } of (await knownMigrations()).slice(0, from)) {
        await older.query(sql);
        await older.query('insert into broadcast_queue_migrations values ($1, $2, $3)', [version, name, serves]);
      }
      await older.query(EVERY_STATE);
      const bot = await insertEvery(older.url, 20, (n) => 1000 + n);
      const daemon = await startProgram({ ...env(), DATABASE_URL: older.url, CONCURRENCY: '*=20' });
      const before = bot.done;
      await until('the bot went on', async () => bot.done > before + 5);
      await bot.stop();
      expect(bot.errors).toEqual([]);
      expect(daemon.lines.filter(({ msg }) => msg === 'migration applied')).toHaveLength(mine - from);
      const live = `status in ('pending', 'processing', 'retry')`;
      await until('all ended that could', async () => {
        return (await older.query(`select 1 from broadcast_queue_jobs where ${live} limit 1`)).length === 0;
      });
      // Of seven states three are live, and nobody else was called.
      expect(service.requests).toHaveLength(150 + bot.done);
      const counted = await older.query(
        `select status, count(*)::integer as jobs from broadcast_queue_jobs group by 1 order by 1`,
      );
      expect(counted).toEqual([
        { status: 'cancelled', jobs: 50 },
        { status: 'completed', jobs: 200 + bot.done },
        { status: 'failed', jobs: 50 },
        { status: 'paused', jobs: 50 },
      ]);
      const told = `select status, sum(jobs)::integer as jobs from broadcast_queue_totals group by 1 order by 1`;
      expect(await older.query(told)).toEqual(counted);
    } finally {
      await killPrograms();
      await older.drop();
    }
  },
);

test('a daemon that may not migrate says what is missing', async () => {
  const first = await createEmptyDatabase();
  try {
    const { code, stderr } = await runProgram(['start'], { ...env(), DATABASE_URL: first.url, AUTO_MIGRATE: 'false' });
    expect(code).toBe(1);
    expect(stderr).toMatch(/the schema lacks 001_jobs, .*: run "broadcastd migrate", or set AUTO_MIGRATE=true/);
  } finally {
    await first.drop();
  }
});
