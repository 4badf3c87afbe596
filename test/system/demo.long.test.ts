/** The demo with parts of its own, as the README's first command starts it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { expect, test } from '@jest/globals';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

test('with nothing but Node it completes every sample within a minute, says so, and leaves nothing behind', async () => {
  const before = await readdir(tmpdir());
  const child = spawn(process.execPath, ['--import', 'tsx', 'demo/main.ts', '--once'], {
    cwd: ROOT,
    env: { PATH: process.env.PATH ?? '', HOME: process.env.HOME ?? '' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const out: string[] = [];
  child.stdout.on('data', (chunk) => out.push(String(chunk)));
  expect(await once(child, 'close')).toEqual([0, null]);
  const summary = out
    .join('')
    .split(/\n +job +status +attempts.*\n/)[1]
    ?.match(/^ {2}\S.*$/gm);
  expect(summary).toHaveLength(6);
  for (const line of summary ?? []) expect(line).toMatch(/ completed /);
  const left = (await readdir(tmpdir())).filter(
    (name) => !before.includes(name) && name.startsWith('broadcastd-demo-'),
  );
  expect(left).toEqual([]);
}, 60_000);
