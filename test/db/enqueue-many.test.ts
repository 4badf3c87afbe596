import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Row } from '../../src/db/pool.js';
import { openQueue, sqlState, type TestQueue } from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

interface Answer extends Row {
  readonly job_id: string;
  readonly inserted: boolean;
}

const enqueueMany = (jobs: unknown) =>
  queue.query<Answer>('select * from broadcast_enqueue_many($1::jsonb)', [JSON.stringify(jobs)]);

const broadcast = (id: number, more: object = {}) => ({
  job_type: 'send_broadcast',
  job_data: { broadcast_id: id },
  ...more,
});

const namesOf = (answers: readonly Answer[]) => answers.map(({ job_id }) => job_id);

describe('broadcast_enqueue_many', () => {
  test('answers in the order given, which is the order of the ids', async () => {
    const answers = await enqueueMany([5, 3, 9, 1].map((id) => broadcast(id)));
    expect(answers.every(({ inserted }) => inserted)).toBe(true);
    const rows = await queue.jobs();
    expect(rows.map(({ job_id }) => job_id)).toEqual(namesOf(answers));
    expect(rows.map(({ job_data }) => job_data)).toEqual([5, 3, 9, 1].map((broadcast_id) => ({ broadcast_id })));
  });

  test('takes the options of broadcast_enqueue, and its defaults', async () => {
    await enqueueMany([
      broadcast(1, {
        queue: 'mine',
        priority: 4,
        max_attempts: 8,
        unique_key: 'k',
        delay: '1 hour',
        expires_at: '2100-01-01T00:00:00Z',
        dry_run: true,
        traceparent: 't',
      }),
      { job_type: 'send_segment_broadcast', job_data: {}, scheduled_at: '2100-01-01T00:00:00Z', unique_key: 'auto' },
      broadcast(2, { queue: null, priority: null, max_attempts: null, unique_key: null, delay: null }),
    ]);
    const [one, two, three] = await queue.jobs();
    expect(one).toMatchObject({
      queue_name: 'mine',
      priority: 4,
      max_attempts: 8,
      unique_key: 'k',
      scheduled_at: new Date((one?.created_at.getTime() ?? 0) + 3_600_000),
      expires_at: new Date('2100-01-01T00:00:00Z'),
      dry_run: true,
      traceparent: 't',
    });
    expect(two).toMatchObject({
      queue_name: 'segment-broadcasts',
      scheduled_at: new Date('2100-01-01T00:00:00Z'),
      unique_key: null,
    });
    expect(three).toMatchObject({ queue_name: 'broadcasts', priority: 0, max_attempts: 3, unique_key: null });
  });

  test('makes the same key as broadcast_enqueue', async () => {
    const members = { broadcast_id: 1, segment_id: 'a:b', bot_id: 'shop' };
    for (const job_type of ['send_broadcast', 'send_segment_broadcast']) {
      await queue.query('select broadcast_enqueue($1, $2::jsonb)', [job_type, JSON.stringify(members)]);
      expect(await enqueueMany([{ job_type, job_data: members }])).toMatchObject([{ inserted: false }]);
    }
  });

  test('names the live job for each duplicate, inside the batch or from before', async () => {
    const [before] = await enqueueMany([broadcast(1)]);
    const answers = await enqueueMany([
      broadcast(2),
      broadcast(1),
      broadcast(2),
      broadcast(3),
      broadcast(2, { unique_key: null }),
    ]);
    const [two, one, twoAgain, three, unkeyed] = answers;
    expect(answers.map(({ inserted }) => inserted)).toEqual([true, false, false, true, true]);
    expect(one?.job_id).toBe(before?.job_id);
    expect(twoAgain?.job_id).toBe(two?.job_id);
    expect(new Set(namesOf([...(before ? [before] : []), ...answers])).size).toBe(4);
    expect(await queue.jobs()).toHaveLength(4);
    expect(three?.job_id).not.toBe(unkeyed?.job_id);
  });

  test('refuses a member that it does not know, and then inserts nothing', async () => {
    const jobs = [broadcast(1), broadcast(2, { max_atempts: 5 })];
    await expect(enqueueMany(jobs)).rejects.toThrow('unknown member "max_atempts"');
    expect(await sqlState(enqueueMany(jobs))).toBe('22023');
    expect(await queue.jobs()).toEqual([]);
  });

  test.each([
    ['no array', broadcast(1)],
    ['no objects', [1, 'a']],
    ['no job type', [{ job_data: {} }]],
    ['no job data', [{ job_type: 'send_broadcast' }]],
    ['a queue that no route can name', [broadcast(1), broadcast(2, { queue: 'status' })]],
    ['a delay that is none', [broadcast(1, { delay: 'soon' })]],
  ])('refuses %s', async (_, jobs) => {
    expect(await sqlState(enqueueMany(jobs))).toMatch(/^2[23]/);
    expect(await queue.jobs()).toEqual([]);
  });

  test('refuses a job with a delay and an instant, as broadcast_enqueue does', async () => {
    const both = broadcast(1, { delay: '1 hour', scheduled_at: '2100-01-01T00:00:00Z' });
    expect(await sqlState(enqueueMany([both]))).toBe('22023');
  });

  test('does nothing with an empty batch', async () => {
    expect(await enqueueMany([])).toEqual([]);
  });

  test('takes 20,000 jobs at once, duplicates among them', async () => {
    const jobs = Array.from({ length: 20_000 }, (_, n) => broadcast(n % 19_000));
    const answers = await enqueueMany(jobs);
    expect(answers.filter(({ inserted }) => inserted)).toHaveLength(19_000);
    expect(answers[19_500]).toEqual({ job_id: answers[500]?.job_id, inserted: false });
    expect(await queue.query('select count(*)::integer as jobs from broadcast_queue_jobs')).toEqual([{ jobs: 19_000 }]);
  });

  test('leaves nothing when the transaction rolls back', async () => {
    const session = await queue.session();
    await session.query('begin');
    await session.query('select broadcast_enqueue_many($1)', [JSON.stringify([broadcast(1)])]);
    await session.query('rollback');
    expect(await queue.jobs()).toEqual([]);
  });
});
