/**
 * Hears notifications, for as long as it takes. pg-listen does the listening; what it cannot be trusted with is done
 * here: it is never allowed to reconnect by itself (it gives up, or keeps reconnecting after it was closed), and a
 * watchdog has a notification sent to it, because a half-open socket says nothing for many minutes, and behind a
 * transaction pooler LISTEN succeeds and is worth nothing. On any trouble the whole subscriber is thrown away, socket
 * included, and a new one is made.
 */
import { randomBytes } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { Socket } from 'node:net';
import pgListen from 'pg-listen';
import { connectionOptions } from './pool.js';

export interface ListenerSettings {
  readonly url: string | null;
  readonly channels: readonly string[];
  readonly applicationName: string;
  /**
   * Sends a notification to a channel, over another connection: what a connection behind a pooler tells itself may
   * arrive, though nothing else does.
   */
  readonly notify: (channel: string) => Promise<void>;
  /** How often the watchdog looks, and how long an answer may take, in milliseconds. */
  readonly watchEveryMs: number;
  readonly answerWithinMs: number;
  readonly random: () => number;
}

interface ListenerEvents {
  /** Listening, for the first time or again: whatever was sent meanwhile is gone, so look. */
  listening: [];
  notified: [channel: string];
  /** Not listening; it goes on trying. `Unheard` when it could listen, but notifications do not arrive. */
  deaf: [Error];
}

export interface Listener {
  readonly events: EventEmitter<ListenerEvents>;
  readonly listening: boolean;
  close(): Promise<void>;
}

/** LISTEN was accepted, and yet the first notification did not arrive: so it is with a pooler in transaction mode. */
export class Unheard extends Error {
  override readonly name = 'Unheard';
}

/** Starts listening in the background and never gives up until closed. */
export function listen(settings: ListenerSettings): Listener {
  const events = new EventEmitter<ListenerEvents>();
  const closing = new AbortController();
  const state = { listening: false };

  const done = (async () => {
    while (!closing.signal.aborted) {
      let againAfterMs = RECONNECT_AFTER_MS;
      try {
        await listenOnce(settings, closing.signal, events, state);
      } catch (error) {
        if (closing.signal.aborted) break;
        if (error instanceof Unheard) againAfterMs = UNHEARD_AFTER_MS;
        events.emit('deaf', error instanceof Error ? error : new Error(String(error)));
      } finally {
        state.listening = false;
      }
      await pause(againAfterMs * (0.5 + settings.random()), closing.signal);
    }
  })();

  return {
    events,
    get listening() {
      return state.listening;
    },
    async close() {
      closing.abort();
      await done;
    },
  };
}

const RECONNECT_AFTER_MS = 500;
/** Nothing heals by itself there: somebody has to change an address, or the pooler's mode. */
const UNHEARD_AFTER_MS = 60_000;
const CONNECT_WITHIN_MS = 5000;

/** One subscriber's life: resolves when closing, throws when it is of no more use. */
async function listenOnce(
  settings: ListenerSettings,
  closing: AbortSignal,
  events: EventEmitter<ListenerEvents>,
  state: { listening: boolean },
): Promise<void> {
  // The socket is ours, so that a half-open connection can be ended without asking it.
  const socket = new Socket();
  const subscriber = pgListen.default(
    { ...connectionOptions(settings.url, settings.applicationName), stream: () => socket },
    {
      retryLimit: 1,
      paranoidChecking: false,
      parse: (payload: string) => payload,
      serialize: (payload: string) => payload,
    },
  );
  const trouble = new Promise<never>((_, reject) => subscriber.events.on('error', reject));
  trouble.catch(() => {});
  const echoChannel = `broadcast_queue_echo_${randomBytes(6).toString('hex')}`;
  let onEcho = () => {};

  /** Whether a notification arrives; false when none could be sent, which says nothing about the listener. */
  async function hears(): Promise<boolean> {
    const inTime = () => pause(settings.answerWithinMs, closing).then(() => false);
    const echo = new Promise<boolean>((resolve) => {
      onEcho = () => resolve(true);
    });
    const sent = settings.notify(echoChannel).then(
      () => true,
      () => false,
    );
    if (!(await Promise.race([sent, inTime(), trouble]))) return false;
    if (await Promise.race([echo, inTime(), trouble])) return true;
    const what = `a notification sent to it did not arrive within ${settings.answerWithinMs} ms`;
    throw state.listening ? new Error(what) : new Unheard(what);
  }

  try {
    const connected = subscriber.connect();
    connected.catch(() => {});
    await within(CONNECT_WITHIN_MS, 'connecting', Promise.race([connected, trouble]), closing);
    for (const channel of settings.channels) {
      subscriber.notifications.on(channel, () => events.emit('notified', channel));
    }
    subscriber.notifications.on(echoChannel, () => onEcho());
    const subscribed = (async () => {
      for (const channel of [...settings.channels, echoChannel]) await subscriber.listenTo(channel);
    })();
    subscribed.catch(() => {});
    await within(settings.answerWithinMs, 'LISTEN', Promise.race([subscribed, trouble]), closing);
    while (!closing.aborted) {
      if (await hears()) {
        if (!state.listening) {
          state.listening = true;
          events.emit('listening');
        }
      } else if (!state.listening) {
        throw new Error('no notification could be sent to try it');
      }
      await Promise.race([pause(settings.watchEveryMs, closing), trouble]);
    }
  } finally {
    // A polite end first; the socket goes in any case.
    await Promise.race([subscriber.close().catch(() => {}), pause(FAREWELL_MS)]);
    socket.destroy();
  }
}

const FAREWELL_MS = 200;

/** Resolves after `ms`, or at once when `signal` is aborted. */
function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const timer = setTimeout(end, ms);
    signal?.addEventListener('abort', end, { once: true });
    function end() {
      clearTimeout(timer);
      signal?.removeEventListener('abort', end);
      resolve();
    }
  });
}

/** The promise's own end, or an error that says what took longer than `ms`. Closing ends it as well. */
async function within<T>(ms: number, what: string, promise: Promise<T>, closing: AbortSignal): Promise<T> {
  const over = new AbortController();
  const stop = () => over.abort();
  closing.addEventListener('abort', stop, { once: true });
  try {
    return await Promise.race([
      promise,
      pause(ms, over.signal).then(() => {
        throw new Error(closing.aborted ? 'closing' : `no answer to ${what} within ${ms} ms`);
      }),
    ]);
  } finally {
    closing.removeEventListener('abort', stop);
    stop();
  }
}
