import { Type } from 'typebox';
import type { Handler } from '../job.js';
import { Id, payloadReader } from './payload.js';

const Payload = Type.Object({ broadcast_id: Id, segment_id: Id });
const read = payloadReader(Payload);

/** A broadcast to one segment of the bot's users. */
export const sendSegmentBroadcast: Handler = {
  type: 'send_segment_broadcast',
  payload: Payload,
  async run(job, { service }, signal) {
    read(job);
    return service.call(job, signal);
  },
};
