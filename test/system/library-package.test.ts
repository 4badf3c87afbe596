/**
 * The library as its readers get it: the packed package, unpacked into the node_modules of a project that has nothing but
 * `pg` beside it, imported, required and type-checked there.
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { parseSync } from '@swc/core';
import { createDatabase, type TestDatabase } from '../support/postgres.js';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const WITHIN_MS = 120_000;

let database: TestDatabase;
let project: string;
let packed: string;

beforeAll(async () => {
  database = await createDatabase();
  project = await mkdtemp(join(tmpdir(), 'broadcastd-library-'));
  const modules = join(project, 'node_modules');
  packed = join(modules, 'broadcastd');
  await mkdir(packed, { recursive: true });
  await run('npm', ['pack', '--ignore-scripts', '--pack-destination', project], {
    cwd: ROOT,
    timeout: WITHIN_MS,
  });
  const filename = (await readdir(project)).find((name) => name.endsWith('.tgz')) ?? '';
  await run('tar', ['-xzf', join(project, filename), '-C', packed, '--strip-components=1']);
  await mkdir(join(modules, '@types'));
  for (const name of ['pg', '@types/pg', '@types/node']) {
    await symlink(join(ROOT, 'node_modules', name), join(modules, name));
  }
  await writeFile(join(project, 'package.json'), '{"private": true}');
}, WITHIN_MS);
afterAll(async () => {
  await rm(project, { recursive: true, force: true });
  await database.drop();
});

describe('the packed package', () => {
  const body = `
    const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
    const queue = new BroadcastQueue(pool);
    queue.queueBroadcast(process.argv[2]).then(async (job) => {
      const again = await queue.queueBroadcast(process.argv[2]);
      const fault = await queue.cancel('42').catch((error) => error);
      const named = fault instanceof BroadcastQueueError && fault.code;
      console.log(JSON.stringify([job.inserted, again.inserted, again.job_id === job.job_id, named]));
      await pool.end();
    });`;

  test.each([
    ['imported', 'bot.mjs', `import pg from 'pg'; import { BroadcastQueue, BroadcastQueueError } from 'broadcastd';`],
    [
      'required',
      'bot.cjs',
      `const pg = require('pg'); const { BroadcastQueue, BroadcastQueueError } = require('broadcastd');`,
    ],
  ])('works %s, with no other package there and no word on stderr', async (how, file, imports) => {
    await writeFile(join(project, file), `${imports}\n${body}`);
    const { stdout, stderr } = await run(process.execPath, [file, how], {
      cwd: project,
      env: { PATH: process.env.PATH ?? '', DATABASE_URL: database.url },
      timeout: WITHIN_MS,
    });
    expect([stdout.trim(), stderr]).toEqual(['[true,false,true,"invalid_argument"]', '']);
    const rows = await database.query(
      "select job_type from broadcast_queue_jobs where job_data ->> 'broadcast_id' = $1",
      [how],
    );
    expect(rows).toEqual([{ job_type: 'send_broadcast' }]);
  });

  test.each([
    ['an ES module', 'bot.mts'],
    ['a CommonJS module', 'bot.cts'],
  ])(
    'has types that fit a strict project, in %s',
    async (_what, file) => {
      await writeFile(join(project, file), CONSUMER);
      const { code, stdout } = await typeCheck(file, 'nodenext');
      expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    },
    WITHIN_MS,
  );

  test(
    'has types that refuse what is wrong',
    async () => {
      await writeFile(
        join(project, 'wrong.mts'),
        `import pg from 'pg';
       import { BroadcastQueue } from 'broadcastd';
       new BroadcastQueue('postgres://localhost');
       const queue = new BroadcastQueue(new pg.Pool());
       queue.queueBroadcast(1, { delay: '5 minutes' });
       queue.queueBroadcast(1, { delai: 5 });
       queue.queueBroadcastBatch([{ id: 1 }]);
       queue.queueBroadcastBatch([{ broadcast_id: 1 }], { uniqueKey: 'x' });
       queue.resend('x', 'some');
       queue.getStatus().then((status) => status.queues.broadcasts.waiting);`,
      );
      const { stdout } = await typeCheck('wrong.mts', 'nodenext');
      expect([...stdout.matchAll(/^wrong\.mts\((\d+),/gm)].map(([, line]) => Number(line))).toEqual([
        3, 5, 6, 7, 8, 9, 10, 10,
      ]);
    },
    WITHIN_MS,
  );

  test('brings the program, the migrations and the roles, and no tests or sources', async () => {
    const files = await readdir(packed, { recursive: true });
    expect(files).toEqual(
      expect.arrayContaining([
        'dist/main.js',
        'dist/client/index.d.ts',
        'sql/001_jobs.sql',
        'deploy/roles.sql',
        'README.md',
      ]),
    );
    expect(files.filter((file) => /^(src|test|node_modules)\b|\.test\./.test(file))).toEqual([]);
    const { dependencies, peerDependencies, peerDependenciesMeta } = JSON.parse(
      await readFile(join(packed, 'package.json'), 'utf8'),
    );
    expect(peerDependencies).toEqual({ pg: '>=8.0.0' });
    expect(peerDependenciesMeta).toEqual({ pg: { optional: true } });
    expect(dependencies).toHaveProperty('pg');
  });
});

describe('the import graph from src/client', () => {
  test('stays in that folder, but for one module of Node that holds no state', () => {
    const { files, outside } = graph(join(ROOT, 'src/client/index.ts'));
    expect(files.length).toBeGreaterThan(5);
    expect(files.filter((file) => !file.startsWith(join(ROOT, 'src/client/')))).toEqual([]);
    expect(outside).toEqual(['node:util/types']);
  });

  test('is really walked', () => {
    expect(graph(join(ROOT, 'src/db/pool.ts'))).toEqual({
      files: [join(ROOT, 'src/db/pool.ts'), join(ROOT, 'src/errors.ts')],
      outside: ['node:fs', 'pg'],
    });
  });
});

/** A bot in TypeScript: every method, on each kind of connection. */
const CONSUMER = `
import { Client, Pool, type PoolClient } from 'pg';
import { type BatchOptions, BroadcastQueue, BroadcastQueueError, type JobRow, type Status } from 'broadcastd';

export async function bot(pool: Pool, client: Client, checkedOut: PoolClient): Promise<number> {
  const queue = new BroadcastQueue(pool, { schema: 'public' });
  new BroadcastQueue(client);
  new BroadcastQueue(checkedOut);
  const { job_id, inserted }: { job_id: string; inserted: boolean } = await queue.queueBroadcast(42, {
    delay: 60_000, maxAttempts: 5, expiresAt: new Date(), data: { bot_id: 'shop' }, uniqueKey: null,
    sendWindow: { from: '09:00', to: '21:00', time_zone: 'Europe/Berlin' },
  });
  const options: BatchOptions = { maxAttempts: 3, delayPerJob: 1000 };
  const batch = await queue.queueBroadcastBatch([{ broadcast_id: 1, bot_id: 'shop' }, { broadcast_id: 'x' }], options);
  await queue.queueSegmentBroadcast(42, 'premium', { delay: 5 });
  await queue.enqueue('process_retries', { limit: 5 });
  const status: Status = await queue.getStatus();
  const waiting: number = status.queues.broadcasts?.pending ?? 0;
  const failed: JobRow[] = await queue.getFailedBroadcasts(10);
  const since: Date | null = (await queue.getStatistics()).oldest_job;
  const active: number = (await queue.getQueueStatus('broadcasts')).active;
  const percent: number | null | undefined = (await queue.progress(job_id))?.percent;
  const steps: string[] = [
    await queue.pause(job_id, 'why'), await queue.resume(job_id), await queue.cancel(job_id),
    await queue.retryFailedBroadcast(job_id), await queue.resend(job_id, 'failed'),
  ];
  const running: boolean = await queue.isProcessorRunning();
  const job: JobRow | null = await queue.getJob(batch[0]?.job_id ?? job_id);
  try {
    return await queue.clearCompletedJobs('broadcasts', 7);
  } catch (error) {
    if (error instanceof BroadcastQueueError && error.code === 'not_allowed') return 0;
    throw [error, inserted, waiting, failed, since, active, percent, steps, running, job];
  }
}
`;

async function typeCheck(file: string, module: string): Promise<{ code: number; stdout: string }> {
  const flags = [
    '--noEmit',
    '--strict',
    '--exactOptionalPropertyTypes',
    '--noUncheckedIndexedAccess',
    '--pretty',
    'false',
  ];
  const args = [...flags, '--module', module, '--target', 'es2023', '--lib', 'es2023', '--types', 'node', file];
  const tsc = join(ROOT, 'node_modules/typescript/bin/tsc');
  return run(process.execPath, [tsc, ...args], { cwd: project, timeout: WITHIN_MS }).then(
    ({ stdout }) => ({ code: 0, stdout }),
    ({ code, stdout }) => ({ code, stdout }),
  );
}

/** Every file of ours that this one leads to, and everything else that they import, types included. */
function graph(entry: string): { files: string[]; outside: string[] } {
  const files = [entry];
  const outside = new Set<string>();
  // Grows while it is walked.
  for (const file of files) {
    for (const from of importsOf(readFileSync(file, 'utf8'))) {
      if (!from.startsWith('.')) outside.add(from);
      else {
        const path = join(file, '..', from).replace(/\.js$/, '.ts');
        if (!files.includes(path)) files.push(path);
      }
    }
  }
  return { files, outside: [...outside].sort() };
}

function importsOf(text: string): string[] {
  const found: string[] = [];
  JSON.stringify(parseSync(text, { syntax: 'typescript', target: 'es2023' }), (_key, node) => {
    if (typeof node !== 'object' || node === null) return node;
    if (/^(Import|ExportAll|ExportNamed)Declaration$/.test(node.type) && node.source) found.push(node.source.value);
    if (node.type === 'TsImportType') found.push(node.argument.value);
    if (node.type === 'CallExpression' && (node.callee.type === 'Import' || node.callee.value === 'require')) {
      found.push(node.arguments[0].expression.value ?? 'a computed name');
    }
    return node;
  });
  return found;
}
