/**
 * Reading an answer of 400 and above: the protocol's failure table. The status says what to do by default; a problem's
 * `code` tells apart what shares a status, and its `retriable` wins over the table.
 */
import { PermanentError, TransientError } from '../errors.js';
import type { Outcome } from '../job.js';
import { readProgress } from './progress.js';
import type { Problem } from './protocol.js';
import { type Circumstances, type Reply, retryAfterOf } from './reply.js';
import { kept } from './result.js';
import { waitOfSeconds } from './retry-after.js';
import { quote } from './wording.js';

/** `in_progress` without a `Retry-After`: an earlier call of this step still runs. */
const IN_PROGRESS_RETRY_MS = 5_000;

/** A bare 404 or 405 may be a deploy or a proxy, but seldom for long. */
const BARE_NOT_FOUND_ATTEMPTS = 3;

/** Characters of a problem's code that a message shows. */
const MAX_CODE_LENGTH = 60;

/** How far to jump when the service has seen a later epoch and does not say which. */
const EPOCH_LEAP = 1_000;

/**
 * @returns for an answer that settles the job: 410, and 409 `already_done`
 * @throws TransientError or PermanentError for all others
 */
export function readFailure(reply: Reply, about: Circumstances): Outcome {
  const body = readObject(reply.body);
  const problem = readProblem(body);
  const failure: Failure = { reply, about, problem, retryAfterMs: waitAskedFor(reply, about, problem) };

  if (reply.status === 409 && problem.code === 'already_done') {
    return { kind: 'done', result: kept(reply.body.trim(), body), progress: readProgress(body) };
  }
  if (reply.status === 410 && problem.retriable !== true) {
    return { kind: 'cancel', reason: said(failure) || 'the service answered 410 Gone' };
  }
  throw overruled(byTable(failure), failure);
}

interface Failure {
  readonly reply: Reply;
  readonly about: Circumstances;
  readonly problem: Problem;
  /** From `Retry-After`, else from the problem's `retry_after`. */
  readonly retryAfterMs: number | undefined;
}

function byTable(failure: Failure): TransientError | PermanentError {
  const { reply, about, problem, retryAfterMs } = failure;
  switch (reply.status) {
    case 401:
    case 403:
      // While other jobs succeed it is this one that is refused; otherwise our configuration is wrong, and no job's fault.
      return about.othersSucceed
        ? permanent(failure, 'unauthorized')
        : transient(failure, 'unauthorized', { cost: 'free' });
    case 404:
    case 405:
      if (problem.code === 'unknown_job_type') return permanent(failure, 'unknown_job_type');
      return transient(failure, `http_${reply.status}`, { attemptLimit: BARE_NOT_FOUND_ATTEMPTS });
    case 409:
      return conflict(failure);
    case 408:
    case 423:
    case 425:
      return transient(failure, `http_${reply.status}`);
    case 429:
      return transient(failure, 'throttled', { cost: 'free' });
    case 501:
      if (problem.code === 'unknown_job_type') return permanent(failure, 'unknown_job_type');
      return transient(failure, 'http_501');
    case 503:
      if (retryAfterMs === undefined) return transient(failure, 'http_503');
      return transient(failure, 'throttled', { cost: 'free' });
    default:
      return reply.status >= 500
        ? transient(failure, `http_${reply.status}`)
        : permanent(failure, `http_${reply.status}`);
  }
}

function conflict(failure: Failure): TransientError | PermanentError {
  const { about, problem, retryAfterMs = IN_PROGRESS_RETRY_MS } = failure;
  switch (problem.code) {
    case 'in_progress':
      return transient(failure, 'in_progress', { cost: 'free', retryAfterMs });
    case 'stale_epoch': {
      // An epoch below our own cannot have made ours stale.
      const isNews = problem.epoch !== undefined && problem.epoch >= about.epoch;
      return transient(failure, 'stale_epoch', {
        cost: 'free',
        raiseEpochAbove: isNews ? problem.epoch : about.epoch + EPOCH_LEAP,
      });
    }
    default:
      return permanent(failure, 'http_409');
  }
}

/** The service's explicit `retriable` wins; what else the table says of a failure of that kind still holds. */
function overruled(error: TransientError | PermanentError, failure: Failure): TransientError | PermanentError {
  const { retriable } = failure.problem;
  if (retriable === undefined) return error;
  if (error instanceof TransientError) {
    if (!retriable) return permanent(failure, error.code);
    // Told that it is worth it, we need not doubt after three attempts.
    return error.attemptLimit === undefined ? error : transient(failure, error.code);
  }
  return retriable ? transient(failure, error.code) : error;
}

type Terms = Partial<Pick<TransientError, 'cost' | 'attemptLimit' | 'raiseEpochAbove' | 'retryAfterMs'>>;

function transient(failure: Failure, code: string, terms: Terms = {}): TransientError {
  const { reply, retryAfterMs } = failure;
  return new TransientError(worded(failure), { code, httpStatus: reply.status, retryAfterMs, ...terms });
}

function permanent(failure: Failure, code: string): PermanentError {
  return new PermanentError(worded(failure), { code, httpStatus: failure.reply.status });
}

function worded(failure: Failure): string {
  const { reply, about, problem } = failure;
  const code = problem.code === undefined ? '' : ` (${quote(problem.code, about.hidden).slice(0, MAX_CODE_LENGTH)})`;
  const text = said(failure);
  return `${about.where} answered ${reply.status}${code}${text && `: ${text}`}`;
}

/** What the service says about it, in one line; a page of markup says nothing. */
function said({ reply, about, problem }: Failure): string {
  const text = problem.detail ?? problem.title ?? reply.body.trim();
  return text.startsWith('<') ? '' : quote(text, about.hidden);
}

/** The header wins over the member of the problem. */
function waitAskedFor(reply: Reply, about: Circumstances, problem: Problem): number | undefined {
  const byProblem = problem.retry_after === undefined ? undefined : waitOfSeconds(problem.retry_after);
  return retryAfterOf(reply, about) ?? byProblem;
}

/** The body as an object; an empty one where it is anything else, since a failure needs no body. */
function readObject(text: string): Record<string, unknown> {
  if (!text.trimStart().startsWith('{')) return {};
  try {
    // The text starts with {, so it is an object if it is JSON at all.
    return JSON.parse(text.trim()) as Record<string, unknown>;
  } catch {
    return {};
  }
}

function readProblem(body: Record<string, unknown>): Problem {
  const detail = [body.detail, body.message, body.error].find((member) => typeof member === 'string');
  const epoch = [body.epoch, body.current_epoch].find((member) => Number.isSafeInteger(member));
  return {
    ...(typeof body.title === 'string' && { title: body.title }),
    ...(detail !== undefined && { detail }),
    ...(typeof body.code === 'string' && { code: body.code }),
    ...(typeof body.retriable === 'boolean' && { retriable: body.retriable }),
    ...(typeof body.retry_after === 'number' && { retry_after: body.retry_after }),
    ...(typeof epoch === 'number' && { epoch }),
  };
}
