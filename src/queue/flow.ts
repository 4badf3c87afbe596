/**
 * How fast, and whether at all: what stands between a handler and the service. A call that a limit governs waits for its
 * grant here; an answer that asks for patience closes a gate for every daemon; and failures that say more of the service
 * than of their job are told to the breaker, which says what they cost. The claim leaves alone what could not be called
 * now, so only what turns out between claim and call is met here.
 */
import { DatabaseUnavailable, Interrupted, PermanentError, TransientError } from '../errors.js';
import type { BroadcastService, Grant, Job, Outcome } from '../job.js';
import { Alarm } from './alarm.js';
import { later } from './backoff.js';
import type { Claim, Events, FlowStore, GrantAnswer } from './ports.js';

/** The service, told how much a call may do. */
export interface GrantedService {
  call(job: Job, signal: AbortSignal, grant: Grant | null): Promise<Outcome>;
}

export interface FlowSettings {
  /** Recipients of one call at most, whatever a limit would grant. */
  readonly maxItems: number;
  /** For how long a call that no limit governs may go on, in seconds. */
  readonly waitSeconds: number;
  /** How long nobody calls after a 429 that does not say. */
  readonly baseDelayMs: number;
  readonly random: () => number;
}

/** `beginsAt` is on this process's monotonic clock. */
type Granted = Extract<GrantAnswer, { kind: 'granted' }> & { readonly beginsAt: number };

export class Flow {
  /** Calls that wait for their grant. */
  readonly #waiting = new Set<Alarm>();
  readonly #recent = new RecentCalls();
  /** A failure was told to the breaker since the last success. */
  #troubled = false;

  constructor(
    private readonly store: FlowStore,
    private readonly service: GrantedService,
    private readonly events: Events,
    private readonly settings: FlowSettings,
  ) {}

  /** The service as one claimed job may call it. */
  serving(claim: Claim): BroadcastService {
    return { call: (job, signal) => this.#call(claim, job, signal) };
  }

  /** A limit may have changed, or something was given back. */
  wake(): void {
    for (const alarm of this.#waiting) alarm.ring();
  }

  async #call(claim: Claim, job: Job, signal: AbortSignal): Promise<Outcome> {
    // An operation runs at its own pace: the grant went with the call that began it.
    if (!claim.limited || job.step.operation !== null) return this.#watched(claim, job, signal, null);
    if (job.dryRun) return this.#estimated(claim, job, signal);
    const grant = await this.#granted(claim, signal);
    if (grant === null) return this.#watched(claim, job, signal, null);
    if (grant.kind === 'later') {
      return { kind: 'wait', reason: 'waiting for its turn under the limit', delayMs: grant.waitMs };
    }
    return this.#keptTo(grant, claim, job, signal);
  }

  /** The service's answer, and what it says of the service. */
  async #watched(claim: Claim, job: Job, signal: AbortSignal, grant: Grant | null): Promise<Outcome> {
    try {
      const outcome = await this.service.call(job, signal, grant);
      this.#recent.add(false);
      await this.#succeeded(claim);
      return outcome;
    } catch (error) {
      throw await this.#judged(claim, error);
    }
  }

  /** Asks for a grant until there is one, or the slot would be held for too long. */
  async #granted(claim: Claim, signal: AbortSignal): Promise<Granted | { kind: 'later'; waitMs: number } | null> {
    const { queue } = claim.job;
    const patientUntil = performance.now() + PATIENCE_MS;
    while (true) {
      const answer = await this.store.grant(queue, claim.bot, this.settings.maxItems);
      if (answer.kind === 'no limit') return null;
      if (answer.kind === 'granted') {
        const granted = { ...answer, beginsAt: performance.now() + answer.waitMs };
        if (await this.#slept(answer.waitMs, signal, false)) return granted;
        await this.#report(granted, 0);
        throw interrupted(signal);
      }
      if (performance.now() + answer.waitMs > patientUntil) return answer;
      if (!(await this.#slept(answer.waitMs, signal, true))) throw interrupted(signal);
    }
  }

  /** One call within its grant: what it does not use goes back. */
  async #keptTo(granted: Granted, claim: Claim, job: Job, signal: AbortSignal): Promise<Outcome> {
    let used = granted.items;
    try {
      const { items, perSecond } = granted;
      // Whoever comes late does less, so that it is done when the next one begins.
      const lateMs = performance.now() - granted.beginsAt;
      const maxItems = lateMs < PUNCTUAL_MS ? items : Math.max(Math.floor(items - (lateMs / 1000) * perSecond), 1);
      const outcome = await this.#watched(claim, job, signal, { maxItems, perSecond, waitSeconds: LIMITED_WAIT_S });
      used = messagesOf(outcome, claim) ?? used;
      return outcome;
    } catch (error) {
      if (didNothing(error)) used = 0;
      throw error;
    } finally {
      await this.#report(granted, used);
    }
  }

  /** What is left goes back, and whoever waits for this call to end goes on. */
  async #report({ receipt, items }: Granted, used: number): Promise<void> {
    // Where the database is away the rest is lost: that is the safe side.
    await this.#told(() => this.store.used(receipt, items, used));
  }

  /** A dry run takes nothing from the limit, and says how long the real thing would take under it. */
  async #estimated(claim: Claim, job: Job, signal: AbortSignal): Promise<Outcome> {
    const perSecond = await this.store.pace(job.queue, claim.bot);
    const { maxItems, waitSeconds } = this.settings;
    const grant = perSecond === null ? null : { maxItems, perSecond, waitSeconds };
    const outcome = await this.#watched(claim, job, signal, grant);
    if (outcome.kind !== 'done' || perSecond === null) return outcome;
    return { ...outcome, result: withEstimate(outcome.result, perSecond) };
  }

  async #succeeded(claim: Claim): Promise<void> {
    if (!claim.troubled && !this.#troubled) return;
    this.#troubled = false;
    if (await this.#told(() => this.store.serviceAnswers())) this.events.emit('breakerClosed');
  }

  /** What a failure says of the service is told to all daemons, and what it costs the job is said in the error. */
  async #judged(claim: Claim, error: unknown): Promise<unknown> {
    if (error instanceof TransientError && error.code === 'throttled') return this.#throttled(claim, error);
    const speaksOfService = error instanceof TransientError && OUTAGE_CODES.has(error.code);
    if (speaksOfService) {
      this.#recent.add(true);
      return this.#outage(claim, error);
    }
    if (isAlive(error)) {
      this.#recent.add(false);
      await this.#succeeded(claim);
    }
    return error;
  }

  async #throttled(claim: Claim, error: TransientError): Promise<TransientError> {
    const key = claim.bot === null ? 'service' : `bot:${claim.bot}`;
    const ms = later(error.retryAfterMs ?? this.settings.baseDelayMs, this.settings.random);
    const told = await this.#told(async () => {
      await this.store.closeGate(key, ms, error.message);
      return true;
    });
    if (told) this.events.emit('gateClosed', key, ms, error.message);
    return new TransientError(error.message, { ...error, retryAfterMs: ms });
  }

  async #outage(claim: Claim, error: TransientError): Promise<TransientError> {
    this.#troubled = true;
    const { attempt, maxAttempts } = claim.job;
    const isLast = error.cost === 'attempt' && attempt >= Math.min(maxAttempts, error.attemptLimit ?? maxAttempts);
    const { code, message } = error;
    const verdict = await this.#told(() =>
      this.store.serviceFailed({ claim, code, message, isLast, ...this.#recent.counts() }),
    );
    if (verdict?.opened) this.events.emit('breakerOpened', message);
    if (!verdict?.refund) return error;
    return new TransientError(message, { ...error, cost: 'free', retryAfterMs: verdict.waitMs });
  }

  /** What cannot be told because the database is away is not worth failing a call for. */
  async #told<T>(tell: () => Promise<T>): Promise<T | null> {
    try {
      return await tell();
    } catch (error) {
      if (error instanceof DatabaseUnavailable) this.events.emit('databaseDown', 'keeping to the limits', error);
      else
        this.events.emit('fault', 'keeping to the limits', error instanceof Error ? error : new Error(String(error)));
      return null;
    }
  }

  /** @returns false when the signal was aborted meanwhile */
  async #slept(ms: number, signal: AbortSignal, mayWake: boolean): Promise<boolean> {
    if (signal.aborted) return false;
    const alarm = new Alarm();
    const onAbort = () => alarm.ring();
    signal.addEventListener('abort', onAbort);
    if (mayWake) this.#waiting.add(alarm);
    await alarm.sleep(ms);
    this.#waiting.delete(alarm);
    signal.removeEventListener('abort', onAbort);
    return !signal.aborted;
  }
}

/** So long a call may wait for its grant in its slot; after that the slot is another's. */
const PATIENCE_MS = 2_000;
/** A call that begins within this is in time. */
const PUNCTUAL_MS = 10;
/** A limited slice ends by itself soon after its grant's time. */
const LIMITED_WAIT_S = 2;

/** Failures that count for the breaker (sql/004_flow.sql names the same). */
const OUTAGE_CODES = new Set([
  ...['connection_refused', 'dns', 'tls', 'connection_lost', 'timeout', 'unauthorized'],
  ...['http_502', 'http_503', 'http_504'],
]);

/** Answers that a proxy or a login page may have given, and the service's own that say nothing either way. */
const SAYS_NOTHING = new Set(['bad_route', 'bad_response', 'http_404', 'http_405']);

/** The service itself answered, though not as wished. */
function isAlive(error: unknown): boolean {
  if (!(error instanceof TransientError || error instanceof PermanentError)) return false;
  return error.httpStatus !== undefined && error.code !== 'unauthorized' && !SAYS_NOTHING.has(error.code);
}

function didNothing(error: unknown): boolean {
  if (error instanceof Interrupted) return !error.requestWritten;
  return error instanceof TransientError && error.cost === 'never_last';
}

/** How many messages a call sent, by its counters; null: it does not say. Who is skipped costs nothing. */
function messagesOf(outcome: Outcome, claim: Claim): number | null {
  if (outcome.kind === 'hold' && outcome.progress === undefined) return 0;
  if (!('progress' in outcome) || outcome.progress === undefined || outcome.progress === null) return null;
  const { processed, skipped = 0 } = outcome.progress;
  return Math.max(processed - claim.processed - Math.max(skipped - claim.skipped, 0), 0);
}

/** @param result JSON text */
function withEstimate(result: string | null, perSecond: number): string | null {
  if (result === null || !result.startsWith('{')) return result;
  const { audience, estimated_seconds } = JSON.parse(result) as { audience?: unknown; estimated_seconds?: unknown };
  if (typeof audience !== 'number' || typeof estimated_seconds === 'number') return result;
  return `${result.slice(0, -1)},"estimated_seconds":${Math.ceil(audience / perSecond)}}`;
}

function interrupted(signal: AbortSignal): Interrupted {
  return new Interrupted(signal.reason === 'shutdown' ? 'shutdown' : 'lease_lost', false);
}

/** Calls of the last ten seconds, by the second. */
class RecentCalls {
  readonly #seconds = new Map<number, { calls: number; failures: number }>();

  add(failed: boolean): void {
    const now = Math.floor(performance.now() / 1000);
    for (const second of this.#seconds.keys()) {
      if (second > now - 10) break;
      this.#seconds.delete(second);
    }
    const count = this.#seconds.get(now) ?? { calls: 0, failures: 0 };
    count.calls++;
    if (failed) count.failures++;
    this.#seconds.set(now, count);
  }

  counts(): { calls: number; failures: number } {
    const sum = { calls: 0, failures: 0 };
    for (const { calls, failures } of this.#seconds.values()) {
      sum.calls += calls;
      sum.failures += failures;
    }
    return sum;
  }
}
