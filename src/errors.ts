/**
 * What can go wrong with a job. Handlers and the HTTP client throw these and say what happened; only queue/decide.ts
 * knows what follows from it (a retry, a failure, a hand-back). Anything else that is thrown is a bug in the daemon and
 * is treated as transient, so that it costs an attempt and never a broadcast.
 */

/**
 * What an attempt costs when it fails this way. `attempt`: one of max_attempts. `free`: nothing, the infrastructure was
 * at fault. `never_last`: one attempt, but never the last one; then it waits instead of failing (the request certainly
 * never reached the service).
 */
export type FailureCost = 'attempt' | 'free' | 'never_last';

export interface TransientDetail {
  /** One word for machines, such as `timeout`, `connection_lost`, `http_503`; kept as the row's `previous_failure`. */
  code: string;
  httpStatus?: number | undefined;
  /** Lower bound on the wait before the next call, in milliseconds. */
  retryAfterMs?: number | undefined;
  /** Default `attempt`. */
  cost?: FailureCost | undefined;
  /** The service may have carried the request out: a repetition may be a duplicate. */
  ambiguous?: boolean | undefined;
  /** Fewer attempts than the job's own maximum, for failures that seldom heal (a bare 404: 3). */
  attemptLimit?: number | undefined;
  /** The service has seen a later epoch than ours while the row is still ours: continue above this one. */
  raiseEpochAbove?: number | undefined;
}

/** Worth another try later. */
export class TransientError extends Error {
  override readonly name = 'TransientError';
  readonly code: string;
  readonly httpStatus: number | undefined;
  readonly retryAfterMs: number | undefined;
  readonly cost: FailureCost;
  readonly ambiguous: boolean;
  readonly attemptLimit: number | undefined;
  readonly raiseEpochAbove: number | undefined;

  constructor(message: string, detail: TransientDetail) {
    super(message);
    this.code = detail.code;
    this.httpStatus = detail.httpStatus;
    this.retryAfterMs = detail.retryAfterMs;
    this.cost = detail.cost ?? 'attempt';
    this.ambiguous = detail.ambiguous ?? false;
    this.attemptLimit = detail.attemptLimit;
    this.raiseEpochAbove = detail.raiseEpochAbove;
  }
}

/** Trying again cannot help: invalid data, an unknown job type, a refusal by the service. */
export class PermanentError extends Error {
  override readonly name = 'PermanentError';
  readonly code: string;
  readonly httpStatus: number | undefined;

  constructor(message: string, detail: { code: string; httpStatus?: number | undefined }) {
    super(message);
    this.code = detail.code;
    this.httpStatus = detail.httpStatus;
  }
}

/** Why a running attempt is told to stop; the `reason` of its AbortSignal. */
export type AbortReason = 'shutdown' | 'lease_lost';

/** Thrown by a handler or the client when its signal was aborted. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted';

  constructor(
    readonly reason: AbortReason,
    /** The request had left for the service when the attempt was cut short. */
    readonly requestWritten: boolean,
  ) {
    super(`interrupted: ${reason}`);
  }
}

/** The database could not be reached or refused to work just now. Never a job's fault. */
export class DatabaseUnavailable extends Error {
  override readonly name = 'DatabaseUnavailable';
}

/** A value that the database refuses (a NUL inside a result, a number out of range): this row's fault alone. */
export class DataRefused extends Error {
  override readonly name = 'DataRefused';
}

/** A wrong configuration: every fault at once, in plain words. The command ends with exit code 78. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';

  constructor(readonly faults: readonly string[]) {
    super(faults.join('\n'));
  }
}
