/**
 * Every metric of ours, in two tables: the registry is made of them, and docs/metrics.md is written from them. Names
 * follow Prometheus' conventions: base units, `_total` for what only rises.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

export interface Definition<K extends string = string, L extends string = string> {
  readonly kind: K;
  readonly name: string;
  readonly help: string;
  readonly labels: readonly L[];
  /** Of a histogram. */
  readonly buckets: readonly number[];
}

const define =
  <K extends string>(kind: K) =>
  <const L extends string = never>(
    name: string,
    help: string,
    labels: readonly L[] = [],
    buckets: readonly number[] = [],
  ): Definition<K, L> => ({ kind, name: `broadcastd_${name}`, help, labels, buckets });

const counter = define('counter');
const gauge = define('gauge');
const histogram = define('histogram');

const JOB = ['job_type', 'queue'] as const;

const WAIT_BUCKETS_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800];
const RUN_BUCKETS_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 300, 900];
const QUERY_BUCKETS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15];
const BATCH_BUCKETS = [1, 2, 5, 10, 20, 50, 100, 200];

/** What each daemon tells of itself: added up, they are the whole. */
export const ofProcess = {
  attempts: counter('attempts_total', 'Attempts begun; a slice of a broadcast is one.', JOB),
  outcomes: counter(
    'outcomes_total',
    'How attempts ended: completed, continued (a slice is done), waiting, retrying, failed, cancelled, paused, handed_back.',
    [...JOB, 'outcome'],
  ),
  failures: counter('failures_total', 'Attempts that ended as retrying or failed, by the code of their error.', [
    'job_type',
    'code',
  ]),
  slices: counter('slices_total', 'Slices after which a broadcast goes on.', JOB),
  messages: counter('messages_total', 'People dealt with: by how much `processed` of the progress rose.', JOB),
  possibleDuplicates: counter(
    'possible_duplicates_total',
    'Calls of which nobody knows whether the service carried them out.',
    JOB,
  ),
  leasesLost: counter(
    'leases_lost_total',
    'Jobs whose settlement was refused, because they were cancelled, reaped or taken over meanwhile.',
    JOB,
  ),
  reaped: counter('jobs_reaped_total', 'Jobs that this daemon took from another that stopped renewing its lease.', [
    'job_type',
  ]),
  wait: histogram('wait_seconds', 'From the moment a job was due until it was claimed.', ['queue'], WAIT_BUCKETS_S),
  run: histogram('run_seconds', 'How long attempts took, a wait for a limit included.', JOB, RUN_BUCKETS_S),
  claimBatch: histogram(
    'claim_batch_jobs',
    'Jobs taken by one claim; claims that found nothing are not counted.',
    [],
    BATCH_BUCKETS,
  ),
  settleBatch: histogram('settle_batch_jobs', 'Jobs settled by one statement.', [], BATCH_BUCKETS),
  active: gauge('active_jobs', 'Jobs that this daemon is running.', ['queue']),
  slots: gauge(
    'slots',
    'How many jobs of a queue this daemon runs at once at most (CONCURRENCY); `*` is each queue not named.',
    ['queue'],
  ),
  stuck: counter(
    'stuck_total',
    'Warnings about a broadcast that runs and makes no progress (STUCK_AFTER_MS), repeated as long as it lasts.',
  ),
  ticks: counter('schedule_ticks_total', 'Jobs that this daemon enqueued for a schedule.', ['schedule']),
  gateClosings: counter(
    'gate_closings_total',
    "How often an answer (429, or 503 with Retry-After) closed a gate: the service's, or a bot's.",
    ['gate'],
  ),
  breakerOpenings: counter('breaker_openings_total', 'How often failures that this daemon met opened the breaker.'),
  listening: gauge('listening', '1 while notifications arrive; 0: new jobs are found by polling only.'),
  notifications: counter(
    'notifications_total',
    'Notifications heard: wake (something is due) or recall (a job was taken back).',
    ['channel'],
  ),
  databaseDown: gauge('database_down_seconds', 'For how long the database has not answered this daemon; 0: it does.'),
  databaseErrors: counter(
    'database_errors_total',
    'Statements that failed: `away` because the database did not answer, `fault` because of a bug or a wrong schema.',
    ['kind'],
  ),
  query: histogram(
    'query_seconds',
    'How long statements took, the wait for a connection included.',
    ['statement'],
    QUERY_BUCKETS_S,
  ),
  connections: gauge(
    'database_connections',
    'Connections for statements: in_use, idle; and statements that are waiting for one.',
    ['state'],
  ),
  build: gauge('build_info', 'Always 1; the label says which version runs.', ['version']),
  unread: counter(
    'figures_unread_total',
    'Figures of the queue that could not be read from the database, which are missing from the answer then.',
    ['figure'],
  ),
};

/** What each daemon reads from the database: all tell the same, so one takes the maximum. */
export const ofQueue = {
  jobs: gauge('jobs', 'Jobs in the table.', ['queue', 'status']),
  ready: gauge(
    'ready_jobs',
    'Jobs that are due and run nowhere, whatever they wait for; of each priority no more than 1000 are counted.',
    ['queue'],
  ),
  oldestReady: gauge('oldest_ready_age_seconds', 'For how long the oldest of them has been due; 0: none is.', [
    'queue',
  ]),
  paused: gauge('queue_paused', '1 while a queue is paused, by itself or with all others.', ['queue']),
  gateClosed: gauge(
    'gate_closed',
    '1 while nobody calls: `service`, or `bot:` and the bot; bots are listed for an hour after their gate opened.',
    ['gate'],
  ),
  breakerOpen: gauge('breaker_open', '1 while the service fails and only single probes are sent.'),
  breakerOpenFor: gauge('breaker_open_seconds', 'For how long the breaker has been open; 0: it is closed.'),
  limit: gauge('limit_messages_per_second', 'What a limit allows, over all daemons.', ['key']),
  limitTaken: gauge(
    'limit_taken_seconds',
    'For how long ahead a limit is given away; near 1 while it is what holds the queue back.',
    ['key'],
  ),
  daemons: gauge('daemons', 'Daemons that gave a sign of life within the last minute.'),
  xminHeld: gauge(
    'xmin_held_seconds',
    'For how long this daemon has seen the same oldest transaction keep vacuum from removing dead rows.',
  ),
  xminAge: gauge('xmin_age_transactions', 'How many transactions began since that oldest one.'),
  rows: gauge(
    'jobs_table_rows',
    'Row versions of the jobs table as PostgreSQL estimates them: live, and dead ones that vacuum has not removed yet.',
    ['state'],
  ),
  notificationQueue: gauge(
    'notification_queue_usage_ratio',
    "How full PostgreSQL's queue of notifications is; at 1, commits that notify fail.",
  ),
};

type Catalogue = typeof ofProcess & typeof ofQueue;
type Instance<D> =
  D extends Definition<'counter', infer L>
    ? Counter<L>
    : D extends Definition<'gauge', infer L>
      ? Gauge<L>
      : D extends Definition<'histogram', infer L>
        ? Histogram<L>
        : never;

/** The metrics of one daemon, by the tables' names. */
export type Metrics = { readonly [K in keyof Catalogue]: Instance<Catalogue[K]> } & { readonly registry: Registry };

export function createMetrics(): Metrics {
  const registry = new Registry();
  const definitions = Object.entries<Definition>({ ...ofProcess, ...ofQueue });
  const made = definitions.map(([key, definition]) => [key, instance(definition, registry)]);
  // Each was made by its definition's kind, which the compiler does not follow through fromEntries.
  return { registry, ...Object.fromEntries(made) } as Metrics;
}

function instance({ kind, name, help, labels, buckets }: Definition, registry: Registry) {
  const settings = { name, help, labelNames: [...labels], registers: [registry] };
  if (kind === 'counter') return new Counter(settings);
  if (kind === 'gauge') return new Gauge(settings);
  return new Histogram({ ...settings, buckets: [...buckets] });
}
