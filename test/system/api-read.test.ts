/** What the API shows: how the queues stand, jobs by filter and by themselves, workers, schedules, failures by cause. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { openDatabase } from '../../src/db/pool.js';
import { buildApi, openApi, secretOf, type TestApi } from '../support/api.js';
import { claimOne, fromNow, settlement } from '../support/store.js';

let api: TestApi;

beforeAll(async () => {
  api = await openApi();
});
afterAll(() => api.close());
beforeEach(async () => {
  await api.queue.clear();
});

const get = async (path: string) => (await api.ask('GET', path, { as: 'viewer' })).body;

/** Follows the cursors to the end. */
async function everyPage(path: string, list: string): Promise<{ ids: string[]; pages: number }> {
  const ids: string[] = [];
  let cursor: string | null = null;
  let pages = 0;
  do {
    const body = await get(`${path}${cursor === null ? '' : `&cursor=${cursor}`}`);
    expect(body.count).toBe(body[list].length);
    ids.push(...body[list].map(({ id }: { id: string }) => id));
    cursor = body.nextCursor;
    pages++;
  } while (cursor !== null && pages < 100);
  return { ids, pages };
}

describe('the status', () => {
  test('counts every queue by status, what is worked on, and the times', async () => {
    await api.queue.insert({ job_data: { broadcast_id: 1 } });
    await api.queue.insert({ status: 'failed', error_message: 'no' });
    await api.queue.insert({ queue_name: 'mine', scheduled_at: fromNow('1 hour') });
    await claimOne(api.queue.store());
    expect(await get('/status')).toMatchObject({
      running: true,
      activeJobs: 1,
      queues: {
        broadcasts: { pending: 0, processing: 1, failed: 1, completed: 0, retry: 0, active: 1 },
        mine: { pending: 1, active: 0 },
        'segment-broadcasts': { pending: 0 },
        retries: { pending: 0 },
        cleanup: { pending: 0 },
      },
      statistics: { total_jobs: 3, pending_jobs: 1, processing_jobs: 1, failed_jobs: 1, avg_processing_time_sec: null },
      breaker: { state: 'closed' },
      allPaused: null,
    });
    expect(await get('/broadcasts/status')).toMatchObject({
      queueName: 'broadcasts',
      processing: 1,
      active: 1,
      failed: 1,
    });
    expect(await get('/never-seen/status')).toMatchObject({ queueName: 'never-seen', pending: 0, isPaused: false });
  });

  test('knows how long jobs took, and the oldest and newest', async () => {
    for (const seconds of [2, 4]) {
      await api.queue.insert({
        ...{ status: 'completed', started_at: fromNow(`-${seconds} seconds`), completed_at: fromNow('0 seconds') },
        created_at: fromNow(`-${seconds} hours`),
      });
    }
    const statistics = await get('/statistics');
    expect(statistics).toMatchObject({ total_jobs: 2, completed_jobs: 2 });
    expect(statistics.avg_processing_time_sec).toBeCloseTo(3, 1);
    const hours = (Date.parse(statistics.newest_job) - Date.parse(statistics.oldest_job)) / 3_600_000;
    expect(hours).toBeCloseTo(-2, 1);
  });

  test('shows which queues are paused, by whom and why', async () => {
    await api.ask('POST', '/broadcasts/pause', { as: 'operator', body: { reason: 'a typo in the text' } });
    const pause = { paused_by: 'the-operator', reason: 'a typo in the text' };
    expect(await get('/broadcasts/status')).toMatchObject({ isPaused: true, pause });
    const { queues } = await get('/queues');
    expect(queues.find(({ queueName }: { queueName: string }) => queueName === 'broadcasts')).toMatchObject({
      isPaused: true,
      pause,
    });
    expect(queues.find(({ queueName }: { queueName: string }) => queueName === 'cleanup')).toMatchObject({
      isPaused: false,
    });
  });
});

describe('one job', () => {
  test('comes with its payload as the database holds it, numbers of any size included', async () => {
    const { job_id } = await api.queue.insert({ job_data: '{"broadcast_id": 12345678901234567890, "x": 1.10}' });
    const { text } = await api.ask('GET', `/job/${job_id}`);
    expect(text).toContain('"job_data":{"x": 1.10, "broadcast_id": 12345678901234567890}');
  });

  test('says why it waits, and nothing once it is being called', async () => {
    const { job_id } = await api.queue.insert({ scheduled_at: fromNow('1 hour') });
    expect((await get(`/job/${job_id}`)).waiting_because).toMatch(/^due at \d{4}-/);
    await api.ask('POST', '/broadcasts/pause');
    expect((await get(`/job/${job_id}`)).waiting_because).toMatch(/^the queue broadcasts is paused by the-admin since/);
    await api.ask('POST', '/broadcasts/resume');
    await api.queue.query('update broadcast_queue_jobs set scheduled_at = now()');
    await claimOne(api.queue.store());
    expect(await get(`/job/${job_id}`)).toMatchObject({
      waiting_because: null,
      status: 'processing',
      worker_id: 'worker',
    });
  });

  test('has its attempts that told something, the last hundred, oldest first', async () => {
    const { id, job_id } = await api.queue.insert();
    await api.queue.query(
      `insert into broadcast_queue_attempts (job, epoch, attempt, outcome, error_code)
       select $1, n, n, 'retry', 'http_500' from generate_series(1, 120) n`,
      [id],
    );
    const { history } = await get(`/job/${job_id}`);
    expect(history.map(({ attempt }: { attempt: number }) => attempt)).toEqual(
      Array.from({ length: 100 }, (_, n) => n + 21),
    );
  });
});

describe('a list', () => {
  test('goes through all jobs newest first, each once, also while others are added', async () => {
    await api.queue.query(
      `insert into broadcast_queue_jobs (job_type, job_data) select 'send_broadcast', '{}' from generate_series(1, 23)`,
    );
    const before = (await api.queue.jobs()).map(({ id }) => id);
    const first = await get('/broadcasts/jobs?limit=5');
    await api.queue.insert();
    const second = await get(`/broadcasts/jobs?limit=5&cursor=${first.nextCursor}`);
    const ids = [...first.jobs, ...second.jobs].map(({ id }: { id: string }) => id);
    expect(ids).toEqual([...before].reverse().slice(0, 10));
    const all = await everyPage('/jobs?limit=5', 'jobs');
    expect(all.ids.slice(1)).toEqual([...before].reverse());
    expect(all.pages).toBe(5);
    expect(first).toMatchObject({ queueName: 'broadcasts', status: null, limit: 5, count: 5 });
  });

  test('filters by status, type, queue, times, error text and members of the payload', async () => {
    const wanted = await api.queue.insert({
      ...{
        queue_name: 'mine',
        job_type: 'send_digest',
        status: 'failed',
        error_message: 'HTTP 500: Out of 100% Memory',
        error_code: 'out_of_memory',
      },
      ...{
        job_data: { broadcast_id: 42, bot_id: 'shop' },
        created_at: fromNow('-2 hours'),
        completed_at: fromNow('-1 hour'),
      },
    });
    await api.queue.insert({ job_data: { broadcast_id: '43', bot_id: 'shop' } });
    await api.queue.insert({ status: 'failed', error_message: 'HTTP 404', completed_at: fromNow('0 hours') });
    const ago = (hours: number) => new Date(Date.now() - hours * 3_600_000).toISOString();
    const found = async (query: string) =>
      (await get(`/jobs?${query}`)).jobs.map(({ job_id }: { job_id: string }) => job_id);
    for (const query of [
      'queue=mine',
      'job_type=send_digest',
      'status=failed&queue=mine',
      'error=100%25%20memory',
      'error_code=out_of_memory',
      'data.broadcast_id=42',
      'data.broadcast_id=42&data.bot_id=shop',
      `created_to=${ago(1)}`,
      `finished_from=${ago(1.5)}&finished_to=${ago(0.5)}`,
    ]) {
      expect([query, await found(query)]).toEqual([query, [wanted.job_id]]);
    }
    expect(await found(`created_from=${ago(1)}`)).toHaveLength(2);
    expect(await found('data.bot_id=shop')).toHaveLength(2);
    expect(await found('error=1_0')).toEqual([]);
    expect((await get('/mine/failed')).failedJobs).toHaveLength(1);
    expect(await get('/broadcasts/failed')).toMatchObject({ queueName: 'broadcasts', count: 1, nextCursor: null });
  });

  test('leaves out what is too long, and says so; the job by itself has it', async () => {
    const { job_id } = await api.queue.insert({ job_data: { text: 'x'.repeat(100_000) } });
    const [listed] = (await get('/jobs')).jobs;
    expect(listed).toMatchObject({ job_data: null, omitted: ['job_data'] });
    expect((await get(`/job/${job_id}`)).job_data.text).toHaveLength(100_000);
  });

  test('of fifty thousand rows finds the one dead letter at their far end, and knows when there is none', async () => {
    const { job_id } = await api.queue.insert({ status: 'failed' });
    await api.queue.query(
      `insert into broadcast_queue_jobs (job_type, job_data, status) select 'x', '{}', 'completed' from generate_series(1, 50000)`,
    );
    const begun = performance.now();
    const { failedJobs, nextCursor } = await get('/broadcasts/failed');
    expect([failedJobs[0]?.job_id, failedJobs.length, nextCursor]).toEqual([job_id, 1, null]);
    const needed = performance.now() - begun;
    const none = performance.now();
    expect((await get('/jobs?status=paused')).count).toBe(0);
    expect(performance.now() - none).toBeLessThan(Math.max(needed / 2, 20));
  });
});

describe('failures by cause', () => {
  test('put together what differs in ids and numbers only, and say when it was', async () => {
    const failed = (error_message: string | null, hours: number, error_code: string | null = 'http_500') =>
      api.queue.insert({ status: 'failed', error_code, error_message, completed_at: fromNow(`-${hours} hours`) });
    await failed('HTTP 500: user 17 "Ada" is gone', 3);
    await failed('HTTP 500: user 4711 "Bob" is gone', 1);
    await failed('HTTP 500: the disk is full', 2);
    await failed(null, 2, null);
    const { groups, complete } = await get('/failures');
    expect(complete).toBe(true);
    expect(groups).toHaveLength(3);
    expect(groups[0]).toMatchObject({
      ...{ job_type: 'send_broadcast', error_code: 'http_500', message: 'HTTP <n>: user <n> "…" is gone', count: 2 },
      sample: { error_message: 'HTTP 500: user 4711 "Bob" is gone' },
    });
    const apart = Date.parse(groups[0].last_seen) - Date.parse(groups[0].first_seen);
    expect(apart / 3_600_000).toBeCloseTo(2, 1);
    expect((await get('/failures?queue=cleanup')).groups).toEqual([]);
    expect(await get('/failures?limit=1')).toMatchObject({ count: 1, complete: false });
  });
});

test('workers are shown with their slots, jobs at hand and last sign of life', async () => {
  const { job_id } = await api.queue.insert();
  const store = api.queue.store('daemon-1');
  const claim = await claimOne(store);
  await store.beat(new Map([[claim.leaseId, [claim.job.id]]]));
  const { workers } = await get('/workers');
  expect(workers).toEqual([
    expect.objectContaining({
      id: 'daemon-1',
      version: '0.0.0',
      alive: true,
      active_jobs: 1,
      jobs: [job_id],
      slots: { '*': 10 },
    }),
  ]);
  await store.settle([settlement(claim)], [claim.leaseId]);
  expect((await get('/workers')).workers[0]).toMatchObject({ active_jobs: 0, jobs: [] });
});

test('schedules are shown with their last tick and the next', async () => {
  await api.queue
    .store()
    .tick({ name: 'cleanup_queue', type: 'cleanup_queue', data: '{}' }, new Date('2026-01-01T02:00:00Z'));
  await api.queue.store().tick({ name: 'of_another', type: 'x', data: '{}' }, new Date('2026-01-01T02:00:00Z'));
  const { schedules } = await get('/schedules');
  expect(schedules).toEqual([
    expect.objectContaining({
      name: 'cleanup_queue',
      cron: '0 2 * * *',
      last_tick: '2026-01-01T02:00:00.000Z',
      next_tick: expect.any(String),
    }),
    expect.objectContaining({ name: 'of_another', cron: null, last_tick: '2026-01-01T02:00:00.000Z', next_tick: null }),
  ]);
});

test('an open breaker is shown with the error that opened it', async () => {
  await api.queue.query(
    `update broadcast_queue_services set opened_at = now(), open_until = now() + interval '1 minute', last_error = 'refused'`,
  );
  expect(await get('/breaker')).toMatchObject({ state: 'open', last_error: 'refused', open_until: expect.any(String) });
  await api.queue.query(`update broadcast_queue_services set open_until = now()`);
  expect(await get('/breaker')).toMatchObject({ state: 'half_open' });
  await api.queue.query(`update broadcast_queue_services set opened_at = null, open_until = null`);
});

test('a statement that takes too long is cut off and answered with advice, and the next request is fine', async () => {
  const hasty = await openApi({ statementTimeoutMs: 50 });
  const blocker = await hasty.queue.session();
  try {
    await blocker.query('begin; lock table broadcast_queue_limits in access exclusive mode');
    const { status, body } = await hasty.ask('GET', '/limits');
    expect([status, body.code]).toEqual([503, 'took_too_long']);
    await blocker.query('rollback');
    expect((await hasty.ask('GET', '/limits')).status).toBe(200);
  } finally {
    await hasty.close();
  }
});

test('while the database is away every answer is a 503 that says when to ask again; livez does not care', async () => {
  const away = openDatabase({
    ...{ url: 'postgresql://nobody@127.0.0.1:1/nothing', schema: 'public', pooled: false, applicationName: 'test' },
    ...{ connectionsMax: 1, statementTimeoutMs: 1000 },
  });
  const faults: Error[] = [];
  const app = buildApi(away, { onError: (error) => faults.push(error) });
  try {
    const headers = { authorization: `Bearer ${secretOf('admin')}` };
    for (const path of ['status', 'jobs', 'failures', 'events']) {
      const answer = await app.inject({ url: `/api/admin/queue/${path}`, headers });
      expect([path, answer.statusCode, answer.json().code]).toEqual([path, 503, 'database_unavailable']);
      expect(answer.headers['retry-after']).toBe('5');
    }
    expect((await app.inject('/livez')).statusCode).toBe(200);
    expect(faults).toEqual([]);
  } finally {
    await app.close();
    await away.close();
  }
});

test('a fault of ours is told to the log under the request’s id, and to the caller only that', async () => {
  const before = api.faults.length;
  await api.queue.query('alter table broadcast_queue_workers rename to broadcast_queue_hidden');
  try {
    const { status, text, body } = await api.ask('GET', '/workers', { headers: { 'x-request-id': 'r-1' } });
    expect([status, body.code, body.request_id]).toEqual([500, 'internal', 'r-1']);
    expect(text).not.toContain('broadcast_queue_workers');
    expect(api.faults.slice(before).map(({ message }) => message)).toEqual([
      expect.stringContaining('broadcast_queue_workers'),
    ]);
  } finally {
    await api.queue.query('alter table broadcast_queue_hidden rename to broadcast_queue_workers');
  }
});
