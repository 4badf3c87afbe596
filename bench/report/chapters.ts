/** The chapters of the report, one for each scenario: what was done, in words, and which figures are shown. */
import { shown } from './figures.ts';
import type { Column } from './tables.ts';

type Options = Readonly<Record<string, string | number>>;

export interface Chapter {
  readonly scenario: string;
  readonly title: string;
  readonly words: (options: Options) => string;
  readonly tables: readonly { readonly heading: string; readonly columns: readonly Column[] }[];
  /** Files of docs/performance, without their ending. */
  readonly pictures: readonly string[];
}

/** A number that was asked for; where nothing has been measured there is none yet. */
const of = (options: Options, name: string) => {
  const value = options[name];
  return typeof value === 'number' ? shown(value) : '…';
};

const percentiles: readonly Column[] = [
  { figure: 'p50', title: 'median, ms' },
  { figure: 'p99', title: '99th percentile, ms' },
];

export const chapters: readonly Chapter[] = [
  {
    scenario: 'drain',
    title: 'Drain',
    words: (options) =>
      `${of(options, 'jobs')} jobs, ${of(options, 'slots')} at a time, against a service that answers at once. CPU and memory are of the worker's process; PostgreSQL's CPU is of all its processes.`,
    tables: [
      {
        heading: 'contestant',
        columns: [
          { figure: 'jobsPerSecond', title: 'jobs a second' },
          { figure: 'workerCpuMicros', title: 'worker CPU per job, µs' },
          { figure: 'postgresCpuMicros', title: 'PostgreSQL CPU per job, µs' },
          { figure: 'peakMib', title: 'memory at most, MiB' },
        ],
      },
    ],
    pictures: ['drain', 'cpu'],
  },
  {
    scenario: 'latency',
    title: 'Start latency',
    words: (options) =>
      `One row every 30 ms on a quiet queue, ${of(options, 'jobs')} in a round: from before its INSERT to the arrival of its call, so the INSERT and its commit are included.`,
    tables: [{ heading: 'contestant', columns: percentiles }],
    pictures: ['latency'],
  },
  {
    scenario: 'lateness',
    title: 'Lateness of delayed jobs',
    words: (options) =>
      `${of(options, 'jobs')} jobs due one after the other with pauses of 60 to 240 ms, otherwise nothing to do: from the moment at which each is due to the arrival of its call. The peers look for delayed jobs by polling, every two seconds as they are set up here.`,
    tables: [{ heading: 'contestant', columns: percentiles }],
    pictures: [],
  },
  {
    scenario: 'enqueue',
    title: 'Enqueue',
    words: (options) =>
      `Single rows are plain INSERTs, a transaction each, for ${of(options, 'seconds')} s, while a daemon listens whose queue is paused. "No trigger for statements" leaves out the notification and the counts of \`/status\`. Batches are ${of(options, 'jobs')} rows from one client, a transaction for each batch; broadcastd's by \`broadcast_enqueue_many\`, with a unique key for each job, which the peers' jobs do not have.`,
    tables: [{ heading: '', columns: [{ figure: 'rowsPerSecond', title: 'rows a second' }] }],
    pictures: [],
  },
  {
    scenario: 'backlog',
    title: 'A large table, and a long transaction',
    words: (options) =>
      `The rate from the first to the ${of(options, 'jobs')}th settlement, by the rows' \`completed_at\`, after a tenth as many that do not count; the jobs are there before the daemon starts. The small table holds hardly more than that. The large one holds ${of(options, 'finished')} finished rows and ${of(options, 'pending')} due ones of the same queue, its statistics were taken when it had a thousand, and autovacuum leaves it alone. "Held": a transaction with a snapshot was opened ${of(options, 'holdMinutes')} minutes before and stays open, and as many rows as were worked off meanwhile have come in.`,
    tables: [
      {
        heading: 'table',
        columns: [
          { figure: 'jobsPerSecond', title: 'jobs a second' },
          { figure: 'workerCpuMicros', title: 'worker CPU per job, µs' },
          { figure: 'postgresCpuMicros', title: 'PostgreSQL CPU per job, µs' },
        ],
      },
    ],
    pictures: ['backlog'],
  },
  {
    scenario: 'scaling',
    title: 'Several daemons',
    words: (options) =>
      `One, two and four workers, ${of(options, 'slots')} slots each, ${of(options, 'jobs')} jobs for each of them, and a service that takes ${of(options, 'serviceMs')} ms: ${of(options, 'slots')} slots can make at most ${bestRate(options)} calls a second.`,
    tables: [{ heading: 'contestant × workers', columns: [{ figure: 'jobsPerSecond', title: 'jobs a second' }] }],
    pictures: ['scaling'],
  },
  {
    scenario: 'idle',
    title: 'Idle',
    words: (options) =>
      `${of(options, 'seconds')} s without anything to do, ten seconds after the start; "rows pending": with ${of(options, 'pending')} rows due in a paused queue. Statements are counted by \`pg_stat_statements\`, BEGIN and COMMIT included.`,
    tables: [
      {
        heading: 'contestant',
        columns: [
          { figure: 'queriesPerSecond', title: 'statements a second' },
          { figure: 'workerCpuPercent', title: 'worker, % of a core' },
          { figure: 'postgresCpuPercent', title: 'PostgreSQL, % of a core' },
          { figure: 'memoryMib', title: 'memory, MiB' },
        ],
      },
    ],
    pictures: [],
  },
  {
    scenario: 'admin',
    title: 'Reads of the API under load',
    words: (options) =>
      `GETs one after the other, each route in turn, while ${of(options, 'jobs')} jobs are worked off by the same process.`,
    tables: [{ heading: 'route', columns: [...percentiles, { figure: 'reads', title: 'reads' }] }],
    pictures: [],
  },
];

function bestRate({ slots, serviceMs }: Options): string {
  return typeof slots === 'number' && typeof serviceMs === 'number' ? shown((slots * 1000) / serviceMs) : '…';
}
