/**
 * What the queue core asks of the world, and what it tells the world. The database answers `Store`; observe.ts and the
 * tests listen to the events. The core imports no driver, no logger and no HTTP.
 */
import type { EventEmitter } from 'node:events';
import type { Flag, Job, Progress, Step } from '../job.js';

/** A job just claimed: what its handler sees, and what only the core needs. Durations in milliseconds. */
export interface Claim {
  readonly job: Job;
  readonly leaseId: string;
  /** Whose messenger account sends it (`job_data.bot_id`): limits and gates may be the bot's own. */
  readonly bot: string | null;
  /** Never called before. */
  readonly first: boolean;
  /** Its `expires_at` passed before the first call. */
  readonly expired: boolean;
  /** Size of the payload when it was over the limit and therefore not fetched, else null. */
  readonly oversizeBytes: number | null;
  /** As last recorded. */
  readonly processed: number;
  /** Of these, people whom no message was sent to. */
  readonly skipped: number;
  readonly stalledCalls: number;
  readonly stalledForMs: number;
  /** From the moment it was due until now. */
  readonly waitedMs: number;
  /** Until its send window opens; null: it may go. Negative: it missed the only one it had. */
  readonly windowWaitMs: number | null;
  /** A limit of messages a second governs it. */
  readonly limited: boolean;
  /** Calls of this or another daemon failed lately: a success is news. */
  readonly troubled: boolean;
}

/** What becomes of a job: one value that one fenced statement applies. */
export interface Settlement {
  readonly id: string;
  readonly leaseId: string;
  readonly status: 'completed' | 'failed' | 'retry' | 'processing' | 'pending' | 'cancelled' | 'paused';
  /** Due this long after the database's now; null: not a matter of time. */
  readonly dueInMs: number | null;
  /** What happens to the count of attempts that the claim raised. */
  readonly attempts: 'keep' | 'refund' | 'reset';
  readonly errorCode: string | null;
  readonly errorMessage: string | null;
  readonly httpStatus: number | null;
  /** JSON text. */
  readonly result: string | null;
  readonly progress: Progress | null;
  /** By how much `processed` rose with this call. */
  readonly gained: number;
  /** The next step begins at this cursor; null: the step stays as it is. */
  readonly nextCursor: string | null;
  /** Where the service runs the step by itself from now on. */
  readonly operation: Step['operation'];
  readonly holdReason: string | null;
  /** With status `paused`: where a resume leads back to. */
  readonly pausedFrom: 'retry' | 'pending' | 'processing' | null;
  readonly previousFailure: string | null;
  readonly flags: readonly Flag[];
  /** No progress: one of so many such calls, or only a matter of time. */
  readonly stalled: 'call' | 'time' | null;
  /** Handed back before its first call: it has not started after all. */
  readonly unstarted: boolean;
  readonly raiseEpochAbove: number | null;
  /** The word under which the attempt is written into the history; null: the row says it all. */
  readonly record: string | null;
  readonly ranMs: number;
}

/**
 * `already`: an earlier try of this very settlement had arrived, only its answer was lost. `lost`: somebody else may hold
 * the job now; `cancelled`: nobody does.
 */
export type SettleAnswer = 'settled' | 'already' | 'lost' | 'cancelled';

export interface Worker {
  readonly id: string;
  readonly version: string;
  readonly host: string;
  readonly pid: number;
}

/** A job that the reaper took from a holder that stopped renewing. */
export interface Reaped {
  readonly jobId: string;
  readonly type: string;
  readonly status: string;
  readonly workerId: string;
}

/** Every asynchronous method is one statement with a deadline, and throws DatabaseUnavailable when the database is. */
export interface Store {
  /**
   * Claims due jobs, highest priority first, then earliest due, then lowest id.
   * @param leaseId made by the caller, so that a claim whose answer was lost can be released by its name
   * @param free free slots by queue; `others` for each queue not named
   * @param ahead how many jobs more may be claimed before there is a slot for them, where no limit and no trouble speaks
   * against it
   * @returns the jobs in that order, those for free slots first, and in how many milliseconds the next one is due (null:
   * none known). `begun`: how many of them may be called at once; for the others see `begin`. `capped`: a limit on jobs
   * at once had its say, so that a job that ends may make room for another. `only`: it went on where the last claim
   * stopped, in these queues, and looked at no other
   */
  claim(
    leaseId: string,
    free: ReadonlyMap<string, number>,
    others: number,
    ahead?: ReadonlyMap<string, number>,
  ): Promise<{
    claims: Claim[];
    begun: number;
    nextDueMs: number | null;
    capped: boolean;
    only?: ReadonlySet<string>;
  }>;
  /** Something new may be due: the next claim is to look at all queues, and at the heads of their lines. */
  lookAnew(): void;
  /**
   * So many jobs of each lease, from its first, may be called from now on: a crash costs these an attempt, and not those
   * behind them.
   * @returns which of the leases are still held
   */
  begin(begun: ReadonlyMap<string, number>): Promise<ReadonlySet<string>>;
  /**
   * Applies settlements, each only if its lease is still held, and forgets the leases named.
   * @returns an answer for each, in order
   * @throws DataRefused when the database refuses a value in one of them; then none is applied
   */
  settle(settlements: readonly Settlement[], finishedLeases: readonly string[]): Promise<SettleAnswer[]>;
  /** Says that this worker lives, renews its leases, and returns the ids of the jobs it still holds. */
  beat(leases: ReadonlyMap<string, readonly string[]>): Promise<ReadonlySet<string>>;
  /** Hands back, unstarted and free of charge, whatever these leases hold. */
  release(leaseIds: readonly string[]): Promise<number>;
  /** Takes jobs from expired leases; `nextExpiryMs` until the next known lease expires, null: none. */
  reap(): Promise<{ reaped: Reaped[]; nextExpiryMs: number | null }>;
  /** Enqueues the schedule's job for this tick, unless this tick was used or the last job still lives. */
  tick(schedule: { name: string; type: string; data: string }, tick: Date): Promise<boolean>;
  /** Strikes this worker off the list. */
  leave(): Promise<void>;
  /** Folds what changed into the totals; true when there is more to fold. */
  fold(): Promise<boolean>;
  /** An operation that began after its job was cancelled is to be ended; nothing happens if it was not cancelled. */
  abandon(jobRowId: string, operation: string): Promise<void>;
  /** Operations that are to be ended now; each comes again later, with longer pauses, until it is `ended`. */
  abandoned(): Promise<Abandoned[]>;
  ended(abandonedId: string): Promise<void>;
}

/** An operation at the service whose job was cancelled. */
export interface Abandoned {
  readonly id: string;
  readonly jobId: string;
  readonly operation: string;
  readonly tries: number;
}

/** What a limit grants one call. `no limit`: none governs it any more. `later`: ask again in so many milliseconds. */
export type GrantAnswer =
  | { kind: 'no limit' }
  | { kind: 'later'; waitMs: number }
  | {
      kind: 'granted';
      items: number;
      perSecond: number;
      /** The grant's time begins after this, and is over `lastsMs` later. */
      waitMs: number;
      lastsMs: number;
      /** Goes back with what was used. */
      receipt: string;
    };

/** A failure that says more of the service than of its job. */
export interface ServiceFailure {
  readonly claim: Claim;
  readonly code: string;
  readonly message: string;
  /** The job would be given up. */
  readonly isLast: boolean;
  /** Calls of this daemon in the last seconds, and how many of them failed so. */
  readonly calls: number;
  readonly failures: number;
}

/** Limits, gates and the breaker, shared by all daemons. Every method is one statement, as in Store. */
export interface FlowStore {
  grant(queue: string, bot: string | null, most: number): Promise<GrantAnswer>;
  /** The call has ended: what is left of its grant goes back, where nobody was granted the time after it. */
  used(receipt: string, items: number, used: number): Promise<void>;
  /** Messages a second that the limits allow now; null: no limit. Takes nothing. */
  pace(queue: string, bot: string | null): Promise<number | null>;
  /** @param key `service`, or `bot:` and the bot */
  closeGate(key: string, ms: number, reason: string): Promise<void>;
  /** @returns whether the failure costs its job nothing, and when to try again; and whether this opened the breaker */
  serviceFailed(failure: ServiceFailure): Promise<{ refund: boolean; waitMs: number; opened: boolean }>;
  /** @returns whether the breaker was open */
  serviceAnswers(): Promise<boolean>;
}

/** Everything that happens, for whoever words it. */
export interface QueueEvents {
  started: [Claim];
  completed: [Claim, Settlement];
  /** A slice or a wait: it goes on later by itself. */
  deferred: [Claim, Settlement];
  retrying: [Claim, Settlement];
  failed: [Claim, Settlement];
  cancelled: [Claim, Settlement];
  /** Nobody calls for so many milliseconds: the bot's gate, or the service's. */
  gateClosed: [key: string, ms: number, reason: string];
  /** Too many calls failed: single probes go out from now on, until one succeeds. */
  breakerOpened: [reason: string];
  breakerClosed: [];
  /** It runs, and has made no progress for so many milliseconds. */
  stuck: [Claim, ms: number];
  operationEnded: [Abandoned];
  /** The service would not end it; it is tried again later, unless this was the last time. */
  operationNotEnded: [Abandoned, error: Error];
  paused: [Claim, Settlement];
  handedBack: [Claim, Settlement];
  /** Its lease was gone: the late word was refused. */
  lost: [Claim, Settlement];
  /** It was cancelled while it was called: the late word was refused. */
  recalled: [Claim, Settlement];
  reaped: [Reaped[]];
  scheduled: [{ name: string; type: string }];
  claimed: [number];
  /** The database did not answer; `doing` says what was tried. */
  databaseDown: [doing: string, error: Error];
  databaseUp: [downMs: number];
  /** A statement failed in a way that is nobody's outage: a bug or a wrong schema. */
  fault: [doing: string, error: Error];
  draining: [active: number];
  drained: [];
}

export type Events = EventEmitter<QueueEvents>;
