/**
 * One HTTP exchange under one deadline, on undici's dispatcher itself: a level below `request()`, because only there
 * it is certain whether the request was written, and because a call that still waits for a connection can be given up
 * there at once.
 */
import type { IncomingHttpHeaders } from 'node:http';
import type { Dispatcher } from 'undici';
import { MAX_BODY_BYTES } from './protocol.js';
import type { Reply } from './reply.js';

/** What is written, as HTTP wants it. */
export interface Parcel {
  readonly method: 'POST' | 'GET' | 'DELETE';
  readonly path: string;
  /** Names and values in turn. */
  readonly headers: string[];
  /** Empty: none. */
  readonly body: string;
}

/** Why there is no reply. `broken`: the connection failed, or never came about; its error is the cause. */
export type Ending = 'timeout' | 'aborted' | 'broken';

export class NoReply extends Error {
  override readonly name = 'NoReply';

  constructor(
    readonly ending: Ending,
    /** False only when the service certainly has not seen the request. */
    readonly requestWritten: boolean,
    cause?: unknown,
  ) {
    super(ending, { cause });
  }
}

/**
 * Sends once. Never repeats, never follows a redirect, and reads at most MAX_BODY_BYTES.
 * @param timeoutMs over all of it: waiting for a connection, connecting, writing, headers and body
 * @throws NoReply
 */
export function exchange(
  dispatcher: Dispatcher,
  parcel: Parcel,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const exchanged = new Exchange(timeoutMs, signal, resolve, reject);
    const { method, path, headers, body } = parcel;
    dispatcher.dispatch({ method, path, headers, body }, exchanged);
  });
}

class Exchange implements Dispatcher.DispatchHandler {
  #controller: Dispatcher.DispatchController | undefined;
  #settled = false;
  #status = 0;
  #headers: IncomingHttpHeaders = {};
  readonly #chunks: Buffer[] = [];
  #bytes = 0;
  readonly #timer: NodeJS.Timeout;
  readonly #onAbort = () => this.#giveUp('aborted');

  constructor(
    timeoutMs: number,
    readonly signal: AbortSignal,
    readonly resolve: (reply: Reply) => void,
    readonly reject: (why: NoReply) => void,
  ) {
    this.#timer = setTimeout(() => this.#giveUp('timeout'), timeoutMs);
    signal.addEventListener('abort', this.#onAbort);
  }

  /**
   * Called right before the headers are written. A call that was given up meanwhile is not written, and none is
   * written twice, whatever undici does with its queue when a connection goes.
   */
  onRequestStart(controller: Dispatcher.DispatchController): void {
    if (this.#settled || this.#controller !== undefined) {
      controller.abort(new Error('given up before it was written'));
      return;
    }
    this.#controller = controller;
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number, headers: IncomingHttpHeaders): void {
    // An interim answer (1xx) is overwritten by the final one.
    this.#status = status;
    this.#headers = headers;
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.#bytes += chunk.length;
    if (this.#bytes > MAX_BODY_BYTES) {
      this.#finish('', true);
      this.#controller?.abort(new Error('the body is too large'));
      return;
    }
    this.#chunks.push(chunk);
  }

  onResponseEnd(): void {
    const [first] = this.#chunks;
    const body = this.#chunks.length === 1 && first !== undefined ? first : Buffer.concat(this.#chunks);
    this.#finish(body.toString('utf8'), false);
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.#fail('broken', error);
  }

  #giveUp(ending: 'timeout' | 'aborted'): void {
    this.#fail(ending);
    this.#controller?.abort(new Error(ending));
  }

  #finish(body: string, bodyTooLarge: boolean): void {
    if (this.#release()) this.resolve({ status: this.#status, headers: this.#headers, body, bodyTooLarge });
  }

  #fail(ending: Ending, cause?: unknown): void {
    if (this.#release()) this.reject(new NoReply(ending, this.#controller !== undefined, cause));
  }

  /** @returns false when the exchange has ended before: only the first ending counts */
  #release(): boolean {
    if (this.#settled) return false;
    this.#settled = true;
    clearTimeout(this.#timer);
    this.signal.removeEventListener('abort', this.#onAbort);
    return true;
  }
}
