/**
 * The client of the bot team's broadcast service: a job in, an Outcome out or an error thrown. A call is written
 * (request.ts), exchanged (exchange.ts), and its answer read (answer.ts), or the lack of one (no-answer.ts). It is made
 * once: repeating it is the queue's business, which counts attempts and keeps the leases.
 */
import { Pool } from 'undici';
import { type AbortReason, Interrupted, PermanentError } from '../errors.js';
import type { BroadcastService, Job, Outcome } from '../job.js';
import { readAnswer } from './answer.js';
import { exchange, NoReply } from './exchange.js';
import { readNoAnswer } from './no-answer.js';
import type { Reply } from './reply.js';
import { createRequestWriter, type RequestOptions, type WrittenRequest } from './request.js';

export interface BroadcastClientOptions extends RequestOptions {
  /** What the service is known to speak; null: not known. */
  readonly level: number | null;
  /** For a whole call, from waiting for a connection to the last byte of the body; less than 2^31. */
  readonly timeoutMs: number;
  /** At most; a call beyond them waits for one, within its timeout. */
  readonly connections: number;
  /** For TCP and TLS together. Default 3000; undici keeps it to within a second. */
  readonly connectTimeoutMs?: number;
  /** A monotonic clock in milliseconds. Default performance.now. */
  readonly monotonicNow?: () => number;
}

export interface BroadcastClient extends BroadcastService {
  /** Closes all connections. A call still under way is interrupted, as by a shutdown. */
  close(): Promise<void>;
}

/** A refusal of one job means that job's credentials while another succeeded within this time. */
const OTHERS_SUCCEED_WITHIN_MS = 60_000;

/** @throws TypeError for a base URL that is none, Error for a secret that is not `whsec_` and base64 */
export function createBroadcastClient(options: BroadcastClientOptions): BroadcastClient {
  const { timeoutMs, connections, connectTimeoutMs = 3_000, monotonicNow = () => performance.now() } = options;
  const { origin, protocol } = new URL(options.baseUrl);
  const write = createRequestWriter(options);
  // Each call has its own deadline; undici's timeouts are off, since they would undercut it (or let a drip go on).
  const pool = new Pool(origin, {
    connections,
    headersTimeout: 0,
    bodyTimeout: 0,
    connect: { timeout: connectTimeoutMs },
  });
  let lastSuccessAt = Number.NEGATIVE_INFINITY;
  let closed = false;

  async function call(job: Job, signal: AbortSignal): Promise<Outcome> {
    if (signal.aborted) throw interrupted(signal, false);
    if (job.dryRun) refuseBelowSlices(options.level);
    const request = write(job);
    const reply = await exchange(pool, request, timeoutMs, signal).catch((why: unknown) => {
      throw withoutReply(why, request, signal);
    });
    const outcome = readAnswer(reply, circumstances(job, request));
    noteSuccess(reply);
    return outcome;
  }

  function withoutReply(why: unknown, request: WrittenRequest, signal: AbortSignal): unknown {
    if (!(why instanceof NoReply)) return why;
    if (why.ending === 'aborted') return interrupted(signal, why.requestWritten);
    if (closed) return new Interrupted('shutdown', why.requestWritten);
    return readNoAnswer(why, request.where, timeoutMs, protocol === 'https:');
  }

  function circumstances(job: Job, { where, hidden }: WrittenRequest) {
    const othersSucceed = monotonicNow() - lastSuccessAt <= OTHERS_SUCCEED_WITHIN_MS;
    return { where, hidden, origin, epoch: job.epoch, nowMs: job.databaseNow(), othersSucceed };
  }

  function noteSuccess(reply: Reply): void {
    if (reply.status < 300) lastSuccessAt = monotonicNow();
  }

  async function close(): Promise<void> {
    closed = true;
    await pool.destroy();
  }

  return { call, close };
}

/** A plain service does not know dry runs and would send for real. */
function refuseBelowSlices(level: number | null): void {
  if (level !== null && level >= 2) return;
  throw new PermanentError(
    `a dry run needs a service of level 2, which does not send then; this one ${level === null ? 'has not said its level' : `speaks level ${level}`} (BROADCAST_SERVICE_LEVEL)`,
    { code: 'dry_run_unsupported' },
  );
}

function interrupted(signal: AbortSignal, requestWritten: boolean): Interrupted {
  // The queue alone aborts these signals, always with one of its reasons.
  return new Interrupted(signal.reason as AbortReason, requestWritten);
}
