/** How a job ends by the service's own word, in the answer to a call as in that of an operation. */
import { PermanentError, TransientError } from '../errors.js';
import type { Outcome, Progress } from '../job.js';
import { incompleteness, readProgress } from './progress.js';
import { type Circumstances, type Reply, retryAfterOf } from './reply.js';
import { kept } from './result.js';
import { quote } from './wording.js';

/**
 * @param text JSON text
 * @param body the same, read
 */
export function completed(text: string, body: Record<string, unknown>, reply: Reply, about: Circumstances): Outcome {
  const result = kept(text, body);
  // A dry run sent nothing, so it has nothing to account for.
  if (about.dryRun || body.dry_run === true) return { kind: 'done', result, progress: soundProgress(body) };
  const progress = readProgress(body);
  if (progress === undefined) return { kind: 'done', result, flags: ['unverified'] };
  const gap = incompleteness(progress);
  if (gap === null) return { kind: 'done', result, progress };
  const reason = `${about.where}: the service says completed, but ${gap}`;
  return { kind: 'incomplete', reason, result, progress, httpStatus: reply.status };
}

/** Counters that nobody promised: kept where they make sense, never held against the service. */
export function soundProgress(body: Record<string, unknown>): Progress | undefined {
  const progress = readProgress(body);
  return progress === undefined || incompleteness(progress) !== null ? undefined : progress;
}

/** Worth another try, unless the service says that it is not. */
export function serviceFailed(
  body: Record<string, unknown>,
  reply: Reply,
  about: Circumstances,
): TransientError | PermanentError {
  const message = `${about.where}: the service says it failed: ${complaint(body, about) || 'it gave no reason'}`;
  const detail = { code: 'service_failed', httpStatus: reply.status };
  if (body.retriable === false) return new PermanentError(message, detail);
  return new TransientError(message, { ...detail, retryAfterMs: retryAfterOf(reply, about) });
}

export function cancelled(body: Record<string, unknown>, about: Circumstances): Outcome {
  return { kind: 'cancel', reason: complaint(body, about) || 'cancelled by the service' };
}

function complaint(body: Record<string, unknown>, about: Circumstances): string {
  const text = [body.message, body.error, body.detail, body.reason].find((member) => typeof member === 'string');
  return quote(text ?? '', about.hidden);
}
