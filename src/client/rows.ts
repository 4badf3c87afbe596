/**
 * Rows as the bot gets them: the table's own column names, and of the table those columns that every role may read.
 * Their values are what the driver makes of them: with pg's defaults, times are Dates and jsonb is parsed.
 */

export type JobStatus = 'pending' | 'processing' | 'retry' | 'paused' | 'completed' | 'failed' | 'cancelled';
export const JOB_STATUSES: readonly JobStatus[] = [
  ...(['pending', 'processing', 'retry', 'paused', 'completed', 'failed', 'cancelled'] as const),
];

export interface JobRow {
  /** A bigint, as decimal text. */
  readonly id: string;
  /** The job's name everywhere outside. */
  readonly job_id: string;
  readonly queue_name: string;
  readonly job_type: string;
  readonly job_data: Readonly<Record<string, unknown>>;
  readonly status: JobStatus;
  readonly attempts: number;
  readonly max_attempts: number;
  readonly error_message: string | null;
  /** One word for programs: `timeout`, `http_500`, `expired`, … */
  readonly error_code: string | null;
  readonly result: unknown;
  readonly scheduled_at: Date;
  readonly started_at: Date | null;
  readonly completed_at: Date | null;
  readonly next_retry_at: Date | null;
  readonly created_at: Date;
  readonly updated_at: Date;
  readonly priority: number;
  readonly unique_key: string | null;
  readonly expires_at: Date | null;
  /** The service's counters, as it reported them last. */
  readonly progress: Readonly<Record<string, unknown>> | null;
  readonly hold_reason: string | null;
  readonly flags: readonly string[];
  readonly dry_run: boolean;
  readonly traceparent: string | null;
  readonly send_window: Readonly<Record<string, unknown>> | null;
  /** From when on it may be called; null while it may not. */
  readonly due_at: Date | null;
}

/** Select list of a JobRow, from a table called j. */
export const JOB_COLUMNS = `
  j.id::text as id, j.job_id, j.queue_name, j.job_type, j.job_data, j.status, j.attempts, j.max_attempts,
  j.error_message, j.error_code, j.result, j.scheduled_at, j.started_at, j.completed_at, j.next_retry_at, j.created_at,
  j.updated_at, j.priority, j.unique_key, j.expires_at, j.progress, j.hold_reason, j.flags, j.dry_run, j.traceparent,
  j.send_window, j.due_at`;

export interface EnqueuedJob
  extends Pick<JobRow, 'id' | 'job_id' | 'queue_name' | 'job_type' | 'job_data' | 'status' | 'attempts'>,
    Pick<JobRow, 'max_attempts' | 'priority' | 'scheduled_at' | 'expires_at' | 'unique_key' | 'created_at'> {
  /** False: a live job with the same key was there already, and this is that one. */
  readonly inserted: boolean;
}

/** Select list of an EnqueuedJob, from a broadcast_queue_enqueued called j. */
export const ENQUEUED_COLUMNS = `
  j.id::text as id, j.job_id, j.queue_name, j.job_type, j.job_data, j.status, j.attempts, j.max_attempts, j.priority,
  j.scheduled_at, j.expires_at, j.unique_key, j.created_at, j.inserted`;

export interface EnqueuedInBatch {
  readonly job_id: string;
  readonly inserted: boolean;
}

/** How far a broadcast is; counters are null until the service reports them. */
export interface JobProgress {
  readonly status: JobStatus;
  readonly attempts: number;
  readonly total: number | null;
  readonly processed: number | null;
  readonly sent: number | null;
  readonly skipped: number | null;
  readonly failed: number | null;
  readonly unknown: number | null;
  readonly percent: number | null;
  readonly per_second: number | null;
  readonly eta_seconds: number | null;
  /** Why people were skipped or failed: how many by reason. */
  readonly reasons: Readonly<Record<string, number>> | null;
  readonly error_message: string | null;
  readonly hold_reason: string | null;
  readonly progress_at: Date | null;
  readonly updated_at: Date;
}

/** Select list of a JobProgress, from a call of broadcast_progress called p. pg would give bigint and numeric as text. */
export const PROGRESS_COLUMNS = `
  p.status, p.attempts, p.total::float8, p.processed::float8, p.sent::float8, p.skipped::float8, p.failed::float8,
  p.unknown::float8, p.percent::float8, p.per_second::float8, p.eta_seconds::float8, p.reasons, p.error_message,
  p.hold_reason, p.progress_at, p.updated_at`;
