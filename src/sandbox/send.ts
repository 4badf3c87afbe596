/** Carries a task out, batch by batch: claim, deliver, settle, each committed before the next begins. */
import { type Audience, closeAudience, freezeAudience } from './audience.js';
import { type Position, readCursor, writeCursor } from './cursor.js';
import { sendsAgain } from './flaws.js';
import * as ledger from './ledger.js';
import { batchSize, type Pacer } from './pace.js';
import type { Call, Task } from './request.js';

/** The protocol's `progress`: absolute, and processed = sent + skipped + failed + unknown. */
export interface Counters {
  /** Null while nobody knows. */
  total: number | null;
  processed: number;
  sent: number;
  skipped: number;
  failed: number;
  unknown: number;
  reasons: Record<string, number>;
}

export interface Limits {
  /** Whether the work may end before its end, to go on at a cursor. */
  readonly sliced: boolean;
  /** Messages a second; null for as fast as possible. */
  readonly perSecond: number | null;
  readonly pacer: Pacer;
  /** When it fires, the batch in hand is finished and the run stops. */
  readonly signal: AbortSignal;
}

export interface Sent {
  readonly progress: Counters;
  /** Where to go on; null when nobody is left. */
  readonly cursor: string | null;
}

/** A run that cannot be sliced was told to stop. What was sent is in the ledger; the next call goes on from there. */
export class Stopped extends Error {
  override readonly name = 'Stopped';
}

/**
 * Sends until nobody is left or, sliced, until the call's share is done.
 * @throws Stopped, or what the database threw
 */
export async function send(run: ledger.Run, task: Task, limits: Limits): Promise<Sent> {
  if (run.remembers) await ledger.giveUpInterrupted(run, task.kind === 'broadcast' ? task.ledgerId : null);
  const audience = task.kind === 'broadcast' ? await freezeAudience(run, task) : null;
  const inThisCall = nothing();
  const walk = new Walk(run, task, audience, limits);
  for await (const { batch, verdicts } of walk.batches()) count(inThisCall, [...skips(batch), ...outcomes(verdicts)]);
  const progress = run.remembers ? count(nothing(), await ledger.countHandled(run, audience)) : inThisCall;
  progress.total = await totalOf(run, audience, walk.isDone, progress.processed);
  return {
    progress: await told(run, audience, progress, inThisCall),
    cursor: walk.isDone ? null : writeCursor(walk.position),
  };
}

/** Where messages go out slowly, a slice of the size that is asked for would say nothing for too long. */
const PACED_SLICE_SECONDS = 2;

/** One call's way through the people it is about. */
class Walk {
  position: Position;
  /** Whether nobody is left. */
  isDone = false;
  #left: number;
  readonly #size: number;
  readonly #endsAt: number;

  constructor(
    private readonly run: ledger.Run,
    private readonly task: Task,
    private readonly audience: Audience | null,
    private readonly limits: Limits,
  ) {
    const { flaws } = run;
    const { cursor, step, maxItems, waitSeconds } = run.call;
    const mayEnd = limits.sliced && !flaws.has('overstays');
    const start: Position = { firstStep: step, after: '0' };
    this.position = (limits.sliced && cursor !== null && readCursor(cursor)) || start;
    this.#left = limits.sliced ? maxItems + (flaws.has('too-many-items') ? 1 : 0) : Number.POSITIVE_INFINITY;
    const seconds = limits.perSecond === null ? waitSeconds : Math.min(waitSeconds, PACED_SLICE_SECONDS);
    this.#endsAt = mayEnd ? performance.now() + seconds * 1000 : Number.POSITIVE_INFINITY;
    this.#size = batchSize(limits.perSecond);
  }

  /** Yields what was sent and written down. */
  async *batches() {
    const { pacer, perSecond, signal, sliced } = this.limits;
    for (;;) {
      const size = Math.min(this.#size, this.#left, this.#limitLeft());
      this.isDone = size === 0 && this.#limitLeft() === 0;
      if (size === 0) return;
      await pacer.turn(size, perSecond, signal);
      if (signal.aborted && !sliced) throw new Stopped();
      if (signal.aborted) return;

      const startedAt = performance.now();
      const batch = await this.#claim(size);
      const people = batch.filter((person) => person.state === 'sending');
      const verdicts = await ledger.deliver(this.run, people);
      pacer.record(people.length, perSecond, startedAt, performance.now());
      // The messenger takes its time: a crash here finds rows in `sending` whose messages did arrive.
      await pacer.turn(size, perSecond, signal);
      await ledger.settle(this.run, verdicts);

      this.#moveOn(batch, size);
      yield { batch, verdicts };
      if (this.isDone || performance.now() >= this.#endsAt) return;
    }
  }

  #claim(size: number): Promise<ledger.Person[]> {
    const { run, audience, position } = this;
    if (audience === null) return ledger.claimRetries(run, size);
    const { scope } = run.call;
    return again(scope) && !run.flaws.has('ignores-scope')
      ? ledger.claimAgain(run, audience, scope, position, size)
      : ledger.claimNext(run, audience, position.after, size);
  }

  /** Past all of the batch, and no further. */
  #moveOn(batch: readonly ledger.Person[], size: number): void {
    const last = batch.at(-1)?.user_id ?? this.position.after;
    const taken = String(Number(this.position.after) + batch.length);
    this.position = { ...this.position, after: this.audience === null ? taken : last };
    this.#left -= batch.length;
    this.isDone = batch.length < size || last === this.audience?.lastUserId || this.#limitLeft() === 0;
  }

  /** A job without an audience has a limit instead, and its position is how many people it has taken. */
  #limitLeft(): number {
    return this.task.kind === 'retries'
      ? Math.max(0, this.task.limit - Number(this.position.after))
      : Number.POSITIVE_INFINITY;
  }
}

/** Whether the scope asks for people who were tried before. Nobody who got the message is in any scope. */
function again(scope: Call['scope']): scope is 'failed' | 'unknown' {
  return scope === 'failed' || scope === 'unknown';
}

/** When nobody is left, the total is who was met: people leave segments in mid-broadcast. */
async function totalOf(
  run: ledger.Run,
  audience: Audience | null,
  isDone: boolean,
  processed: number,
): Promise<number | null> {
  if (audience === null) return isDone ? processed : null;
  if (!isDone || again(run.call.scope)) return Math.max(audience.total, processed);
  if (run.remembers) await closeAudience(run, processed);
  return processed;
}

function skips(batch: readonly ledger.Person[]): ledger.CountRow[] {
  return batch
    .filter((person) => person.state === 'skipped')
    .map(({ reason }) => ({ state: 'skipped', reason, count: 1 }));
}

function outcomes(verdicts: readonly ledger.Verdict[]): ledger.CountRow[] {
  return verdicts.map(({ reason }) => ({ state: reason === null ? 'sent' : 'failed', reason, count: 1 }));
}

/** What the caller is told: where the job stands, unless a flaw has it otherwise. */
async function told(
  run: ledger.Run,
  audience: Audience | null,
  progress: Counters,
  inThisCall: Counters,
): Promise<Counters> {
  if (run.flaws.has('delta-progress')) return { ...inThisCall, total: progress.total };
  if (run.flaws.has('wrong-sum')) return { ...progress, skipped: progress.skipped + 1 };
  if (sendsAgain(run.flaws)) return count(progress, await ledger.countRepeats(run, audience));
  return progress;
}

function nothing(): Counters {
  return { total: 0, processed: 0, sent: 0, skipped: 0, failed: 0, unknown: 0, reasons: {} };
}

/** Adds to the counters. */
function count(progress: Counters, rows: readonly ledger.CountRow[]): Counters {
  for (const { state, reason, count } of rows) {
    progress[state] += count;
    progress.processed += count;
    if (reason !== null) progress.reasons[reason] = (progress.reasons[reason] ?? 0) + count;
  }
  return progress;
}
