/** Calls of the sandbox as the daemon would make them, with everything that the protocol asks for filled in. */
import type { BroadcastReport, RequestRecord } from '../../src/sandbox/store.js';

export interface CallOptions {
  job?: string;
  type?: string;
  payload?: unknown;
  seq?: number;
  epoch?: number;
  attempt?: number;
  previousFailure?: string | null;
  cursor?: string | null;
  maxItems?: number;
  waitSeconds?: number;
  perSecond?: number | null;
  dryRun?: boolean;
  scope?: string;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export interface CallAnswer {
  status: number;
  headers: Headers;
  // The tests say what they expect of it; nothing here depends on its shape.
  body: { status?: unknown; code?: unknown; epoch?: unknown; cursor?: unknown; progress?: Record<string, unknown> };
}

/** The text of a call's body. */
export function bodyOf(call: CallOptions): string {
  const { job = 'job', type = 'send_broadcast', epoch = 1, attempt = 1 } = call;
  return JSON.stringify({
    protocol: 1,
    job: { id: job, type, epoch, attempt, dry_run: call.dryRun ?? false, max_attempts: 3 },
    payload: call.payload ?? {},
    step: {
      seq: call.seq ?? 0,
      cursor: call.cursor ?? null,
      scope: call.scope ?? 'all',
      max_items: call.maxItems,
      wait_seconds: call.waitSeconds,
      per_second: call.perSecond ?? null,
      previous_failure: call.previousFailure ?? null,
    },
  });
}

/** Makes a call without reading its answer's body. */
export function request(url: string, call: CallOptions): Promise<Response> {
  return fetch(`${url}/jobs/${call.type ?? 'send_broadcast'}`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      'idempotency-key': `"${call.job ?? 'job'}:${call.seq ?? 0}"`,
      ...call.headers,
    },
    body: bodyOf(call),
    signal: call.signal ?? null,
  });
}

export async function call(url: string, options: CallOptions): Promise<CallAnswer> {
  const response = await request(url, options);
  return { status: response.status, headers: response.headers, body: JSON.parse(await response.text()) };
}

/** Makes one call after the other from where the last one came to, as the daemon would, until one is not `continue`. */
export async function callThrough(url: string, options: CallOptions): Promise<CallAnswer[]> {
  const answers: CallAnswer[] = [];
  let cursor = options.cursor ?? null;
  for (let seq = options.seq ?? 0; answers.length < 1000; seq++) {
    const answer = await call(url, { ...options, seq, cursor });
    answers.push(answer);
    if (answer.body.status !== 'continue') return answers;
    cursor = String(answer.body.cursor);
  }
  throw new Error('A thousand slices, and no end.');
}

export async function report(url: string, broadcastId: string): Promise<BroadcastReport> {
  const response = await fetch(`${url}/sandbox/broadcasts/${broadcastId}`);
  // The route's own type.
  return (await response.json()) as BroadcastReport;
}

/** The calls that the sandbox received, the latest first. */
export async function received(url: string): Promise<RequestRecord[]> {
  const response = await fetch(`${url}/sandbox/requests?limit=500`);
  // The route's own type, but for the times, which JSON makes strings and no test reads.
  return ((await response.json()) as { requests: RequestRecord[] }).requests;
}

/** Resolves with the first value that is neither false nor null. @throws after the deadline, saying what was awaited */
export async function eventually<T>(
  what: string,
  look: () => Promise<T | false | null>,
  deadlineMs = 10_000,
): Promise<T> {
  for (const start = performance.now(); performance.now() - start < deadlineMs; ) {
    const found = await look();
    if (found !== false && found !== null) return found;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`Not within ${deadlineMs} ms: ${what}`);
}
