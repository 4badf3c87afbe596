import { Type } from 'typebox';
import type { Handler } from '../job.js';
import { payloadReader } from './payload.js';

const Payload = Type.Object({
  days_old: Type.Optional(
    Type.Number({ minimum: 0, maximum: 36_500, description: 'a number of days from 0 to 36500' }),
  ),
  queue_name: Type.Optional(Type.String({ pattern: '^[a-z][a-z0-9_-]{0,49}$', description: "a queue's name" })),
});
const read = payloadReader(Payload);

/** How long finished jobs are kept, in days. */
export interface Retention {
  readonly completedDays: number;
  /** For failed and cancelled ones: somebody may still want to look at them and send them back. */
  readonly deadDays: number;
}

/** Deletes finished jobs that are older than they need to be. Needs no service: it works on the queue's own table. */
export function cleanupQueue(retention: Retention): Handler {
  return {
    type: 'cleanup_queue',
    payload: Payload,
    async run(job, { pruner }, signal) {
      const { days_old, queue_name } = read(job);
      const completedOlderThanDays = days_old ?? retention.completedDays;
      const deadOlderThanDays = retention.deadDays;
      const everyQueueAlike = days_old !== undefined;
      const what = { completedOlderThanDays, deadOlderThanDays, queue: queue_name ?? null, everyQueueAlike };
      const deleted = await pruner.prune(what, signal);
      return { kind: 'done', result: JSON.stringify({ deleted, days_old: completedOlderThanDays }) };
    },
  };
}
