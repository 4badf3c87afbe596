/**
 * Writes settlements down, many in one statement: while one statement is on its way the next batch gathers, so a lone
 * settlement waits for nothing and a flood needs few round trips. Nothing is given up while the database is away: a
 * settlement stays valid for as long as nobody else took the job, and the lease decides that, not we.
 */
import { DatabaseUnavailable, DataRefused } from '../errors.js';
import { Alarm, outagePauseMs } from './alarm.js';
import type { Leases } from './leases.js';
import type { Events, SettleAnswer, Settlement, Store } from './ports.js';

const BATCH_MAX = 200;
const NOT_KEPT = '{"not_kept":';

interface Waiting {
  readonly settlement: Settlement;
  /** null: the process ended before the database answered. */
  readonly resolve: (answer: SettleAnswer | null) => void;
}

export class Settler {
  readonly #queue: Waiting[] = [];
  readonly #nap = new Alarm();
  #flushing = false;
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
      if (!this.#flushing) void this.#flush();
    });
  }

  /** Gives up what is not written yet: those jobs are left to their leases. */
  stop(): void {
    this.#stopped = true;
    this.#nap.ring();
  }

  async #flush(): Promise<void> {
    this.#flushing = true;
    // Settlements of the same turn of the event loop go together.
    await Promise.resolve();
    while (this.#queue.length > 0) {
      const batch = this.#queue.splice(0, BATCH_MAX);
      const answers = await this.#write(batch.map(({ settlement }) => settlement));
      batch.forEach(({ settlement, resolve }, i) => {
        const answer = answers[i] ?? null;
        this.leases.forget(settlement, answer !== null);
        resolve(answer);
      });
    }
    this.#flushing = false;
  }

  async #write(batch: readonly Settlement[]): Promise<(SettleAnswer | null)[]> {
    for (let failures = 0; !this.#stopped; failures++) {
      try {
        return await this.store.settle(batch, this.leases.finishedBy(batch));
      } catch (error) {
        if (error instanceof DataRefused) return this.#isolate(batch, error);
        this.#tell(error);
        await this.#nap.sleep(outagePauseMs(failures, this.random));
      }
    }
    return batch.map(() => null);
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
    return isBare(only) || only.result?.startsWith(NOT_KEPT) ? [null] : this.#write([withoutRefused(only, error)]);
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
