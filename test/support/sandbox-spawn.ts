/** Starts the sandbox as a process of its own, to be killed. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { SandboxCommandOptions } from '../../src/cli/sandbox.js';

export interface SpawnedSandbox {
  readonly url: string;
  /** By SIGKILL; resolves when it is dead. Once more does nothing. */
  kill(): Promise<void>;
}

export async function spawnSandbox(
  databaseUrl: string,
  options: Omit<SandboxCommandOptions, 'signal' | 'print'>,
): Promise<SpawnedSandbox> {
  const script = fileURLToPath(new URL('./sandbox-process.ts', import.meta.url));
  const args = ['--import', 'tsx', script, JSON.stringify({ port: 0, ...options })];
  const child = spawn(process.execPath, args, {
    env: { ...process.env, DATABASE_URL: databaseUrl, NODE_OPTIONS: '' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  const kill = async () => {
    child.kill('SIGKILL');
    await exited;
  };
  for await (const line of createInterface({ input: child.stdout })) {
    const found = /http:\S+/.exec(line);
    if (found) return { url: found[0], kill };
  }
  throw new Error('The sandbox ended before it listened.');
}
