/** docs/library.md does what it says: its examples run, one after the other, and its table of roles holds. */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import pg from 'pg';
import { BroadcastQueue } from '../../src/client/index.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { createRoles, type TestRoles } from '../support/roles.js';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const WITHIN_MS = 60_000;

let database: TestDatabase;
let roles: TestRoles;
let project: string;
let text: string;

beforeAll(async () => {
  text = await readFile(join(ROOT, 'docs/library.md'), 'utf8');
  database = await createDatabase();
  roles = await createRoles(database);
  project = await mkdtemp(join(tmpdir(), 'broadcastd-docs-'));
  await mkdir(join(project, 'node_modules/@types'), { recursive: true });
  for (const name of ['pg', '@types/node']) {
    await symlink(join(ROOT, 'node_modules', name), join(project, 'node_modules', name));
  }
  await symlink(ROOT, join(project, 'node_modules/broadcastd'));
  await writeFile(join(project, 'package.json'), '{"private": true, "type": "module"}');
});
afterAll(async () => {
  await roles.drop();
  await database.drop();
  await rm(project, { recursive: true, force: true });
});

test(
  'its examples run, one after the other, and print what they say',
  async () => {
    await database.query("create table broadcasts (id bigint, state text); insert into broadcasts values (43, 'new')");
    await database.query(
      `insert into broadcast_queue_jobs (job_type, job_data, status, error_code, error_message)
       values ('send_broadcast', '{"broadcast_id": 1}', 'failed', 'http_422', 'no such broadcast')`,
    );
    await writeFile(join(project, 'examples.js'), `${blocks('js').join('\n')}\nawait pool.end();\n`);
    const { stdout, stderr } = await run(process.execPath, ['examples.js'], {
      cwd: project,
      env: { PATH: process.env.PATH ?? '', DATABASE_URL: database.url },
      timeout: WITHIN_MS,
    });
    expect(stdout.split('\n')).toEqual([
      'true false true',
      '3',
      'pending 0 spring-sale',
      expect.stringMatching(/^[0-9a-f-]{36} http_422 no such broadcast$/),
      'false 0 5 0',
      '5',
      'broadcasts are queued, but nobody sends them',
      expect.stringMatching(/^resume: job \S+ is pending: only a paused job can be resumed$/),
      '',
    ]);
    expect(stderr).toBe('');
    expect(await database.query('select state from broadcasts')).toEqual([{ state: 'queued' }]);
    const queued = await database.query(
      `select count(*)::integer from broadcast_queue_jobs where status = 'pending' and job_data ->> 'broadcast_id' = '43'`,
    );
    expect(queued).toEqual([{ count: 1 }]);
  },
  WITHIN_MS,
);

test(
  'its TypeScript fits the types',
  async () => {
    await writeFile(join(project, 'types.ts'), blocks('ts').join('\n'));
    const tsc = join(ROOT, 'node_modules/typescript/bin/tsc');
    const flags = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2023', '--types', 'node'];
    const { stdout } = await run(process.execPath, [tsc, ...flags, 'types.ts'], { cwd: project, timeout: WITHIN_MS });
    expect(stdout).toBe('');
  },
  WITHIN_MS,
);

test('its table of roles names every method and tells the truth', async () => {
  const job = async (status: string) => {
    const [row] = await database.query<{ job_id: string }>(
      `insert into broadcast_queue_jobs (job_type, job_data, status, unique_key)
       values ('send_broadcast', '{}', $1::text, $1::text) returning job_id`,
      [status],
    );
    return row?.job_id ?? '';
  };
  const [pending, paused, failed] = [await job('pending'), await job('paused'), await job('failed')];
  const calls: Record<string, (queue: BroadcastQueue) => Promise<unknown>> = {
    queueBroadcast: (queue) => queue.queueBroadcast('new', { uniqueKey: 'pending' }),
    queueSegmentBroadcast: (queue) => queue.queueSegmentBroadcast('new', 'vip'),
    queueBroadcastBatch: (queue) => queue.queueBroadcastBatch([{ broadcast_id: 1 }, { broadcast_id: 1 }]),
    enqueue: (queue) => queue.enqueue('anything', {}),
    getJob: (queue) => queue.getJob(pending),
    progress: (queue) => queue.progress(pending),
    getFailedBroadcasts: (queue) => queue.getFailedBroadcasts(),
    getStatus: (queue) => queue.getStatus(),
    getStatistics: (queue) => queue.getStatistics(),
    getQueueStatus: (queue) => queue.getQueueStatus('broadcasts'),
    isProcessorRunning: (queue) => queue.isProcessorRunning(),
    pause: (queue) => queue.pause(pending),
    resume: (queue) => queue.resume(paused),
    cancel: (queue) => queue.cancel(pending),
    retryFailedBroadcast: (queue) => queue.retryFailedBroadcast(failed),
    resend: (queue) => queue.resend(failed, 'all'),
    clearCompletedJobs: (queue) => queue.clearCompletedJobs('broadcasts'),
  };
  const methods = Object.getOwnPropertyNames(BroadcastQueue.prototype).filter((name) => name !== 'constructor');
  expect(Object.keys(calls).sort()).toEqual(methods.sort());

  const columns = ['enqueuer', 'operator', 'worker', 'viewer'] as const;
  const allowed = new Map<string, string[]>();
  for (const role of columns) {
    // One connection, so that what each call does can be undone.
    const pool = new pg.Pool({ connectionString: roles.urls[role], max: 1 });
    try {
      for (const [method, call] of Object.entries(calls)) {
        await pool.query('begin');
        const refusal = await call(new BroadcastQueue(pool)).catch((error: unknown) => error);
        await pool.query('rollback');
        if (!(refusal instanceof Error)) {
          allowed.set(method, [...(allowed.get(method) ?? []), role]);
          continue;
        }
        // Nothing but a missing right keeps anybody out, and the error says which role has it.
        expect(refusal.message).toMatch(new RegExp(`^${method}: permission denied .* broadcastd_`));
        expect(refusal).toMatchObject({ name: 'BroadcastQueueError', code: 'not_allowed' });
      }
    } finally {
      await pool.end();
    }
  }

  const table = [...text.matchAll(/^\| (`[a-zA-Z`, ]+`) \| (.*) \|$/gm)]
    .map(([, names = '', cells = '']) => ({ names: names.match(/\w+/g) ?? [], cells: cells.split('|') }))
    .filter(({ cells }) => cells.length === columns.length);
  const told = table.flatMap(({ names, cells }) =>
    names.map((name) => [name, columns.filter((_, index) => cells[index]?.trim() === 'yes')] as const),
  );
  expect(new Map(told)).toEqual(allowed);
});

/** The document's code in this language. */
function blocks(language: string): string[] {
  const found = [...text.matchAll(/^```(\w+)\n(.*?)^```$/gms)].filter(([, one]) => one === language);
  expect(found.length).toBeGreaterThan(0);
  return found.map(([, , code = '']) => code);
}
