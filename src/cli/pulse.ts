/** For a daemon that claims nothing, and so would not notice: whether the database answers. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Database } from '../db/pool.js';

export interface Pulse {
  /** For how long the database has not answered, in milliseconds; 0: it does. */
  readonly downMs: number;
  stop(): Promise<void>;
}

const EVERY_MS = 5000;

export function feelPulse(database: Database): Pulse {
  const stopping = new AbortController();
  let downSince: number | null = null;
  const done = (async () => {
    while (!stopping.signal.aborted) {
      const askedAt = performance.now();
      await database.query('select 1').then(
        () => {
          downSince = null;
        },
        () => {
          downSince ??= askedAt;
        },
      );
      await pause(EVERY_MS, undefined, { signal: stopping.signal }).catch(() => {});
    }
  })();
  return {
    get downMs() {
      return downSince === null ? 0 : performance.now() - downSince;
    },
    async stop() {
      stopping.abort();
      await done;
    },
  };
}
