/**
 * Which job begins next, and how many to claim. A queue has so many slots, one for each call under way. While there is a
 * backlog and calls are short, jobs are claimed before a slot is free for them, so that no slot waits for the database:
 * at most what the queue gets done within AHEAD_MS, so a slow queue claims nothing ahead, and what another daemon could
 * do meanwhile is not held back. Like a sender on a network it starts small, doubles while all goes well, and begins
 * anew when a call asks for patience.
 */
import type { Claim } from './ports.js';

export interface SlotSettings {
  readonly named: ReadonlyMap<string, number>;
  /** For each queue that is not named. */
  readonly others: number;
}

/** What a claim is to bring, by queue: for free slots, and beyond them. */
export interface Appetite {
  readonly free: ReadonlyMap<string, number>;
  readonly ahead: ReadonlyMap<string, number>;
}

const AHEAD_MS = 100;
const AHEAD_MAX = 500;

/** Calls whose results are still on their way to the database; beyond them, or as many as there are slots, none begins. */
const UNSETTLED_MAX = 100;

/** A rate is taken over so long at least, and until every slot has had its turn: calls that begin together end together. */
const RATE_WINDOW_MS = 10;
const RATE_WINDOW_MAX_MS = 1000;

interface Lane {
  /** Claimed, in their order, and not begun. */
  readonly waiting: Claim[];
  calls: number;
  unsettled: number;
  /** It may hold more than the last claim took. */
  isHungry: boolean;
  /** How many may be claimed ahead at most, as things go. */
  reach: number;
  ended: number;
  since: number;
  perMs: number;
}

export class Slots {
  readonly #lanes = new Map<string, Lane>();

  constructor(
    private readonly settings: SlotSettings,
    private readonly now: () => number = () => performance.now(),
  ) {}

  /** What the next claim is to bring; null: there is no room for anything. */
  appetite(): Appetite | null {
    const free = new Map<string, number>();
    const ahead = new Map<string, number>();
    let hasRoom = this.settings.others > 0;
    for (const queue of new Set([...this.settings.named.keys(), ...this.#lanes.keys()])) {
      const slots = this.#slotsOf(queue);
      const lane = this.#lanes.get(queue);
      const left = slots - (lane ? lane.calls + lane.waiting.length : 0);
      free.set(queue, Math.max(left, 0));
      const beyond = lane ? Math.max(this.#aheadOf(lane, slots) + Math.min(left, 0), 0) : 0;
      if (beyond > 0) ahead.set(queue, beyond);
      hasRoom ||= left > 0 || beyond > 0;
    }
    if (hasRoom) return { free, ahead };
    // Somebody wanted to look and could not: whichever slot is free first is worth a look.
    for (const lane of this.#lanes.values()) lane.isHungry = true;
    return null;
  }

  /**
   * @param isCapped a limit had its say, so that a job that ends may make room for another
   * @param only the claim looked at no other queues than these
   */
  add(claims: readonly Claim[], asked: Appetite, isCapped: boolean, only?: ReadonlySet<string>): void {
    const taken = new Map<string, number>();
    for (const claim of claims) {
      const { queue } = claim.job;
      taken.set(queue, (taken.get(queue) ?? 0) + 1);
      this.#lane(queue).waiting.push(claim);
    }
    for (const queue of only ?? new Set([...asked.free.keys(), ...taken.keys()])) {
      const slots = this.#slotsOf(queue);
      const most = (asked.free.get(queue) ?? slots) + (asked.ahead.get(queue) ?? 0);
      const gotAll = (taken.get(queue) ?? 0) >= most;
      const lane = gotAll || isCapped ? this.#lane(queue) : this.#lanes.get(queue);
      if (!lane) continue;
      // One that went on behind another does not know what stands elsewhere in the line.
      lane.isHungry = gotAll || isCapped || only !== undefined;
      if (gotAll && most > 0) lane.reach = Math.min(Math.max(lane.reach * 2, slots), AHEAD_MAX);
      this.#tidy(queue, lane);
    }
  }

  /** Takes a slot for each job that it returns. @param mayBegin whether its call may begin already */
  begin(mayBegin: (claim: Claim) => boolean): Claim[] {
    const begun: Claim[] = [];
    for (const [queue, lane] of this.#lanes) {
      const slots = this.#slotsOf(queue);
      const unsettledMax = Math.max(slots, UNSETTLED_MAX);
      let next = lane.waiting[0];
      while (next && lane.calls < slots && lane.unsettled < unsettledMax && mayBegin(next)) {
        lane.waiting.shift();
        lane.calls++;
        begun.push(next);
        next = lane.waiting[0];
      }
    }
    return begun;
  }

  /** Whether a job whose turn comes as soon as the calls under way have ended may not begin yet. */
  isHeldUp(mayBegin: (claim: Claim) => boolean): boolean {
    for (const [queue, { waiting }] of this.#lanes) {
      const first = waiting[0];
      const soon = waiting[Math.min(this.#slotsOf(queue), waiting.length) - 1];
      if ((first && !mayBegin(first)) || (soon && !mayBegin(soon))) return true;
    }
    return false;
  }

  /** Those whose turn comes next: twice as many as there are slots, or half of what waits. */
  imminent(): Claim[] {
    return [...this.#lanes].flatMap(([queue, { waiting }]) =>
      waiting.slice(0, Math.max(2 * this.#slotsOf(queue), Math.ceil(waiting.length / 2))),
    );
  }

  /** Its call is over; what came of it is on its way to the database. @returns whether to claim more */
  end(queue: string): boolean {
    const lane = this.#lane(queue);
    lane.calls--;
    lane.unsettled++;
    lane.ended++;
    return lane.isHungry && lane.waiting.length <= this.#aheadOf(lane, this.#slotsOf(queue)) / 2;
  }

  settled(queue: string): void {
    const lane = this.#lane(queue);
    lane.unsettled--;
    this.#tidy(queue, lane);
  }

  /** Gives up claiming ahead for now. @returns what was: no longer waiting, and to be handed back */
  withdraw(queue?: string): Claim[] {
    return [...this.#lanes].flatMap(([name, lane]) => {
      if (queue !== undefined && name !== queue) return [];
      lane.reach = 0;
      lane.perMs = 0;
      const claims = lane.waiting.splice(0);
      lane.unsettled += claims.length;
      return claims;
    });
  }

  /** Calls under way in a queue, and what came of them on its way to the database. */
  activeIn(queue: string): number {
    const lane = this.#lanes.get(queue);
    return lane ? lane.calls + lane.unsettled : 0;
  }

  get active(): number {
    let sum = 0;
    for (const { calls, unsettled } of this.#lanes.values()) sum += calls + unsettled;
    return sum;
  }

  #slotsOf(queue: string): number {
    return this.settings.named.get(queue) ?? this.settings.others;
  }

  #aheadOf(lane: Lane, slots: number): number {
    const elapsedMs = this.now() - lane.since;
    const hasTurnedOver = elapsedMs >= RATE_WINDOW_MS && lane.ended >= slots;
    if (hasTurnedOver || elapsedMs >= RATE_WINDOW_MAX_MS) {
      lane.perMs = lane.ended / elapsedMs;
      lane.ended = 0;
      lane.since += elapsedMs;
    }
    return lane.isHungry ? Math.min(lane.reach, Math.floor(lane.perMs * AHEAD_MS)) : 0;
  }

  #lane(queue: string): Lane {
    let lane = this.#lanes.get(queue);
    if (!lane) {
      lane = { waiting: [], calls: 0, unsettled: 0, isHungry: false, reach: 0, ended: 0, since: this.now(), perMs: 0 };
      this.#lanes.set(queue, lane);
    }
    return lane;
  }

  /** A queue that nobody names is not remembered for longer than it is busy. */
  #tidy(queue: string, lane: Lane): void {
    if (!lane.isHungry && lane.calls + lane.unsettled + lane.waiting.length === 0) this.#lanes.delete(queue);
  }
}
