/**
 * Waiting, with an end to it: a deadline, and Ctrl-C, after which every wait ends at once, so that what was started is
 * taken down in order.
 */
import { setTimeout as pause } from 'node:timers/promises';

export class Interrupted extends Error {
  override readonly message = 'interrupted';
}

const interrupted = new AbortController();

/** What Ctrl-C does; the second one does not wait. */
export function interrupt(): void {
  if (interrupted.signal.aborted) process.exit(130);
  interrupted.abort(new Interrupted());
}

/** @throws Error saying what did not come about */
export async function until(
  what: string,
  look: () => Promise<boolean> | boolean,
  ms: number,
  everyMs = 5,
): Promise<void> {
  const deadline = performance.now() + ms;
  while (!(await look())) {
    if (performance.now() > deadline) throw late(what, ms);
    await sleep(everyMs);
  }
}

export async function within<T>(ms: number, what: string, work: Promise<T>): Promise<T> {
  let giveUp = () => {};
  const waited = new Promise<never>((_, reject) => {
    const timer = setTimeout(() => reject(late(what, ms)), ms);
    const stop = () => reject(interrupted.signal.reason);
    interrupted.signal.addEventListener('abort', stop);
    giveUp = () => {
      clearTimeout(timer);
      interrupted.signal.removeEventListener('abort', stop);
    };
  });
  return Promise.race([work, waited]).finally(giveUp);
}

export async function sleep(ms: number): Promise<void> {
  interrupted.signal.throwIfAborted();
  await pause(ms, undefined, { signal: interrupted.signal }).catch(() => {
    throw interrupted.signal.reason;
  });
}

function late(what: string, ms: number): Error {
  return new Error(`within ${ms} ms it did not come about that ${what}`);
}
