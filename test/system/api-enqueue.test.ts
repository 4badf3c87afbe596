/** Enqueueing through the API: once under an Idempotency-Key, whoever races; and payloads as they came. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { openApi, type TestApi } from '../support/api.js';

let api: TestApi;

beforeAll(async () => {
  api = await openApi();
});
afterAll(() => api.close());
beforeEach(async () => {
  await api.queue.clear();
  await api.queue.query('delete from broadcast_queue_requests');
});

const enqueue = (body: unknown, key?: string) =>
  api.ask('POST', '/jobs', { as: 'operator', body, headers: key === undefined ? {} : { 'idempotency-key': key } });

test('a new job is answered with 201 and its row, in its type’s usual queue', async () => {
  const { status, body } = await enqueue({
    job_type: 'send_segment_broadcast',
    job_data: { broadcast_id: 1, segment_id: 'x' },
  });
  expect([status, body]).toEqual([
    201,
    expect.objectContaining({
      inserted: true,
      queue_name: 'segment-broadcasts',
      status: 'pending',
      attempts: 0,
      job_data: { broadcast_id: 1, segment_id: 'x' },
    }),
  ]);
  expect((await api.queue.jobs()).map(({ job_id }) => job_id)).toEqual([body.job_id]);
});

test('every wish is kept', async () => {
  const wishes = {
    ...{
      queue: 'mine',
      priority: 7,
      max_attempts: 9,
      unique_key: 'k',
      dry_run: true,
      expires_at: '2100-01-01T00:00:00Z',
    },
    traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
    send_window: { from: '09:00', to: '21:00', time_zone: 'Europe/Berlin' },
  };
  const { body } = await enqueue({ job_type: 'x', job_data: {}, delay: '10 minutes', ...wishes });
  const { queue, expires_at, ...rest } = wishes;
  expect(body).toMatchObject({ ...rest, queue_name: queue, expires_at: '2100-01-01T00:00:00.000Z' });
  expect(Date.parse(body.scheduled_at) - Date.parse(body.created_at)).toBe(600_000);
  const later = (await enqueue({ job_type: 'x', job_data: {}, delay: 90 })).body;
  expect(Date.parse(later.scheduled_at) - Date.parse(later.created_at)).toBe(90_000);
});

test('a payload’s numbers stay what they are, however large', async () => {
  const { status } = await enqueue('{"job_type": "x", "job_data": {"broadcast_id": 98765432109876543210}}');
  const [row] = await api.queue.query<{ text: string }>('select job_data::text as text from broadcast_queue_jobs');
  expect([status, row?.text]).toEqual([201, '{"broadcast_id": 98765432109876543210}']);
});

test('a broadcast that is queued already is found, not queued twice', async () => {
  const job = { job_type: 'send_broadcast', job_data: { broadcast_id: 5 } };
  const first = await enqueue(job);
  const second = await enqueue(job);
  expect([second.status, second.body.inserted, second.body.job_id]).toEqual([200, false, first.body.job_id]);
  expect(await api.queue.jobs()).toHaveLength(1);
});

describe('an Idempotency-Key', () => {
  const job = { job_type: 'x', job_data: { a: 1, b: 2 } };

  test('makes the same request again answer with the same job, also when it has ended', async () => {
    const first = await enqueue(job, 'key-1');
    await api.queue.query(`update broadcast_queue_jobs set status = 'completed'`);
    const second = await enqueue({ job_data: { b: 2, a: 1 }, job_type: 'x' }, '"key-1"');
    expect([first.status, second.status]).toEqual([201, 200]);
    expect(second.body).toMatchObject({ job_id: first.body.job_id, status: 'completed', inserted: false });
  });

  test('with another body is a conflict', async () => {
    await enqueue(job, 'key-1');
    const { status, body } = await enqueue({ ...job, priority: 1 }, 'key-1');
    expect([status, body.code]).toEqual([409, 'idempotency_conflict']);
    expect(await api.queue.jobs()).toHaveLength(1);
  });

  test('raced by sixteen clients makes one job, which all are told of', async () => {
    const answers = await Promise.all(Array.from({ length: 16 }, () => enqueue(job, 'key-race')));
    expect(answers.map(({ status }) => status).sort()).toEqual([...Array(15).fill(200), 201]);
    expect(new Set(answers.map(({ body }) => body.job_id)).size).toBe(1);
    expect(await api.queue.jobs()).toHaveLength(1);
    const audited = await api.queue.query(`select from broadcast_queue_audit where target = $1`, [
      answers[0]?.body.job_id,
    ]);
    expect(audited).toHaveLength(1);
  });

  test('of a request that was refused is free again', async () => {
    expect(
      (await enqueue({ ...job, send_window: { from: '09:00', to: '10:00', time_zone: 'No/Where' } }, 'key-2')).status,
    ).toBe(400);
    expect((await enqueue(job, 'key-2')).status).toBe(201);
  });

  test('belongs to the token that sent it', async () => {
    await enqueue(job, 'key-3');
    const other = await api.ask('POST', '/jobs', { as: 'admin', body: job, headers: { 'idempotency-key': 'key-3' } });
    expect(other.status).toBe(201);
  });

  test('is forgotten after a day', async () => {
    await enqueue(job, 'key-4');
    await api.queue.query(`update broadcast_queue_requests set created_at = now() - interval '25 hours'`);
    expect((await enqueue(job, 'key-4')).status).toBe(201);
  });

  test('whose job is deleted since says so', async () => {
    await enqueue(job, 'key-5');
    await api.queue.query('delete from broadcast_queue_jobs');
    expect((await enqueue(job, 'key-5')).body.code).toBe('no_such_job');
  });

  test.each(['', ' ', 'a b', 'x'.repeat(201), 'ä'])('%j is none', async (key) => {
    expect((await enqueue(job, key)).status).toBe(400);
  });
});

test.each<[string, object]>([
  ['no type', { job_data: {} }],
  ['no payload', { job_type: 'x' }],
  ['a payload that is a list', { job_type: 'x', job_data: [] }],
  ['a queue that is a word of the routes', { job_type: 'x', job_data: {}, queue: 'status' }],
  ['a queue by both names', { job_type: 'x', job_data: {}, queue: 'a', queue_name: 'b' }],
  ['delay and scheduled_at', { job_type: 'x', job_data: {}, delay: 5, scheduled_at: '2100-01-01T00:00:00Z' }],
  ['a delay that is none', { job_type: 'x', job_data: {}, delay: 'soon' }],
  ['a negative delay', { job_type: 'x', job_data: {}, delay: -5 }],
  ['a priority beyond its range', { job_type: 'x', job_data: {}, priority: 40_000 }],
  ['a status', { job_type: 'x', job_data: {}, status: 'completed' }],
  ['no attempts', { job_type: 'x', job_data: {}, max_attempts: 0 }],
  [
    'a window with an unknown member',
    { job_type: 'x', job_data: {}, send_window: { from: '09:00', to: '10:00', time_zone: 'UTC', x: 1 } },
  ],
])('a job with %s is refused', async (_what, body) => {
  expect((await enqueue(body)).status).toBe(400);
  expect(await api.queue.jobs()).toEqual([]);
});
