import { expect, test } from '@jest/globals';
import { reply, replyJson, reset } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { until } from '../support/until.js';

const stage = setStage({ RETRY_BASE_DELAY_MS: '1000' });

interface Given {
  job_type?: string;
  job_data?: unknown;
  [column: string]: unknown;
}

async function insert(given: Given = {}): Promise<string> {
  const row: Given = { job_type: 'send_broadcast', job_data: { broadcast_id: 1 }, ...given };
  const columns = Object.keys(row);
  const rows = await stage.database.query<{ job_id: string }>(
    `insert into broadcast_queue_jobs (${columns.join(', ')})
     values (${columns.map((_, i) => `$${i + 1}`).join(', ')}) returning job_id`,
    columns.map((column) => (column === 'job_data' ? JSON.stringify(row[column]) : row[column])),
  );
  return rows[0]?.job_id ?? '';
}

const reached = (jobId: string, status: string, ms?: number) =>
  until(
    `the job is ${status}`,
    async () => {
      const rows = await stage.database.query(
        'select *, extract(epoch from next_retry_at - updated_at)::float8 as waits_s from broadcast_queue_jobs where job_id = $1',
        [jobId],
      );
      return rows[0]?.status === status && rows[0];
    },
    ms,
  );

test('a row with nothing but a type and a payload is sent, and the answer is kept', async () => {
  await stage.start();
  stage.service.next(replyJson(200, { total: 3, sent: 2, failed: 1 }));
  const jobId = await insert();
  expect(await reached(jobId, 'completed')).toMatchObject({
    attempts: 1,
    error_message: null,
    result: { total: 3, sent: 2, failed: 1 },
    next_retry_at: null,
  });
  expect(stage.service.requests[0]).toMatchObject({ method: 'POST', url: '/jobs/send_broadcast' });
  expect(JSON.parse(stage.service.requests[0]?.body ?? '')).toMatchObject({
    protocol: 1,
    job: { id: jobId, type: 'send_broadcast', queue: 'broadcasts', attempt: 1, max_attempts: 3 },
    payload: { broadcast_id: 1 },
    step: { seq: 0, cursor: null, previous_failure: null },
  });
});

test('integers beyond 2^53 reach the service as Postgres holds them', async () => {
  await stage.start();
  const jobId = await insert({ job_data: { broadcast_id: 1 } });
  await stage.database.query(
    `update broadcast_queue_jobs set job_data = '{"broadcast_id": 90071992547409931234567890, "x": 1.10}' where job_id = $1`,
    [jobId],
  );
  await reached(jobId, 'completed');
  const again = `{"broadcast_id": 90071992547409931234567890, "x": 1.10}`;
  await stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', '${again}')`,
  );
  await stage.service.received(2);
  expect(stage.service.requests[1]?.body).toContain('90071992547409931234567890');
  expect(stage.service.requests[1]?.body).toContain('1.10');
});

test('failures are retried after base × 2^(attempt − 1), at most a tenth later, and then the job fails', async () => {
  await stage.start();
  stage.service.otherwise(replyJson(500, { detail: 'database on fire' }));
  const jobId = await insert();
  const waits: number[] = [];
  for (const attempt of [1, 2]) {
    const row = await until(`attempt ${attempt} failed`, async () => {
      const rows = await stage.database.query(
        `select status, attempts, extract(epoch from next_retry_at - updated_at)::float8 as waits_s
         from broadcast_queue_jobs where job_id = $1`,
        [jobId],
      );
      return rows[0]?.status === 'retry' && rows[0].attempts === attempt && rows[0];
    });
    waits.push(Number(row.waits_s));
  }
  for (const [i, base] of [1, 2].entries()) {
    expect(waits[i]).toBeGreaterThanOrEqual(base - 0.001);
    expect(waits[i]).toBeLessThanOrEqual(base * 1.1 + 0.001);
  }
  const failed = await reached(jobId, 'failed');
  expect(failed).toMatchObject({ attempts: 3, error_code: 'http_500', previous_failure: 'http_500' });
  expect(failed.error_message).toContain('database on fire');
  const history = await stage.database.query(
    'select attempt, outcome, http_status from broadcast_queue_attempts order by id',
  );
  expect(history).toEqual([
    { attempt: 1, outcome: 'retry', http_status: 500 },
    { attempt: 2, outcome: 'retry', http_status: 500 },
    { attempt: 3, outcome: 'failed', http_status: 500 },
  ]);
  expect(new Set(stage.service.requests.map(({ headers }) => headers['idempotency-key'])).size).toBe(1);
});

test("an operator's plain UPDATE to pending makes a failed job run again", async () => {
  await stage.start();
  stage.service.next(replyJson(422, { detail: 'no text' }));
  const jobId = await insert();
  await reached(jobId, 'failed');
  await stage.database.query(`update broadcast_queue_jobs set status = 'pending' where job_id = $1`, [jobId]);
  expect(await reached(jobId, 'completed')).toMatchObject({ attempts: 2, error_message: null });
});

test('a 429 waits as long as it says and consumes no attempt', async () => {
  await stage.start();
  stage.service.next(reply(429, '', { 'retry-after': '2' }));
  const jobId = await insert();
  const waiting = await reached(jobId, 'retry');
  expect(waiting).toMatchObject({ attempts: 0, error_code: 'throttled' });
  expect(Number(waiting.waits_s)).toBeGreaterThanOrEqual(1.999);
  expect(await reached(jobId, 'completed')).toMatchObject({ attempts: 1 });
});

test.each([
  [
    'an unknown job type',
    { job_type: 'send_pigeon' },
    'unknown_job_type',
    'No processor registered for job type: send_pigeon',
  ],
  [
    'a missing id',
    { job_data: {} },
    'invalid_data',
    'Invalid data for send_broadcast: broadcast_id is missing (a string or an integer)',
  ],
  [
    'a wrong id',
    { job_data: { broadcast_id: [1] } },
    'invalid_data',
    'Invalid data for send_broadcast: broadcast_id must be a string or an integer, not [1]',
  ],
  [
    'no object',
    { job_data: [1] },
    'invalid_data',
    'Invalid data for send_broadcast: it must be a JSON object, not an array',
  ],
  [
    'a segment without its id',
    { job_type: 'send_segment_broadcast' },
    'invalid_data',
    'Invalid data for send_segment_broadcast: segment_id is missing (a string or an integer)',
  ],
  [
    'one passed expires_at',
    { expires_at: '2020-01-01T00:00:00Z' },
    'expired',
    'expired: not started before its expires_at, 2020-01-01T00:00:00.000Z',
  ],
])('%s fails at once, says what was wrong, and is never called', async (_what, given, code, message) => {
  await stage.start();
  const jobId = await insert(given);
  expect(await reached(jobId, 'failed')).toMatchObject({ error_code: code, error_message: message, attempts: 1 });
  expect(stage.service.requests).toHaveLength(0);
});

test('camelCase ids are accepted, and unknown members are passed on', async () => {
  await stage.start();
  const jobId = await insert({
    job_type: 'send_segment_broadcast',
    job_data: { broadcastId: 'b', segmentId: 's', extra: { deep: [1] } },
  });
  await reached(jobId, 'completed');
  expect(JSON.parse(stage.service.requests[0]?.body ?? '').payload).toEqual({
    broadcastId: 'b',
    segmentId: 's',
    extra: { deep: [1] },
  });
});

test('a payload of 5 MB can be inserted and is refused with a clear error', async () => {
  await stage.start();
  const jobId = await insert({ job_data: { broadcast_id: 1, text: 'x'.repeat(5_000_000) } });
  const failed = await reached(jobId, 'failed');
  expect(failed.error_code).toBe('payload_too_large');
  expect(failed.error_message).toMatch(/^job_data is 5\d{6} bytes, over the limit of 1048576 \(MAX_PAYLOAD_BYTES\)$/);
});

test('a payload of 5 MB is sent where the limit allows it', async () => {
  await stage.start({ MAX_PAYLOAD_BYTES: '6000000' });
  const jobId = await insert({ job_data: { broadcast_id: 1, text: 'x'.repeat(5_000_000) } });
  await reached(jobId, 'completed');
  expect(stage.service.requests[0]?.body.length).toBeGreaterThan(5_000_000);
});

test('with all triggers disabled everything still works, at the pace of the poll', async () => {
  await stage.database.query('alter table broadcast_queue_jobs disable trigger all');
  try {
    await stage.start({ POLL_INTERVAL_MS: '300' });
    const jobId = await insert();
    await reached(jobId, 'completed', 2000);
  } finally {
    await stage.database.query('alter table broadcast_queue_jobs enable trigger all');
  }
});

test('declared job types go to the service; unknown ones can wait for a daemon that knows them', async () => {
  const older = await stage.start({ UNKNOWN_JOB_TYPES: 'wait' });
  const jobId = await insert({ job_type: 'send_poll', job_data: { any: 'thing' } });
  const waiting = await reached(jobId, 'retry');
  expect(waiting).toMatchObject({ attempts: 0, stalled_calls: 0 });
  expect(waiting.hold_reason).toMatch(/no processor registered for job type: send_poll/);
  older.signal('SIGTERM');
  await older.ended;
  await stage.start({ JOB_TYPES: 'send_poll' });
  await reached(jobId, 'completed', 15_000);
  expect(stage.service.requests[0]?.url).toBe('/jobs/send_poll');
}, 30_000);

test('AMBIGUOUS_POLICY=pause: a call that may have been carried out waits for an operator', async () => {
  await stage.start({ AMBIGUOUS_POLICY: 'pause' });
  stage.service.next(reset('after body is read'));
  const jobId = await insert();
  const paused = await reached(jobId, 'paused');
  expect(paused.flags).toEqual(['possible_duplicate']);
  expect(paused.hold_reason).toMatch(/may have carried it out/);
  expect(stage.service.requests).toHaveLength(1);
  await stage.database.query('select broadcast_resume($1)', [jobId]);
  await reached(jobId, 'completed');
});

test('a sliced broadcast goes on from its cursor, slice by slice, and counts no attempts', async () => {
  await stage.start();
  const slice = (cursor: string, processed: number) =>
    replyJson(202, { status: 'continue', cursor, progress: { total: 300, processed, sent: processed } });
  stage.service.next(
    slice('a', 100),
    slice('b', 200),
    replyJson(200, { status: 'completed', progress: { total: 300, processed: 300, sent: 300 } }),
  );
  const jobId = await insert();
  expect(await reached(jobId, 'completed')).toMatchObject({
    attempts: 1,
    step_seq: 2,
    progress: { total: 300, processed: 300, sent: 300 },
  });
  const steps = stage.service.requests.map(({ body }) => JSON.parse(body).step);
  expect(steps.map(({ seq, cursor }) => [seq, cursor])).toEqual([
    [0, null],
    [1, 'a'],
    [2, 'b'],
  ]);
  expect(stage.service.requests.map(({ headers }) => headers['idempotency-key'])).toEqual(
    [0, 1, 2].map((seq) => `"${jobId}:${seq}"`),
  );
});

test('a service that circles without progress ends paused, with the reason', async () => {
  await stage.start();
  stage.service.otherwise(replyJson(202, { status: 'continue', cursor: 'same', progress: { total: 9, processed: 0 } }));
  const jobId = await insert();
  const paused = await reached(jobId, 'paused');
  expect(paused.hold_reason).toMatch(/^no progress in 50 calls/);
  expect(stage.service.requests).toHaveLength(50);
});
