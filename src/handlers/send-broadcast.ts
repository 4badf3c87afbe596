import { Type } from 'typebox';
import type { Handler } from '../job.js';
import { Id, payloadReader } from './payload.js';

const Payload = Type.Object({ broadcast_id: Id });
const read = payloadReader(Payload);

/** A broadcast to everybody: the service knows who that is, and sends. */
export const sendBroadcast: Handler = {
  type: 'send_broadcast',
  payload: Payload,
  async run(job, { service }, signal) {
    read(job);
    return service.call(job, signal);
  },
};
