/**
 * Reading the body of a 2xx answer: empty, a short text, or JSON. What cannot be read is ambiguous: the work may have
 * been done.
 */
import { TransientError } from '../errors.js';
import { MAX_TEXT_BYTES } from './protocol.js';
import { type Circumstances, headerOf, type Reply, retryAfterOf } from './reply.js';

/** @returns the body, trimmed and without a byte order mark: empty, JSON by its first character, or a short text */
export function readableText(reply: Reply, about: Circumstances): string {
  if (reply.bodyTooLarge) throw badResponse('a body beyond 256 KiB', reply, about);
  const encoding = headerOf(reply, 'content-encoding') ?? 'identity';
  if (encoding !== 'identity') throw badResponse('a compressed body, which was not asked for', reply, about);
  const text = reply.body.trim();
  if (text.startsWith('<')) throw badResponse('markup, such as a login or proxy page', reply, about);
  if (!isJson(text) && Buffer.byteLength(text) > MAX_TEXT_BYTES) throw badResponse('a text beyond 1 KiB', reply, about);
  return text;
}

/** By its first character: then it must be JSON in the whole. */
export function isJson(text: string): boolean {
  return /^[[{]/.test(text);
}

export function parsed(text: string, reply: Reply, about: Circumstances): unknown[] | Record<string, unknown> {
  try {
    // The text starts with [ or {, so it is an array or an object if it is JSON at all.
    return JSON.parse(text) as unknown[] | Record<string, unknown>;
  } catch {
    throw badResponse('broken JSON', reply, about);
  }
}

export function badResponse(what: string, reply: Reply, about: Circumstances): TransientError {
  return new TransientError(`${about.where} answered ${reply.status} with ${what}`, {
    code: 'bad_response',
    httpStatus: reply.status,
    retryAfterMs: retryAfterOf(reply, about),
    ambiguous: true,
  });
}
