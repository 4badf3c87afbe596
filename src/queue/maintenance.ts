/**
 * What keeps the queue well beside the worker: the reaper, which takes jobs from workers that stopped renewing; the
 * schedules; and the ending of operations whose job was cancelled. Any replica does each; the database lets one through.
 */
import cron, { type ScheduledTask } from 'node-cron';
import { DatabaseUnavailable } from '../errors.js';
import { Alarm, outagePauseMs } from './alarm.js';
import type { Abandoned, Events, Store } from './ports.js';
import type { QueueWorker } from './worker.js';

/** A job that is enqueued at each tick of a cron expression. `data` is JSON text. */
export interface Schedule {
  readonly name: string;
  readonly cron: string;
  readonly type: string;
  readonly data: string;
}

export interface MaintenanceSettings {
  readonly leaseMs: number;
  readonly schedules: readonly Schedule[];
  readonly timezone: string;
  readonly random: () => number;
}

/** The service, as far as it is told to end what it runs by itself. */
export interface OperationEnder {
  /** @throws TransientError, or Interrupted when `signal` was aborted */
  abandon(operation: string, jobId: string, signal: AbortSignal): Promise<void>;
}

export class Maintenance {
  readonly #reapAlarm = new Alarm();
  readonly #endAlarm = new Alarm();
  readonly #stop = new AbortController();
  #foldAt = 0;
  readonly #tasks: ScheduledTask[] = [];
  #loops: Promise<unknown> = Promise.resolve();
  #stopping = false;

  constructor(
    private readonly store: Store,
    private readonly events: Events,
    private readonly settings: MaintenanceSettings,
    private readonly worker: Pick<QueueWorker, 'wake' | 'answeredForMs'>,
    private readonly service: OperationEnder,
  ) {}

  start(): void {
    this.#loops = Promise.all([this.#keepReaping(), this.#keepEnding()]);
    for (const schedule of this.settings.schedules) {
      const tick = (at: Date) => this.#tick(schedule, at);
      this.#tasks.push(cron.schedule(schedule.cron, ({ date }) => tick(date), { timezone: this.settings.timezone }));
    }
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#stop.abort('shutdown');
    this.#reapAlarm.ring();
    this.#endAlarm.ring();
    await Promise.all(this.#tasks.map((task) => task.destroy()));
    await this.#loops;
  }

  /** Jobs were cancelled: some of them may run at the service. */
  recheck(): void {
    this.#endAlarm.ring();
  }

  /**
   * No lease can expire before the earliest one that was seen, or one that began just after we looked; so the reaper
   * sleeps until then instead of asking all the time.
   */
  async #keepReaping(): Promise<void> {
    let failures = 0;
    while (!this.#stopping) {
      try {
        // While the database was away nobody could renew: the holders get a lease's time to do so before we judge.
        const patience = this.settings.leaseMs - this.worker.answeredForMs;
        if (patience > 0) {
          await this.#reapAlarm.sleep(patience);
          continue;
        }
        const { reaped, nextExpiryMs } = await this.store.reap();
        failures = 0;
        await this.#foldIfTime();
        if (reaped.length > 0) {
          this.events.emit('reaped', reaped);
          this.worker.wake();
        }
        const soonest = Math.min(
          nextExpiryMs ?? Number.POSITIVE_INFINITY,
          this.settings.leaseMs,
          REAP_AT_LEAST_EVERY_MS,
        );
        await this.#reapAlarm.sleep(Math.max(soonest, 0) + 5);
      } catch (error) {
        this.#failed('reaping', error);
        await this.#reapAlarm.sleep(outagePauseMs(failures++, this.settings.random));
      }
    }
  }

  async #foldIfTime(): Promise<void> {
    const now = performance.now();
    if (now < this.#foldAt) return;
    this.#foldAt = now + FOLD_EVERY_MS * (0.9 + 0.2 * this.settings.random());
    for (let more = true; more && !this.#stopping; ) more = await this.store.fold();
  }

  async #keepEnding(): Promise<void> {
    while (!this.#stopping) {
      try {
        const abandoned = await this.store.abandoned();
        await Promise.all(abandoned.map((each) => this.#end(each)));
      } catch (error) {
        this.#failed('ending operations', error);
      }
      await this.#endAlarm.sleep(END_EVERY_MS * (0.9 + 0.2 * this.settings.random()));
    }
  }

  async #end(abandoned: Abandoned): Promise<void> {
    try {
      await this.service.abandon(abandoned.operation, abandoned.jobId, this.#stop.signal);
    } catch (error) {
      if (this.#stopping) return;
      this.events.emit('operationNotEnded', abandoned, error instanceof Error ? error : new Error(String(error)));
      return;
    }
    await this.store.ended(abandoned.id);
    this.events.emit('operationEnded', abandoned);
  }

  async #tick(schedule: Schedule, at: Date): Promise<void> {
    try {
      const nominal = new Date(Math.floor(at.getTime() / 1000) * 1000);
      if (await this.store.tick(schedule, nominal)) {
        this.events.emit('scheduled', { name: schedule.name, type: schedule.type });
        this.worker.wake();
      }
    } catch (error) {
      // The next tick comes; a missed one is not made up for.
      this.#failed(`enqueueing the schedule ${schedule.name}`, error);
    }
  }

  #failed(doing: string, error: unknown): void {
    if (error instanceof DatabaseUnavailable) this.events.emit('databaseDown', doing, error);
    else this.events.emit('fault', doing, error instanceof Error ? error : new Error(String(error)));
  }
}

/** Unfolded differences cost whoever reads the totals, a little. */
const FOLD_EVERY_MS = 10_000;

/** A cancel rings; this is for what it could not end at once. */
const END_EVERY_MS = 30_000;

/** Other daemons may run with shorter leases than ours. */
const REAP_AT_LEAST_EVERY_MS = 10_000;
