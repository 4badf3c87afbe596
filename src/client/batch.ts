/** A batch as broadcast_enqueue_many takes it: each item checked, with the options that hold for all. */
import { type BatchOptions, type BroadcastItem, check, checkOptions, ENQUEUE_OPTIONS, invalid } from './options.js';

/** @throws BroadcastQueueError `invalid_argument` */
export function batchOf(method: string, broadcasts: readonly BroadcastItem[], options: BatchOptions): object[] {
  check(method, 'items', broadcasts, 'broadcasts');
  checkOptions(method, options, [...ENQUEUE_OPTIONS, 'delayPerJob']);
  // A key of their own would leave one job of all. Types forbid it, but not everybody has them.
  if (![undefined, null].includes(options.uniqueKey)) {
    throw invalid(method, 'for a batch uniqueKey can only be null (none); left out, each broadcast has its usual key');
  }
  const forAll = {
    queue: options.queue,
    priority: options.priority,
    max_attempts: options.maxAttempts,
    unique_key: options.uniqueKey,
    expires_at: options.expiresAt?.toISOString(),
    dry_run: options.dryRun,
    traceparent: options.traceparent,
    send_window: options.sendWindow,
  };
  // A hole in the array is an item that is missing, and map would step over it.
  return Array.from(broadcasts, (item, index) => {
    checkItem(method, item, `broadcasts[${index}]`);
    const later = index * (options.delayPerJob ?? 0);
    return {
      job_type: item.segment_id === undefined ? 'send_broadcast' : 'send_segment_broadcast',
      job_data: item,
      ...forAll,
      ...(options.scheduledAt === undefined
        ? { delay: `${(options.delay ?? 0) + later} milliseconds` }
        : { scheduled_at: new Date(options.scheduledAt.getTime() + later).toISOString() }),
    };
  });
}

function checkItem(method: string, item: BroadcastItem, called: string): void {
  check(method, 'item', item, called);
  // The daemon reads these as well; here one that is meant for a segment would be taken for everybody's.
  for (const name of ['broadcastId', 'segmentId']) {
    if (Object.hasOwn(item, name)) throw invalid(method, `${called}: write ${name.replace('Id', '_id')}, not ${name}`);
  }
  check(method, 'broadcastId', item.broadcast_id, `${called}.broadcast_id`);
  if (item.segment_id !== undefined) check(method, 'segmentId', item.segment_id, `${called}.segment_id`);
}
