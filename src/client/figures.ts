/**
 * The queue in numbers. One statement reads them all, so that they fit together, and whichever way they are asked for they
 * are the same. They cost the same however many jobs there are: the counts are kept (sql/005_counts.sql), never counted.
 */
import { JOB_STATUSES, type JobStatus } from './rows.js';

/** Jobs by status; `active` are those of `processing` that a daemon is at just now. */
export type Counts = Readonly<Record<JobStatus | 'active', number>>;

export interface Statistics extends Readonly<Record<`${JobStatus}_jobs`, number>> {
  readonly total_jobs: number;
  /** Of completed jobs, from their first call to their end; null where there are none. */
  readonly avg_processing_time_sec: number | null;
  /** When they were inserted; null where there are no jobs. */
  readonly oldest_job: Date | null;
  readonly newest_job: Date | null;
}

export interface Status {
  /** Some daemon has given a sign of life within the last minute. */
  readonly running: boolean;
  /** The usual four, and whichever else has jobs. */
  readonly queues: Readonly<Record<string, Counts>>;
  readonly statistics: Statistics;
  readonly activeJobs: number;
  /** The database's time. */
  readonly timestamp: Date;
}

export interface QueueStatus extends Counts {
  readonly queueName: string;
  readonly timestamp: Date;
}

/** A daemon gives a sign of life every few seconds. */
const ALIVE = `last_seen_at > clock_timestamp() - interval '1 minute'`;

/** @param schema as SQL */
export function runningStatement(schema: string): string {
  return `select exists (select from ${schema}.broadcast_queue_workers where ${ALIVE}) as running`;
}

/**
 * One row with one column, `figures`: JSON text, so that no setting of the bot's driver changes how a number is read.
 * @param schema as SQL
 */
export function figuresStatement(schema: string): string {
  return `
    select json_build_object(
      'running', exists (select from ${schema}.broadcast_queue_workers where ${ALIVE}),
      'totals', (select coalesce(json_agg(t), '[]') from ${schema}.broadcast_queue_totals t),
      'active', (
        select coalesce(json_agg(a), '[]')
        from (select j.queue_name, count(*) as jobs
              from ${schema}.broadcast_queue_leases l cross join unnest(l.job_ids) held (id)
              join ${schema}.broadcast_queue_jobs j on j.id = held.id and j.lease_id = l.lease_id
              where j.status = 'processing' group by 1) a),
      -- by id, which has an index and follows the time of insertion
      'oldest_ms', (select extract(epoch from created_at) * 1000 from ${schema}.broadcast_queue_jobs order by id limit 1),
      'newest_ms', (select extract(epoch from created_at) * 1000 from ${schema}.broadcast_queue_jobs
                    order by id desc limit 1),
      'now_ms', extract(epoch from clock_timestamp()) * 1000)::text as figures`;
}

export interface Figures {
  readonly running: boolean;
  readonly totals: readonly { queue_name: string; status: JobStatus; jobs: number; processing_ms: number }[];
  readonly active: readonly { queue_name: string; jobs: number }[];
  readonly oldest_ms: number | null;
  readonly newest_ms: number | null;
  readonly now_ms: number;
}

const USUAL_QUEUES = ['broadcasts', 'segment-broadcasts', 'retries', 'cleanup'];

export function statusOf(figures: Figures): Status {
  const names = new Set([...USUAL_QUEUES, ...figures.totals.map(({ queue_name }) => queue_name)]);
  return {
    running: figures.running,
    queues: Object.fromEntries([...names].map((name) => [name, countsOf(figures, name)])),
    statistics: statisticsOf(figures),
    activeJobs: sum(figures.active.map((one) => one.jobs)),
    timestamp: new Date(figures.now_ms),
  };
}

export function queueStatusOf(figures: Figures, queueName: string): QueueStatus {
  return { queueName, ...countsOf(figures, queueName), timestamp: new Date(figures.now_ms) };
}

export function statisticsOf({ totals, oldest_ms, newest_ms }: Figures): Statistics {
  const jobs = (status: JobStatus) => sum(totals.filter((one) => one.status === status).map((one) => one.jobs));
  const completed = jobs('completed');
  const processingMs = sum(totals.map((one) => one.processing_ms));
  return {
    total_jobs: sum(totals.map((one) => one.jobs)),
    pending_jobs: jobs('pending'),
    processing_jobs: jobs('processing'),
    retry_jobs: jobs('retry'),
    paused_jobs: jobs('paused'),
    completed_jobs: completed,
    failed_jobs: jobs('failed'),
    cancelled_jobs: jobs('cancelled'),
    avg_processing_time_sec: completed === 0 ? null : processingMs / completed / 1000,
    oldest_job: oldest_ms === null ? null : new Date(oldest_ms),
    newest_job: newest_ms === null ? null : new Date(newest_ms),
  };
}

function countsOf({ totals, active }: Figures, queue: string): Counts {
  const jobs = (status: JobStatus) =>
    totals.find((one) => one.queue_name === queue && one.status === status)?.jobs ?? 0;
  const counts = Object.fromEntries(JOB_STATUSES.map((status) => [status, jobs(status)]));
  // Of every status one entry: fromEntries cannot know.
  return {
    ...(counts as Record<JobStatus, number>),
    active: active.find((one) => one.queue_name === queue)?.jobs ?? 0,
  };
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, one) => total + one, 0);
}
