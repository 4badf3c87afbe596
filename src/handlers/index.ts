/** The registry: which job types this daemon runs. A new type of our own is one file here and one line below. */
import { Type } from 'typebox';
import type { Handler } from '../job.js';
import { cleanupQueue, type Retention } from './cleanup-queue.js';
import { processRetries } from './process-retries.js';
import { sendBroadcast } from './send-broadcast.js';
import { sendSegmentBroadcast } from './send-segment-broadcast.js';

/** @param declaredTypes further job types (JOB_TYPES): passed on to the service as they are */
export function registry(retention: Retention, declaredTypes: readonly string[]): ReadonlyMap<string, Handler> {
  const handlers = [
    sendBroadcast,
    sendSegmentBroadcast,
    processRetries,
    cleanupQueue(retention),
    ...declaredTypes.map(passedOn),
  ];
  return new Map(handlers.map((handler) => [handler.type, handler]));
}

function passedOn(type: string): Handler {
  return {
    type,
    payload: Type.Unknown(),
    async run(job, { service }, signal) {
      return service.call(job, signal);
    },
  };
}
