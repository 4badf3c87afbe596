/**
 * Reading a 2xx answer. Four kinds of service answer here: one that says nothing (`OK`, an empty body), one that counts
 * what it did, one that works in slices and says how far it got, and one that has taken the work over and is not to be
 * called again. What cannot be read is ambiguous: the work may have been done.
 */
import { Compile } from 'typebox/compile';
import { PermanentError, TransientError } from '../errors.js';
import type { Flag, Outcome, Progress } from '../job.js';
import { incompleteness, readProgress } from './progress.js';
import { Continue, Hold, MAX_CURSOR_BYTES, MAX_TEXT_BYTES } from './protocol.js';
import { type Circumstances, headerOf, type Reply, retryAfterOf } from './reply.js';
import { kept, located } from './result.js';
import { quote } from './wording.js';

/** A service that holds without saying until when is asked again after this. */
const DEFAULT_HOLD_MS = 60_000;
const SHORTEST_HOLD_MS = 1_000;
/** A hold beyond a year is a slip of the service's calendar, and the database's would end somewhere too. */
const LONGEST_HOLD_MS = 366 * 86_400_000;

const continues = Compile(Continue);
const holds = Compile(Hold);

/** @throws TransientError `bad_response`, `service_failed`; PermanentError `incomplete` */
export function readSuccess(reply: Reply, about: Circumstances): Outcome {
  const text = readableText(reply, about);
  if (text === '') return accepted(reply, about, null);
  if (!/^[[{]/.test(text)) return accepted(reply, about, JSON.stringify(text.replaceAll('\0', '')));

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
      return { kind: 'cancel', reason: complaint(body, about) || 'cancelled by the service' };
    case 'running':
      return untracked(reply, about, kept(text, body));
    default:
      return accepted(reply, about, kept(text, body), soundProgress(body));
  }
}

/** The body, trimmed and without a byte order mark: empty, JSON by its first character, or a short text. */
function readableText(reply: Reply, about: Circumstances): string {
  if (reply.bodyTooLarge) throw badResponse('a body beyond 256 KiB', reply, about);
  const encoding = headerOf(reply, 'content-encoding') ?? 'identity';
  if (encoding !== 'identity') throw badResponse('a compressed body, which was not asked for', reply, about);
  const text = reply.body.trim();
  if (text.startsWith('<')) throw badResponse('markup, such as a login or proxy page', reply, about);
  if (!/^[[{]/.test(text) && Buffer.byteLength(text) > MAX_TEXT_BYTES) {
    throw badResponse('a text beyond 1 KiB', reply, about);
  }
  return text;
}

function parsed(text: string, reply: Reply, about: Circumstances): unknown[] | Record<string, unknown> {
  try {
    // The text starts with [ or {, so it is an array or an object if it is JSON at all.
    return JSON.parse(text) as unknown[] | Record<string, unknown>;
  } catch {
    throw badResponse('broken JSON', reply, about);
  }
}

/** A plain service has done all the work; but 202 says only that it took it over. */
function accepted(reply: Reply, about: Circumstances, result: string | null, progress?: Progress): Outcome {
  return reply.status === 202 ? untracked(reply, about, result) : { kind: 'done', result, progress };
}

/** The service has it and is never called again, since a second call would reach everybody twice. */
function untracked(reply: Reply, about: Circumstances, result: string | null): Outcome {
  const location = ownLocation(reply, about);
  const flags: Flag[] = ['untracked'];
  return { kind: 'done', result: location === null ? result : located(location, result), flags };
}

/** @returns the path of a `Location` at the service's own origin; null for none and for any other */
function ownLocation(reply: Reply, about: Circumstances): string | null {
  const location = headerOf(reply, 'location');
  const base = `${about.origin}/`;
  if (location === undefined || !URL.canParse(location, base)) return null;
  const url = new URL(location, base);
  return url.origin === about.origin ? url.pathname + url.search : null;
}

function completed(text: string, body: Record<string, unknown>, reply: Reply, about: Circumstances): Outcome {
  const result = kept(text, body);
  const progress = readProgress(body);
  // A dry run sent nothing, so it has nothing to account for.
  if (progress === undefined) return { kind: 'done', result, flags: body.dry_run === true ? [] : ['unverified'] };
  const gap = incompleteness(progress);
  if (gap === null) return { kind: 'done', result, progress };
  const message = `${about.where}: the service says completed, but ${gap}`;
  throw new PermanentError(message, { code: 'incomplete', httpStatus: reply.status });
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

/** Counters of a plain service, which promised none: kept where they make sense, never held against it. */
function soundProgress(body: Record<string, unknown>): Progress | undefined {
  const progress = readProgress(body);
  return progress === undefined || incompleteness(progress) !== null ? undefined : progress;
}

function serviceFailed(body: Record<string, unknown>, reply: Reply, about: Circumstances): TransientError {
  const message = `${about.where}: the service says it failed: ${complaint(body, about) || 'it gave no reason'}`;
  const retryAfterMs = retryAfterOf(reply, about);
  return new TransientError(message, { code: 'service_failed', httpStatus: reply.status, retryAfterMs });
}

function complaint(body: Record<string, unknown>, about: Circumstances): string {
  const text = [body.message, body.error, body.detail, body.reason].find((member) => typeof member === 'string');
  return quote(text ?? '', about.hidden);
}

function badResponse(what: string, reply: Reply, about: Circumstances): TransientError {
  const message = `${about.where} answered ${reply.status} with ${what}`;
  return new TransientError(message, { code: 'bad_response', httpStatus: reply.status, ambiguous: true });
}
