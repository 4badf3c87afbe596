/**
 * A sleep that can be cut short. A ring while nobody sleeps is remembered, so that a wake between "nothing to do" and
 * "go to sleep" is never lost.
 */
export class Alarm {
  #rung = false;
  #wake: (() => void) | null = null;

  ring(): void {
    this.#rung = true;
    this.#wake?.();
  }

  /** Resolves after `ms` (Infinity: only by a ring), or at once if it rang since the last sleep ended. */
  async sleep(ms: number): Promise<void> {
    if (!this.#rung) {
      await new Promise<void>((resolve) => {
        const timer = Number.isFinite(ms) ? setTimeout(resolve, Math.min(Math.max(ms, 0), TIMER_MAX_MS)) : null;
        this.#wake = () => {
          if (timer) clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#wake = null;
    this.#rung = false;
  }
}

/** Node's timers overflow beyond 2^31 − 1 ms and would fire at once. */
const TIMER_MAX_MS = 2_147_483_647;

/** Pauses between tries of a statement that the database did not answer: from 50 ms, doubling, to 1 s; jittered. */
export function outagePauseMs(failures: number, random: () => number): number {
  return Math.min(50 * 2 ** failures, 1000) * (0.5 + random() / 2);
}
