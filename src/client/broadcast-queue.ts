/**
 * The queue as a Node bot sees it. Each method is one statement on the bot's own connection: in the middle of the bot's
 * transaction where that is a client with one open, else in one of its own. Enqueueing and operating go through the
 * functions of sql/, which know the states; what is read are rows with the table's column names.
 */
import { batchOf } from './batch.js';
import { clearStatement } from './clear.js';
import { type Circumstances, translated } from './error.js';
import {
  type Figures,
  figuresStatement,
  type QueueStatus,
  queueStatusOf,
  runningStatement,
  type Statistics,
  type Status,
  statisticsOf,
  statusOf,
} from './figures.js';
import {
  type BatchOptions,
  type BroadcastId,
  type BroadcastItem,
  type BroadcastOptions,
  check,
  checkBroadcastOptions,
  checkOptions,
  ENQUEUE_OPTIONS,
  type EnqueueOptions,
  invalid,
  jsonOf,
  type Scope,
} from './options.js';
import {
  ENQUEUED_COLUMNS,
  type EnqueuedInBatch,
  type EnqueuedJob,
  JOB_COLUMNS,
  type JobProgress,
  type JobRow,
  type JobStatus,
  PROGRESS_COLUMNS,
} from './rows.js';

/** A Pool, Client or PoolClient of `pg`, or whatever else runs a statement with parameters as they do. */
export interface Connection {
  query(text: string, values: unknown[]): Promise<{ rows: unknown[] }>;
}

export interface BroadcastQueueOptions {
  /** The daemon's DATABASE_SCHEMA; default `public`. */
  readonly schema?: string | undefined;
}

export class BroadcastQueue {
  readonly #connection: Connection;
  readonly #schemaName: string;
  /** As SQL. */
  readonly #schema: string;

  constructor(connection: Connection, options: BroadcastQueueOptions = {}) {
    if (typeof connection?.query !== 'function') {
      throw invalid('new BroadcastQueue', 'give it a pg Pool, or the client of your open transaction');
    }
    checkOptions('new BroadcastQueue', options, ['schema']);
    this.#connection = connection;
    this.#schemaName = options.schema ?? 'public';
    this.#schema = `"${this.#schemaName}"`;
  }

  // Enqueue. ----------------------------------------------------------------------------------------------------------

  /** Queues a broadcast to everybody, once: while it is live, the same again finds it (`inserted` false). */
  async queueBroadcast(broadcastId: BroadcastId, options: BroadcastOptions = {}): Promise<EnqueuedJob> {
    const method = 'queueBroadcast';
    check(method, 'broadcastId', broadcastId);
    const { data, ...rest } = checkBroadcastOptions(method, options);
    return this.#enqueue(method, 'send_broadcast', { ...data, broadcast_id: broadcastId }, rest);
  }

  async queueSegmentBroadcast(
    broadcastId: BroadcastId,
    segmentId: BroadcastId,
    options: BroadcastOptions = {},
  ): Promise<EnqueuedJob> {
    const method = 'queueSegmentBroadcast';
    check(method, 'broadcastId', broadcastId);
    check(method, 'segmentId', segmentId);
    const { data, ...rest } = checkBroadcastOptions(method, options);
    const payload = { ...data, broadcast_id: broadcastId, segment_id: segmentId };
    return this.#enqueue(method, 'send_segment_broadcast', payload, rest);
  }

  /**
   * Queues many at once, all or none; the n-th is due `delayPerJob` after the one before it. Each item is a payload.
   * @returns in the order of the items
   */
  async queueBroadcastBatch(
    broadcasts: readonly BroadcastItem[],
    options: BatchOptions = {},
  ): Promise<EnqueuedInBatch[]> {
    const method = 'queueBroadcastBatch';
    const jobs = batchOf(method, broadcasts, options);
    if (jobs.length === 0) return [];
    return this.#rows<EnqueuedInBatch>(
      { method, role: 'enqueuer' },
      `select job_id, inserted from ${this.#schema}.broadcast_enqueue_many($1::jsonb)`,
      [jsonOf(method, jobs)],
    );
  }

  /** Queues a job of any type that the daemon knows (its JOB_TYPES, and its own). */
  async enqueue(
    jobType: string,
    jobData: Readonly<Record<string, unknown>>,
    options: EnqueueOptions = {},
  ): Promise<EnqueuedJob> {
    check('enqueue', 'jobType', jobType);
    check('enqueue', 'jobData', jobData);
    return this.#enqueue('enqueue', jobType, jobData, options);
  }

  async #enqueue(method: string, jobType: string, jobData: object, options: EnqueueOptions): Promise<EnqueuedJob> {
    checkOptions(method, options, ENQUEUE_OPTIONS);
    const [job] = await this.#rows<EnqueuedJob>(
      { method, role: 'enqueuer' },
      `select ${ENQUEUED_COLUMNS} from ${this.#schema}.broadcast_enqueue($1::text, $2::jsonb,
         queue => $3::text, delay => $4::float8 * interval '1 millisecond', scheduled_at => $5::timestamptz,
         priority => $6::integer, max_attempts => $7::integer, unique_key => $8::text, expires_at => $9::timestamptz,
         dry_run => $10::boolean, traceparent => $11::text, send_window => $12::jsonb) j`,
      [
        jobType,
        jsonOf(method, jobData),
        options.queue ?? null,
        options.delay ?? null,
        options.scheduledAt?.toISOString() ?? null,
        options.priority ?? null,
        options.maxAttempts ?? null,
        options.uniqueKey === undefined ? 'auto' : options.uniqueKey,
        options.expiresAt?.toISOString() ?? null,
        options.dryRun ?? null,
        options.traceparent ?? null,
        options.sendWindow === undefined ? null : jsonOf(method, options.sendWindow),
      ],
    );
    if (job === undefined) throw new Error('broadcast_enqueue answered no row');
    return job;
  }

  // Look. -------------------------------------------------------------------------------------------------------------

  /** @returns null for an unknown job */
  async getJob(jobId: string): Promise<JobRow | null> {
    const method = 'getJob';
    check(method, 'jobId', jobId);
    const [job] = await this.#rows<JobRow>(
      { method, role: 'enqueuer' },
      `select ${JOB_COLUMNS} from ${this.#schema}.broadcast_queue_jobs j where j.job_id = $1::uuid`,
      [jobId],
    );
    return job ?? null;
  }

  /** How far a broadcast is. @returns null for an unknown job */
  async progress(jobId: string): Promise<JobProgress | null> {
    const method = 'progress';
    check(method, 'jobId', jobId);
    const [progress] = await this.#rows<JobProgress>(
      { method, role: 'enqueuer' },
      `select ${PROGRESS_COLUMNS} from ${this.#schema}.broadcast_progress($1::uuid) p`,
      [jobId],
    );
    return progress ?? null;
  }

  /** Broadcasts (job types `send_…`) that failed for good, the latest first, out of the newest 200,000 jobs. */
  async getFailedBroadcasts(limit = 50): Promise<JobRow[]> {
    const method = 'getFailedBroadcasts';
    check(method, 'limit', limit);
    return this.#rows<JobRow>(
      { method, role: 'enqueuer' },
      // No index finds them, for every job would pay for it: so it is a walk, and one that ends.
      `select ${JOB_COLUMNS} from ${this.#schema}.broadcast_queue_jobs j
       where j.status = 'failed' and starts_with(j.job_type, 'send_')
         and j.id > (select max(id) - 200000 from ${this.#schema}.broadcast_queue_jobs)
       order by j.id desc limit $1::integer`,
      [limit],
    );
  }

  async getStatus(): Promise<Status> {
    return statusOf(await this.#figures('getStatus'));
  }

  async getStatistics(): Promise<Statistics> {
    return statisticsOf(await this.#figures('getStatistics'));
  }

  async getQueueStatus(queueName: string): Promise<QueueStatus> {
    check('getQueueStatus', 'queue', queueName, 'queueName');
    return queueStatusOf(await this.#figures('getQueueStatus'), queueName);
  }

  /** Whether some daemon has given a sign of life within the last minute. */
  async isProcessorRunning(): Promise<boolean> {
    const asked = { method: 'isProcessorRunning', role: 'viewer' } as const;
    const [row] = await this.#rows<{ running: boolean }>(asked, runningStatement(this.#schema), []);
    return row?.running ?? false;
  }

  async #figures(method: string): Promise<Figures> {
    const statement = figuresStatement(this.#schema);
    const [row] = await this.#rows<{ figures: string }>({ method, role: 'viewer' }, statement, []);
    if (row === undefined) throw new Error('the figures of the queue answered no row');
    return JSON.parse(row.figures);
  }

  // Operate. ----------------------------------------------------------------------------------------------------------

  /** Sends a failed, cancelled or waiting job back, due now, from where it stood. @returns its status */
  async retryFailedBroadcast(jobId: string): Promise<JobStatus> {
    return this.#operate('retryFailedBroadcast', 'broadcast_retry', jobId, []);
  }

  /** @returns its status, or `pausing`: a call is open, and it pauses when that ends */
  async pause(jobId: string, reason?: string): Promise<JobStatus | 'pausing'> {
    if (reason !== undefined) check('pause', 'reason', reason);
    return this.#operate('pause', 'broadcast_pause', jobId, [reason ?? null]);
  }

  /** @param scope goes on with these people only, by a new step (as `resend`); default: from where it stood */
  async resume(jobId: string, scope?: Scope): Promise<JobStatus> {
    if (scope !== undefined) check('resume', 'scope', scope);
    return this.#operate('resume', 'broadcast_resume', jobId, [scope ?? null]);
  }

  async cancel(jobId: string, reason?: string): Promise<JobStatus> {
    if (reason !== undefined) check('cancel', 'reason', reason);
    return this.#operate('cancel', 'broadcast_cancel', jobId, [reason ?? null]);
  }

  /** Sends again, also what is completed, to those whom the scope names. Takes a service that works in slices. */
  async resend(jobId: string, scope: Scope): Promise<JobStatus> {
    check('resend', 'scope', scope);
    return this.#operate('resend', 'broadcast_resend', jobId, [scope]);
  }

  async #operate<S extends string>(method: string, name: string, jobId: string, more: unknown[]): Promise<S> {
    check(method, 'jobId', jobId);
    const parameters = ['$1::uuid', ...more.map((_, index) => `$${index + 2}::text`)].join(', ');
    const [row] = await this.#rows<{ status: S }>(
      { method, role: 'operator' },
      `select ${this.#schema}.${name}(${parameters}) as status`,
      [jobId, ...more],
    );
    if (row === undefined) throw new Error(`${name} answered no row`);
    return row.status;
  }

  /**
   * Deletes a queue's completed jobs that ended longer ago, a thousand rows at a time. The daemon's daily cleanup does
   * so by itself.
   * @returns how many
   */
  async clearCompletedJobs(queueName: string, daysOld = 7): Promise<number> {
    const method = 'clearCompletedJobs';
    check(method, 'queue', queueName, 'queueName');
    check(method, 'daysOld', daysOld);
    let cleared = 0;
    let after: string | null = '0';
    while (after !== null) {
      const [batch]: { deleted: number; last_id: string | null }[] = await this.#rows(
        { method, role: 'worker' },
        clearStatement(this.#schema),
        [queueName, daysOld, after],
      );
      cleared += batch?.deleted ?? 0;
      after = batch?.last_id ?? null;
    }
    return cleared;
  }

  // -------------------------------------------------------------------------------------------------------------------

  async #rows<R>(asked: Pick<Circumstances, 'method' | 'role'>, text: string, values: unknown[]): Promise<R[]> {
    try {
      const { rows } = await this.#connection.query(text, values);
      // The caller's select list makes it so.
      return rows as R[];
    } catch (error) {
      throw translated(error, { ...asked, schema: this.#schemaName });
    }
  }
}
