/** Keeping a pace: never more messages in any one second than allowed, spread evenly over it. */
import { setTimeout as wait } from 'node:timers/promises';

/** A little more than a second, for the time between the database's stamp and our seeing it. */
const WINDOW_MS = 1_010;
/**
 * Batches per second where there is a pace: so many that no second is more than a hundredth beside it, and fewer where
 * batches that small would take longer than their share of it.
 */
const BATCHES_PER_SECOND = 100;
const BATCHES_PER_FAST_SECOND = 40;
const FAST = 1_000;
const LARGEST_BATCH = 500;

/** What one job has sent in the last second. It outlives the call: the next slice keeps the same pace. */
export class Pacer {
  #recent: { readonly at: number; readonly messages: number }[] = [];
  #nextAt = Number.NEGATIVE_INFINITY;

  /** @param startedAt when the batch began, and `now`, by when all of it was sent: by performance.now() */
  record(messages: number, perSecond: number | null, startedAt: number, now: number): void {
    if (perSecond === null || messages === 0) return;
    this.#recent.push({ at: now, messages });
    // Timers are late and never early: what is lost to them is made up for, but no more than a batch's time.
    const lastsMs = (messages / perSecond) * 1000;
    this.#nextAt = Math.max(this.#nextAt, startedAt - lastsMs) + lastsMs;
  }

  /** Resolves when so many more messages may be sent, or as soon as the signal fires. */
  async turn(messages: number, perSecond: number | null, signal: AbortSignal): Promise<void> {
    if (perSecond === null) return;
    await pause(this.#freeAt(messages, Math.max(perSecond, 1)) - performance.now(), signal);
  }

  /** True when it has nothing to remember any more. */
  isIdle(now: number): boolean {
    return this.#nextAt < now && this.#recent.every(({ at }) => at + WINDOW_MS < now);
  }

  #freeAt(messages: number, perSecond: number): number {
    const now = performance.now();
    this.#recent = this.#recent.filter(({ at }) => at + WINDOW_MS >= now);
    let sum = this.#recent.reduce((total, batch) => total + batch.messages, messages);
    let freeAt = this.#nextAt;
    for (const batch of this.#recent) {
      if (sum <= perSecond) break;
      sum -= batch.messages;
      freeAt = Math.max(freeAt, batch.at + WINDOW_MS);
    }
    return freeAt;
  }
}

/** People per batch. */
export function batchSize(perSecond: number | null): number {
  if (perSecond === null) return LARGEST_BATCH;
  const batches = perSecond > FAST ? BATCHES_PER_FAST_SECOND : BATCHES_PER_SECOND;
  return Math.min(LARGEST_BATCH, Math.max(1, Math.floor(perSecond / batches)));
}

/** Resolves after `ms`, or as soon as the signal fires. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (ms <= 0) return;
  await wait(ms, undefined, { signal }).catch(() => {}); // It rejects only when the signal fires.
}
