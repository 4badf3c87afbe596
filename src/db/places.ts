/**
 * Where the last claim left each queue's line. While jobs are claimed ahead the next claim goes on there, and only now
 * and then looks at everything: that is dear where many dead entries stand before the living ones, so it gets a tenth of
 * the time at most. A job that comes to stand further ahead meanwhile waits so much longer, unless a notification says
 * that it is there.
 */

/** Priority, time due and id of the last job claimed. */
type Place = readonly [priority: number, dueAt: string, id: string];

/** As the claim tells it. */
export type Left = readonly [queue: string, ...Place];

type Counts = ReadonlyMap<string, number>;

const WHOLE_EVERY_MS = 100;
/** In multiples of what the last whole claim took. */
const PAUSE_AFTER_WHOLE = 9;
const PAUSE_BEFORE_NOTIFIED = 3;

export class Places {
  readonly #places = new Map<string, Place>();
  #wholeAt = Number.NEGATIVE_INFINITY;
  #wholeMs = 0;
  #isAnew = false;

  /** Something new may be due: the next claim looks at everything, if the last that did was not a moment ago. */
  lookAnew(): void {
    this.#isAnew = true;
  }

  /** For how long, in milliseconds, claims go on where they were; 0: the next one looks at everything. */
  wholeInMs(now: number): number {
    const pause = this.#isAnew
      ? PAUSE_BEFORE_NOTIFIED * this.#wholeMs
      : Math.max(WHOLE_EVERY_MS, PAUSE_AFTER_WHOLE * this.#wholeMs);
    return Math.max(this.#wholeAt + pause - now, 0);
  }

  /**
   * @param ahead how many jobs of which queues are to be claimed ahead
   * @returns these queues' places; null: look at everything
   */
  of(ahead: Counts, now: number): readonly Left[] | null {
    if (ahead.size === 0 || this.wholeInMs(now) === 0) return null;
    const left: Left[] = [];
    for (const queue of ahead.keys()) {
      const place = this.#places.get(queue);
      if (!place) return null;
      left.push([queue, ...place]);
    }
    return left;
  }

  /** A claim looked at everything. */
  noteWhole(left: readonly Left[], beganAt: number, now: number): void {
    this.#isAnew = false;
    this.#wholeAt = now;
    this.#wholeMs = now - beganAt;
    this.#places.clear();
    for (const [queue, ...place] of left) this.#places.set(queue, place);
  }

  /** A claim went on. Where it found less than it asked for, the line may go on elsewhere. */
  noteFurther(left: readonly Left[], foundAll: boolean): void {
    for (const [queue, ...place] of left) this.#places.set(queue, place);
    if (!foundAll) this.#wholeAt = Number.NEGATIVE_INFINITY;
  }
}
