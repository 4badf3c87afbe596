/** What an answer is read from: the service's reply, and the circumstances of the call. */
import type { IncomingHttpHeaders } from 'node:http';
import { readRetryAfter } from './retry-after.js';

export interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** The body as UTF-8 text; empty when it exceeded its bound. */
  readonly body: string;
  readonly bodyTooLarge: boolean;
}

export interface Circumstances {
  /** Method and path, for messages. Holds no secret and no query. */
  readonly where: string;
  /** Of the call: what a relative `Location` is relative to, and whose origin it must be of. */
  readonly url: string;
  /** The epoch that the call was made with. */
  readonly epoch: number;
  /** The job is a dry run: the service sends nothing. */
  readonly dryRun: boolean;
  /** The database's clock, milliseconds since 1970. */
  readonly nowMs: number;
  /** Another call to this service succeeded a moment ago, so our credentials are right in general. */
  readonly othersSucceed: boolean;
  /** Secrets of this call that the service may echo. */
  readonly hidden: readonly string[];
}

/** @returns the header's value; the first, where a service repeats what must not be repeated */
export function headerOf(reply: Reply, name: string): string | undefined {
  const value = reply.headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/** @returns the wait that the reply's `Retry-After` asks for, in milliseconds */
export function retryAfterOf(reply: Reply, about: Circumstances): number | undefined {
  return readRetryAfter(headerOf(reply, 'retry-after'), headerOf(reply, 'date'), about.nowMs);
}
