/**
 * Every statement that the API, the commands and the program itself make about queues, beside the queue's own: what they
 * show (reports/*.ts) and what operators change (reports/changes.ts). All of it is bounded: pages, batches of a walk
 * along the primary key, and rows that are few by nature.
 */
import { type Database, identifier } from './pool.js';
import { changeReports } from './reports/changes.js';
import { failureReports } from './reports/failures.js';
import { flowReports } from './reports/flow.js';
import { jobReports } from './reports/jobs.js';
import { liveReports } from './reports/live.js';
import { queueReports } from './reports/queues.js';

export type { Actor } from './reports/changes.js';
export type { JobFilter } from './reports/jobs.js';
export { JsonText } from './reports/json-text.js';
export type { ChangedJob, LiveState } from './reports/live.js';
export { noJobs, type QueueCounts } from './reports/queues.js';

/** @param redacted names of job_data members whose values are shown to nobody */
export function openReports(database: Database, redacted: readonly string[]) {
  return {
    ...queueReports(database),
    ...jobReports(database, redacted),
    ...failureReports(database),
    ...flowReports(database),
    ...liveReports(database),
    ...changeReports(database),
  };
}

export type Reports = ReturnType<typeof openReports>;

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
