/** Many jobs at one stroke: thousands retried, cancelled or deleted by ids, by filter, or as a group of failures. */
import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { openApi, secretOf, type TestApi } from '../support/api.js';
import { claimOne } from '../support/store.js';

let api: TestApi;

beforeAll(async () => {
  api = await openApi();
});
afterAll(() => api.close());
beforeEach(async () => {
  await api.queue.clear();
  await api.queue.query('delete from broadcast_queue_audit');
});

const post = async (path: string, body: unknown) => (await api.ask('POST', path, { body })).body;

const insertFailed = (count: number, message = 'HTTP 500: user 1 is gone') =>
  api.queue.query(
    `insert into broadcast_queue_jobs (job_type, job_data, status, error_code, error_message, attempts, completed_at)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n), 'failed', 'http_500',
            replace($2, '1', n::text), 3, now() from generate_series(1, $1::integer) n`,
    [count, message],
  );

const byStatus = async () => {
  const rows = await api.queue.query<{ status: string; n: number }>(
    'select status, count(*)::integer as n from broadcast_queue_jobs group by 1 order by 1',
  );
  return Object.fromEntries(rows.map(({ status, n }) => [status, n]));
};

test('a group of five thousand failures is retried at one stroke, and audited', async () => {
  await insertFailed(5000);
  await insertFailed(10, 'HTTP 500: the disk is full');
  const { body } = await api.ask('GET', '/failures');
  const [{ job_type, error_code, message, count }] = body.groups;
  expect(count).toBe(5000);
  const group = { job_type, error_code, message, limit: 10_000 };
  expect(await post('/failures/retry', { ...group, dryRun: true })).toEqual({
    ...{ matched: 5000, changed: 0, skipped: 0, dryRun: true, complete: true },
  });
  const begun = performance.now();
  expect(await post('/failures/retry', group)).toEqual({
    ...{ matched: 5000, changed: 5000, skipped: 0, dryRun: false, complete: true },
  });
  expect(performance.now() - begun).toBeLessThan(20_000);
  expect(await byStatus()).toEqual({ failed: 10, pending: 5000 });
  const [audited] = await api.queue.query(
    `select count(*)::integer as rows, sum((select count(*) from jsonb_object_keys(before)))::integer as jobs
     from broadcast_queue_audit where action = 'jobs.retry' and actor = 'the-admin'`,
  );
  expect(audited).toEqual({ rows: 100, jobs: 5000 });
}, 60_000);

test('a group is discarded, and nothing beside it', async () => {
  await insertFailed(60);
  await insertFailed(10, 'HTTP 500: the disk is full');
  const group = { job_type: 'send_broadcast', error_code: 'http_500', message: 'HTTP <n>: user <n> is gone' };
  expect(await post('/failures/discard', group)).toMatchObject({ matched: 60, changed: 60 });
  expect(await byStatus()).toEqual({ failed: 10 });
});

test('a limit is kept, and the answer says that there is more', async () => {
  await insertFailed(120);
  const filter = { status: 'failed', error: 'user' };
  expect(await post('/jobs/retry', { filter, limit: 70 })).toMatchObject({ matched: 70, changed: 70, complete: false });
  expect(await post('/jobs/retry', { filter, limit: 70 })).toMatchObject({ matched: 50, changed: 50, complete: true });
});

test('by ids, what is gone or in another status is skipped', async () => {
  const failed = await api.queue.insert({ status: 'failed' });
  const done = await api.queue.insert({ status: 'completed' });
  const taken = await api.queue.insert({ status: 'failed', unique_key: 'same' });
  await api.queue.insert({ unique_key: 'same' });
  const ids = [
    failed.job_id,
    failed.job_id.toUpperCase(),
    done.job_id,
    taken.job_id,
    '00000000-0000-4000-8000-000000000000',
  ];
  expect(await post('/jobs/retry', { ids, dryRun: true })).toMatchObject({ matched: 3, changed: 0, skipped: 1 });
  expect(await post('/jobs/retry', { ids })).toMatchObject({ matched: 3, changed: 1, skipped: 3, complete: true });
  expect((await api.queue.job(failed.id)).status).toBe('pending');
});

test('cancel takes back what waits and what runs', async () => {
  await api.queue.insert();
  await claimOne(api.queue.store());
  await api.queue.insert();
  expect(await post('/jobs/cancel', { filter: { queue: 'broadcasts' } })).toMatchObject({ matched: 2, changed: 2 });
  expect(await byStatus()).toEqual({ cancelled: 2 });
});

test('delete takes jobs that have ended, with what their attempts told', async () => {
  const failed = await api.queue.insert({ status: 'failed' });
  await api.queue.query(
    `insert into broadcast_queue_attempts (job, epoch, attempt, outcome) values ($1, 1, 1, 'failed')`,
    [failed.id],
  );
  const waiting = await api.queue.insert();
  expect(await post('/jobs/delete', { ids: [failed.job_id, waiting.job_id] })).toMatchObject({
    changed: 1,
    skipped: 1,
  });
  expect(await byStatus()).toEqual({ pending: 1 });
  expect(await api.queue.attempts()).toEqual([]);
});

test('two strokes at the same jobs at once change each of them once', async () => {
  await insertFailed(300);
  const stroke = () => post('/jobs/retry', { filter: { status: 'failed' }, limit: 1000 });
  const answers = await Promise.all([stroke(), stroke(), stroke()]);
  expect(answers.reduce((sum, { changed }) => sum + changed, 0)).toBe(300);
  expect(await byStatus()).toEqual({ pending: 300 });
});

test.each<[string, object]>([
  ['neither ids nor filter', {}],
  ['both', { ids: ['00000000-0000-4000-8000-000000000000'], filter: { status: 'failed' } }],
  ['an empty filter', { filter: {} }],
  ['a limit beyond ten thousand', { filter: { status: 'failed' }, limit: 10_001 }],
  ['a member of the payload that is no name', { filter: { data: { "a'b": 'x' } } }],
])('%s is refused', async (_what, body) => {
  const answer = await api.ask('POST', '/jobs/retry', { body });
  expect([answer.status, answer.body.code]).toEqual([400, 'invalid_request']);
});

test('over a real connection too, whose request is long read when the work begins', async () => {
  await insertFailed(120);
  const url = await api.app.listen({ host: '127.0.0.1', port: 0 });
  const response = await fetch(`${url}/api/admin/queue/jobs/retry`, {
    method: 'POST',
    headers: { authorization: `Bearer ${secretOf('admin')}`, 'content-type': 'application/json' },
    body: JSON.stringify({ filter: { status: 'failed' } }),
  });
  expect(await response.json()).toMatchObject({ matched: 120, changed: 120, complete: true });
});
