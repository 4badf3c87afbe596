/**
 * The worker: keeps its slots busy. It sleeps until a notification, the moment the next job is due, a freed slot or the
 * poll wakes it; claims as many jobs as it has an appetite for (slots.ts); runs each through attempt and decide; and has
 * the settlement written. Beside that the heartbeat keeps its leases.
 */
import { randomUUID } from 'node:crypto';
import { DatabaseUnavailable, Interrupted } from '../errors.js';
import type { Ports } from '../job.js';
import { Alarm, outagePauseMs } from './alarm.js';
import { attempt, type Registry } from './attempt.js';
import { decide, type Policy } from './decide.js';
import { Leases } from './leases.js';
import type { Claim, Events, SettleAnswer, Settlement, Store } from './ports.js';
import { Settler } from './settler.js';
import { type Appetite, type SlotSettings, Slots } from './slots.js';
import { StuckAlarm } from './stuck.js';

export interface WorkerSettings {
  /** Slots of this process. */
  readonly slots: SlotSettings;
  readonly leaseMs: number;
  readonly pollIntervalMs: number;
  readonly policy: Policy;
  /** After so long without progress a running job is told of as stuck, and again each time as long again. */
  readonly stuckAfterMs: number;
  readonly random: () => number;
}

export class QueueWorker {
  readonly #leases: Leases;
  readonly #settler: Settler;
  readonly #claimAlarm = new Alarm();
  readonly #beatAlarm = new Alarm();
  readonly #idle = new Alarm();
  readonly #slots: Slots;
  /** The running ones, and since when. */
  readonly #running = new Map<Claim, number>();
  readonly #stuck: StuckAlarm;
  readonly #mayBegin = (claim: Claim) => this.#leases.mayBegin(claim);
  /** Leases of claims whose answer was lost: they may hold jobs that nobody runs. */
  readonly #doubtful: string[] = [];
  #loops: Promise<unknown> = Promise.resolve();
  #stopping = false;
  #isTellingBegun = false;
  #beating = true;
  #downSince: number | null = null;
  #upSince = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly store: Store,
    private readonly registry: Registry,
    private readonly portsFor: (claim: Claim) => Ports,
    private readonly events: Events,
    private readonly settings: WorkerSettings,
  ) {
    this.#leases = new Leases(settings.leaseMs);
    this.#slots = new Slots(settings.slots);
    this.#stuck = new StuckAlarm(settings.stuckAfterMs, events);
    this.#settler = new Settler(store, this.#leases, events, settings.random);
  }

  start(): void {
    this.#loops = Promise.all([this.#keepClaiming(), this.#keepBeating()]);
  }

  /** Something may be due. */
  wake(): void {
    this.store.lookAnew();
    this.#claimAlarm.ring();
  }

  /**
   * Somebody may have taken back what we hold, or closed what it waits for: a heartbeat now, instead of at its time, tells,
   * and what has not begun takes its place in line again.
   */
  recheck(): void {
    this.#handBack(this.#slots.withdraw());
    if (this.activeJobs > 0) this.#beatAlarm.ring();
  }

  get activeJobs(): number {
    return this.#slots.active;
  }

  activeIn(queue: string): number {
    return this.#slots.activeIn(queue);
  }

  /** For how long the database has not answered, in milliseconds; 0: it does. */
  get databaseDownMs(): number {
    return this.#downSince === null ? 0 : performance.now() - this.#downSince;
  }

  /** For how long the database has answered without a break, in milliseconds; Infinity: it always has. */
  get answeredForMs(): number {
    return this.#downSince === null ? performance.now() - this.#upSince : 0;
  }

  /**
   * Stops claiming, lets running jobs finish for `graceMs`, then cuts the others short and hands them back. What cannot
   * be written within `settleMs` after that is left to its lease.
   */
  async stop(graceMs: number, settleMs = 3000): Promise<void> {
    this.#stopping = true;
    this.#claimAlarm.ring();
    this.#handBack(this.#slots.withdraw());
    this.events.emit('draining', this.activeJobs);
    await this.#idleWithin(graceMs);
    this.#leases.abortAll('shutdown');
    await this.#idleWithin(settleMs);
    this.#settler.stop();
    this.#beating = false;
    this.#beatAlarm.ring();
    await this.#loops;
    await this.#lastWord();
    this.events.emit('drained');
  }

  async #keepClaiming(): Promise<void> {
    let failures = 0;
    while (!this.#stopping) {
      try {
        const napMs = await this.#claim();
        failures = 0;
        await this.#claimAlarm.sleep(napMs);
      } catch (error) {
        this.#failed('claiming', error);
        // A ring does not shorten this pause: an outage is no reason to hammer.
        await new Alarm().sleep(outagePauseMs(failures++, this.settings.random));
      }
    }
  }

  /** Claims once, begins what it got, and says how long to sleep. */
  async #claim(): Promise<number> {
    const appetite = this.#slots.appetite();
    if (appetite === null) return Number.POSITIVE_INFINITY;
    if (this.#doubtful.length > 0) {
      await this.store.release(this.#doubtful);
      this.#doubtful.length = 0;
    }
    const leaseId = randomUUID();
    const askedAt = performance.now();
    const answer = await this.#ask(leaseId, appetite);
    this.#answered();
    if (this.#stopping) {
      // It was on its way when the word to stop came: handed back, before any of it has begun.
      if (answer.claims.length > 0) await this.store.release([leaseId]).catch(() => this.#doubtful.push(leaseId));
      return 0;
    }
    this.#slots.add(answer.claims, appetite, answer.capped, answer.only);
    if (answer.claims.length > 0) {
      this.#leases.add(leaseId, answer.claims, askedAt, answer.begun);
      this.events.emit('claimed', answer.claims.length);
      this.#begin();
    }
    const poll = this.settings.pollIntervalMs * (0.9 + 0.2 * this.settings.random());
    return Math.min(poll, answer.nextDueMs === null ? poll : Math.ceil(answer.nextDueMs));
  }

  async #ask(leaseId: string, { free, ahead }: Appetite): Promise<Awaited<ReturnType<Store['claim']>>> {
    try {
      return await this.store.claim(leaseId, free, this.settings.slots.others, ahead);
    } catch (error) {
      this.#doubtful.push(leaseId);
      throw error;
    }
  }

  /** Begins what has a slot, and sees to it that what comes next may begin. */
  #begin(): void {
    for (const claim of this.#slots.begin(this.#mayBegin)) void this.#run(claim);
    if (!this.#isTellingBegun && this.#slots.isHeldUp(this.#mayBegin)) void this.#tellBegun();
  }

  async #tellBegun(): Promise<void> {
    this.#isTellingBegun = true;
    for (let failures = 0; !this.#stopping; ) {
      if (!this.#slots.isHeldUp(this.#mayBegin)) break;
      const told = this.#leases.unbegun(this.#slots.imminent());
      try {
        this.#leases.begin(told, await this.store.begin(told));
        failures = 0;
        for (const claim of this.#slots.begin(this.#mayBegin)) void this.#run(claim);
      } catch (error) {
        this.#failed('beginning jobs', error);
        await new Alarm().sleep(outagePauseMs(failures++, this.settings.random));
      }
    }
    this.#isTellingBegun = false;
  }

  async #run(claim: Claim): Promise<void> {
    const { queue } = claim.job;
    this.events.emit('started', claim);
    const startedAt = performance.now();
    this.#running.set(claim, startedAt);
    const result = await attempt(claim, this.registry, this.portsFor, this.#leases);
    const ranMs = performance.now() - startedAt;
    const settlement = decide(claim, result, ranMs, this.settings.policy, this.settings.random);
    if (settlement.stalled !== null) this.#stuck.look(claim, ranMs);
    this.#running.delete(claim);
    if (this.#slots.end(queue)) this.#claimAlarm.ring();
    // Whatever asks for patience may ask it of those behind as well: they take their place in line again.
    if (settlement.dueInMs !== null) this.#handBack(this.#slots.withdraw(queue));
    const written = this.#write(claim, settlement);
    this.#begin();
    this.#tell(claim, settlement, await written);
  }

  async #write({ job: { queue } }: Claim, settlement: Settlement): Promise<SettleAnswer | null> {
    const answer = await this.#settler.settle(settlement);
    this.#slots.settled(queue);
    if (this.#slots.active === 0) this.#idle.ring();
    this.#begin();
    return answer;
  }

  /** Claimed, and never begun. */
  #handBack(claims: readonly Claim[]): void {
    for (const claim of claims) {
      const unbegun = new Interrupted('shutdown', false);
      void this.#write(claim, decide(claim, unbegun, 0, this.settings.policy, this.settings.random));
    }
  }

  #tell(claim: Claim, settlement: Settlement, answer: SettleAnswer | null): void {
    if (answer === null) return;
    if (answer === 'lost' || answer === 'cancelled') {
      this.events.emit(answer === 'lost' ? 'lost' : 'recalled', claim, settlement);
      const { operation } = settlement;
      if (operation !== null && operation !== claim.job.step.operation) void this.#abandon(claim, operation);
      return;
    }
    const name = WORD_FOR[settlement.status];
    this.events.emit(
      settlement.status === 'retry' && settlement.errorCode === null ? 'deferred' : name,
      claim,
      settlement,
    );
    // What is due before the next poll is claimed on time.
    if (settlement.dueInMs !== null && settlement.dueInMs < this.settings.pollIntervalMs) this.wake();
  }

  /** It may have been lost by a cancel, which had older operations ended, but could not know of one just begun. */
  async #abandon(claim: Claim, operation: string): Promise<void> {
    try {
      await this.store.abandon(claim.job.id, operation);
    } catch (error) {
      this.#failed('abandoning an operation', error);
    }
  }

  async #keepBeating(): Promise<void> {
    const everyMs = Math.min(this.settings.leaseMs / 3, 10_000);
    let failures = 0;
    while (this.#beating) {
      try {
        await this.#leases.beat(this.store);
        this.#answered();
        failures = 0;
        for (const [claim, since] of this.#running) this.#stuck.look(claim, performance.now() - since);
        await this.#beatAlarm.sleep(everyMs);
      } catch (error) {
        this.#failed('renewing leases', error);
        await this.#beatAlarm.sleep(outagePauseMs(failures++, this.settings.random));
      }
    }
  }

  async #idleWithin(ms: number): Promise<void> {
    const deadline = performance.now() + ms;
    while (this.#slots.active > 0 && performance.now() < deadline) {
      await this.#idle.sleep(deadline - performance.now());
    }
  }

  async #lastWord(): Promise<void> {
    try {
      const gone = [...this.#doubtful, ...this.#leases.over];
      if (gone.length > 0) await this.store.release(gone);
      await this.store.leave();
    } catch (error) {
      this.#failed('signing off', error);
    }
  }

  #failed(doing: string, error: unknown): void {
    this.#downSince ??= performance.now();
    if (error instanceof DatabaseUnavailable) this.events.emit('databaseDown', doing, error);
    else this.events.emit('fault', doing, error instanceof Error ? error : new Error(String(error)));
  }

  #answered(): void {
    if (this.#downSince === null) return;
    const downMs = performance.now() - this.#downSince;
    this.#downSince = null;
    this.#upSince = performance.now();
    this.events.emit('databaseUp', downMs);
  }
}

const WORD_FOR = {
  completed: 'completed',
  processing: 'deferred',
  retry: 'retrying',
  failed: 'failed',
  cancelled: 'cancelled',
  paused: 'paused',
  pending: 'handedBack',
} as const satisfies Record<Settlement['status'], string>;
