/** The guide's service of level 1 is run as it is printed there, and keeps all that its level promises. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import type { ContractDocument } from '../../src/contract/report.js';
import { runProgram } from '../support/daemon.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { call } from '../support/sandbox-calls.js';
import { freePort } from '../support/server.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const TOKEN = 'a-token-of-the-guide';

let database: TestDatabase;
let folder: string;
let child: ChildProcess;
let url: string;

beforeEach(async () => {
  database = await createDatabase();
  folder = await mkdtemp(join(tmpdir(), 'broadcastd-guide-'));
});
afterEach(async () => {
  const ended = once(child, 'close');
  child.kill('SIGKILL');
  await ended;
  await rm(folder, { recursive: true });
  await database.drop();
});

test('passes the contract test of its level, and every check of it shows something', async () => {
  await startListing({ BROADCAST_SERVICE_TOKEN: TOKEN });
  const { code, stdout } = await runProgram(['contract-test', url, '--json'], { BROADCAST_SERVICE_TOKEN: TOKEN });
  // The program's own word for it.
  const document = JSON.parse(stdout) as ContractDocument;
  const missing = document.checks.filter(({ level, outcome }) => level <= 1 && outcome !== 'passed');
  expect(missing.map(({ id, reason }) => `${id}: ${reason}`)).toEqual(['bad-signature: no --secret was given']);
  expect([code, document.level_claimed]).toEqual([0, 1]);
}, 30_000);

test('refuses whatever is meant for fewer than everybody', async () => {
  await startListing({});
  for (const fewer of [{ dryRun: true }, { scope: 'failed' }, { payload: { broadcast_id: 1, test_recipients: [1] } }]) {
    const { status, body } = await call(url, { payload: { broadcast_id: 1 }, ...fewer });
    expect([status, body.code]).toEqual([422, 'unsupported']);
  }
});

/** With the packages of this project, as `npm install pg` would have it. */
async function startListing(env: Record<string, string>): Promise<void> {
  const guide = await readFile(join(ROOT, 'docs/service-guide.md'), 'utf8');
  const [, listing = ''] = /```js\n(\/\/ level1\.mjs\n.*?)```/s.exec(guide) ?? [];
  await mkdir(join(folder, 'node_modules'));
  await symlink(join(ROOT, 'node_modules/pg'), join(folder, 'node_modules/pg'));
  await writeFile(join(folder, 'level1.mjs'), listing);
  const port = await freePort();
  url = `http://127.0.0.1:${port}`;
  child = spawn(process.execPath, ['level1.mjs'], {
    cwd: folder,
    env: { PATH: process.env.PATH ?? '', DATABASE_URL: database.url, PORT: String(port), ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  // Asked for by `stdio`.
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream });
  const tooEarly = once(child, 'exit').then(([code]) => {
    throw new Error(`the listing ended with ${code} before it listened`);
  });
  tooEarly.catch(() => {}); // From its first line on it may end.
  const [line] = await Promise.race([once(lines, 'line'), tooEarly]);
  expect(line).toBe(`listening on ${url}`);
}
