/**
 * The call that every contestant but broadcastd makes from its handler: the same POST as broadcastd's, with the same
 * headers and a body of the same members and the same size, over undici with one connection per call in flight.
 */
import { Pool } from 'undici';

export type Call = (id: number | string, payload: unknown) => Promise<void>;

export function caller(serviceUrl: string, connections: number): Call {
  const pool = new Pool(serviceUrl, { connections, headersTimeout: 0, bodyTimeout: 0 });
  return async (id, payload) => {
    // As long as a job's id of broadcastd.
    const jobId = String(id).padStart(36, '0');
    const { statusCode, body } = await pool.request({
      method: 'POST',
      path: '/jobs/send_broadcast',
      headers: {
        'content-type': 'application/json',
        accept: 'application/json, application/problem+json',
        'user-agent': 'broadcastd/0.1.0',
        prefer: 'respond-async, wait=25',
        'idempotency-key': `"${jobId}:0"`,
        'x-job-attempt': '1',
        'x-job-id': jobId,
        'x-job-epoch': '1',
      },
      body: JSON.stringify({ protocol: 1, job: { id: jobId, ...JOB }, payload, step: STEP }),
    });
    await body.text();
    if (statusCode !== 200) throw new Error(`the service answered ${statusCode}`);
  };
}

const JOB = {
  type: 'send_broadcast',
  queue: 'broadcasts',
  created_at: '2026-01-01T00:00:00.000Z',
  scheduled_at: '2026-01-01T00:00:00.000Z',
  expires_at: null,
  dry_run: false,
  epoch: 1,
  attempt: 1,
  max_attempts: 3,
};

const STEP = {
  seq: 0,
  cursor: null,
  scope: 'all',
  max_items: 1000,
  wait_seconds: 25,
  per_second: null,
  previous_failure: null,
};
