/**
 * An operation: work that the service has taken over and runs by itself (level 3). It is not called again but asked, at
 * the place that its answer named, until it says that it is over. Asking changes nothing there, so a question that
 * fails costs nothing and is put again.
 */
import { Interrupted, PermanentError, TransientError } from '../errors.js';
import type { Outcome } from '../job.js';
import { badResponse, parsed, readableText } from './body.js';
import { cancelled, completed, serviceFailed } from './ending.js';
import { readProgress } from './progress.js';
import { MAX_LOCATION_BYTES } from './protocol.js';
import { type Circumstances, headerOf, type Reply, retryAfterOf } from './reply.js';

/** A service that does not say when to ask is asked after this. */
const DEFAULT_POLL_MS = 5_000;
const SHORTEST_POLL_MS = 1_000;

/** The operation is over or lost: what is next is a new call. After every other failure it is asked again. */
const ENDS = new Set(['service_failed', 'operation_lost']);

/**
 * @returns path and query of the answer's `Location`; null for none, for one of another origin, which could lead our
 * credentials anywhere, and for one beyond MAX_LOCATION_BYTES
 */
export function ownLocation(reply: Reply, about: Circumstances): string | null {
  const location = headerOf(reply, 'location') ?? '';
  if (location === '' || !URL.canParse(location, about.url)) return null;
  const { origin, pathname, search } = new URL(location, about.url);
  // A URL's path and query are ASCII: everything else in them is percent-encoded.
  const path = pathname + search;
  return origin === new URL(about.url).origin && path.length <= MAX_LOCATION_BYTES ? path : null;
}

export function running(location: string, body: Record<string, unknown>, reply: Reply, about: Circumstances): Outcome {
  const delayMs = Math.max(retryAfterOf(reply, about) ?? DEFAULT_POLL_MS, SHORTEST_POLL_MS);
  return { kind: 'operation', location, progress: readProgress(body), delayMs };
}

/**
 * Reads the 2xx answer of an operation that was asked.
 * @param location where it was asked
 * @throws TransientError `service_failed` or `bad_response`; PermanentError `service_failed`
 */
export function readOperation(reply: Reply, about: Circumstances, location: string): Outcome {
  const text = readableText(reply, about);
  const body = text.startsWith('{') ? parsed(text, reply, about) : [];
  if (Array.isArray(body)) throw badResponse('no JSON object, which would say how the operation stands', reply, about);
  switch (body.status) {
    case 'running':
      return running(ownLocation(reply, about) ?? location, body, reply, about);
    case 'completed':
    case 'done':
      return completed(text, body, reply, about);
    case 'failed':
      throw serviceFailed(body, reply, about);
    case 'cancelled':
      return cancelled(body, about);
    default:
      throw badResponse('a status that is none of running, completed, failed and cancelled', reply, about);
  }
}

/** The service has forgotten it, and nobody knows how far it got. */
export function operationLost(reply: Reply, about: Circumstances): TransientError {
  const message = `${about.where} answered ${reply.status}: the service does not know the operation any more`;
  return new TransientError(message, { code: 'operation_lost', httpStatus: reply.status, ambiguous: true });
}

/** @returns for an error of a question that tells nothing of the operation itself: one that costs nothing */
export function askedInVain(error: unknown): unknown {
  // The request may have left, but no work was cut short with it.
  if (error instanceof Interrupted) return new Interrupted(error.reason, false);
  if (!(error instanceof TransientError || error instanceof PermanentError) || ENDS.has(error.code)) return error;
  const { message, code, httpStatus } = error;
  const { retryAfterMs, raiseEpochAbove } = error instanceof TransientError ? error : {};
  return new TransientError(message, { code, httpStatus, retryAfterMs, raiseEpochAbove, cost: 'free' });
}
