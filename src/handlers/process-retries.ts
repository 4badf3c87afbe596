import { Type } from 'typebox';
import type { Handler } from '../job.js';
import { payloadReader } from './payload.js';

const Payload = Type.Object({
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000_000, description: 'an integer from 1 to 1000000' })),
});
const read = payloadReader(Payload);

/** Tells the service to try again the single users whose message did not go through. */
export const processRetries: Handler = {
  type: 'process_retries',
  payload: Payload,
  async run(job, { service }, signal) {
    read(job);
    return service.call(job, signal);
  },
};
