/** The benchmark's harness, on a small scale: that it measures what it says, not how much. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { serverUrl } from '../support/postgres.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'broadcastd-bench-test-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function bench(...args: string[]): Promise<{ stdout: string }> {
  const env = { PATH: process.env.PATH ?? '', BENCH_DATABASE_URL: serverUrl() };
  const command = ['--import', 'tsx', join(ROOT, 'bench/main.ts'), ...args, '--results', folder];
  return promisify(execFile)(process.execPath, command, { cwd: ROOT, env, timeout: 60_000 });
}

test('a drain makes one call for each job, through the daemon and without one, and leaves its figures behind', async () => {
  // The service of Node counts for how many different jobs it was called; the run fails unless each was called once.
  const contestants = ['--contestants', 'no queue', 'broadcastd', '--service', 'node'];
  await bench('drain', '--jobs', '300', '--slots', '10', '--rounds', '1', ...contestants);

  const { samples, options, machine } = JSON.parse(await readFile(join(folder, 'drain.json'), 'utf8'));
  expect(options).toMatchObject({ jobs: 300, slots: 10, rounds: 1 });
  expect(machine.cores).toBeGreaterThan(0);
  expect(samples.map(({ subject }: { subject: string }) => subject)).toEqual(['no queue', 'broadcastd']);
  const rates = samples.map(({ figures }: { figures: { jobsPerSecond: number } }) => figures.jobsPerSecond);
  for (const rate of rates) expect(rate).toBeGreaterThan(0);
  expect(rates.every(Number.isFinite)).toBe(true);
}, 60_000);
