/** For tests of the client of the broadcast service: a job to call it with, and the errors of calls that fail. */
import { expect } from '@jest/globals';
import { TransientError } from '../../src/errors.js';
import type { Job, Step } from '../../src/job.js';

const STEP: Step = { seq: 7, cursor: 'c6', scope: 'all', previousFailure: 'timeout', operation: null };

export function aJob({ step, ...members }: Partial<Omit<Job, 'step'>> & { step?: Partial<Step> } = {}): Job {
  return {
    id: '7',
    jobId: 'job-7',
    queue: 'default',
    type: 'send_broadcast',
    broadcastId: null,
    segmentId: null,
    payload: '{"text":"hello"}',
    attempt: 2,
    maxAttempts: 5,
    epoch: 3,
    step: { ...STEP, ...step },
    dryRun: false,
    traceparent: null,
    createdAt: new Date('2026-11-23T10:00:00Z'),
    scheduledAt: new Date('2026-11-23T11:00:00Z'),
    expiresAt: null,
    databaseNow: () => Date.now(),
    ...members,
  };
}

export const never = () => new AbortController().signal;

/** The error of a call that is expected to fail. */
export async function failureOf(call: Promise<unknown>): Promise<unknown> {
  return call.then(
    (outcome) => Promise.reject(new Error(`the call succeeded: ${JSON.stringify(outcome)}`)),
    (error: unknown) => error,
  );
}

export async function transientOf(call: Promise<unknown>): Promise<TransientError> {
  const error = await failureOf(call);
  expect(error).toBeInstanceOf(TransientError);
  // Just asserted.
  return error as TransientError;
}
