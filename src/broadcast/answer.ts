/**
 * Reading a service's answer: status, headers and body in, an Outcome out or an error thrown. Pure, and the whole of
 * the protocol's tables: success.ts reads what the service did, operation.ts how the work stands that it runs by itself,
 * failure.ts what it would not or could not do.
 */
import { TransientError } from '../errors.js';
import type { Outcome } from '../job.js';
import { readFailure } from './failure.js';
import { operationLost, readOperation } from './operation.js';
import type { Circumstances, Reply } from './reply.js';
import { readSuccess } from './success.js';

/**
 * @throws TransientError for what is worth another call
 * @throws PermanentError for what is not
 */
export function readAnswer(reply: Reply, about: Circumstances): Outcome {
  if (reply.status >= 400) return readFailure(reply, about);
  if (reply.status >= 300) throw misrouted(reply, about);
  return readSuccess(reply, about);
}

/**
 * The same for an operation that was asked.
 * @param location where it was asked
 */
export function readOperationAnswer(reply: Reply, about: Circumstances, location: string): Outcome {
  if (reply.status === 404) throw operationLost(reply, about);
  return reply.status < 300 ? readOperation(reply, about, location) : readAnswer(reply, about);
}

/** A redirect is never followed: it could lead the payload and our credentials anywhere. */
function misrouted(reply: Reply, about: Circumstances): TransientError {
  const message = `${about.where} answered ${reply.status}, a redirect, which is never followed: is the base URL right?`;
  return new TransientError(message, { code: 'bad_route', httpStatus: reply.status });
}
