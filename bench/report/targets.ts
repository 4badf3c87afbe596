/** What was aimed at before anything was measured, each beside what came of it. */
import type { Result } from '../setup/results.ts';
import { mid, ratio } from './figures.ts';

export type Results = Readonly<Record<string, Result | null>>;

export interface Target {
  readonly what: string;
  readonly bound: 'at least' | 'at most' | 'below';
  readonly aim: number;
  readonly unit: string;
  /** Null: not measured. */
  readonly value: number | null;
}

const OURS = 'broadcastd';
const GRAPHILE = 'graphile-worker';
const BARE = 'no queue';

export function targets({ drain, latency, lateness, enqueue, backlog, scaling, idle }: Results): Target[] {
  const rate = (subject: string) => mid(drain ?? null, subject, 'jobsPerSecond');
  const cpu = (subject: string, of: string) => mid(drain ?? null, subject, `${of}CpuMicros`);
  const wait = (figure: string) => mid(latency ?? null, OURS, figure);
  const graphileWait = (figure: string) =>
    least([GRAPHILE, `${GRAPHILE}, plain`].map((subject) => mid(latency ?? null, subject, figure)));
  const rows = (subject: string) => mid(enqueue ?? null, subject, 'rowsPerSecond');
  const table = (subject: string) => mid(backlog ?? null, subject, 'jobsPerSecond');
  const daemons = (count: number) => mid(scaling ?? null, `${OURS} × ${count}`, 'jobsPerSecond');
  const resting = (figure: string) =>
    most([OURS, `${OURS}, rows pending`].map((subject) => mid(idle ?? null, subject, figure)));
  return [
    atLeast(1.3, '×', 'drain, against graphile-worker at its best setting', ratio(rate(OURS), rate(GRAPHILE))),
    atLeast(2, '×', 'drain, against pg-boss with 50 jobs at a time', ratio(rate(OURS), rate('pg-boss, small batches'))),
    atLeast(0.6, '×', 'drain, against the bare HTTP client', ratio(rate(OURS), rate(BARE))),
    atMost(
      1.4,
      '×',
      "the worker's CPU per job, against the bare client's",
      ratio(cpu(OURS, 'worker'), cpu(BARE, 'worker')),
    ),
    atMost(
      1,
      '×',
      "PostgreSQL's CPU per job, against graphile-worker at its best",
      ratio(cpu(OURS, 'postgres'), cpu(GRAPHILE, 'postgres')),
    ),
    atMost(
      0.8,
      '×',
      "start latency, median, against graphile-worker's (the better of its two settings)",
      ratio(wait('p50'), graphileWait('p50')),
    ),
    atMost(0.8, '×', 'the same, 99th percentile', ratio(wait('p99'), graphileWait('p99'))),
    { bound: 'below', aim: 8, unit: ' ms', what: 'start latency, 99th percentile', value: wait('p99') },
    atMost(20, ' ms', 'lateness of a delayed job, 99th percentile', mid(lateness ?? null, OURS, 'p99')),
    atLeast(
      0.9,
      '×',
      'drain from the large table, against the small one',
      ratio(table('large table'), table('small table')),
    ),
    atLeast(
      0.7,
      '×',
      'the same with a transaction held open',
      ratio(table('large table, transaction held'), table('small table')),
    ),
    atLeast(
      0.9,
      '×',
      '16 clients inserting single rows, with the notification against without',
      ratio(rows('16 clients'), rows('16 clients, no notification')),
    ),
    atLeast(
      50_000,
      ' rows/s',
      '`broadcast_enqueue_many`, at the better of 1,000 and 10,000 at a time',
      most([1000, 10_000].map((size) => rows(`${OURS}, batches of ${size}`))),
    ),
    atLeast(3.8, '×', 'four daemons against one', ratio(daemons(4), daemons(1))),
    atMost(1, '/s', 'queries of an idle daemon, also with a million rows pending', resting('queriesPerSecond')),
    atMost(0.5, ' %', "an idle daemon's share of a core, likewise", resting('workerCpuPercent')),
    atMost(90, ' MB', "an idle daemon's memory, likewise", megabytes(resting('memoryMib'))),
  ];
}

/** Null: not measured. */
export function isReached({ bound, aim, value }: Target): boolean | null {
  if (value === null) return null;
  if (bound === 'at least') return value >= aim;
  return bound === 'at most' ? value <= aim : value < aim;
}

function atLeast(aim: number, unit: string, what: string, value: number | null): Target {
  return { bound: 'at least', aim, unit, what, value };
}

function atMost(aim: number, unit: string, what: string, value: number | null): Target {
  return { bound: 'at most', aim, unit, what, value };
}

/** Null where one is missing: half of a promise is none. */
function most(values: readonly (number | null)[]): number | null {
  return values.includes(null) ? null : Math.max(...values.map(Number));
}

function least(values: readonly (number | null)[]): number | null {
  return values.includes(null) ? null : Math.min(...values.map(Number));
}

function megabytes(mib: number | null): number | null {
  return mib === null ? null : mib * 1.048576;
}
