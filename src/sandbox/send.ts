/** Carries a task out, batch by batch: claim, deliver, settle, each committed before the next begins. */
import { setTimeout as wait } from 'node:timers/promises';
import * as ledger from './ledger.js';
import type { Task } from './request.js';

/** The protocol's `progress`: absolute, and processed = sent + skipped + failed + unknown. */
export interface Counters {
  total: number;
  processed: number;
  sent: number;
  skipped: number;
  failed: number;
  unknown: number;
  reasons: Record<string, number>;
}

export interface Pace {
  /** Messages a second; null for as fast as possible. */
  readonly perSecond: number | null;
  /** When it fires, the batch in hand is finished and the run stops. */
  readonly signal: AbortSignal;
}

/** The run was told to stop. What was sent is in the ledger; the next call of the job goes on from there. */
export class Stopped extends Error {
  override readonly name = 'Stopped';
}

/** People per batch. Smaller when paced, so that a slow broadcast moves several times a second. */
const BATCH_SIZE = 500;
const PACED_BATCHES_PER_SECOND = 4;

/**
 * Sends until nobody is left.
 * @returns the job's absolute counters: with `total` equal to `processed`, for nobody is left
 * @throws Stopped, or what the database threw
 */
export async function send(run: ledger.Run, task: Task, pace: Pace): Promise<Counters> {
  if (run.remembers) await ledger.giveUpInterrupted(run, task.kind === 'broadcast' ? task.broadcastId : null);
  const audience =
    task.kind === 'broadcast'
      ? { broadcastId: task.broadcastId, segment: task.segment, lastUserId: await ledger.lastUserId(run) }
      : null;
  const size = batchSize(pace);
  const batches = audience ? audienceBatches(run, audience, size) : retryBatches(run, limitOf(task), size);

  const progress: Counters = { total: 0, processed: 0, sent: 0, skipped: 0, failed: 0, unknown: 0, reasons: {} };
  const start = performance.now();
  let messages = 0;
  for await (const batch of batches) {
    const people = batch.filter((person) => person.state === 'sending');
    const verdicts = await ledger.deliver(run, people);
    messages += people.length;
    // The messenger takes its time: a crash here finds rows in `sending` whose messages did arrive.
    await untilDue(start, messages, pace);
    await ledger.settle(run, verdicts);
    if (!run.remembers) count(progress, [...skips(batch), ...outcomes(verdicts)]);
    if (pace.signal.aborted) throw new Stopped();
  }
  if (run.remembers) count(progress, await ledger.countHandled(run, audience));
  return progress;
}

/** Resolves after `ms`, or as soon as the signal fires. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await wait(ms, undefined, { signal }).catch(() => {}); // It rejects only when the signal fires.
}

function batchSize({ perSecond }: Pace): number {
  if (perSecond === null) return BATCH_SIZE;
  return Math.min(BATCH_SIZE, Math.max(1, Math.floor(perSecond / PACED_BATCHES_PER_SECOND)));
}

function limitOf(task: Task): number {
  return task.kind === 'retries' ? task.limit : Number.POSITIVE_INFINITY;
}

async function* audienceBatches(run: ledger.Run, audience: ledger.Audience, size: number) {
  let after = '0';
  for (;;) {
    const batch = await ledger.claimNext(run, audience, after, size);
    const last = batch.at(-1);
    if (last === undefined) return;
    after = last.user_id;
    yield batch;
  }
}

async function* retryBatches(run: ledger.Run, limit: number, size: number) {
  for (let left = limit; left > 0; ) {
    const batch = await ledger.claimRetries(run, Math.min(left, size));
    if (batch.length === 0) return;
    left -= batch.length;
    yield batch;
  }
}

async function untilDue(start: number, messages: number, { perSecond, signal }: Pace): Promise<void> {
  if (perSecond === null) return;
  const early = start + (messages / perSecond) * 1000 - performance.now();
  if (early > 0) await pause(early, signal);
}

function skips(batch: readonly ledger.Person[]): ledger.CountRow[] {
  return batch
    .filter((person) => person.state === 'skipped')
    .map(({ reason }) => ({ state: 'skipped', reason, count: 1 }));
}

function outcomes(verdicts: readonly ledger.Verdict[]): ledger.CountRow[] {
  return verdicts.map(({ reason }) => ({ state: reason === null ? 'sent' : 'failed', reason, count: 1 }));
}

function count(progress: Counters, rows: readonly ledger.CountRow[]): void {
  for (const { state, reason, count } of rows) {
    progress[state] += count;
    progress.processed += count;
    progress.total += count;
    if (reason !== null) progress.reasons[reason] = (progress.reasons[reason] ?? 0) + count;
  }
}
