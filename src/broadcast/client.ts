/**
 * The client of the bot team's broadcast service: a job in, an Outcome out or an error thrown. A request is written
 * (request.ts), exchanged (exchange.ts), and its answer read (answer.ts), or the lack of one (no-answer.ts). It is made
 * once: repeating it is the queue's business, which counts attempts and keeps the leases.
 */
import { Pool } from 'undici';
import { type AbortReason, Interrupted } from '../errors.js';
import type { BroadcastService, Grant, Job, Outcome } from '../job.js';
import { readAnswer, readOperationAnswer } from './answer.js';
import { exchange, NoReply } from './exchange.js';
import { type LevelOptions, refuseBelowSlices, SLICED, watchLevel } from './level.js';
import { readNoAnswer } from './no-answer.js';
import { askedInVain } from './operation.js';
import type { Circumstances, Reply } from './reply.js';
import { createOperationWriter, createRequestWriter, type RequestOptions, type WrittenRequest } from './request.js';

export interface BroadcastClientOptions extends RequestOptions, LevelOptions {
  /**
   * For a whole call, from waiting for a connection to the last byte of the body; less than 2^31. A service that works
   * in slices, and one that is asked after an operation, has promised to answer sooner, and gets less.
   */
  readonly timeoutMs: number;
  /** At most; a call beyond them waits for one, within its timeout. */
  readonly connections: number;
  /** For TCP and TLS together. Default 3000; undici keeps it to within a second. */
  readonly connectTimeoutMs?: number;
  /** A monotonic clock in milliseconds. Default performance.now. */
  readonly monotonicNow?: () => number;
}

export interface BroadcastClient extends BroadcastService {
  /**
   * Where the service runs the step by itself, that operation is asked instead: `service_failed` and `operation_lost`
   * then say that it is over, and every other TransientError that it is to be asked again.
   * @param grant what the call may do; null: what the options say
   */
  call(job: Job, signal: AbortSignal, grant?: Grant | null): Promise<Outcome>;
  /**
   * Ends an operation that is no longer wanted; resolves as well where it is gone already or cannot be ended.
   * @throws TransientError, or Interrupted when `signal` was aborted
   */
  abandon(location: string, jobId: string, signal: AbortSignal): Promise<void>;
  /** Closes all connections. A call still under way is interrupted, as by a shutdown. */
  close(): Promise<void>;
}

/** A refusal of one job means that job's credentials while another succeeded within this time. */
const OTHERS_SUCCEED_WITHIN_MS = 60_000;

/** What a slice may take beyond the time that it was given. */
const SLICE_GRACE_MS = 15_000;

/** An operation is asked and ended by short requests: the service has nothing to do for them. */
const OPERATION_TIMEOUT_MS = 30_000;

/** Not found, gone, and the three ways to say that it cannot be ended. */
const NOTHING_TO_END = new Set([404, 410, 405, 501]);

/** @throws TypeError for a base URL that is none, Error for a secret that is not `whsec_` and base64 */
export function createBroadcastClient(options: BroadcastClientOptions): BroadcastClient {
  const { timeoutMs, connections, connectTimeoutMs = 3_000, monotonicNow = () => performance.now() } = options;
  const { origin, protocol } = new URL(options.baseUrl);
  const write = createRequestWriter(options);
  const aboutOperation = createOperationWriter(options);
  const level = watchLevel(options);
  // Each call has its own deadline; undici's timeouts are off, since they would undercut it (or let a drip go on).
  const pool = new Pool(origin, {
    connections,
    headersTimeout: 0,
    bodyTimeout: 0,
    connect: { timeout: connectTimeoutMs },
  });
  let lastSuccessAt = Number.NEGATIVE_INFINITY;
  let closed = false;

  async function call(job: Job, signal: AbortSignal, grant: Grant | null = null): Promise<Outcome> {
    const { operation } = job.step;
    return operation === null ? post(job, signal, grant) : ask(job, operation, signal);
  }

  async function post(job: Job, signal: AbortSignal, grant: Grant | null): Promise<Outcome> {
    const known = level.known();
    refuseBelowSlices(job, known);
    const sliceMs = (grant ?? options).waitSeconds * 1000 + SLICE_GRACE_MS;
    const isSliced = known !== null && known >= SLICED;
    const request = write(job, grant);
    const reply = await send(request, isSliced ? Math.min(timeoutMs, sliceMs) : timeoutMs, signal);
    const outcome = readAnswer(reply, circumstances(request, job));
    noteSuccess(reply);
    return outcome;
  }

  async function ask(job: Job, operation: string, signal: AbortSignal): Promise<Outcome> {
    try {
      const request = aboutOperation.question(job, operation);
      const reply = await send(request, Math.min(timeoutMs, OPERATION_TIMEOUT_MS), signal);
      const outcome = readOperationAnswer(reply, circumstances(request, job), operation);
      noteSuccess(reply);
      return outcome;
    } catch (error) {
      throw askedInVain(error);
    }
  }

  async function abandon(location: string, jobId: string, signal: AbortSignal): Promise<void> {
    try {
      const request = aboutOperation.ending(jobId, location);
      const reply = await send(request, Math.min(timeoutMs, OPERATION_TIMEOUT_MS), signal);
      if (reply.status < 300 || NOTHING_TO_END.has(reply.status)) return;
      // Says what is wrong; `already_done` is nothing wrong. There is no job here, whose clock is the database's.
      readAnswer(reply, circumstances(request, { epoch: 0, dryRun: false, databaseNow: Date.now }));
    } catch (error) {
      throw askedInVain(error);
    }
  }

  async function send(request: WrittenRequest, deadlineMs: number, signal: AbortSignal): Promise<Reply> {
    if (signal.aborted) throw interrupted(signal, false);
    const reply = await exchange(pool, request, deadlineMs, signal).catch((why: unknown) => {
      throw withoutReply(why, request, deadlineMs, signal);
    });
    level.note(reply);
    return reply;
  }

  function withoutReply(why: unknown, request: WrittenRequest, deadlineMs: number, signal: AbortSignal): unknown {
    if (!(why instanceof NoReply)) return why;
    if (why.ending === 'aborted') return interrupted(signal, why.requestWritten);
    if (closed) return new Interrupted('shutdown', why.requestWritten);
    return readNoAnswer(why, request.where, deadlineMs, protocol === 'https:');
  }

  function circumstances(
    { where, hidden, path }: WrittenRequest,
    job: Pick<Job, 'epoch' | 'dryRun' | 'databaseNow'>,
  ): Circumstances {
    const othersSucceed = monotonicNow() - lastSuccessAt <= OTHERS_SUCCEED_WITHIN_MS;
    const { epoch, dryRun } = job;
    return { where, hidden, url: origin + path, epoch, dryRun, nowMs: job.databaseNow(), othersSucceed };
  }

  function noteSuccess(reply: Reply): void {
    if (reply.status < 300) lastSuccessAt = monotonicNow();
  }

  async function close(): Promise<void> {
    closed = true;
    await pool.destroy();
  }

  return { call, abandon, close };
}

function interrupted(signal: AbortSignal, requestWritten: boolean): Interrupted {
  // The queue alone aborts these signals, always with one of its reasons.
  return new Interrupted(signal.reason as AbortReason, requestWritten);
}
