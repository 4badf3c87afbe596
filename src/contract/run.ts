/**
 * Running the checks: those that say whether anything can be tested first, then as many side by side as are ready, and
 * last, each alone, those that kill the service. A check whose needs have failed is skipped, so that one breach shows
 * as one failure.
 */
import { randomBytes } from 'node:crypto';
import { type Level, NoAnswer, Service, type ServiceOptions } from './call.js';
import type { Check } from './check.js';
import { checks } from './checks/index.js';
import { type Facts, Trial, type TrialSettings } from './trial.js';
import { type Advice, Breach, Inconclusive, Skipped } from './verdict.js';

export interface ContractOptions extends Omit<TrialSettings, 'level' | 'hasSecret' | 'hasToken'>, ServiceOptions {
  /** Null: up to the one that the service claims. */
  readonly level: Level | null;
  /** Only these, and what they build upon. Null: all. */
  readonly only: readonly string[] | null;
  /** For each check. */
  readonly timeoutMs: number;
  /** Ends everything. */
  readonly signal: AbortSignal;
}

export interface Result {
  readonly check: Check;
  /** Inconclusive: tried, and a service that breaks the promise would have looked the same. */
  readonly outcome: 'passed' | 'failed' | 'inconclusive' | 'skipped';
  /** Of a failure: what was sent and what came back. */
  readonly sent: string | null;
  readonly came: string | null;
  /** What is wrong, why it was skipped or shows nothing, or a remark; null: nothing to say. */
  readonly said: string | null;
  /** Of a failure: what it leads to. */
  readonly why: string | null;
  /** Of a failure, and of what shows nothing. */
  readonly mend: string | null;
  readonly ms: number;
}

export interface ContractReport {
  readonly url: string;
  readonly levelClaimed: Level | null;
  readonly levelTested: Level;
  /** Whether any call gets through: otherwise nothing can be told, not even the level. */
  readonly isReachable: boolean;
  /** In the order of the levels. */
  readonly results: readonly Result[];
  /** Whether it was ended before its end. */
  readonly interrupted: boolean;
}

/** Without these nothing else can be told, and they find out what the others go by. */
const FIRST = ['reachable', 'answer'];
const UNREACHABLE = 'reachable fails';
const SIDE_BY_SIDE = 4;

export async function testContract(options: ContractOptions): Promise<ContractReport> {
  const run = new Run(options);
  await run.oneByOne(checks.filter(({ id }) => id === 'reachable'));
  run.level = options.level ?? run.service.levelClaimed ?? 0;
  await run.oneByOne(checks.filter(({ id }) => id === 'answer'));

  const wanted = options.only === null ? null : withNeeds(options.only);
  const chosen = checks.filter(({ id }) => !FIRST.includes(id) && (wanted?.has(id) ?? true));
  const tested = chosen.filter(({ level }) => level <= run.level);
  const isReachable = run.results.get('reachable')?.outcome !== 'failed';
  const how = options.level === null ? 'claimed by the service (X-Broadcast-Level)' : 'asked for (--level)';
  for (const check of chosen) {
    if (!tested.includes(check)) run.skip(check, isReachable ? `level ${check.level} is not ${how}` : UNREACHABLE);
  }
  await run.sideBySide(tested.filter(({ alone }) => !alone));
  await run.oneByOne(tested.filter(({ alone }) => alone));
  return {
    url: options.url,
    levelClaimed: run.service.levelClaimed,
    levelTested: run.level,
    isReachable,
    results: checks.flatMap(({ id }) => run.results.get(id) ?? []),
    interrupted: options.signal.aborted,
  };
}

/** These, and the checks that they build upon, near and far. */
function withNeeds(ids: readonly string[]): ReadonlySet<string> {
  const all = new Set(ids);
  // A set's iteration also comes to what is added meanwhile.
  for (const id of all) for (const need of checks.find((check) => check.id === id)?.needs ?? []) all.add(need);
  return all;
}

class Run {
  readonly service: Service;
  readonly results = new Map<string, Result>();
  /** The one that is tested up to. */
  level: Level;
  readonly #facts: Facts = { run: randomBytes(4).toString('hex'), audience: null };
  /** Of a check that failed: itself. Of one that therefore was not tried: the one that failed. */
  readonly #causes = new Map<string, string>();

  constructor(private readonly options: ContractOptions) {
    this.service = new Service(options);
    this.level = options.level ?? 0;
  }

  async oneByOne(chosen: readonly Check[]): Promise<void> {
    for (const check of chosen) await this.#one(check);
  }

  /** Each as soon as its needs are settled. */
  async sideBySide(chosen: readonly Check[]): Promise<void> {
    const waiting = new Set(chosen);
    const running = new Map<string, Promise<void>>();
    while (waiting.size + running.size > 0) {
      const isAwaited = (id: string) => running.has(id) || [...waiting].some((check) => check.id === id);
      const ready = [...waiting].filter(({ needs }) => !needs.some(isAwaited));
      for (const check of ready.slice(0, SIDE_BY_SIDE - running.size)) {
        waiting.delete(check);
        running.set(
          check.id,
          this.#one(check).finally(() => running.delete(check.id)),
        );
      }
      await Promise.race(running.values());
    }
  }

  skip(check: Check, said: string): void {
    const nothing = { sent: null, came: null, why: null, mend: null };
    this.results.set(check.id, { check, outcome: 'skipped', said, ...nothing, ms: 0 });
  }

  async #one(check: Check): Promise<void> {
    if (this.options.signal.aborted) return;
    const cause = check.needs.map((need) => this.#causes.get(need)).find((found) => found !== undefined);
    if (cause !== undefined) {
      this.#causes.set(check.id, cause);
      this.skip(check, `${cause} fails`);
      return;
    }
    const result = await this.#carryOut(check);
    if (this.options.signal.aborted) return;
    if (result.outcome === 'failed') this.#causes.set(check.id, check.id);
    this.results.set(check.id, result);
  }

  async #carryOut(check: Check): Promise<Result> {
    const { timeoutMs, signal, secret, token } = this.options;
    const startedAt = performance.now();
    const deadline = AbortSignal.timeout(timeoutMs);
    const settings = { ...this.options, level: this.level, hasSecret: secret !== null, hasToken: token !== null };
    const either = AbortSignal.any([signal, deadline]);
    const ended = (outcome: Result['outcome'], said: string | null, more: Partial<Result> = {}): Result => ({
      ...{ check, outcome, said, sent: null, came: null, why: null, mend: null },
      ...more,
      ms: Math.round(performance.now() - startedAt),
    });
    const failed = (said: string, breach?: Breach) => {
      const { why, mend }: Advice = breach?.advice ?? check;
      return ended('failed', said, { sent: breach?.sent ?? null, came: breach?.came ?? null, why, mend });
    };
    try {
      const remark = await check.run(new Trial(check.id, this.service, settings, this.#facts, either));
      return ended('passed', remark ?? null);
    } catch (error) {
      if (error instanceof Skipped) return ended('skipped', error.message);
      if (error instanceof Inconclusive) return ended('inconclusive', error.message, { mend: error.mend });
      if (error instanceof Breach) return failed(error.message, error);
      if (deadline.aborted) return failed(`it did not come to its end within ${timeoutMs / 1000} s (--timeout)`);
      if (error instanceof NoAnswer) return failed(`there was no answer: ${error.message}`);
      if (signal.aborted) return ended('skipped', 'ended early');
      // A slip of this kit.
      throw error;
    }
  }
}
