/**
 * The processes that a scenario starts: each writes what it has to say into a file, as a container's would be, is
 * watched for an early end, and is gone when the scenario is, however that one ends.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { within } from './waiting.ts';

export const ROOT = join(import.meta.dirname, '../..');

const START_WITHIN_MS = 60_000;
const STOP_WITHIN_MS = 20_000;

export interface Child {
  readonly pid: number;
  readonly running: boolean;
  /** What it has written so far. */
  log(): string;
  /** To a program of ours, which hears it as a message. */
  send(message: object): void;
  /** The next message of this kind that it sends; rejects when it ends instead. */
  heard(kind: string, ms?: number): Promise<Message>;
  /** SIGTERM, and SIGKILL to one that does not end by that; its log goes as well. */
  stop(): Promise<void>;
}

interface Message {
  readonly kind: string;
  readonly [member: string]: unknown;
}

const alive = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of alive) child.kill('SIGKILL');
});

let started = 0;

export interface Plan {
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** The folder for its log. */
  readonly scratch: string;
  readonly messages?: boolean;
}

export function startChild({ command, args, env = {}, scratch, messages = false }: Plan): Child {
  started += 1;
  const path = join(scratch, `${started}.log`);
  const log = openSync(path, 'w');
  const child = spawn(command, args, {
    cwd: ROOT,
    env: { PATH: process.env.PATH ?? '', NODE_ENV: 'production', ...env },
    stdio: ['ignore', log, log, ...(messages ? ['ipc' as const] : [])],
    // A group of its own: Ctrl-C is for us, and we stop it when its turn has come.
    detached: true,
  });
  closeSync(log);
  alive.add(child);
  const lines = () => readFileSync(path, 'utf8');
  const ended = once(child, 'exit').finally(() => alive.delete(child));
  ended.catch(() => {});
  const brokeOff = ended.then(
    ([code, signal]) => {
      throw new Error(`${command} ${args.join(' ')} ended with ${code ?? signal}:\n${lines().slice(-2000)}`);
    },
    (error: Error) => {
      throw new Error(`${command} cannot be started: ${error.message}`);
    },
  );
  brokeOff.catch(() => {});

  return {
    pid: child.pid ?? 0,
    get running() {
      return alive.has(child);
    },
    log: lines,
    send: (message) => void child.send(message),
    heard(kind, ms = START_WITHIN_MS) {
      let listener: ((message: unknown) => void) | undefined;
      const heard = new Promise<Message>((resolve) => {
        listener = (message) => {
          // Our own programs send nothing else.
          if ((message as Message).kind === kind) resolve(message as Message);
        };
        child.on('message', listener);
      });
      return within(ms, `${args.join(' ')} says "${kind}"`, Promise.race([heard, brokeOff])).finally(() => {
        if (listener) child.off('message', listener);
      });
    },
    async stop() {
      if (!alive.has(child)) return;
      child.kill('SIGTERM');
      const patience = setTimeout(() => child.kill('SIGKILL'), STOP_WITHIN_MS);
      await ended.catch(() => {});
      clearTimeout(patience);
      // Minutes of one line for each job are a lot.
      rmSync(path, { force: true });
    },
  };
}

/** One of bench/programs, which speaks to us in messages, and says "ready" when it is. */
export async function startProgram(name: string, options: object, scratch: string): Promise<Child> {
  // Where TypeScript has to be compiled on the way (an older Node under tsx), it is for the child, too.
  const args = [...process.execArgv, join(ROOT, 'bench/programs', `${name}.ts`), JSON.stringify(options)];
  const child = startChild({ command: process.execPath, args, scratch, messages: true });
  try {
    await child.heard('ready');
  } catch (error) {
    await child.stop();
    throw error;
  }
  return child;
}
