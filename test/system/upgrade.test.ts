/** Daemon N beside daemon N + 1: the next version is a copy of the built program with one migration more. */

import { cp, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { knownMigrations } from '../../src/db/migrate.js';
import { killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
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

test('a queue with jobs in it is brought from the first version of the schema to the newest', async () => {
  const first = await createEmptyDatabase();
  try {
    const [one] = await knownMigrations();
    await first.query(
      'create table broadcast_queue_migrations (version integer primary key, name text not null, serves integer not null, applied_at timestamptz not null default now())',
    );
    await first.query(one?.sql ?? '');
    await first.query(`insert into broadcast_queue_migrations (version, name, serves) values (1, '001_jobs', 1)`);
    await first.query(
      `insert into broadcast_queue_jobs (job_type, job_data)
       select 'send_broadcast', jsonb_build_object('broadcast_id', n) from generate_series(1, 500) n`,
    );
    const daemon = await startProgram({ ...env(), DATABASE_URL: first.url, CONCURRENCY: '*=20' });
    const migrations = daemon.lines.filter(({ msg }) => msg === 'migration applied');
    expect(migrations).toHaveLength(mine - 1);
    await until('all completed', async () => {
      const left = await first.query(`select 1 from broadcast_queue_jobs where status <> 'completed' limit 1`);
      return left.length === 0;
    });
    expect(service.requests).toHaveLength(500);
  } finally {
    await killPrograms();
    await first.drop();
  }
});

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
