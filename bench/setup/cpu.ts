/**
 * The CPU time that processes used, user and system together, as the kernel counts it in /proc. Elsewhere than on Linux,
 * or where PostgreSQL runs on another machine or in a container, it cannot be told and is null.
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import type pg from 'pg';

/** What these processes have used so far, in seconds; null where it cannot be told. */
export function cpuOf(pids: readonly number[]): number | null {
  let sum = 0;
  for (const pid of pids) {
    const times = timesOf(pid);
    if (times === null) return null;
    sum += times.own;
  }
  return sum;
}

/** The postmaster, its children, and those of them that have ended and were counted to it. */
export function cpuOfTree(postmaster: number | null): number | null {
  if (postmaster === null) return null;
  const root = timesOf(postmaster);
  if (root === null) return null;
  let sum = root.own + root.ended;
  for (const name of readdirSync('/proc')) {
    const pid = Number(name);
    const times = Number.isInteger(pid) ? timesOf(pid) : null;
    if (times?.parent === postmaster) sum += times.own + times.ended;
  }
  return sum;
}

/** The process that started this connection's backend; null unless it is a PostgreSQL that we can see. */
export async function postmasterOf(client: pg.Client): Promise<number | null> {
  const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
  const times = timesOf(rows[0]?.pid ?? 0);
  return times?.program === 'postgres' ? times.parent : null;
}

/** The most memory that a process has had resident, and what it has now, in MiB. */
export function memoryOf(pid: number): { readonly peak: number; readonly now: number } | null {
  const status = read(`/proc/${pid}/status`);
  const mib = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status ?? '')?.[1]) / 1024;
  return status === null ? null : { peak: mib('VmHWM'), now: mib('VmRSS') };
}

interface Times {
  readonly program: string;
  readonly parent: number;
  readonly own: number;
  /** Of its children that have ended. */
  readonly ended: number;
}

/** proc(5): after the name in parentheses come state, parent, …, utime, stime, cutime and cstime. */
function timesOf(pid: number): Times | null {
  const [, program, rest] = /^\d+ \((.*)\) (.*)/s.exec(read(`/proc/${pid}/stat`) ?? '') ?? [];
  if (program === undefined || rest === undefined) return null;
  const fields = rest.split(' ').map(Number);
  const ticks = (first: number) => ((fields[first] ?? 0) + (fields[first + 1] ?? 0)) / ticksPerSecond();
  return { program, parent: fields[1] ?? 0, own: ticks(11), ended: ticks(13) };
}

let ticks: number | undefined;

function ticksPerSecond(): number {
  ticks ??= Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));
  return ticks;
}

/** Null where there is no such process, or no /proc. */
function read(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}
