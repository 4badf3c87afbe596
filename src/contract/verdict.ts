/** How a check ends when it does not simply hold, and what its answers are judged by. */
import { isDeepStrictEqual } from 'node:util';
import { readProgress } from '../broadcast/progress.js';
import { headerOf } from '../broadcast/reply.js';
import type { Progress } from '../job.js';
import { type Answer, type Call, describe } from './call.js';

/** What a breach leads to, and how to end it. */
export interface Advice {
  readonly why: string;
  readonly mend: string;
}

/** The service did what the protocol does not allow: what was sent, what came back, and what is wrong with it. */
export class Breach extends Error {
  override readonly name = 'Breach';
  readonly sent: string;
  readonly came: string;

  constructor(
    sent: Call | string,
    came: Answer | string,
    wrong: string,
    /** Where the check's own words do not fit this one. */
    readonly advice?: Advice,
  ) {
    super(wrong);
    this.sent = typeof sent === 'string' ? sent : describe(sent);
    this.came = typeof came === 'string' ? came : came.shown;
  }
}

/** Not tried, as it was asked or for want of an option; and why. */
export class Skipped extends Error {
  override readonly name = 'Skipped';
}

/** Tried, and a service that breaks the promise would have looked the same: why it shows nothing, and what would. */
export class Inconclusive extends Error {
  override readonly name = 'Inconclusive';

  constructor(
    why: string,
    readonly mend: string,
  ) {
    super(why);
  }
}

export const nobodySentTo = () =>
  new Inconclusive(
    'nobody was sent to',
    'give the service people who can be sent to today: those whom a frequency limit, opt-outs or blocks leave out show nothing (raise the limit on this instance, of the sandbox by --daily-limit; or make new people)',
  );

export const keepsNoPace = (what: string) =>
  new Inconclusive(
    what,
    'let the service keep to step.per_second, or give it more people, so that the call can be met at work',
  );

/** @throws Breach when there are no counters in it */
export function countersOf(call: Call, answer: Answer): Progress {
  const progress = answer.json === null ? undefined : readProgress({ ...answer.json });
  if (progress === undefined) throw new Breach(call, answer, 'the answer has no progress to count by');
  return progress;
}

/** @throws Inconclusive when an answer that says that all is done would be the same if it were done again */
export function mustTell(answer: Answer): void {
  const isPlace = answer.status === 202 && headerOf(answer, 'location') !== undefined;
  if (isPlace || answer.json?.status === 'continue') return;
  const progress = answer.json === null ? undefined : readProgress({ ...answer.json });
  if (progress?.sent === undefined) {
    throw new Inconclusive(
      'an answer without counters is the same however often people are sent to',
      'answer {"status":"completed","progress":{"total":…,"processed":…,"sent":…,"skipped":…,"failed":…,"unknown":…}}; and see in your records that nobody got two',
    );
  }
  if (progress.sent === 0) throw nobodySentTo();
}

export function isSuccess({ status }: Answer): boolean {
  return status >= 200 && status < 300;
}

/** The four parts; absent ones are 0. */
export function sumOf({ sent = 0, skipped = 0, failed = 0, unknown = 0 }: Progress): number {
  return sent + skipped + failed + unknown;
}

/** @throws Breach when the counters of a finished job do not account for everybody exactly once */
export function accountsForAll(call: Call, answer: Answer, progress: Progress): void {
  const { total, processed } = progress;
  const wrong = (what: string) => new Breach(call, answer, what);
  if (typeof total === 'number' && processed !== total) {
    throw wrong(`the job has ended, but ${processed} of ${total} are processed`);
  }
  const sum = sumOf(progress);
  if (sum !== processed) throw wrong(`processed is ${processed}, but sent + skipped + failed + unknown is ${sum}`);
}

/**
 * Whether two answers say the same thing. JSON may be written in another order: what counts is what it says. Of an
 * operation the place counts, since how it stands is another thing each time.
 */
export function isSame(one: Answer, other: Answer): boolean {
  const about = (answer: Answer) => {
    const location = answer.status === 202 ? headerOf(answer, 'location') : undefined;
    return location === undefined ? [answer.status, answer.json ?? answer.body] : [answer.status, location];
  };
  return isDeepStrictEqual(about(one), about(other));
}

/** @throws Breach when the service did not answer 2xx */
export function mustSucceed(call: Call, answer: Answer): Answer {
  if (isSuccess(answer)) return answer;
  throw new Breach(call, answer, `the answer is ${answer.status} instead of 2xx`);
}
