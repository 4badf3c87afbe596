/** What operators change through the API: jobs, queues, limits, gates, windows; and what the audit log says of it. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { openApi, type TestApi } from '../support/api.js';
import { claimOne, fromNow } from '../support/store.js';

const NOBODY = '00000000-0000-4000-8000-000000000000';

let api: TestApi;

beforeAll(async () => {
  api = await openApi();
});
afterAll(() => api.close());
beforeEach(async () => {
  await api.queue.clear();
  await api.queue.query('delete from broadcast_queue_audit');
});

const post = (path: string, body?: unknown) => api.ask('POST', path, { as: 'operator', body });

const audit = async () => (await api.ask('GET', '/audit')).body.entries;

describe('a job', () => {
  test('is retried at either address: pending, with its attempts back', async () => {
    for (const at of ['job', 'broadcast']) {
      const { id, job_id } = await api.queue.insert({ status: 'failed', attempts: 3, error_message: 'no' });
      const { status, body } = await post(`/${at}/${job_id}/retry`);
      expect([status, body]).toEqual([
        200,
        { success: true, message: `job ${job_id} is pending`, job_id, status: 'pending' },
      ]);
      expect(await api.queue.job(id)).toMatchObject({ status: 'pending', attempts: 0, error_message: null });
    }
  });

  test('is paused, resumed and cancelled, with a reason', async () => {
    const { id, job_id } = await api.queue.insert();
    expect((await post(`/job/${job_id}/pause`, { reason: 'wait for the boss' })).body.status).toBe('paused');
    expect(await api.queue.job(id)).toMatchObject({ status: 'paused', hold_reason: 'wait for the boss' });
    expect((await post(`/job/${job_id}/resume`)).body.status).toBe('pending');
    expect((await post(`/job/${job_id}/cancel`, { reason: 'wrong text' })).body.status).toBe('cancelled');
    expect(await api.queue.job(id)).toMatchObject({ status: 'cancelled', error_message: 'wrong text' });
  });

  test('that runs is paused at the end of its call', async () => {
    const { job_id } = await api.queue.insert();
    await claimOne(api.queue.store());
    expect((await post(`/job/${job_id}/pause`)).body).toMatchObject({
      ...{ status: 'pausing', message: `job ${job_id} runs, and pauses when its call ends` },
    });
    expect((await api.ask('GET', `/job/${job_id}`)).body).toMatchObject({
      pause_requested_at: expect.any(String),
      waiting_because: expect.stringMatching(/^a call is open; it pauses when that ends, as asked at .* UTC$/),
    });
  });

  test('is sent again to those whom a scope names', async () => {
    const { id, job_id } = await api.queue.insert({ status: 'completed', step_seq: 4, step_cursor: 'x' });
    expect((await post(`/job/${job_id}/resend`, { scope: 'failed' })).body.status).toBe('pending');
    expect(await api.queue.job(id)).toMatchObject({ step_seq: 5, step_cursor: null });
    expect((await post(`/job/${job_id}/resend`, { scope: 'some' })).status).toBe(400);
    const { status, body } = await post(`/job/${job_id}/resend`);
    const missing = 'the body is missing: send a JSON object with "scope" (';
    expect([status, body.detail]).toEqual([400, expect.stringContaining(missing)]);
  });

  test.each([
    ['retry', 'completed'],
    ['retry', 'pending'],
    ['pause', 'failed'],
    ['resume', 'pending'],
    ['cancel', 'completed'],
  ])('is not changed by %s while it is %s: 409 in words', async (action, status) => {
    const { id, job_id } = await api.queue.insert({ status });
    const answer = await post(`/job/${job_id}/${action}`);
    expect([answer.status, answer.body.code, answer.body.detail]).toEqual([
      ...[409, 'status_does_not_allow_it', expect.stringContaining(`is ${status}`)],
    ]);
    expect((await api.queue.job(id)).status).toBe(status);
    expect(await audit()).toEqual([]);
  });

  test('that is not there is 404', async () => {
    for (const action of ['retry', 'cancel', 'pause', 'resume']) {
      const { status, body } = await post(`/job/${NOBODY}/${action}`);
      expect([status, body.code, body.detail]).toEqual([404, 'no_such_job', `no job ${NOBODY}`]);
    }
  });

  test('is not retried while another live job has its unique key', async () => {
    const { job_id } = await api.queue.insert({ status: 'failed', unique_key: 'same' });
    await api.queue.insert({ unique_key: 'same' });
    const { status, body } = await post(`/job/${job_id}/retry`);
    expect([status, body.code]).toEqual([409, 'unique_key_taken']);
    expect(body.detail).toContain('another live job has this unique key');
  });
});

describe('a queue', () => {
  test('is paused for every daemon and resumed, by name and with all others', async () => {
    await api.queue.insert();
    expect((await post('/broadcasts/pause')).body.message).toBe('the queue broadcasts is paused');
    expect((await post('/broadcasts/pause')).body.message).toBe('the queue broadcasts was paused already');
    expect((await api.queue.store().claim(NOBODY, new Map(), 10)).claims).toEqual([]);
    await api.ask('POST', '/pause');
    expect((await post('/broadcasts/resume')).body.message).toContain('but all queues are paused');
    expect((await api.queue.store().claim(NOBODY, new Map(), 10)).claims).toEqual([]);
    await api.ask('POST', '/resume');
    await claimOne(api.queue.store());
    expect((await post('/broadcasts/resume')).body.message).toBe('the queue broadcasts was not paused');
    for (const action of ['pause', 'resume']) {
      const { message } = (await post(`/brodcasts/${action}`)).body;
      expect(message).toMatch(/^the queue brodcasts is \w+d; no job has ever named this queue: is that its name\?$/);
    }
  });

  test('is cleaned of completed jobs that ended long enough ago, and of nothing else', async () => {
    const old = { created_at: fromNow('-10 days'), completed_at: fromNow('-9 days') };
    await api.queue.insert({ status: 'completed', ...old });
    await api.queue.insert({ status: 'failed', ...old });
    await api.queue.insert({ status: 'completed', queue_name: 'mine', ...old });
    await api.queue.insert({ status: 'completed', completed_at: fromNow('-1 day') });
    const { body } = await api.ask('POST', '/broadcasts/cleanup', { body: { daysOld: 7 } });
    expect(body).toEqual({ queueName: 'broadcasts', jobsCleared: 1, daysOld: 7, complete: true });
    expect(await api.queue.jobs()).toHaveLength(3);
    expect((await api.ask('POST', '/broadcasts/cleanup', { body: { daysOld: 0 } })).body.jobsCleared).toBe(1);
    expect((await api.ask('POST', '/broadcasts/cleanup', { body: {} })).status).toBe(400);
    expect(await audit()).toEqual([
      expect.objectContaining({ action: 'queue.cleanup', target: 'broadcasts', after: { days_old: 0, deleted: 1 } }),
      expect.objectContaining({ action: 'queue.cleanup', target: 'broadcasts', after: { days_old: 7, deleted: 1 } }),
    ]);
  });

  test('is cleaned of thousands in batches', async () => {
    await api.queue.query(
      `insert into broadcast_queue_jobs (job_type, job_data, status, created_at, completed_at)
       select 'x', '{}', 'completed', now() - interval '2 days', now() - interval '2 days' from generate_series(1, 2500)`,
    );
    expect((await api.ask('POST', '/broadcasts/cleanup', { body: { daysOld: 1 } })).body).toMatchObject({
      jobsCleared: 2500,
    });
  });

  test('has a send window that can be set, seen and taken away; a bad one is refused in words', async () => {
    const window = { from: '09:00', to: '21:00', time_zone: 'Europe/Berlin', days: [1, 2, 3] };
    expect((await api.ask('PUT', '/mine/window', { body: window })).body).toEqual({
      queueName: 'mine',
      send_window: window,
    });
    expect((await api.ask('GET', '/mine/window')).body.send_window).toEqual(window);
    const bad = await api.ask('PUT', '/mine/window', { body: { ...window, time_zone: 'Mars/Olympus' } });
    expect([bad.status, bad.body.code, bad.body.detail]).toEqual([
      ...[400, 'invalid_value', expect.stringContaining('time zone "Mars/Olympus" is unknown')],
    ]);
    expect(
      (await api.ask('PUT', '/mine/window', { body: { from: '25:00', to: '21:00', time_zone: 'UTC' } })).status,
    ).toBe(400);
    expect((await api.ask('DELETE', '/mine/window')).status).toBe(200);
    expect((await api.ask('GET', '/mine/window')).body.send_window).toBeNull();
  });
});

describe('limits and gates', () => {
  test('a limit is set, changed, listed by pages and taken away', async () => {
    const set = await api.ask('PUT', '/limits/queue:broadcasts', { body: { per_second: 25, max_concurrent: 3 } });
    expect(set.body.limit).toMatchObject({
      key: 'queue:broadcasts',
      per_second: 25,
      max_concurrent: 3,
      updated_by: 'the-admin',
    });
    await api.ask('PUT', '/limits/queue:broadcasts', { body: { per_second: 5 } });
    await api.ask('PUT', `/limits/${encodeURIComponent('bot:a/b c')}`, { body: { max_concurrent: 1 } });
    const first = (await api.ask('GET', '/limits?limit=1')).body;
    expect(first.limits).toEqual([expect.objectContaining({ key: 'bot:a/b c', per_second: null, max_concurrent: 1 })]);
    const second = (await api.ask('GET', `/limits?limit=1&cursor=${first.nextCursor}`)).body;
    expect(second.limits).toEqual([
      expect.objectContaining({ key: 'queue:broadcasts', per_second: 5, max_concurrent: null }),
    ]);
    expect((await api.ask('DELETE', '/limits/queue:broadcasts')).status).toBe(200);
    expect((await api.ask('DELETE', '/limits/queue:broadcasts')).body.code).toBe('no_such_limit');
  });

  test.each<[string, unknown]>([
    ['queue:broadcasts', {}],
    ['queue:broadcasts', { per_second: 0 }],
    ['queue:broadcasts', { per_second: 1e9 }],
    ['queue:broadcasts', { max_concurrent: 1.5 }],
    ['queue:Broadcasts', { per_second: 5 }],
    ['broadcasts', { per_second: 5 }],
    ['bot:', { per_second: 5 }],
  ])('a limit %s of %j is refused', async (key, body) => {
    const answer = await api.ask('PUT', `/limits/${key}`, { body });
    expect([answer.status, answer.body.code]).toEqual([400, 'invalid_request']);
  });

  test('a gate is shown while it is closed, and opened before its time', async () => {
    await api.queue.query(`select broadcast_close_gate('bot:shop', 60000, 'HTTP 429')`);
    expect((await api.ask('GET', '/gates')).body.gates).toEqual([
      expect.objectContaining({ key: 'bot:shop', closed: true, reason: 'HTTP 429' }),
    ]);
    expect((await post('/gates/bot:shop/open')).body.message).toBe('the gate bot:shop is open');
    expect((await post('/gates/bot:shop/open')).body.message).toBe('the gate bot:shop was open already');
    expect((await api.ask('GET', '/gates')).body.count).toBe(0);
  });

  test('opening the gate of the service closes the breaker', async () => {
    await api.queue.query('update broadcast_queue_services set opened_at = now(), open_until = now(), streak = 5');
    await post('/gates/service/open');
    expect((await api.ask('GET', '/breaker')).body).toMatchObject({ state: 'closed', failures_in_a_row: 0 });
  });
});

describe('the audit log', () => {
  test('tells who did what to what, before and after, under the request’s id', async () => {
    const { job_id } = await api.queue.insert({ status: 'failed', attempts: 3 });
    const { headers } = await api.ask('POST', `/job/${job_id}/retry`, {
      as: 'operator',
      headers: { 'x-request-id': 'ticket-17' },
    });
    expect(headers['x-request-id']).toBe('ticket-17');
    await api.ask('PUT', '/limits/queue:mine', { body: { per_second: 5 } });
    await api.ask('PUT', '/limits/queue:mine', { body: { per_second: 7 } });
    await post('/mine/pause', { reason: 'because' });
    expect(await audit()).toEqual([
      expect.objectContaining({
        action: 'queue.pause',
        target: 'mine',
        before: null,
        after: { paused_by: 'the-operator', reason: 'because' },
      }),
      expect.objectContaining({
        ...{ action: 'limit.set', target: 'queue:mine', actor: 'the-admin', role: 'admin' },
        ...{ before: { per_second: 5, max_concurrent: null }, after: { per_second: 7, max_concurrent: null } },
      }),
      expect.objectContaining({ action: 'limit.set', before: null }),
      expect.objectContaining({
        ...{ action: 'job.retry', target: job_id, actor: 'the-operator', role: 'operator', request_id: 'ticket-17' },
        ...{ before: { status: 'failed', attempts: 3, epoch: 0 }, after: { status: 'pending' } },
      }),
    ]);
  });

  test('has a row for every change, and none for what changed nothing', async () => {
    const failed = await api.queue.insert({ status: 'failed' });
    const waiting = await api.queue.insert();
    await post('/jobs', { job_type: 'x', job_data: {} });
    await post(`/job/${failed.job_id}/retry`);
    for (const action of ['pause', 'resume', 'cancel']) await post(`/job/${waiting.job_id}/${action}`);
    await post(`/job/${waiting.job_id}/resend`, { scope: 'all' });
    await post('/jobs/cancel', { ids: [waiting.job_id] });
    await api.ask('POST', '/jobs/delete', { body: { ids: [waiting.job_id] } });
    for (const path of ['/mine/pause', '/mine/resume', '/pause', '/resume']) await api.ask('POST', path);
    await api.ask('PUT', '/mine/window', { body: { from: '09:00', to: '21:00', time_zone: 'UTC' } });
    await api.ask('DELETE', '/mine/window');
    await api.ask('PUT', '/limits/queue:mine', { body: { per_second: 7 } });
    await api.ask('DELETE', '/limits/queue:mine');
    await api.queue.query(`select broadcast_close_gate('bot:shop', 60000, 'HTTP 429')`);
    await post('/gates/bot:shop/open');
    const done = (await audit()).map(({ action }: { action: string }) => action).reverse();
    expect(done).toEqual([
      ...[
        'job.enqueue',
        'job.retry',
        'job.pause',
        'job.resume',
        'job.cancel',
        'job.resend',
        'jobs.cancel',
        'jobs.delete',
      ],
      ...['queue.pause', 'queue.resume', 'queue.pause', 'queue.resume', 'window.set', 'window.set'],
      ...['limit.set', 'limit.drop', 'gate.open'],
    ]);
    await post('/mine/resume');
    await post('/gates/bot:shop/open');
    await api.ask('DELETE', '/limits/queue:mine');
    await post(`/job/${waiting.job_id}/retry`);
    expect(await audit()).toHaveLength(done.length);
  });

  test('is read by pages, and by actor and target', async () => {
    for (let n = 0; n < 5; n++) await api.ask('PUT', `/limits/bot:${n}`, { body: { per_second: 5 } });
    await post('/mine/pause');
    const first = (await api.ask('GET', '/audit?limit=4')).body;
    const second = (await api.ask('GET', `/audit?limit=4&cursor=${first.nextCursor}`)).body;
    expect([first.count, second.count, second.nextCursor]).toEqual([4, 2, null]);
    expect((await api.ask('GET', '/audit?actor=the-operator')).body.count).toBe(1);
    expect((await api.ask('GET', '/audit?target=bot:3')).body.count).toBe(1);
  });

  test('lets go of rows that are more than a year old', async () => {
    await api.queue.query(
      `insert into broadcast_queue_audit (actor, role, action, target, request_id, at)
       select 'x', 'x', 'x', 'x', 'x', now() - interval '13 months' from generate_series(1, 3)`,
    );
    await post('/mine/pause');
    expect(await audit()).toHaveLength(1);
    await post('/mine/resume');
  });

  test('has no row of a change that was rolled back', async () => {
    await api.queue.query('alter table broadcast_queue_pauses add constraint refuse check (queue_name <> $$refused$$)');
    try {
      expect((await post('/refused/pause')).status).toBe(400);
      expect(await audit()).toEqual([]);
    } finally {
      await api.queue.query('alter table broadcast_queue_pauses drop constraint refuse');
    }
  });
});
