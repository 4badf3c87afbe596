/**
 * Speaking with the service under test as the daemon does: path, headers, envelope and signature come from the
 * daemon's own writer. Only the connections are others. Each call has one of its own, so that it can be cut at a chosen
 * moment, and so that a service which was killed and started again leaves no dead one behind.
 */
import { type IncomingHttpHeaders, type IncomingMessage, request as overHttp } from 'node:http';
import { request as overHttps } from 'node:https';
import { MAX_BODY_BYTES } from '../broadcast/protocol.js';
import { headerOf, type Reply } from '../broadcast/reply.js';
import { createOperationWriter, createRequestWriter, type WrittenRequest } from '../broadcast/request.js';
import { quote } from '../broadcast/wording.js';
import type { Job, Step } from '../job.js';

export type Level = 0 | 1 | 2 | 3;

export interface ServiceOptions {
  readonly url: string;
  readonly secret: string | null;
  readonly token: string | null;
  /** The daemon's version, for User-Agent. */
  readonly version: string;
}

/** One call: what the daemon would read from its row. */
export interface Call {
  readonly job: string;
  readonly type: string;
  /** JSON text, passed on as it is. */
  readonly payload: string;
  readonly epoch: number;
  readonly attempt: number;
  readonly dryRun: boolean;
  readonly seq: number;
  readonly cursor: string | null;
  readonly scope: Step['scope'];
  readonly previousFailure: string | null;
  readonly maxItems: number;
  readonly waitSeconds: number;
  /** Messages a second; null for no limit. */
  readonly perSecond: number | null;
}

/** How a call differs from what the daemon would do. */
export interface Deviation {
  readonly secret?: string | null;
  readonly token?: string | null;
  /** Milliseconds since 1970 that the signature is dated with. */
  readonly signedAt?: number;
  /** Cuts the connection so long after the whole request was written. */
  readonly cutAfterMs?: number;
}

export interface Answer extends Reply {
  /** The body as a JSON object; null when it is something else. */
  readonly json: Readonly<Record<string, unknown>> | null;
  /** From the first byte written to the last one read. */
  readonly ms: number;
  /** Status, `Location`, `Retry-After` and the beginning of the body, in one line and without our secrets. */
  readonly shown: string;
}

/** There was no complete answer. */
export class NoAnswer extends Error {
  override readonly name = 'NoAnswer';

  constructor(
    message: string,
    /** Whether the whole request had been handed to the network. */
    readonly written: boolean,
    /** The operating system's or Node's, where there is one. */
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

/** Bounds of one exchange. */
export interface Bounds {
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

export class Service {
  /** The highest that any answer's `X-Broadcast-Level` has said. */
  levelClaimed: Level | null = null;
  readonly #base: URL;

  constructor(private readonly options: ServiceOptions) {
    this.#base = new URL(`${options.url.replace(/[?#].*|\/+$/g, '')}/jobs/`);
  }

  /** @throws NoAnswer */
  post(call: Call, bounds: Bounds, deviation: Deviation = {}): Promise<Answer> {
    const { secret = this.options.secret, token = this.options.token, signedAt, cutAfterMs } = deviation;
    const { maxItems, waitSeconds, perSecond } = call;
    const write = createRequestWriter({
      ...{ baseUrl: this.options.url, version: this.options.version, token, maxItems, waitSeconds },
      secrets: secret === null ? [] : [secret],
    });
    const grant = perSecond === null ? null : { maxItems, waitSeconds, perSecond };
    return this.#exchange(write(jobOf(call, signedAt), grant), bounds, cutAfterMs);
  }

  /** Asks for an operation (level 3), or with DELETE ends it. @throws NoAnswer */
  operation(method: 'GET' | 'DELETE', path: string, call: Call, bounds: Bounds): Promise<Answer> {
    const { url, token, version } = this.options;
    const write = createOperationWriter({ baseUrl: url, version, token, secrets: [], maxItems: 0, waitSeconds: 0 });
    const parcel = method === 'GET' ? write.question(jobOf(call), path) : write.ending(call.job, path);
    return this.#exchange(parcel, bounds);
  }

  /** Of a `Location`: its path at the service's own origin, relative to the jobs; null for any other. */
  pathOf(location: string): string | null {
    if (!URL.canParse(location, this.#base.href)) return null;
    const url = new URL(location, this.#base);
    return url.origin === this.#base.origin ? url.pathname + url.search : null;
  }

  #exchange(parcel: WrittenRequest, bounds: Bounds, cutAfterMs?: number): Promise<Answer> {
    const startedAt = performance.now();
    return new Promise<Answer>((resolve, reject) => {
      let written = false;
      const ask = this.#base.protocol === 'https:' ? overHttps : overHttp;
      const headers = { ...pairs(parcel.headers), 'content-length': Buffer.byteLength(parcel.body) };
      const url = new URL(parcel.path, this.#base);
      const request = ask(url, { method: parcel.method, headers, agent: false });
      const giveUp = (why: string, code: string | null = null) => {
        release();
        reject(new NoAnswer(why, written, code));
        request.destroy();
      };
      const onAbort = () => giveUp('given up');
      const timer = setTimeout(
        () => giveUp(`no complete answer within ${bounds.timeoutMs / 1000} s`),
        bounds.timeoutMs,
      );
      let cut: NodeJS.Timeout | undefined;
      const release = () => {
        clearTimeout(timer);
        clearTimeout(cut);
        bounds.signal.removeEventListener('abort', onAbort);
      };
      bounds.signal.addEventListener('abort', onAbort);
      request.on('error', (error: NodeJS.ErrnoException) => {
        // Of a name with several addresses there is no message, only the code.
        const said = [error.code, error.message].filter(Boolean).join(': ');
        giveUp(said, error.code ?? null);
      });
      request.on('finish', () => {
        written = true;
        if (cutAfterMs !== undefined) cut = setTimeout(() => giveUp('cut by the kit'), cutAfterMs);
      });
      request.on('response', (response) => {
        read(response).then(
          ({ body, bodyTooLarge }) => {
            release();
            // 'response' always comes with a status.
            resolve(this.#answer(response.statusCode ?? 0, response.headers, body, bodyTooLarge, parcel, startedAt));
            request.destroy();
          },
          (error) => giveUp(`the answer broke off: ${String(error)}`),
        );
      });
      if (bounds.signal.aborted) onAbort();
      else request.end(parcel.body);
    });
  }

  #answer(
    status: number,
    headers: IncomingHttpHeaders,
    body: string,
    bodyTooLarge: boolean,
    { hidden }: WrittenRequest,
    startedAt: number,
  ): Answer {
    const reply = { status, headers, body, bodyTooLarge };
    const level = levelOf(reply);
    if (level !== null && level > (this.levelClaimed ?? -1)) this.levelClaimed = level;
    const ms = Math.round(performance.now() - startedAt);
    return { ...reply, json: objectOf(body), ms, shown: show(reply, hidden) };
  }
}

/** In words: which call it was. */
export function describe(call: Call): string {
  const about = [
    `epoch ${call.epoch}`,
    call.attempt > 1 ? `attempt ${call.attempt}` : '',
    call.cursor === null ? '' : `cursor ${JSON.stringify(call.cursor.slice(0, 40))}`,
    call.scope === 'all' ? '' : `scope ${call.scope}`,
    call.dryRun ? 'dry_run' : '',
    `max_items ${call.maxItems}`,
    `wait_seconds ${call.waitSeconds}`,
    call.perSecond === null ? '' : `per_second ${call.perSecond}`,
  ];
  return `POST /jobs/${call.type} "${call.job}:${call.seq}" (${about.filter(Boolean).join(', ')})`;
}

/** What an answer says its level is; null when it says none, or something else. */
export function levelOf(reply: Reply): Level | null {
  const said = headerOf(reply, 'x-broadcast-level')?.trim();
  const level = [0, 1, 2, 3] as const;
  return level.find((one) => String(one) === said) ?? null;
}

function jobOf(call: Call, signedAt?: number): Job {
  const now = new Date();
  return {
    id: '0',
    jobId: call.job,
    queue: 'broadcasts',
    type: call.type,
    broadcastId: null,
    segmentId: null,
    payload: call.payload,
    attempt: call.attempt,
    maxAttempts: 3,
    epoch: call.epoch,
    step: {
      seq: call.seq,
      cursor: call.cursor,
      scope: call.scope,
      previousFailure: call.previousFailure,
      operation: null,
    },
    dryRun: call.dryRun,
    traceparent: null,
    createdAt: now,
    scheduledAt: now,
    expiresAt: null,
    databaseNow: () => signedAt ?? now.getTime(),
  };
}

function pairs(flat: readonly string[]): Record<string, string> {
  const headers: Record<string, string> = {};
  for (let i = 0; i + 1 < flat.length; i += 2) headers[flat[i] ?? ''] = flat[i + 1] ?? '';
  return headers;
}

async function read(response: IncomingMessage): Promise<{ body: string; bodyTooLarge: boolean }> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response) {
    bytes += chunk.length;
    if (bytes > MAX_BODY_BYTES) return { body: '', bodyTooLarge: true };
    chunks.push(chunk);
  }
  return { body: Buffer.concat(chunks).toString('utf8'), bodyTooLarge: false };
}

function objectOf(text: string): Record<string, unknown> | null {
  if (!text.trimStart().startsWith('{')) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function show(reply: Reply, hidden: readonly string[]): string {
  const about = ['location', 'retry-after'].flatMap((name) => {
    const value = headerOf(reply, name);
    return value === undefined ? [] : [`${name}: ${value}`];
  });
  const body = reply.bodyTooLarge ? 'a body beyond 256 KiB' : reply.body || 'no body';
  const text = quote([...about, body].join(' '), hidden);
  return `${reply.status} ${text.length > 300 ? `${text.slice(0, 299)}…` : text}`;
}
