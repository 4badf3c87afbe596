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
