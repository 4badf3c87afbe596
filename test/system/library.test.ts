/** The library for Node bots, on a real database, and once with the real daemon behind it. */
import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import pg from 'pg';
import { BroadcastQueue, BroadcastQueueError, type JobRow } from '../../src/client/index.js';
import { migrate } from '../../src/db/migrate.js';
import { replyJson } from '../support/http-server.js';
import { createEmptyDatabase } from '../support/postgres.js';
import { setStage } from '../support/stage.js';
import { until } from '../support/until.js';

const stage = setStage({ POLL_INTERVAL_MS: '500' });
const NOBODY = '00000000-0000-4000-8000-000000000000';

let pool: pg.Pool;
let queue: BroadcastQueue;

beforeEach(async () => {
  pool = new pg.Pool({ connectionString: stage.database.url, max: 3 });
  queue = new BroadcastQueue(pool);
  await pool.query('truncate broadcast_queue_leases, broadcast_queue_workers');
});
afterEach(() => pool.end());

describe('queueBroadcast', () => {
  test('queues it for everybody, due now, and answers the row', async () => {
    const job = await queue.queueBroadcast(42);
    expect(job).toEqual({
      id: expect.stringMatching(/^\d+$/),
      job_id: expect.any(String),
      queue_name: 'broadcasts',
      job_type: 'send_broadcast',
      job_data: { broadcast_id: 42 },
      status: 'pending',
      attempts: 0,
      max_attempts: 3,
      priority: 0,
      scheduled_at: job.created_at,
      expires_at: null,
      unique_key: expect.stringContaining('"42"'),
      created_at: expect.any(Date),
      inserted: true,
    });
    expect(await queue.getJob(job.job_id)).toMatchObject({ job_id: job.job_id, due_at: job.scheduled_at });
  });

  test('asked for the same again while it is live, finds it', async () => {
    const first = await queue.queueBroadcast('spring');
    expect(await queue.queueBroadcast('spring', { priority: 9 })).toEqual({ ...first, inserted: false });
    expect(await queue.queueBroadcast('spring', { uniqueKey: null })).toMatchObject({ inserted: true });
    expect(await queue.queueBroadcast('spring', { data: { bot_id: 'other' } })).toMatchObject({ inserted: true });
    await queue.cancel(first.job_id);
    expect(await queue.queueBroadcast('spring')).toMatchObject({ inserted: true });
  });

  test('takes every option', async () => {
    const expiresAt = new Date('2100-01-02T03:04:05.678Z');
    const sendWindow = {
      from: '09:00',
      to: '21:00',
      time_zone: 'Europe/Berlin',
      days: [1, 2],
      missed: 'fail',
    } as const;
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    const { job_id } = await queue.queueBroadcast(1, {
      ...{ queue: 'vip', delay: 90_000, priority: -5, maxAttempts: 7, uniqueKey: 'mine', expiresAt, dryRun: true },
      ...{ traceparent, sendWindow, data: { bot_id: 'shop', text: "it's", nested: { list: [1, null] } } },
    });
    const job = await found(job_id);
    expect(job).toMatchObject({
      ...{ queue_name: 'vip', priority: -5, max_attempts: 7, unique_key: 'mine', expires_at: expiresAt },
      ...{ dry_run: true, traceparent, send_window: sendWindow },
      job_data: { broadcast_id: 1, bot_id: 'shop', text: "it's", nested: { list: [1, null] } },
    });
    expect(job.scheduled_at.getTime() - job.created_at.getTime()).toBe(90_000);
  });

  test('takes an instant instead of a delay', async () => {
    const scheduledAt = new Date('2090-07-01T12:00:00.250Z');
    expect(await queue.queueBroadcast(1, { scheduledAt })).toMatchObject({ scheduled_at: scheduledAt });
  });
});

test('queueSegmentBroadcast queues it for the segment, once for each', async () => {
  const premium = await queue.queueSegmentBroadcast(42, 'premium', { data: { bot_id: 'shop' } });
  expect(premium).toMatchObject({
    queue_name: 'segment-broadcasts',
    job_type: 'send_segment_broadcast',
    job_data: { broadcast_id: 42, segment_id: 'premium', bot_id: 'shop' },
    inserted: true,
  });
  expect(await queue.queueSegmentBroadcast(42, 7)).toMatchObject({ inserted: true });
  expect(await queue.queueSegmentBroadcast(42, '7')).toMatchObject({ inserted: false });
});

describe('queueBroadcastBatch', () => {
  test('queues all in one go, each after the one before it', async () => {
    const answers = await queue.queueBroadcastBatch(
      [{ broadcast_id: 1 }, { broadcast_id: 'two', bot_id: 'shop' }, { broadcast_id: 3, segment_id: 'vip' }],
      { maxAttempts: 5, delay: 1000, delayPerJob: 60_000, priority: 2 },
    );
    expect(answers.map(({ inserted }) => inserted)).toEqual([true, true, true]);
    const jobs = await Promise.all(answers.map(({ job_id }) => found(job_id)));
    expect(jobs.map(({ job_data }) => job_data)).toEqual([
      { broadcast_id: 1 },
      { broadcast_id: 'two', bot_id: 'shop' },
      { broadcast_id: 3, segment_id: 'vip' },
    ]);
    expect(jobs.map(({ job_type }) => job_type)).toEqual([
      'send_broadcast',
      'send_broadcast',
      'send_segment_broadcast',
    ]);
    expect(jobs.map((job) => job.scheduled_at.getTime() - job.created_at.getTime())).toEqual([1000, 61_000, 121_000]);
    expect(jobs.map((job) => [job.max_attempts, job.priority])).toEqual([
      [5, 2],
      [5, 2],
      [5, 2],
    ]);
  });

  test('names the live job of what is there already, and goes on with the rest', async () => {
    const { job_id } = await queue.queueBroadcast(2);
    const [one, two, again] = await queue.queueBroadcastBatch([
      { broadcast_id: 1 },
      { broadcast_id: 2 },
      { broadcast_id: 1 },
    ]);
    expect([one?.inserted, two, again]).toEqual([
      true,
      { job_id, inserted: false },
      { job_id: one?.job_id, inserted: false },
    ]);
    const unkeyed = await queue.queueBroadcastBatch([{ broadcast_id: 2 }, { broadcast_id: 2 }], { uniqueKey: null });
    expect(unkeyed.map(({ inserted }) => inserted)).toEqual([true, true]);
  });

  test('spreads from an instant too, and of nothing makes nothing', async () => {
    const scheduledAt = new Date('2090-01-01T00:00:00Z');
    const batch = [{ broadcast_id: 1 }, { broadcast_id: 2 }];
    const answers = await queue.queueBroadcastBatch(batch, { scheduledAt, delayPerJob: 1500 });
    const jobs = await Promise.all(answers.map(({ job_id }) => found(job_id)));
    expect(jobs.map((job) => job.scheduled_at.toISOString().slice(11))).toEqual(['00:00:00.000Z', '00:00:01.500Z']);
    expect(await queue.queueBroadcastBatch([])).toEqual([]);
  });
});

test('enqueue queues any job type, in its usual queue or another', async () => {
  expect(await queue.enqueue('process_retries', { limit: 5 })).toMatchObject({
    queue_name: 'retries',
    unique_key: null,
  });
  expect(await queue.enqueue('water_plants', {}, { queue: 'garden' })).toMatchObject({ queue_name: 'garden' });
});

describe("on the client of the bot's transaction", () => {
  test('everything happens in that transaction', async () => {
    const client = await pool.connect();
    try {
      const inside = new BroadcastQueue(client);
      await client.query('begin');
      const { job_id } = await inside.queueBroadcast(1);
      expect(await inside.getJob(job_id)).toMatchObject({ status: 'pending' });
      expect(await queue.getJob(job_id)).toBeNull();
      await client.query('rollback');
      expect(await queue.getJob(job_id)).toBeNull();

      await client.query('begin');
      const second = await inside.queueBroadcast(1);
      expect(second.inserted).toBe(true);
      await inside.pause(second.job_id);
      await client.query('commit');
      expect(await queue.getJob(second.job_id)).toMatchObject({ status: 'paused' });
    } finally {
      client.release();
    }
  });

  test('a wrong argument leaves the transaction sound, and a transaction that came in between is a conflict', async () => {
    const { job_id } = await queue.queueBroadcast(1);
    const client = await pool.connect();
    try {
      const inside = new BroadcastQueue(client);
      await client.query('begin isolation level repeatable read');
      expect(await fault(inside.queueBroadcast(''))).toMatchObject({ code: 'invalid_argument' });
      expect(await inside.getJob(job_id)).toMatchObject({ status: 'pending' });
      await queue.pause(job_id);
      expect(await fault(inside.cancel(job_id))).toMatchObject({ code: 'conflict' });
    } finally {
      await client.query('rollback');
      client.release();
    }
  });
});

describe('what is read', () => {
  test('a job is its row, and null where there is none', async () => {
    const [row] = await stage.database.query<{ job_id: string }>(
      `insert into broadcast_queue_jobs (job_type, job_data, status, attempts, error_message, error_code, result,
                                         progress, flags, next_retry_at)
       values ('send_broadcast', '{"broadcast_id": 1}', 'retry', 2, 'HTTP 500', 'http_500', '{"a": 1}',
               '{"processed": 5}', '{possible_duplicate}', '2090-01-01') returning job_id`,
    );
    const job = await found(row?.job_id ?? '');
    expect(job).toMatchObject({
      ...{ status: 'retry', attempts: 2, error_message: 'HTTP 500', error_code: 'http_500', result: { a: 1 } },
      ...{ progress: { processed: 5 }, flags: ['possible_duplicate'], due_at: job.next_retry_at, completed_at: null },
    });
    expect(await queue.getJob(NOBODY)).toBeNull();
  });

  test('progress is in numbers, and null for an unknown job', async () => {
    const { job_id } = await queue.queueBroadcast(1);
    expect(await queue.progress(job_id)).toMatchObject({
      status: 'pending',
      total: null,
      percent: null,
      reasons: null,
    });
    await stage.database.query(
      `update broadcast_queue_jobs set status = 'processing', progress_rate = 12.34, progress =
       '{"total": 400, "processed": 100, "sent": 90, "skipped": 6, "failed": 3, "unknown": 1, "reasons": {"blocked": 3}}'`,
    );
    expect(await queue.progress(job_id)).toMatchObject({
      ...{ status: 'processing', total: 400, processed: 100, sent: 90, skipped: 6, failed: 3, unknown: 1 },
      ...{ percent: 25, per_second: 12.3, eta_seconds: 24, reasons: { blocked: 3 }, updated_at: expect.any(Date) },
    });
    expect(await queue.progress(NOBODY)).toBeNull();
  });

  test('failed broadcasts come latest first, and nothing else does', async () => {
    await stage.database.query(
      `insert into broadcast_queue_jobs (job_type, job_data, status)
       select type, jsonb_build_object('n', n), status from generate_series(1, 3) n,
         (values ('send_broadcast', 'failed'), ('send_segment_broadcast', 'failed'), ('cleanup_queue', 'failed'),
                 ('send_broadcast', 'retry')) as kinds (type, status)
       order by n, type`,
    );
    const jobs = await queue.getFailedBroadcasts();
    expect(jobs.map(({ job_type, status, job_data }) => [job_type, status, job_data.n])).toEqual(
      [3, 2, 1].flatMap((n) => [
        ['send_segment_broadcast', 'failed', n],
        ['send_broadcast', 'failed', n],
      ]),
    );
    expect(await queue.getFailedBroadcasts(2)).toEqual(jobs.slice(0, 2));

    // As far back as 200,000 jobs, and no further.
    await stage.database.query(
      `insert into broadcast_queue_jobs (id, job_type, job_data) select max(id) + 199999, 'x', '{}' from broadcast_queue_jobs`,
    );
    expect(await queue.getFailedBroadcasts()).toEqual(jobs.slice(0, 1));
  });

  test('of an empty queue the figures are noughts', async () => {
    const { timestamp, ...status } = await queue.getStatus();
    const none = { pending: 0, processing: 0, completed: 0, failed: 0, retry: 0, paused: 0, cancelled: 0, active: 0 };
    expect(status).toEqual({
      running: false,
      queues: { broadcasts: none, 'segment-broadcasts': none, retries: none, cleanup: none },
      statistics: {
        ...{ total_jobs: 0, pending_jobs: 0, processing_jobs: 0, completed_jobs: 0, failed_jobs: 0, retry_jobs: 0 },
        ...{ paused_jobs: 0, cancelled_jobs: 0, avg_processing_time_sec: null, oldest_job: null, newest_job: null },
      },
      activeJobs: 0,
    });
    expect(Math.abs(timestamp.getTime() - Date.now())).toBeLessThan(5000);
    expect(await queue.getQueueStatus('constructor')).toEqual({
      ...{ queueName: 'constructor', timestamp: expect.any(Date) },
      ...none,
    });
  });

  test('the figures count every status, whatever the queue', async () => {
    await stage.database.query(
      `insert into broadcast_queue_jobs (queue_name, job_type, job_data, status, created_at, started_at, completed_at) values
         ('broadcasts', 'send_broadcast', '{}', 'completed', '2026-01-01', '2026-01-01 00:00', '2026-01-01 00:01'),
         ('vip', 'send_broadcast', '{}', 'completed', '2026-01-02', '2026-01-02 00:00', '2026-01-02 00:02'),
         ('broadcasts', 'send_broadcast', '{}', 'failed', '2026-01-03', null, null),
         ('broadcasts', 'send_broadcast', '{}', 'failed', '2026-01-03', null, null),
         ('broadcasts', 'send_broadcast', '{}', 'retry', '2026-01-04', null, null),
         ('broadcasts', 'send_broadcast', '{}', 'paused', '2026-01-04', null, null),
         ('broadcasts', 'send_broadcast', '{}', 'cancelled', '2026-01-04', null, null),
         ('broadcasts', 'send_broadcast', '{}', 'processing', '2026-01-04', null, null),
         ('broadcasts', 'send_broadcast', '{}', 'processing', '2026-01-05', now(), null)`,
    );
    // The last of them is in some daemon's hands, the one before it between two slices.
    const lease = randomUUID();
    await stage.database.query(
      `with held as (update broadcast_queue_jobs set lease_id = $1 where started_at is not null and completed_at is null
                     returning id)
       insert into broadcast_queue_leases (lease_id, worker_id, job_ids, expires_at)
       select $1, 'w', array[id, 0], now() + interval '1 hour' from held`,
      [lease],
    );
    const status = await queue.getStatus();
    const broadcasts = {
      ...{ pending: 0, processing: 2, completed: 1, failed: 2, retry: 1, paused: 1, cancelled: 1, active: 1 },
    };
    expect(status.queues.broadcasts).toEqual(broadcasts);
    expect(status.queues.vip).toMatchObject({ completed: 1, active: 0 });
    expect(status.activeJobs).toBe(1);
    expect(await queue.getQueueStatus('broadcasts')).toMatchObject({ queueName: 'broadcasts', ...broadcasts });
    expect(status.statistics).toEqual(await queue.getStatistics());
    expect(status.statistics).toEqual({
      ...{ total_jobs: 9, pending_jobs: 0, processing_jobs: 2, completed_jobs: 2, failed_jobs: 2, retry_jobs: 1 },
      ...{ paused_jobs: 1, cancelled_jobs: 1, avg_processing_time_sec: 90 },
      ...{ oldest_job: await midnight('2026-01-01'), newest_job: await midnight('2026-01-05') },
    });
  });
});

describe('operating', () => {
  test('pauses, resumes, cancels, sends back and sends again', async () => {
    const { job_id } = await queue.queueBroadcast(1);
    expect(await queue.pause(job_id, 'legal is looking')).toBe('paused');
    expect(await found(job_id)).toMatchObject({ status: 'paused', hold_reason: 'legal is looking' });
    expect(await queue.resume(job_id)).toBe('pending');
    expect(await queue.cancel(job_id, 'wrong text')).toBe('cancelled');
    expect(await found(job_id)).toMatchObject({ status: 'cancelled', error_message: 'wrong text' });
    expect(await queue.retryFailedBroadcast(job_id)).toBe('pending');
    expect(await found(job_id)).toMatchObject({ status: 'pending', error_message: null });
    expect(await queue.pause(job_id)).toBe('paused');
    expect(await queue.resume(job_id, 'unknown')).toBe('pending');
    expect(await queue.cancel(job_id)).toBe('cancelled');
    expect(await queue.resend(job_id, 'failed')).toBe('pending');
    const [row] = await stage.database.query('select step_seq, step_scope from broadcast_queue_jobs');
    expect(row).toEqual({ step_seq: 2, step_scope: 'failed' });
  });

  test('a job that is held is pausing until its call ends', async () => {
    const { job_id } = await queue.queueBroadcast(1);
    await stage.database.query("update broadcast_queue_jobs set status = 'processing', lease_id = gen_random_uuid()");
    expect(await queue.pause(job_id)).toBe('pausing');
  });

  test.each<[string, (jobId: string) => Promise<unknown>]>([
    ['pause', (jobId) => queue.pause(jobId)],
    ['resume', (jobId) => queue.resume(jobId)],
    ['cancel', (jobId) => queue.cancel(jobId)],
    ['retryFailedBroadcast', (jobId) => queue.retryFailedBroadcast(jobId)],
    ['resend', (jobId) => queue.resend(jobId, 'all')],
  ])('%s says when there is no such job, or not in that status', async (method, operate) => {
    expect(await fault(operate(NOBODY))).toMatchObject({ code: 'no_such_job', message: `${method}: no job ${NOBODY}` });
    const { job_id } = await queue.queueBroadcast(1);
    const status = method === 'resend' ? 'processing' : 'completed';
    await stage.database.query('update broadcast_queue_jobs set status = $1', [status]);
    const error = await fault(operate(job_id));
    expect(error).toMatchObject({ code: 'wrong_state', cause: expect.objectContaining({ code: '55000' }) });
    expect(error.message).toMatch(new RegExp(`^${method}: job ${job_id} is ${status}`));
  });

  test('clears what is completed, old enough and in that queue, with its attempts, and no more', async () => {
    await stage.database.query(
      `insert into broadcast_queue_jobs (queue_name, job_type, job_data, status, created_at, completed_at)
         select q, 'send_broadcast', '{}', s, now() - age, now() - age
         from (values ('broadcasts', 'completed', interval '8 days', 1500), ('broadcasts', 'completed', '6 days', 3),
                      ('broadcasts', 'failed', '80 days', 2), ('vip', 'completed', '80 days', 2))
           as kinds (q, s, age, n), generate_series(1, n)`,
    );
    await stage.database.query(
      `insert into broadcast_queue_attempts (job, epoch, attempt, outcome) select id, 1, 1, 'failed' from broadcast_queue_jobs`,
    );
    expect(await queue.clearCompletedJobs('broadcasts')).toBe(1500);
    const left = `select queue_name, status, count(*)::integer from broadcast_queue_jobs group by 1, 2 order by 1, 2`;
    expect((await stage.database.query(left)).map((row) => Object.values(row))).toEqual([
      ['broadcasts', 'completed', 3],
      ['broadcasts', 'failed', 2],
      ['vip', 'completed', 2],
    ]);
    expect(await stage.database.query('select count(*)::integer from broadcast_queue_attempts')).toEqual([
      { count: 7 },
    ]);
    expect(await queue.clearCompletedJobs('broadcasts', 0)).toBe(3);
    expect(await queue.getStatistics()).toMatchObject({ completed_jobs: 2, failed_jobs: 2 });
  });
});

describe('with a daemon', () => {
  test('a broadcast is sent, and one that failed is sent back', async () => {
    expect(await queue.isProcessorRunning()).toBe(false);
    let fails = true;
    stage.service.otherwise(({ url }) =>
      fails && url.endsWith('send_segment_broadcast')
        ? replyJson(422, { detail: 'no such segment' })
        : replyJson(200, { status: 'completed', progress: { total: 2, processed: 2, sent: 2 } }),
    );
    await stage.start();
    const { job_id } = await queue.queueBroadcast(42);
    await until('it is completed', async () => (await found(job_id)).status === 'completed');
    expect(await queue.progress(job_id)).toMatchObject({ status: 'completed', sent: 2, percent: 100 });
    await until('the daemon has signed in', () => queue.isProcessorRunning());

    const segment = await queue.queueSegmentBroadcast(42, 'lost');
    await until('it failed', async () => (await found(segment.job_id)).status === 'failed');
    const [failed] = await queue.getFailedBroadcasts(10);
    expect(failed).toMatchObject({ job_id: segment.job_id, error_message: expect.stringContaining('no such segment') });
    fails = false;
    await queue.retryFailedBroadcast(segment.job_id);
    await until('it is completed', async () => (await found(segment.job_id)).status === 'completed');
    expect(await queue.getStatus()).toMatchObject({
      running: true,
      statistics: { completed_jobs: 2, failed_jobs: 0, avg_processing_time_sec: expect.any(Number) },
    });
  });

  test('one that was last seen over a minute ago does not count as running', async () => {
    await stage.database.query(
      `insert into broadcast_queue_workers (worker_id, version, host, pid, slots, last_seen_at)
       values ('w', '1', 'h', 1, '{}', now() - interval '50 seconds')`,
    );
    expect(await queue.isProcessorRunning()).toBe(true);
    await stage.database.query(`update broadcast_queue_workers set last_seen_at = now() - interval '61 seconds'`);
    expect(await queue.isProcessorRunning()).toBe(false);
  });
});

describe('what is wrong is said', () => {
  // As a bot without types might call it.
  type Untyped = Record<string, (...args: unknown[]) => Promise<unknown>>;

  test.each<[string, unknown[], string]>([
    ['queueBroadcast', [], 'broadcastId must be a text of 1 to 200 characters or a whole number'],
    ['queueBroadcast', [''], 'broadcastId must be'],
    ['queueBroadcast', [2 ** 53], 'write String(id)), not 9007199254740992'],
    ['queueBroadcast', [5n], 'not 5n'],
    ['queueBroadcast', [1.5], 'not 1.5'],
    ['queueBroadcast', ['a\0b'], 'broadcastId must be'],
    [
      'queueBroadcast',
      [1, { delay: '5 minutes' }],
      'delay must be a whole number of milliseconds, from 0 to ten years, not "5 minutes"',
    ],
    ['queueBroadcast', [1, { delay: -1 }], 'delay must be'],
    ['queueBroadcast', [1, { delay: Number.NaN }], 'not NaN'],
    ['queueBroadcast', [1, { delai: 1 }], 'there is no option delai; there are queue, delay,'],
    ['queueBroadcast', [1, { delayPerJob: 1 }], 'there is no option delayPerJob'],
    ['queueBroadcast', [1, 5000], 'the options must be an object, not 5000'],
    ['queueBroadcast', [1, null], 'the options must be an object, not null'],
    ['queueBroadcast', [1, { delay: 1, scheduledAt: new Date() }], 'give delay or scheduledAt, not both'],
    [
      'queueBroadcast',
      [1, { scheduledAt: '2090-01-01' }],
      'scheduledAt must be a valid Date from 1970 on, not "2090-01-01"',
    ],
    [
      'queueBroadcast',
      [1, { expiresAt: new Date('x') }],
      'expiresAt must be a valid Date from 1970 on, not an invalid Date',
    ],
    ['queueBroadcast', [1, { priority: 40_000 }], 'priority must be a whole number from -32768 to 32767'],
    ['queueBroadcast', [1, { maxAttempts: 0 }], 'maxAttempts must be a whole number from 1 to'],
    ['queueBroadcast', [1, { uniqueKey: '' }], 'uniqueKey must be null or a text'],
    ['queueBroadcast', [1, { dryRun: 'yes' }], 'dryRun must be true or false'],
    ['queueBroadcast', [1, { traceparent: 'abc' }], 'traceparent must be'],
    ['queueBroadcast', [1, { sendWindow: '9-17' }], 'sendWindow must be an object'],
    ['queueBroadcast', [1, { queue: 'Vip' }], "queue must be a queue's name"],
    ['queueBroadcast', [1, { data: [1] }], 'data must be an object, not an array of 1'],
    ['queueBroadcast', [1, { data: { segment_id: 'vip' } }], 'data must not have segment_id'],
    ['queueBroadcast', [1, { uniqueKey: 'x'.repeat(1001) }], 'uniqueKey must be'],
    ['queueSegmentBroadcast', [1], 'segmentId must be'],
    ['queueSegmentBroadcast', [1, 'vip', { data: { big: 1n } }], 'the data cannot be written as JSON'],
    ['queueBroadcastBatch', [{ broadcast_id: 1 }], 'broadcasts must be an array of at most 10000, not an object'],
    ['queueBroadcastBatch', [Array(10_001).fill({ broadcast_id: 1 })], 'not an array of 10001'],
    ['queueBroadcastBatch', [[{ broadcast_id: 1 }, 2]], 'broadcasts[1] must be an object, not 2'],
    ['queueBroadcastBatch', [Array(1)], 'broadcasts[0] must be an object, not undefined'],
    ['queueBroadcastBatch', [[{ broadcast_id: 1 }, {}]], 'broadcasts[1].broadcast_id must be'],
    ['queueBroadcastBatch', [[{ broadcastId: 1 }]], 'broadcasts[0]: write broadcast_id, not broadcastId'],
    ['queueBroadcastBatch', [[{ broadcast_id: 1, segmentId: 'x' }]], 'broadcasts[0]: write segment_id, not segmentId'],
    ['queueBroadcastBatch', [[{ broadcast_id: 1, segment_id: null }]], 'broadcasts[0].segment_id must be'],
    ['queueBroadcastBatch', [[{ broadcast_id: 1 }], { uniqueKey: 'one' }], 'for a batch uniqueKey can only be null'],
    ['queueBroadcastBatch', [[{ broadcast_id: 1 }], { delayPerJob: 0.5 }], 'delayPerJob must be a whole number'],
    ['enqueue', ['Send', {}], 'jobType must be a job type'],
    ['enqueue', ['send_it', 'text'], 'jobData must be an object, not "text"'],
    ['getJob', ['42'], `jobId must be a job's job_id (a UUID), not "42"`],
    ['progress', [undefined], 'not undefined'],
    ['pause', [NOBODY, ''], 'reason must be a text'],
    ['resume', [NOBODY, 'some'], 'scope must be pending, failed, unknown or all, not "some"'],
    ['resend', [NOBODY], 'scope must be'],
    ['retryFailedBroadcast', [7], 'jobId must be'],
    ['getFailedBroadcasts', [0], 'limit must be a whole number from 1 to 500, not 0'],
    ['getQueueStatus', ['health'], "queueName must be a queue's name"],
    ['clearCompletedJobs', ['broadcasts', '7'], 'daysOld must be a number of days from 0 to 36500, not "7"'],
    ['clearCompletedJobs', [null], 'queueName must be'],
  ])('%s with wrong arguments, %#', async (method, args, words) => {
    const error = await fault((queue as unknown as Untyped)[method]?.(...args));
    expect(error).toMatchObject({ name: 'BroadcastQueueError', code: 'invalid_argument' });
    expect(error.message).toMatch(new RegExp(`^${method}: `));
    expect(error.message).toContain(words);
    expect(await stage.database.query('select from broadcast_queue_jobs')).toEqual([]);
  });

  test.each<[string, unknown[]]>([
    ['give it a pg Pool', ['postgres://localhost']],
    ['give it a pg Pool', [undefined]],
    ['schema must be the name of a schema', [{ query: () => {} }, { schema: 'a"b' }]],
    ['there is no option poolSize; there are schema', [{ query: () => {} }, { poolSize: 1 }]],
  ])('a queue that cannot be made: %s', (words, args) => {
    const make = () => Reflect.construct(BroadcastQueue, args);
    expect(make).toThrow(BroadcastQueueError);
    expect(make).toThrow(words);
  });

  test('the queue names it takes are those that the database takes', async () => {
    const names = ['status', 'statistics', 'health', 'job', 'jobs', 'broadcast', 'pause', 'resume', 'limits', 'queues'];
    names.push('workers', 'failures', 'events', 'schedules', 'audit', 'vip', 'x_-9', 'X', '9', `q${'0'.repeat(50)}`);
    for (const name of names) {
      const taken = await stage.database
        .query(`insert into broadcast_queue_jobs (queue_name, job_type, job_data) values ($1, 'x', '{}')`, [name])
        .then(
          () => null,
          () => 'invalid_argument',
        );
      const error = await queue.enqueue('x', {}, { queue: name }).then(
        () => null,
        (e: BroadcastQueueError) => e.code,
      );
      expect([name, error]).toEqual([name, taken]);
    }
  });

  test('what only the database can judge, it refuses in its words', async () => {
    const sendWindow = { from: '09:00', to: '21:00', time_zone: 'Europe/Atlantis' };
    const error = await fault(queue.queueBroadcast(1, { sendWindow }));
    expect(error).toMatchObject({ code: 'refused', cause: expect.objectContaining({ code: '23514' }) });
    expect(error.message).toContain('queueBroadcast: send_window: the time zone "Europe/Atlantis" is unknown');
  });

  test('where the queue is not installed, it says what to do', async () => {
    for (const ask of [
      (elsewhere: BroadcastQueue) => elsewhere.queueBroadcast(1),
      (elsewhere: BroadcastQueue) => elsewhere.getStatus(),
      (elsewhere: BroadcastQueue) => elsewhere.cancel(NOBODY),
    ]) {
      const error = await fault(ask(new BroadcastQueue(pool, { schema: 'nowhere' })));
      expect(error.code).toBe('not_installed');
      expect(error.message).toContain('run "broadcastd migrate", or give the queue\'s schema');
    }
  });

  test('an error that is not about the queue arrives as it is', async () => {
    const lost = new pg.Pool({ host: '127.0.0.1', port: 1 });
    const error = await new BroadcastQueue(lost).getStatus().catch((e: unknown) => e);
    expect(error).not.toBeInstanceOf(BroadcastQueueError);
    expect(error).toMatchObject({ code: 'ECONNREFUSED' });
    await lost.end();
  });
});

test('it works in another schema, and whatever the search path', async () => {
  const database = await createEmptyDatabase();
  const elsewhere = new pg.Pool({ connectionString: database.url, options: '-c search_path=pg_catalog' });
  try {
    await migrate(database.url, 'queue_a');
    const other = new BroadcastQueue(elsewhere, { schema: 'queue_a' });
    const { job_id } = await other.queueBroadcast(1);
    await other.queueBroadcastBatch([{ broadcast_id: 2 }]);
    await other.pause(job_id);
    expect(await other.getJob(job_id)).toMatchObject({ status: 'paused' });
    expect(await other.progress(job_id)).toMatchObject({ status: 'paused' });
    expect(await other.getStatistics()).toMatchObject({ total_jobs: 2, paused_jobs: 1 });
    expect(await other.clearCompletedJobs('broadcasts')).toBe(0);
    expect(await other.getFailedBroadcasts()).toEqual([]);
    expect(await other.isProcessorRunning()).toBe(false);
  } finally {
    await elsewhere.end();
    await database.drop();
  }
});

async function found(jobId: string): Promise<JobRow> {
  const job = await queue.getJob(jobId);
  if (job === null) throw new Error(`no job ${jobId}`);
  return job;
}

/** The error of a call that must fail. */
async function fault(call: Promise<unknown> | undefined): Promise<BroadcastQueueError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof BroadcastQueueError) return error;
    throw error;
  }
  throw new Error('it did not fail');
}

async function midnight(day: string): Promise<Date> {
  const [row] = await stage.database.query<{ at: Date }>('select $1::timestamptz as at', [day]);
  if (row === undefined) throw new Error('no row');
  return row.at;
}
