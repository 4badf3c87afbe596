/**
 * What follows from what happened: a handler's outcome or its error becomes a settlement. Pure, and the only place that
 * knows what an error means.
 */
import { DatabaseUnavailable, Interrupted, PermanentError, TransientError } from '../errors.js';
import type { Flag, Outcome } from '../job.js';
import { later } from './backoff.js';
import type { Claim, Settlement } from './ports.js';

export interface Policy {
  readonly retryBaseDelayMs: number;
  readonly retryMaxDelayMs: number;
  /** What to do when a call may have been carried out though no answer came. */
  readonly ambiguous: 'retry' | 'pause';
}

/** After so many calls, or so long, without progress a job is paused: nothing circles for ever. */
export const STALLED_CALLS_LIMIT = 50;
export const STALLED_TIME_LIMIT_MS = 24 * 60 * 60 * 1000;

const ERROR_MESSAGE_MAX_BYTES = 2048;

/**
 * @param result what the handler returned, or what it threw
 * @param random uniform in [0, 1)
 */
export function decide(
  claim: Claim,
  result: Outcome | Error,
  ranMs: number,
  policy: Policy,
  random: () => number,
): Settlement {
  const settlement: Decision =
    result instanceof Error ? fromError(claim, result, policy, random) : fromOutcome(claim, result, random);
  return endCircling(claim, {
    ...NOTHING,
    id: claim.job.id,
    leaseId: claim.leaseId,
    ranMs,
    ...settlement,
    gained: Math.max((settlement.progress?.processed ?? 0) - claim.processed, 0),
    errorMessage: boundedText(settlement.errorMessage ?? null),
    holdReason: boundedText(settlement.holdReason ?? null),
  });
}

/**
 * The wait before the next attempt: base × 2^(attempt − 1), at most `max`, and up to 10 % later so that jobs that
 * failed together do not come back together. Never sooner.
 */
export function backoffMs(attempt: number, policy: Policy, random: () => number): number {
  const doubled = policy.retryBaseDelayMs * 2 ** Math.min(attempt - 1, 52);
  return later(Math.min(doubled, policy.retryMaxDelayMs), random);
}

type Decision = Partial<Settlement> & Pick<Settlement, 'status'>;

const NOTHING = {
  dueInMs: null,
  attempts: 'keep',
  errorCode: null,
  errorMessage: null,
  httpStatus: null,
  result: null,
  progress: null,
  gained: 0,
  nextCursor: null,
  operation: null,
  holdReason: null,
  pausedFrom: null,
  previousFailure: null,
  flags: [],
  stalled: null,
  unstarted: false,
  raiseEpochAbove: null,
  record: null,
} as const satisfies Partial<Settlement>;

function fromOutcome(claim: Claim, outcome: Outcome, random: () => number): Decision {
  switch (outcome.kind) {
    case 'done':
      return {
        status: 'completed',
        result: outcome.result,
        progress: outcome.progress ?? null,
        flags: outcome.flags ?? [],
      };
    case 'continue': {
      const progressed = (outcome.progress?.processed ?? 0) > claim.processed;
      const { cursor, scope } = claim.job.step;
      // Sending again to those who failed changes what they are counted as, and not how many were processed.
      const moves = scope !== 'all' && outcome.cursor !== cursor;
      return {
        status: 'processing',
        dueInMs: outcome.delayMs,
        attempts: progressed ? 'reset' : 'refund',
        progress: outcome.progress ?? null,
        nextCursor: outcome.cursor,
        stalled: progressed ? null : moves ? 'time' : 'call',
      };
    }
    case 'hold':
      return {
        status: 'retry',
        dueInMs: later(Math.max(outcome.delayMs, 1000), random),
        attempts: 'refund',
        progress: outcome.progress ?? null,
        nextCursor: outcome.cursor ?? null,
        holdReason: outcome.reason,
        stalled: 'call',
        record: 'held',
      };
    case 'wait':
      return {
        ...stillAt(claim),
        status: hasBegun(claim) ? 'processing' : 'retry',
        dueInMs: Math.max(outcome.delayMs, 0),
        attempts: 'refund',
        holdReason: outcome.reason,
        unstarted: claim.first,
      };
    case 'operation':
      return {
        status: 'processing',
        dueInMs: outcome.delayMs,
        attempts: 'refund',
        progress: outcome.progress ?? null,
        operation: outcome.location,
        stalled: (outcome.progress?.processed ?? 0) <= claim.processed ? 'time' : null,
      };
    case 'incomplete':
      return {
        status: 'failed',
        errorCode: 'incomplete',
        errorMessage: outcome.reason,
        httpStatus: outcome.httpStatus,
        result: outcome.result,
        progress: outcome.progress,
        flags: ['incomplete'],
        record: 'failed',
      };
    case 'cancel':
      return {
        status: 'cancelled',
        errorCode: 'cancelled',
        errorMessage: outcome.reason,
        record: 'cancelled',
      };
  }
}

function fromError(claim: Claim, error: Error, policy: Policy, random: () => number): Decision {
  if (error instanceof Interrupted) return handBack(claim, error);
  if (error instanceof PermanentError) {
    return {
      status: 'failed',
      errorCode: error.code,
      errorMessage: error.message,
      httpStatus: error.httpStatus ?? null,
      record: 'failed',
    };
  }
  return fromTransient(claim, asTransient(error), policy, random);
}

function asTransient(error: Error): TransientError {
  if (error instanceof TransientError) return error;
  if (error instanceof DatabaseUnavailable) {
    // A handler that works on the database met an outage: nobody's attempt.
    return new TransientError(`the database did not answer: ${error.message}`, { code: 'database', cost: 'free' });
  }
  // Anything unforeseen is the daemon's own fault: it costs an attempt, never a broadcast.
  return new TransientError(`internal error: ${error.name}: ${error.message}`, { code: 'internal' });
}

/** The service no longer runs the step: it is called again. After any other failure it is asked again. */
const ENDS_OPERATION = new Set(['service_failed', 'operation_lost']);

function fromTransient(claim: Claim, error: TransientError, policy: Policy, random: () => number): Decision {
  const { attempt, maxAttempts, type } = claim.job;
  const about = {
    errorCode: error.code,
    errorMessage: error.message,
    httpStatus: error.httpStatus ?? null,
    previousFailure: error.code,
    flags: (error.ambiguous ? ['possible_duplicate'] : []) satisfies Flag[],
    stalled: 'call',
    raiseEpochAbove: error.raiseEpochAbove ?? null,
    operation: ENDS_OPERATION.has(error.code) ? null : claim.job.step.operation,
  } as const;

  if (error.ambiguous && policy.ambiguous === 'pause' && type.startsWith('send_')) {
    const reason = `the service may have carried it out: ${error.message}; resume it to call again, or cancel it`;
    return { ...about, status: 'paused', pausedFrom: 'pending', holdReason: reason, record: 'paused' };
  }
  if (error.cost === 'free') {
    const wait = error.retryAfterMs ?? policy.retryBaseDelayMs;
    return { ...about, status: 'retry', dueInMs: later(wait, random), attempts: 'refund', record: 'waiting' };
  }
  const limit = Math.min(maxAttempts, error.attemptLimit ?? maxAttempts);
  const spent = attempt >= limit;
  if (spent && error.cost === 'attempt') {
    return { ...about, status: 'failed', record: 'failed' };
  }
  const wait = Math.max(backoffMs(attempt, policy, random), later(error.retryAfterMs ?? 0, random));
  return { ...about, status: 'retry', dueInMs: wait, attempts: spent ? 'refund' : 'keep', record: 'retry' };
}

/** Cut short by a shutdown, or by a lease that ran out before the call: due now, nothing consumed. */
function handBack(claim: Claim, error: Interrupted): Decision {
  const begun = hasBegun(claim);
  // To ask after an operation changes nothing.
  const wasCalled = error.requestWritten && claim.job.step.operation === null;
  return {
    ...stillAt(claim),
    status: begun ? 'processing' : 'pending',
    dueInMs: begun ? 0 : null,
    attempts: 'refund',
    ...(wasCalled && {
      previousFailure: error.reason,
      flags: ['possible_duplicate'],
      stalled: 'call',
      record: 'handed_back',
    }),
    unstarted: claim.first && !error.requestWritten,
  };
}

/** Part of it is sent already, or the service is at it. */
function hasBegun({ job: { step } }: Claim): boolean {
  return step.seq > 0 || step.operation !== null;
}

/** Nothing happened to the step. */
function stillAt({ job }: Claim): Pick<Settlement, 'operation' | 'previousFailure'> {
  return { operation: job.step.operation, previousFailure: job.step.previousFailure };
}

function endCircling(claim: Claim, settlement: Settlement): Settlement {
  if (settlement.stalled === null || settlement.status === 'failed' || settlement.status === 'paused')
    return settlement;
  const calls = claim.stalledCalls + (settlement.stalled === 'call' ? 1 : 0);
  if (calls < STALLED_CALLS_LIMIT && claim.stalledForMs < STALLED_TIME_LIMIT_MS) return settlement;
  const minutes = Math.ceil(claim.stalledForMs / 60_000);
  const last = settlement.errorMessage ?? settlement.holdReason ?? 'the counters did not rise';
  return {
    ...settlement,
    status: 'paused',
    pausedFrom: settlement.status === 'processing' ? 'processing' : 'retry',
    holdReason: boundedText(`no progress in ${calls} calls within ${minutes} min; the last: ${last}`),
    record: 'paused',
  };
}

/** One line, no control characters, 2 KiB of UTF-8 at most. */
function boundedText(text: string | null): string | null {
  if (text === null) return null;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
  const line = text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ');
  if (Buffer.byteLength(line) <= ERROR_MESSAGE_MAX_BYTES) return line;
  const cut = Buffer.from(line).subarray(0, ERROR_MESSAGE_MAX_BYTES - 3);
  return `${new TextDecoder().decode(cut, { stream: true })}…`;
}
