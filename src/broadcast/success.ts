/**
 * Reading a 2xx answer. Four kinds of service answer here: one that says nothing (`OK`, an empty body), one that counts
 * what it did, one that works in slices and says how far it got, and one that has taken the work over and is not to be
 * called again.
 */
import { Compile } from 'typebox/compile';
import type { Outcome } from '../job.js';
import { badResponse, isJson, parsed, readableText } from './body.js';
import { cancelled, completed, serviceFailed, soundProgress } from './ending.js';
import { ownLocation, running } from './operation.js';
import { readProgress } from './progress.js';
import { Continue, Hold, MAX_CURSOR_BYTES } from './protocol.js';
import { type Circumstances, type Reply, retryAfterOf } from './reply.js';
import { kept } from './result.js';
import { quote } from './wording.js';

/** A service that holds without saying until when is asked again after this. */
const DEFAULT_HOLD_MS = 60_000;
const SHORTEST_HOLD_MS = 1_000;
/** A hold beyond a year is a slip of the service's calendar, and the database's would end somewhere too. */
const LONGEST_HOLD_MS = 366 * 86_400_000;

const continues = Compile(Continue);
const holds = Compile(Hold);

/** @throws TransientError `bad_response` or `service_failed`; PermanentError `service_failed` */
export function readSuccess(reply: Reply, about: Circumstances): Outcome {
  const text = readableText(reply, about);
  if (text === '') return accepted(reply, about, null);
  if (!isJson(text)) return accepted(reply, about, JSON.stringify(text.replaceAll('\0', '')));

  const body = parsed(text, reply, about);
  if (Array.isArray(body)) return accepted(reply, about, kept(text, {}));
  if (body.ok === false || body.success === false) throw serviceFailed(body, reply, about);
  switch (body.status) {
    case 'completed':
    case 'done':
      return completed(text, body, reply, about);
    case 'continue':
      return continued(body, reply, about);
    case 'hold':
      return held(body, reply, about);
    // What an operation may say of itself (level 3), met in the first answer.
    case 'failed':
      throw serviceFailed(body, reply, about);
    case 'cancelled':
      return cancelled(body, about);
    case 'running':
      return takenOver(reply, about, kept(text, body), body);
    default:
      return accepted(reply, about, kept(text, body), body);
  }
}

/** A plain service has done all the work; but 202 says only that it took it over. */
function accepted(
  reply: Reply,
  about: Circumstances,
  result: string | null,
  body: Record<string, unknown> = {},
): Outcome {
  if (reply.status === 202) return takenOver(reply, about, result, body);
  return { kind: 'done', result, progress: soundProgress(body) };
}

/**
 * The service has it and is never called again, since a second call would reach everybody twice: it is asked at the
 * `Location` that it names. Without one, or with one that is not kept (of another origin, or too long), nobody can tell
 * how the work goes on, and the job ends here with a remark.
 */
function takenOver(reply: Reply, about: Circumstances, result: string | null, body: Record<string, unknown>): Outcome {
  const location = ownLocation(reply, about);
  if (location === null) return { kind: 'done', result, flags: ['untracked'] };
  return running(location, body, reply, about);
}

function continued(body: Record<string, unknown>, reply: Reply, about: Circumstances): Outcome {
  if (!continues.Check(body)) throw badResponse('"continue" without a cursor', reply, about);
  const cursor = soundCursor(body.cursor, reply, about);
  return { kind: 'continue', cursor, progress: readProgress(body), delayMs: retryAfterOf(reply, about) ?? 0 };
}

function held(body: Record<string, unknown>, reply: Reply, about: Circumstances): Outcome {
  if (!holds.Check(body)) throw badResponse('"hold" with a member of the wrong type', reply, about);
  const asked = waitUntil(body.resume_at, about) ?? retryAfterOf(reply, about) ?? DEFAULT_HOLD_MS;
  return {
    kind: 'hold',
    reason: quote(body.reason ?? '', about.hidden) || 'the service asked to wait',
    delayMs: Math.min(Math.max(asked, SHORTEST_HOLD_MS), LONGEST_HOLD_MS),
    cursor: typeof body.cursor === 'string' ? soundCursor(body.cursor, reply, about) : undefined,
    progress: readProgress(body),
  };
}

/** A cursor goes back to the service exactly as it came, so one that the database could not hold is refused. */
function soundCursor(cursor: string, reply: Reply, about: Circumstances): string {
  if (Buffer.byteLength(cursor) > MAX_CURSOR_BYTES) throw badResponse('a cursor beyond 4 KiB', reply, about);
  if (/[\0\p{Cs}]/u.test(cursor)) throw badResponse('a cursor with a NUL or half a character', reply, about);
  return cursor;
}

/** @returns milliseconds from the database's now, or undefined for what is no instant of RFC 3339 */
function waitUntil(resumeAt: string | null | undefined, about: Circumstances): number | undefined {
  if (!/^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:\d\d)$/.test(resumeAt ?? '')) return undefined;
  const instant = Date.parse(resumeAt ?? '');
  return Number.isNaN(instant) ? undefined : instant - about.nowMs;
}
