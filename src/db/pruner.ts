/** Deletes finished jobs in small batches with pauses between them, so that a claim does not feel it. */
import { setTimeout as pause } from 'node:timers/promises';
import { type AbortReason, Interrupted } from '../errors.js';
import type { Pruner } from '../job.js';
import { pruneBatch } from './jobs.js';
import type { Database } from './pool.js';

const PAUSE_MS = 10;

export function jobPruner(database: Database): Pruner {
  return {
    async prune(what, signal) {
      let deleted = 0;
      let after: string | null = '0';
      while (after !== null) {
        // Nothing is undone by stopping here: the next cleanup goes on with what is left.
        if (signal.aborted) throw new Interrupted(signal.reason as AbortReason, false); // only the worker aborts it
        const batch: Awaited<ReturnType<typeof pruneBatch>> = await pruneBatch(database, what, after);
        deleted += batch.deleted;
        after = batch.lastId;
        await pause(PAUSE_MS);
      }
      return deleted;
    },
  };
}
