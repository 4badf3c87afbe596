/** Everything that a scenario runs on, and what the command line asked for. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Queue } from '../contestants/contestant.ts';
import { openServer, type Server } from './postgres.ts';
import type { ServiceKind } from './service.ts';

export interface Asked {
  readonly rounds: number;
  /** How many jobs, or how many times, where the scenario has such a number. */
  readonly jobs: number;
  readonly slots: number;
  /** Names; empty: all that the scenario knows. */
  readonly contestants: readonly string[];
  readonly service: ServiceKind | undefined;
  readonly seconds: number;
  readonly pending: number;
  readonly finished: number;
  readonly holdMinutes: number;
}

/** A scenario that does not know a number does not look at it. */
export const NOTHING: Asked = {
  rounds: 1,
  jobs: 0,
  slots: 0,
  contestants: [],
  service: undefined,
  seconds: 0,
  pending: 0,
  finished: 0,
  holdMinutes: 0,
};

export interface Stage {
  readonly server: Server;
  readonly scratch: string;
  readonly asked: Asked;
  say(line: string): void;
}

export async function onStage<T>(asked: Asked, preload: string, work: (stage: Stage) => Promise<T>): Promise<T> {
  const scratch = mkdtempSync(join(tmpdir(), 'broadcastd-bench-'));
  const server = await openServer(preload);
  try {
    return await work({ server, scratch, asked, say: (line) => void process.stdout.write(`${line}\n`) });
  } finally {
    await server.close();
    rmSync(scratch, { recursive: true, force: true });
  }
}

/**
 * Those that were asked for.
 * @throws Error when there is none of such a name
 */
export function chosen<T>(all: readonly T[], nameOf: (one: T) => string, { contestants }: Asked): T[] {
  const unknown = contestants.find((name) => !all.some((one) => nameOf(one) === name));
  if (unknown !== undefined) {
    const known = [...new Set(all.map((one) => `"${nameOf(one)}"`))];
    throw new Error(`no contestant is called "${unknown}"; there are: ${known.join(', ')}`);
  }
  return all.filter((one) => contestants.length === 0 || contestants.includes(nameOf(one)));
}

export const nameOfQueue = ({ name }: Queue) => name;

/** By turns: each round begins with the next one, so that none is always first, or always after the same. */
export function* turns<T>(all: readonly T[], rounds: number): Generator<{ readonly round: number; readonly one: T }> {
  for (let round = 1; round <= rounds; round++) {
    const shift = (round - 1) % Math.max(all.length, 1);
    for (const one of [...all.slice(shift), ...all.slice(0, shift)]) yield { round, one };
  }
}
