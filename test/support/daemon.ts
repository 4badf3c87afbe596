/** The real program as a process of its own: started, watched through its log lines, stopped or killed by signals. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { PROGRAM } from './program.js';

const START_WITHIN_MS = 15_000;

interface LogLine {
  readonly level: string;
  readonly msg: string;
  readonly [member: string]: unknown;
}

export interface Program {
  readonly pid: number;
  /** The API's address. */
  readonly url: string;
  readonly lines: readonly LogLine[];
  /** What was written to standard output, as it was. */
  readonly output: () => string;
  /** Resolves with the first line (also of the past) that fits; rejects after `ms`. */
  line(fits: (line: LogLine) => boolean, ms?: number): Promise<LogLine>;
  signal(name: NodeJS.Signals): void;
  /** Resolves with the exit code, or the signal's name. */
  readonly ended: Promise<number | NodeJS.Signals>;
}

export interface Environment {
  [variable: string]: string;
}

/** Runs `broadcastd` with only this environment; resolves when it ended. */
export async function runProgram(
  args: string[],
  env: Environment,
  program = PROGRAM,
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const child = spawnProgram(program, args, env);
  const out: string[] = [];
  const err: string[] = [];
  child.stdout?.on('data', (chunk) => out.push(String(chunk)));
  child.stderr?.on('data', (chunk) => err.push(String(chunk)));
  const [code] = await once(child, 'close');
  return { code, stdout: out.join(''), stderr: err.join('') };
}

const running = new Set<Program>();

/** `broadcastd start` with quick defaults for tests; ready when it resolves. */
export async function startProgram(env: Environment, path = PROGRAM, args: string[] = []): Promise<Program> {
  const child = spawnProgram(path, ['start', ...args], {
    PORT: '0',
    RETRIES_CRON: '',
    CLEANUP_CRON: '',
    ...env,
  });
  const lines: LogLine[] = [];
  const raw: string[] = [];
  const watchers = new Set<(line: LogLine) => void>();
  const ended = new Promise<number | NodeJS.Signals>((resolve) => {
    child.on('close', (code, signal) => resolve(code ?? signal ?? 'SIGKILL'));
  });
  for (const stream of [child.stdout, child.stderr]) {
    if (!stream) continue;
    createInterface({ input: stream }).on('line', (text) => {
      raw.push(text);
      // Every line of the log is one; what is not JSON comes from a crash.
      const line: LogLine = text.startsWith('{') ? JSON.parse(text) : { level: 'fatal', msg: text };
      lines.push(line);
      for (const watch of watchers) watch(line);
    });
  }
  const program: Program = {
    pid: child.pid ?? 0,
    get url() {
      return String(lines.find(({ msg }) => msg === 'broadcastd started')?.api);
    },
    lines,
    output: () => raw.join('\n'),
    line(fits, ms = 10_000) {
      const past = lines.find(fits);
      if (past) return Promise.resolve(past);
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          watchers.delete(watch);
          reject(new Error(`no such line within ${ms} ms; the last ones:\n${raw.slice(-15).join('\n')}`));
        }, ms);
        const watch = (line: LogLine) => {
          if (!fits(line)) return;
          clearTimeout(timer);
          watchers.delete(watch);
          resolve(line);
        };
        watchers.add(watch);
      });
    },
    signal: (name) => void child.kill(name),
    ended,
  };
  running.add(program);
  void ended.then(() => running.delete(program));
  const exitedEarly = ended.then((code) => {
    throw new Error(`broadcastd start ended with ${code}:\n${raw.slice(-15).join('\n')}`);
  });
  exitedEarly.catch(() => {});
  await Promise.race([program.line(({ msg }) => msg === 'broadcastd started', START_WITHIN_MS), exitedEarly]);
  return program;
}

/** For afterEach: no process outlives its test. */
export async function killPrograms(): Promise<void> {
  const left = [...running];
  for (const program of left) {
    program.signal('SIGCONT');
    program.signal('SIGKILL');
  }
  await Promise.all(left.map(({ ended }) => ended));
}

function spawnProgram(path: string, args: string[], env: Environment): ChildProcess {
  return spawn(process.execPath, [path, ...args], {
    env: { PATH: process.env.PATH ?? '', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}
