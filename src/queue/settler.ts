/**
 * Writes settlements down, many in one statement: for some milliseconds after a statement has begun the next batch
 * gathers, so a lone settlement waits for nothing and a flood needs few round trips. Nothing is given up while the
 * database is away: a settlement stays valid for as long as nobody else took the job, and the lease decides that, not we.
 */
import { DatabaseUnavailable, DataRefused } from '../errors.js';
import { Alarm, outagePauseMs } from './alarm.js';
import type { Leases } from './leases.js';
import type { Events, SettleAnswer, Settlement, Store } from './ports.js';

const BATCH_MAX = 200;
/** Between the beginnings of two batches, so that a statement writes many while many are done. */
const GATHER_MS = 12;
/** Batches on their way at once. */
const UNDER_WAY_MAX = 2;
const NOT_KEPT = '{"not_kept":';

interface Waiting {
  readonly settlement: Settlement;
  /** null: the process ended before the database answered. */
  readonly resolve: (answer: SettleAnswer | null) => void;
}

export class Settler {
  readonly #queue: Waiting[] = [];
  readonly #nap = new Alarm();
  #underWay = 0;
  #begunAt = Number.NEGATIVE_INFINITY;
  #timer: NodeJS.Timeout | null = null;
  #stopped = false;

  constructor(
    private readonly store: Store,
    private readonly leases: Leases,
    private readonly events: Events,
    private readonly random: () => number,
  ) {}

  /** Resolves when the database has answered; null if `stop` came first. */
  settle(settlement: Settlement): Promise<SettleAnswer | null> {
    return new Promise((resolve) => {
      this.#queue.push({ settlement, resolve });
      this.#schedule();
    });
  }

  /** Gives up what is not written yet: those jobs are left to their leases. */
  stop(): void {
    this.#stopped = true;
    this.#nap.ring();
  }

  #schedule(): void {
    if (this.#timer !== null || this.#underWay >= UNDER_WAY_MAX) return;
    const strikesOff = this.leases.over.length > 0 && this.#underWay === 0 && !this.#stopped;
    if (this.#queue.length === 0 && !strikesOff) return;
    const waitMs = this.#queue.length >= BATCH_MAX || this.#stopped ? 0 : this.#begunAt + GATHER_MS - performance.now();
    this.#timer = setTimeout(() => {
      this.#timer = null;
      void this.#flush();
    }, waitMs);
  }

  async #flush(): Promise<void> {
    this.#begunAt = performance.now();
    this.#underWay++;
    const batch = this.#queue.splice(0, BATCH_MAX);
    const answers = await this.#write(batch.map(({ settlement }) => settlement));
    batch.forEach(({ resolve }, i) => {
      resolve(answers[i] ?? null);
    });
    this.#underWay--;
    this.#schedule();
  }

  async #write(batch: readonly Settlement[]): Promise<(SettleAnswer | null)[]> {
    for (let failures = 0; !this.#stopped; failures++) {
      try {
        const finished = this.leases.finishedBy(batch);
        const answers = await this.store.settle(batch, finished);
        for (const settlement of batch) this.leases.forget(settlement, true);
        this.leases.struckOff(finished);
        return answers;
      } catch (error) {
        if (error instanceof DataRefused) return this.#isolate(batch, error);
        this.#tell(error);
        await this.#nap.sleep(outagePauseMs(failures, this.random));
      }
    }
    return this.#leave(batch);
  }

  #leave(batch: readonly Settlement[]): null[] {
    return batch.map((settlement) => {
      this.leases.forget(settlement, false);
      return null;
    });
  }

  /** One refused value must not hold up its neighbours, nor make a sent broadcast unsent. */
  async #isolate(batch: readonly Settlement[], error: DataRefused): Promise<(SettleAnswer | null)[]> {
    const [only, ...others] = batch;
    if (!only) return [];
    if (others.length > 0) {
      const half = Math.ceil(batch.length / 2);
      return [...(await this.#write(batch.slice(0, half))), ...(await this.#write(batch.slice(half)))];
    }
    this.#tell(error);
    if (isBare(only) || only.result?.startsWith(NOT_KEPT)) return this.#leave(batch);
    return this.#write([withoutRefused(only, error)]);
  }

  #tell(error: unknown): void {
    if (error instanceof DatabaseUnavailable) this.events.emit('databaseDown', 'settling', error);
    else this.events.emit('fault', 'settling', error instanceof Error ? error : new Error(String(error)));
  }
}

/** The same settlement with nothing in it that the service chose. A refused cursor cannot be left out: that fails. */
function withoutRefused(settlement: Settlement, error: DataRefused): Settlement {
  const bare = { ...settlement, progress: null, nextCursor: null };
  if (settlement.nextCursor === null) return { ...bare, result: `${NOT_KEPT}${JSON.stringify(error.message)}}` };
  const errorMessage = `the database refuses what the service answered: ${error.message}`;
  return { ...bare, result: null, status: 'failed', dueInMs: null, errorCode: 'bad_response', errorMessage };
}

function isBare(settlement: Settlement): boolean {
  return settlement.progress === null && settlement.nextCursor === null && settlement.result === null;
}
