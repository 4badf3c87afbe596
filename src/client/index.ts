/**
 * What a Node bot imports. It turns method calls into the statements that any other language would write by hand, on a
 * connection that the bot gives it: it opens none, starts no worker and keeps no state. So nothing of the daemon may be
 * imported here, nor the driver itself, and a bot that uses the library loads these few files and no package.
 */
export {
  BroadcastQueue,
  type BroadcastQueueOptions,
  type Connection,
} from './broadcast-queue.js';
export { BroadcastQueueError, type BroadcastQueueErrorCode } from './error.js';
export type { Counts, QueueStatus, Statistics, Status } from './figures.js';
export type {
  BatchOptions,
  BroadcastId,
  BroadcastItem,
  BroadcastOptions,
  EnqueueOptions,
  Scope,
  SendWindow,
} from './options.js';
export type { EnqueuedInBatch, EnqueuedJob, JobProgress, JobRow, JobStatus } from './rows.js';
