/**
 * What a check works with: fresh jobs of its own, calls with the daemon's patience (throttling, `in_progress`), and a
 * job's whole way to its end, over slices or through an operation.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as wait } from 'node:timers/promises';
import { headerOf } from '../broadcast/reply.js';
import type { Answer, Bounds, Call, Deviation, Level, Service } from './call.js';
import { Breach, Inconclusive, isSuccess, mustSucceed, Skipped } from './verdict.js';

export interface TrialSettings {
  readonly type: string;
  /** Null: each check has fresh broadcasts. */
  readonly broadcast: string | null;
  readonly segment: string | null;
  readonly testRecipients: readonly string[];
  readonly level: Level;
  readonly hasSecret: boolean;
  readonly hasToken: boolean;
  /** The messenger takes its time, so that a kill always finds some message under way. */
  readonly slowMessenger: boolean;
  /** Kills the service hard and starts it again; null when there is no way to. */
  readonly restart: ((signal: AbortSignal) => Promise<void>) | null;
}

/** What earlier checks have found out, for the later ones. */
export interface Facts {
  /** Distinguishes the broadcasts of one run from those of another. */
  readonly run: string;
  /** How many people a broadcast is for, once a finished one has told. */
  audience: number | null;
}

/** A job's way: each answer with the call that it belongs to. */
export interface Walk {
  readonly steps: readonly { readonly call: Call; readonly answer: Answer }[];
  readonly call: Call;
  /** The last one. */
  readonly answer: Answer;
}

/** As the daemon calls where there is no shared limit. */
export const UNLIMITED = { maxItems: 1000, perSecond: null } as const;

/** A check with fewer people than this shows nothing of slices and pace. */
const FEWEST_PEOPLE = 12;
/** What the daemon asks for by default. */
const WAIT_SECONDS = 25;
/** Over its wait, a call of level 2 is given up. */
const WAIT_SLACK_SECONDS = 15;
const LONGEST_PATIENCE_MS = 5_000;
const MOST_STEPS = 2_000;

export class Trial {
  #broadcasts = 0;

  constructor(
    readonly id: string,
    readonly service: Service,
    readonly settings: TrialSettings,
    readonly facts: Facts,
    /** Fires at the check's deadline, and when the whole kit is to end. */
    readonly signal: AbortSignal,
  ) {}

  /** A broadcast that nobody has been sent yet, where the service makes any that it is asked for. */
  freshBroadcast(): string {
    this.#broadcasts += 1;
    const suffix = this.#broadcasts === 1 ? '' : `-${this.#broadcasts}`;
    return this.settings.broadcast ?? `contract-${this.facts.run}-${this.id}${suffix}`;
  }

  payload(broadcast: string, more: object = {}): string {
    const { segment } = this.settings;
    return JSON.stringify({ broadcast_id: broadcast, ...(segment !== null && { segment_id: segment }), ...more });
  }

  /** The first call of a job that nobody has heard of. */
  fresh(members: Partial<Call> = {}): Call {
    return {
      job: randomUUID(),
      type: this.settings.type,
      payload: members.payload ?? this.payload(this.freshBroadcast()),
      ...{ epoch: 1, attempt: 1, dryRun: false, seq: 0, cursor: null, scope: 'all', previousFailure: null },
      ...{ ...UNLIMITED, waitSeconds: WAIT_SECONDS },
      ...members,
    };
  }

  /** Exactly one call. @throws NoAnswer */
  once(call: Call, deviation?: Deviation): Promise<Answer> {
    return this.service.post(call, this.#bounds(call), deviation);
  }

  /** Calls until the answer is about the work: neither throttled nor `in_progress`. */
  async post(call: Call, deviation?: Deviation): Promise<Answer> {
    for (;;) {
      const answer = await this.once(call, deviation);
      const { status, json } = answer;
      const patience = patienceOf(answer);
      const isLater = status === 429 || (status === 503 && patience !== null);
      const isRunning = status === 409 && json?.code === 'in_progress';
      if (!isLater && !isRunning) return answer;
      await this.pause(patience ?? 1000);
    }
  }

  /** The first call that a fresh job is successful with. */
  async begin(call: Call): Promise<Answer> {
    return mustSucceed(call, await this.post(call));
  }

  /** As the daemon repeats a step whose answer it did not get: a later epoch and attempt, and the same key. */
  repetition(call: Call): Call {
    const { epoch, attempt } = call;
    return { ...call, epoch: epoch + 1, attempt: attempt + 1, previousFailure: 'connection_lost' };
  }

  /** The step after an answer that said `continue`. */
  next(call: Call, answer: Answer, members: Partial<Call> = {}): Call {
    const cursor = typeof answer.json?.cursor === 'string' ? answer.json.cursor : null;
    return { ...call, epoch: call.epoch + 1, attempt: 1, previousFailure: null, seq: call.seq + 1, cursor, ...members };
  }

  /** Goes with a job to its end: from slice to slice, or by asking for its operation. `later`: of all calls but the first. */
  async through(first: Call, later: Partial<Call> = {}): Promise<Walk> {
    const steps: { call: Call; answer: Answer }[] = [];
    for (let call = first; ; ) {
      const answer = mustSucceed(call, await this.post(call));
      steps.push({ call, answer });
      if (this.locationOf(answer) !== null) steps.push(...(await this.operationThrough(call, answer)));
      const last = steps.at(-1)?.answer ?? answer;
      if (last.json?.status === 'hold') throw holds(last);
      if (last.json?.status !== 'continue' || steps.length >= MOST_STEPS) return { steps, call, answer: last };
      call = this.next(call, answer, later);
    }
  }

  /** Asks for an operation until it runs no more. */
  async operationThrough(call: Call, accepted: Answer): Promise<{ call: Call; answer: Answer }[]> {
    const path = this.locationOf(accepted) ?? '';
    const answers: { call: Call; answer: Answer }[] = [];
    for (;;) {
      const answer = await this.ask('GET', path, call);
      if (!isSuccess(answer)) throw new Breach(`GET ${path}`, answer, `the operation cannot be asked for`);
      answers.push({ call, answer });
      if (answer.json?.status !== 'running') return answers;
      await this.pause(patienceOf(answer) ?? 1000);
    }
  }

  ask(method: 'GET' | 'DELETE', path: string, call: Call): Promise<Answer> {
    return this.service.operation(method, path, call, { timeoutMs: 30_000, signal: this.signal });
  }

  /** Where the service says that it runs the job by itself; null when it does not. */
  locationOf(answer: Answer): string | null {
    const location = answer.status === 202 ? headerOf(answer, 'location') : undefined;
    if (location === undefined || ['continue', 'completed', 'done', 'hold'].includes(String(answer.json?.status))) {
      return null;
    }
    return this.service.pathOf(location);
  }

  /** People to plan slices and pace by. @throws Inconclusive when there are too few, or nobody knows */
  audience(): number {
    const { audience } = this.facts;
    if (audience === null) {
      throw new Inconclusive('the service gives no total to plan slices by', 'give progress.total in each answer');
    }
    if (audience >= FEWEST_PEOPLE) return audience;
    const few = `needs an audience of at least ${FEWEST_PEOPLE} people; this one has ${audience}`;
    throw new Inconclusive(few, 'give the service 50 to 10,000 people who do not mind');
  }

  /** @throws Skipped, Inconclusive, or Breach, when the answer to a small slice does not say that there is more to do */
  mustContinue(call: Call, answer: Answer): Answer {
    mustSucceed(call, answer);
    if (answer.json?.status === 'continue') return answer;
    if (answer.json?.status === 'hold') throw holds(answer);
    if (this.settings.level === 3 && headerOf(answer, 'location') !== undefined) {
      throw new Skipped('the service works in operations (level 3), not in slices');
    }
    if (this.settings.broadcast !== null) {
      throw new Skipped(`needs a fresh broadcast: the first answer to ${this.settings.broadcast} leaves nothing to do`);
    }
    const people = this.facts.audience === null ? '' : ` of ${this.facts.audience} people`;
    throw new Breach(call, answer, `a slice of ${call.maxItems}${people} must say "continue" and give a cursor`);
  }

  /** @throws Skipped where a given broadcast may have been sent before */
  mustBeFresh(): void {
    if (this.settings.broadcast !== null) throw new Skipped('needs a fresh broadcast, and --broadcast gives one');
  }

  async pause(ms: number): Promise<void> {
    await wait(Math.min(ms, LONGEST_PATIENCE_MS), undefined, { signal: this.signal });
  }

  #bounds(call: Call): Bounds {
    const seconds = this.settings.level >= 2 ? call.waitSeconds + WAIT_SLACK_SECONDS : 900;
    return { timeoutMs: seconds * 1000, signal: this.signal };
  }
}

function holds(answer: Answer): Inconclusive {
  return new Inconclusive(
    `the service holds: ${answer.shown}`,
    'run it outside of quiet hours, or switch them off here',
  );
}

/** Milliseconds by `Retry-After` in seconds; null without one. */
function patienceOf(answer: Answer): number | null {
  const seconds = Number(headerOf(answer, 'retry-after') ?? Number.NaN);
  return seconds >= 0 ? seconds * 1000 : null;
}
