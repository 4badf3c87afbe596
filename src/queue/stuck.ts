/** The alarm for broadcasts that run and get nowhere. */
import type { Claim, Events } from './ports.js';

export class StuckAlarm {
  /** When each job was last told of, by our clock; oldest first. */
  readonly #told = new Map<string, number>();

  constructor(
    private readonly afterMs: number,
    private readonly events: Events,
  ) {}

  /** @param ranMs how long this call has run, or had when it ended without progress */
  look(claim: Claim, ranMs: number): void {
    const stuckMs = claim.stalledForMs + ranMs;
    const now = performance.now();
    const toldAt = this.#told.get(claim.job.id);
    if (stuckMs < this.afterMs || (toldAt !== undefined && now - toldAt < this.afterMs)) return;
    this.#told.delete(claim.job.id);
    this.#told.set(claim.job.id, now);
    for (const oldest of this.#told.keys()) {
      if (this.#told.size <= TOLD_MAX) break;
      this.#told.delete(oldest);
    }
    this.events.emit('stuck', claim, stuckMs);
  }
}

const TOLD_MAX = 1000;
