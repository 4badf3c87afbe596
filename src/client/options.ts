/**
 * What a bot may ask for, and the checks of it: bots are often written without types, and a wrong value that reaches the
 * database aborts the bot's open transaction. Durations are milliseconds, instants are Dates.
 */
import { isDate } from 'node:util/types';
import { BroadcastQueueError } from './error.js';

export interface EnqueueOptions {
  /** Default: the job type's usual queue. */
  readonly queue?: string | undefined;
  /** Milliseconds from now, by the database's clock. */
  readonly delay?: number | undefined;
  /** An instant, instead of `delay`. */
  readonly scheduledAt?: Date | undefined;
  /** Higher runs first; default 0. */
  readonly priority?: number | undefined;
  /** Default 3. */
  readonly maxAttempts?: number | undefined;
  /**
   * While a job with this key is live in its queue, that one is found instead of adding another. Default: for broadcasts
   * the bot, broadcast and segment, else none. null: none.
   */
  readonly uniqueKey?: string | null | undefined;
  /** Not started after this. */
  readonly expiresAt?: Date | undefined;
  /** Asks the service for the audience without sending; takes a service of level 2. */
  readonly dryRun?: boolean | undefined;
  /** A trace context (W3C), passed on to the service. */
  readonly traceparent?: string | undefined;
  /** The hours in which it may be sent. */
  readonly sendWindow?: SendWindow | undefined;
}

export interface BroadcastOptions extends EnqueueOptions {
  /** Further members of the payload, such as `bot_id`; the service gets them as they are. */
  readonly data?: Readonly<Record<string, unknown>> | undefined;
}

export interface BatchOptions extends Omit<EnqueueOptions, 'uniqueKey'> {
  /** Milliseconds between each job of the batch and the next. */
  readonly delayPerJob?: number | undefined;
  /** One key for all would leave one job: either each has its usual one, or none has. */
  readonly uniqueKey?: null | undefined;
}

/** As the column send_window has it. */
export interface SendWindow {
  /** Such as `09:00`. */
  readonly from: string;
  /** At or before `from`: of the next day. */
  readonly to: string;
  /** Such as `Europe/Berlin`. */
  readonly time_zone: string;
  /** 1 (Monday) to 7 (Sunday); default all. */
  readonly days?: readonly number[] | undefined;
  /** What becomes of a job that could not begin in its first window; default `wait` for the next one. */
  readonly missed?: 'wait' | 'fail' | undefined;
}

export type BroadcastId = string | number;

/** The payload of one broadcast in a batch. With a segment_id it is queued as a segment broadcast. */
export interface BroadcastItem {
  readonly broadcast_id: BroadcastId;
  readonly segment_id?: BroadcastId | undefined;
  readonly [member: string]: unknown;
}

/** Whom a resend is for: those who are still pending, failed or unknown in the service's books, or all. */
export type Scope = 'pending' | 'failed' | 'unknown' | 'all';

interface Check {
  fits(value: unknown): boolean;
  /** Continues "must be …". */
  readonly expects: string;
}

const TEN_YEARS_MS = 10 * 365 * 24 * 3600 * 1000;
const QUEUE_NAME = /^[a-z][a-z0-9_-]{0,49}$/;
/** Words that the routes of the API use. */
const ROUTE_WORDS = [
  ...['status', 'statistics', 'health', 'job', 'jobs', 'broadcast', 'pause', 'resume', 'limits', 'queues', 'workers'],
  ...['failures', 'events', 'schedules', 'audit'],
];

const anObject: Check = { fits: isObject, expects: 'an object' };
const aDuration: Check = {
  fits: integerIn(0, TEN_YEARS_MS),
  expects: 'a whole number of milliseconds, from 0 to ten years',
};
const anInstant: Check = {
  // Its year has four digits, as PostgreSQL reads them.
  fits: (value) => isDate(value) && value.getTime() >= 0 && value.getTime() < Date.UTC(10_000, 0),
  expects: 'a valid Date from 1970 on',
};

/** What the methods' arguments and options must be, by name. */
const checks = {
  queue: {
    fits: (value) => typeof value === 'string' && QUEUE_NAME.test(value) && !ROUTE_WORDS.includes(value),
    expects: "a queue's name: a-z, 0-9, - and _, a letter first, at most 50, no word of the API's routes",
  },
  delay: aDuration,
  delayPerJob: aDuration,
  scheduledAt: anInstant,
  expiresAt: anInstant,
  priority: { fits: integerIn(-32_768, 32_767), expects: 'a whole number from -32768 to 32767' },
  maxAttempts: { fits: integerIn(1, 1_000_000), expects: 'a whole number from 1 to 1000000' },
  uniqueKey: {
    fits: (value) => value === null || (isText(value, 1000) && value !== 'auto'),
    expects: 'null or a text of 1 to 1000 characters other than "auto"',
  },
  dryRun: { fits: (value) => typeof value === 'boolean', expects: 'true or false' },
  traceparent: {
    fits: (value) => typeof value === 'string' && /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/.test(value),
    expects: 'a traceparent header of W3C Trace Context',
  },
  sendWindow: anObject,
  data: anObject,
  schema: {
    fits: (value) => typeof value === 'string' && /^(?!pg_)[a-z_][a-z0-9_]{0,62}$/.test(value),
    expects: 'the name of a schema: a-z, 0-9 and _ (at most 63, no digit first) that does not begin with pg_',
  },
  jobType: {
    fits: (value) => typeof value === 'string' && /^[a-z][a-z0-9_]{0,49}$/.test(value),
    expects: 'a job type: a-z, 0-9 and _, a letter first, at most 50',
  },
  jobData: anObject,
  broadcastId: id(),
  segmentId: id(),
  items: { fits: (value) => Array.isArray(value) && value.length <= 10_000, expects: 'an array of at most 10000' },
  item: anObject,
  jobId: {
    fits: (value) => typeof value === 'string' && /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(value),
    expects: "a job's job_id (a UUID)",
  },
  reason: { fits: (value) => isText(value, 500), expects: 'a text of 1 to 500 characters' },
  scope: {
    fits: (value) => ['pending', 'failed', 'unknown', 'all'].some((one) => one === value),
    expects: 'pending, failed, unknown or all',
  },
  limit: { fits: integerIn(1, 500), expects: 'a whole number from 1 to 500' },
  daysOld: { fits: inRange(0, 36_500), expects: 'a number of days from 0 to 36500' },
} satisfies Record<string, Check>;

type CheckName = keyof typeof checks;

export const ENQUEUE_OPTIONS: readonly CheckName[] = [
  ...(['queue', 'delay', 'scheduledAt', 'priority', 'maxAttempts', 'uniqueKey', 'expiresAt'] as const),
  ...(['dryRun', 'traceparent', 'sendWindow'] as const),
];

/** @throws BroadcastQueueError `invalid_argument`, naming the method, the argument, what it must be and what it is */
export function check(method: string, name: CheckName, value: unknown, called: string = name): void {
  const { fits, expects } = checks[name];
  if (!fits(value)) throw invalid(method, `${called} must be ${expects}, not ${shown(value)}`);
}

/** Checks each option that is given, and that there are no others. */
export function checkOptions(method: string, options: unknown, known: readonly CheckName[]): void {
  if (!isObject(options)) throw invalid(method, `the options must be an object, not ${shown(options)}`);
  for (const [name, value] of Object.entries(options)) {
    const option = known.find((one) => one === name);
    if (option === undefined) throw invalid(method, `there is no option ${name}; there are ${known.join(', ')}`);
    if (value !== undefined) check(method, option, value);
  }
  if (options.delay !== undefined && options.scheduledAt !== undefined) {
    throw invalid(method, 'give delay or scheduledAt, not both');
  }
}

/** The options of one broadcast. What names it is an argument, and nothing else may contradict that. */
export function checkBroadcastOptions(method: string, options: BroadcastOptions): BroadcastOptions {
  checkOptions(method, options, [...ENQUEUE_OPTIONS, 'data']);
  for (const name of ['broadcast_id', 'broadcastId', 'segment_id', 'segmentId']) {
    if (Object.hasOwn(options.data ?? {}, name)) {
      throw invalid(method, `data must not have ${name}: it is an argument of queueBroadcast or queueSegmentBroadcast`);
    }
  }
  return options;
}

/**
 * A payload as JSON text, which pg passes on as it is.
 * @throws BroadcastQueueError `invalid_argument` where JSON has no words for it
 */
export function jsonOf(method: string, data: unknown): string {
  try {
    return JSON.stringify(data);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw invalid(method, `the data cannot be written as JSON (${why})`);
  }
}

export function invalid(method: string, fault: string): BroadcastQueueError {
  return new BroadcastQueueError('invalid_argument', `${method}: ${fault}`);
}

function id(): Check {
  return {
    fits: (value) => isText(value, 200) || Number.isSafeInteger(value),
    expects: 'a text of 1 to 200 characters or a whole number that JavaScript holds exactly (else write String(id))',
  };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isText(value: unknown, most: number): boolean {
  // PostgreSQL has no NUL.
  return typeof value === 'string' && value.length > 0 && value.length <= most && !value.includes('\0');
}

function inRange(least: number, most: number) {
  return (value: unknown) => typeof value === 'number' && value >= least && value <= most;
}

function integerIn(least: number, most: number) {
  return (value: unknown) => Number.isInteger(value) && inRange(least, most)(value);
}

/** A value in a message: short, and of an object its kind only. */
function shown(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value);
  if (isDate(value)) return 'an invalid Date';
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === 'object' && value !== null) return 'an object';
  return typeof value === 'bigint' ? `${value}n` : String(value);
}
