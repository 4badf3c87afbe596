/**
 * The files of docs/snippets, run as their readers would run them. Where a language is missing here, its test is listed
 * as skipped. What the README shows is part of these files.
 */
import { execFile, spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { createDatabase, type TestDatabase } from '../support/postgres.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const SNIPPETS = join(ROOT, 'docs/snippets');
const WITHIN_MS = 60_000;

const psql = works('psql', ['--version']);
const python = ['python3', '/usr/bin/python3'].find((program) => works(program, ['-c', 'import psycopg.types.json']));
const go = goModule();

let database: TestDatabase;

beforeEach(async () => {
  database = await createDatabase();
});
afterEach(() => database.drop());
afterAll(() => {
  if (go !== null) rmSync(go, { recursive: true, force: true });
});

describe('from psql', () => {
  const here = psql ? test : test.skip;

  here('it enqueues rows, once where they have a key, later and many at once', async () => {
    const shown = await run('psql', sqlFile('enqueue.sql'));
    expect(await jobs()).toEqual([
      { type: 'send_broadcast', data: { broadcast_id: 41 }, delay: 0, attempts: 3 },
      { type: 'send_broadcast', data: { broadcast_id: 42 }, delay: 600, attempts: 3 },
      { type: 'send_broadcast', data: { broadcast_id: 43 }, delay: 0, attempts: 3 },
      { type: 'send_segment_broadcast', data: { broadcast_id: 43, segment_id: 'premium' }, delay: 3600, attempts: 3 },
      { type: 'send_broadcast', data: { broadcast_id: 44 }, delay: 0, attempts: 3 },
      { type: 'send_broadcast', data: { broadcast_id: 42 }, delay: 0, attempts: 3 },
      { type: 'send_broadcast', data: { broadcast_id: 46 }, delay: expect.any(Number), attempts: 5 },
    ]);
    // `inserted`, one after the other.
    expect(shown.match(/(?<=\| )[tf]$/gm)?.join('')).toBe('tttftft');
    const [last] = await database.query<{ at: string; until: string }>(
      `select scheduled_at at time zone 'UTC' || '' as at, expires_at at time zone 'UTC' || '' as until
       from broadcast_queue_jobs order by id desc limit 1`,
    );
    expect(last).toEqual({ at: '2030-01-01 08:00:00', until: '2030-01-01 11:00:00' });
  });

  here('it watches, pauses, resumes, cancels, retries and resends', async () => {
    const shown = await run('psql', sqlFile('operate.sql'));
    const answers = [...shown.matchAll(/^ broadcast_(\w+) *\n-+\n +(\S+)$/gm)].map(([, name, answer]) => [
      name,
      answer,
    ]);
    expect(answers).toEqual([
      ['pause', 'paused'],
      ['resume', 'pending'],
      ['cancel', 'cancelled'],
      ['retry', 'pending'],
      ['resend', 'pending'],
      ['pause_queue', 't'],
      ['resume_queue', 't'],
    ]);
    expect(shown).toMatch(/status +\| processed .*\n-.*\n pending/);
    expect(await database.query('select status, step_scope from broadcast_queue_jobs')).toEqual([
      { status: 'pending', step_scope: 'failed' },
    ]);
    expect(await database.query('select from broadcast_queue_pauses')).toEqual([]);
  });

  here('it sets limits and send windows', async () => {
    await run('psql', sqlFile('limits.sql'));
    expect(await database.query('select key, per_second, max_concurrent from broadcast_queue_limits')).toEqual([
      { key: 'bot:shop', per_second: 25, max_concurrent: 2 },
    ]);
    const [job] = await database.query<{ send_window: object }>('select send_window from broadcast_queue_jobs');
    expect(job?.send_window).toMatchObject({ from: '18:00', to: '20:00', missed: 'fail' });
    expect(await database.query('select from broadcast_queue_windows')).toEqual([]);
  });
});

describe('a program enqueues in its transaction, with options, and many at once:', () => {
  const all = (delay: number, secondsBetween = 0) => [
    { type: 'send_broadcast', data: { broadcast_id: 42 }, delay: 0, attempts: 3 },
    { type: 'send_segment_broadcast', data: { broadcast_id: 42, segment_id: 'premium' }, delay, attempts: 5 },
    { type: 'send_broadcast', data: { broadcast_id: 43 }, delay: 0, attempts: 3 },
    { type: 'send_broadcast', data: { broadcast_id: 44 }, delay: secondsBetween, attempts: 3 },
  ];

  test('Node with pg', async () => {
    await run(process.execPath, [join(SNIPPETS, 'enqueue.mjs')]);
    expect(await jobs()).toEqual(all(600));
  });

  test('Node with the library', async () => {
    await run(process.execPath, [join(SNIPPETS, 'library.mjs')]);
    const [first, second, ...batch] = all(600, 60);
    expect(await jobs()).toEqual([{ ...first, attempts: 5 }, { ...second, attempts: 3 }, ...batch]);
  });

  (python === undefined ? test.skip : test)('Python with psycopg', async () => {
    await run(python ?? '', [join(SNIPPETS, 'enqueue.py')]);
    expect(await jobs()).toEqual(all(600));
  });

  (go === null ? test.skip : test)(
    'Go with pgx',
    async () => {
      await run('go', ['run', 'enqueue.go'], go ?? '');
      expect(await jobs()).toEqual(all(600));
    },
    WITHIN_MS,
  );
});

describe('what the README shows of enqueueing', () => {
  const extensions = new Map([
    ['sql', ['.sql']],
    ['js', ['.mjs']],
    ['python', ['.py']],
    ['go', ['.go']],
  ]);
  const readme = readFileSync(join(ROOT, 'README.md'), 'utf8');
  const [section = ''] = /^## Enqueue\n.*?(?=^## )/ms.exec(readme) ?? [];
  const blocks = [...section.matchAll(/^```(\w+)\n(.*?)^```$/gms)].map(([, language = '', code = '']) => ({
    language,
    code,
  }));
  const files = readdirSync(SNIPPETS).map((name) => ({ name, text: readFileSync(join(SNIPPETS, name), 'utf8') }));

  test('has every language', () => {
    expect(new Set(blocks.map(({ language }) => language))).toEqual(new Set(extensions.keys()));
  });

  test.each(blocks)('is part of a file that is run: $language, %#', ({ language, code }) => {
    const candidates = files.filter(({ name }) => extensions.get(language)?.includes(extname(name)));
    expect(candidates.filter(({ text }) => flush(text).includes(flush(code))).length).toBeGreaterThan(0);
  });

  test('leaves no file without a test', () => {
    const tests = readFileSync(fileURLToPath(import.meta.url), 'utf8');
    for (const { name } of files) expect(tests).toContain(`'${name}'`);
  });
});

/** Without indentation, which is another in an excerpt. */
function flush(text: string): string {
  return text.replace(/^[ \t]+/gm, '').trim();
}

function sqlFile(name: string): string[] {
  return [database.url, '--no-psqlrc', '-v', 'ON_ERROR_STOP=1', '-f', join(SNIPPETS, name)];
}

async function run(program: string, args: string[], cwd = ROOT): Promise<string> {
  const env = { ...process.env, DATABASE_URL: database.url };
  return (await promisify(execFile)(program, args, { cwd, env, timeout: WITHIN_MS })).stdout;
}

/** In the order of insertion; the delay in whole seconds. */
function jobs() {
  return database.query(
    `select job_type as type, job_data as data, max_attempts as attempts,
            extract(epoch from scheduled_at - created_at)::integer as delay
     from broadcast_queue_jobs order by id`,
  );
}

function works(program: string, args: string[]): boolean {
  return spawnSync(program, args, { stdio: 'ignore', timeout: 10_000 }).status === 0;
}

/** A folder in which the Go snippet can be run; null without Go, or where it cannot get its modules. */
function goModule(): string | null {
  if (!works('go', ['version'])) return null;
  const folder = mkdtempSync(join(tmpdir(), 'broadcastd-go-'));
  copyFileSync(join(SNIPPETS, 'enqueue.go'), join(folder, 'enqueue.go'));
  const ready = [
    ['mod', 'init', 'bot'],
    ['mod', 'tidy'],
  ].every((args) => spawnSync('go', args, { cwd: folder, stdio: 'ignore', timeout: WITHIN_MS }).status === 0);
  if (ready) return folder;
  rmSync(folder, { recursive: true, force: true });
  return null;
}
