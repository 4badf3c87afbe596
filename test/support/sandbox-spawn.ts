/** Starts the sandbox as a process of its own, to be killed. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { PROGRAM } from './program.js';

export interface SpawnedSandbox {
  readonly url: string;
  /** By SIGKILL; resolves when it is dead. Once more does nothing. */
  kill(): Promise<void>;
}

interface SpawnOptions {
  /** Default any free one. */
  readonly port?: number;
  readonly level?: 0 | 1 | 2 | 3;
  readonly recipients?: number;
  readonly perSecond?: number;
}

export async function spawnSandbox(
  databaseUrl: string,
  { port = 0, level, recipients, perSecond }: SpawnOptions,
): Promise<SpawnedSandbox> {
  const options = Object.entries({ port, level, recipients, 'per-second': perSecond })
    .filter(([, value]) => value !== undefined)
    .flatMap(([name, value]) => [`--${name}`, String(value)]);
  const child = spawn(process.execPath, [PROGRAM, 'sandbox', ...options], {
    env: { PATH: process.env.PATH ?? '', DATABASE_URL: databaseUrl },
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
