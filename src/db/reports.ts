/** Every statement that the API, the commands and the program itself make about queues, beside the queue's own. */
import { type Database, identifier } from './pool.js';

/**
 * Stops every daemon from claiming from this queue, or from all (`*`), until it is resumed.
 * @returns false when it was paused already
 */
export async function pauseQueue(database: Database, queue: string, reason: string, by: string): Promise<boolean> {
  const rows = await database.query<{ paused: boolean }>(
    `select ${identifier(database.schema)}.broadcast_pause_queue($1, $2, $3) as paused`,
    [queue, reason, by],
  );
  return rows[0]?.paused ?? false;
}

/** The names of the queues that are paused; `*` stands for all. */
export async function pausedQueues(database: Database): Promise<string[]> {
  const rows = await database.query<{ queue_name: string }>(
    `select queue_name from ${identifier(database.schema)}.broadcast_queue_pauses order by queue_name limit 500`,
  );
  return rows.map(({ queue_name }) => queue_name);
}
