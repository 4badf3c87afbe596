/**
 * The vocabulary: what a job is, what a handler is given, and what it may return. Everything else in the daemon speaks
 * in these words; this file imports nothing of ours.
 */
import { type Static, type TSchema, Type } from 'typebox';

/** The words that the API's paths use: no queue is called so (sql/001_jobs.sql has the same list). */
export const RESERVED_QUEUE_NAMES: readonly string[] = [
  ...['status', 'statistics', 'health', 'job', 'jobs', 'broadcast', 'pause', 'resume', 'limits', 'queues', 'workers'],
  ...['failures', 'events', 'schedules', 'audit'],
];

/** A claimed job, as a handler sees it. Times are the database's. */
export interface Job {
  /** The row's bigint, as decimal text: it may exceed what a JavaScript number can hold. */
  readonly id: string;
  readonly jobId: string;
  readonly queue: string;
  readonly type: string;
  /** As the payload has them, for people who look at a log; at most 100 characters. */
  readonly broadcastId: string | null;
  readonly segmentId: string | null;
  /** `job_data` as the JSON text that Postgres holds. Passed on as it is, never re-serialised. */
  readonly payload: string;
  /** This attempt, from 1: consecutive attempts without progress. */
  readonly attempt: number;
  readonly maxAttempts: number;
  /** Fencing number: rises at every claim and at every cancel, retry and resend. */
  readonly epoch: number;
  readonly step: Step;
  readonly dryRun: boolean;
  readonly traceparent: string | null;
  readonly createdAt: Date;
  readonly scheduledAt: Date;
  readonly expiresAt: Date | null;
  /** The database's clock now, in milliseconds since 1970, carried forward by this process's monotonic clock. */
  databaseNow(): number;
}

/** Where a sliced broadcast stands. A job that is not sliced stays at step 0. */
export interface Step {
  readonly seq: number;
  readonly cursor: string | null;
  readonly scope: 'all' | 'pending' | 'failed' | 'unknown';
  /** How the previous call of this step ended, when it failed: the code of its error. */
  readonly previousFailure: string | null;
  /** Where the service runs this step by itself: a path at its own origin, asked instead of calling again. */
  readonly operation: string | null;
}

/** What one call may do, where a shared limit says so. */
export interface Grant {
  /** Recipients. */
  readonly maxItems: number;
  /** Messages a second. */
  readonly perSecond: number;
  readonly waitSeconds: number;
}

/** Absolute counters since the job began, never deltas, so that a replayed answer cannot count twice. */
export const Progress = Type.Object({
  total: Type.Optional(Type.Union([Type.Integer({ minimum: 0 }), Type.Null()])),
  processed: Type.Integer({ minimum: 0 }),
  sent: Type.Optional(Type.Integer({ minimum: 0 })),
  skipped: Type.Optional(Type.Integer({ minimum: 0 })),
  failed: Type.Optional(Type.Integer({ minimum: 0 })),
  unknown: Type.Optional(Type.Integer({ minimum: 0 })),
  reasons: Type.Optional(Type.Record(Type.String(), Type.Integer({ minimum: 0 }))),
});
export type Progress = Static<typeof Progress>;

/** Remarks that stay with a job. */
export type Flag = 'possible_duplicate' | 'untracked' | 'unverified' | 'incomplete';

/**
 * What a handler decided. What went wrong is thrown instead (errors.ts).
 * `result` is JSON text or null. Durations are in milliseconds.
 */
export type Outcome =
  | { kind: 'done'; result: string | null; progress?: Progress | undefined; flags?: readonly Flag[] | undefined }
  | { kind: 'continue'; cursor: string; progress?: Progress | undefined; delayMs: number }
  | {
      kind: 'hold';
      reason: string;
      delayMs: number;
      cursor?: string | undefined;
      progress?: Progress | undefined;
    }
  /** The service was not called, and is not to be before `delayMs`: nobody's fault, and nothing to count. */
  | { kind: 'wait'; reason: string; delayMs: number }
  /** The service runs it by itself, at `location`: ask there after `delayMs`. */
  | { kind: 'operation'; location: string; progress?: Progress | undefined; delayMs: number }
  /** The service says that it is done, but its own counts say that it is not. */
  | {
      kind: 'incomplete';
      reason: string;
      result: string | null;
      progress: Progress;
      httpStatus: number;
    }
  | { kind: 'cancel'; reason: string };

/** The bot team's broadcast service, as handlers see it. */
export interface BroadcastService {
  /**
   * Makes one call for this job's current step.
   * @throws TransientError, PermanentError, or Interrupted when `signal` was aborted.
   */
  call(job: Job, signal: AbortSignal): Promise<Outcome>;
}

/** Housekeeping on the queue's own table, as handlers see it. */
export interface Pruner {
  /**
   * Deletes finished jobs in batches; resolves with the number deleted. `queue` null means every queue. A queue's own
   * retention, where it has one, goes before the days given, unless `everyQueueAlike` says that those for completed jobs
   * were asked for.
   */
  prune(
    what: { completedOlderThanDays: number; deadOlderThanDays: number; queue: string | null; everyQueueAlike: boolean },
    signal: AbortSignal,
  ): Promise<number>;
}

export interface Ports {
  service: BroadcastService;
  pruner: Pruner;
}

/** One job type: how its payload must look, and what to do. */
export interface Handler {
  readonly type: string;
  readonly payload: TSchema;
  /** @throws as BroadcastService.call */
  run(job: Job, ports: Ports, signal: AbortSignal): Promise<Outcome>;
}
