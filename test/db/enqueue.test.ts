import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Row } from '../../src/db/pool.js';
import { msBetween, openQueue, sqlState, type TestQueue } from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

interface Enqueued extends Row {
  readonly id: string;
  readonly job_id: string;
  readonly unique_key: string | null;
  readonly inserted: boolean;
}

/** Calls broadcast_enqueue with named options, each an SQL expression. */
async function enqueue(type: string, data: unknown, options: Record<string, string> = {}): Promise<Enqueued> {
  const named = Object.entries(options).map(([name, value]) => `, ${name} => ${value}`);
  const [row] = await queue.query<Enqueued>(`select * from broadcast_enqueue($1, $2::jsonb${named.join('')})`, [
    type,
    JSON.stringify(data),
  ]);
  if (!row) throw new Error('broadcast_enqueue returned nothing');
  return row;
}

describe('broadcast_enqueue', () => {
  test('returns the row that it inserted, due now, in the queue usual for its type', async () => {
    const row = await enqueue('send_broadcast', { broadcast_id: 7 });
    expect(row).toEqual({
      id: expect.any(String),
      job_id: expect.any(String),
      queue_name: 'broadcasts',
      job_type: 'send_broadcast',
      job_data: { broadcast_id: 7 },
      status: 'pending',
      attempts: 0,
      max_attempts: 3,
      priority: 0,
      scheduled_at: expect.any(Date),
      expires_at: null,
      unique_key: expect.stringContaining('"7"'),
      created_at: row.scheduled_at,
      inserted: true,
    });
    expect(await queue.job(row.id)).toMatchObject({ job_id: row.job_id, due_at: row.scheduled_at, dry_run: false });
  });

  test.each([
    ['send_segment_broadcast', 'segment-broadcasts'],
    ['process_retries', 'retries'],
    ['cleanup_queue', 'cleanup'],
    ['something_else', 'broadcasts'],
  ])('puts %s into %s', async (type, usual) => {
    expect((await enqueue(type, {})).queue_name).toBe(usual);
  });

  test('takes every option', async () => {
    const row = await enqueue(
      'send_broadcast',
      { broadcast_id: 7 },
      {
        queue: "'mine'",
        delay: "interval '1 hour'",
        priority: '-3',
        max_attempts: '9',
        unique_key: "'k'",
        expires_at: "timestamptz '2100-01-01Z'",
        dry_run: 'true',
        traceparent: "'00-trace-span-01'",
      },
    );
    expect(msBetween(await created(row.id), await scheduled(row.id))).toBe(3_600_000);
    expect(await queue.job(row.id)).toMatchObject({
      queue_name: 'mine',
      priority: -3,
      max_attempts: 9,
      unique_key: 'k',
      expires_at: new Date('2100-01-01T00:00:00Z'),
      dry_run: true,
      traceparent: '00-trace-span-01',
    });
  });

  const created = async (id: string) => (await queue.job(id)).created_at;
  const scheduled = async (id: string) => (await queue.job(id)).scheduled_at;

  test('takes an instant instead of a delay, but not both', async () => {
    const at = { scheduled_at: "timestamptz '2100-01-01Z'" };
    expect((await enqueue('send_broadcast', {}, at)).scheduled_at).toEqual(new Date('2100-01-01T00:00:00Z'));
    const both = { ...at, delay: "interval '1 second'" };
    expect(await sqlState(enqueue('send_broadcast', {}, both))).toBe('22023');
  });

  test('takes the defaults for explicit NULLs', async () => {
    const nulls = { queue: 'null', delay: 'null', priority: 'null', max_attempts: 'null', dry_run: 'null' };
    expect(await enqueue('cleanup_queue', {}, nulls)).toMatchObject({
      queue_name: 'cleanup',
      priority: 0,
      max_attempts: 3,
      inserted: true,
    });
  });

  test('leaves nothing when the transaction rolls back', async () => {
    const session = await queue.session();
    await session.query('begin');
    await session.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": 1}')`);
    await session.query('rollback');
    expect(await queue.jobs()).toEqual([]);
  });

  test('finds the job of its own open transaction', async () => {
    const session = await queue.session();
    await session.query('begin');
    const text = `select inserted from broadcast_enqueue('send_broadcast', '{"broadcast_id": 1}')`;
    expect((await session.query(text)).rows).toEqual([{ inserted: true }]);
    expect((await session.query(text)).rows).toEqual([{ inserted: false }]);
    await session.query('commit');
    expect(await queue.jobs()).toHaveLength(1);
  });
});

describe('the same broadcast again', () => {
  test.each([
    ['a number and a text', { broadcast_id: 7 }, { broadcast_id: '7' }],
    ['both ways of writing the member', { broadcast_id: 7 }, { broadcastId: 7 }],
    ['other members beside the id', { broadcast_id: 7, text: 'a' }, { broadcast_id: 7, text: 'b' }],
    ['a segment under both names', { broadcast_id: 7, segment_id: 'vip' }, { broadcast_id: 7, segmentId: 'vip' }],
  ])('is found: %s', async (_, first, second) => {
    const one = await enqueue('send_broadcast', first);
    const two = await enqueue('send_broadcast', second);
    expect([one.inserted, two.inserted]).toEqual([true, false]);
    expect(two).toEqual({ ...one, inserted: false });
    expect(await queue.jobs()).toHaveLength(1);
  });

  test.each([
    ['another segment', { broadcast_id: 7, segment_id: 1 }, { broadcast_id: 7, segment_id: 2 }],
    ['no segment', { broadcast_id: 7, segment_id: 1 }, { broadcast_id: 7 }],
    ['another bot', { broadcast_id: 7, bot_id: 'a' }, { broadcast_id: 7, bot_id: 'b' }],
    ['ids with colons', { broadcast_id: '1:2', segment_id: '3' }, { broadcast_id: '1', segment_id: '2:3' }],
    ['ids with quotes', { broadcast_id: '1", "2', segment_id: '3' }, { broadcast_id: '1', segment_id: '2", "3' }],
    ['a segment that looks like no segment', { broadcast_id: 7, segment_id: 'null' }, { broadcast_id: 7 }],
    ['no id at all', {}, {}],
  ])('is not confused with %s', async (_, first, second) => {
    await enqueue('send_broadcast', first);
    expect((await enqueue('send_broadcast', second)).inserted).toBe(true);
  });

  test('is queued twice when the key is switched off, or in two queues', async () => {
    await enqueue('send_broadcast', { broadcast_id: 7 });
    expect(await enqueue('send_broadcast', { broadcast_id: 7 }, { unique_key: 'null' })).toMatchObject({
      inserted: true,
      unique_key: null,
    });
    expect((await enqueue('send_broadcast', { broadcast_id: 7 }, { queue: "'other'" })).inserted).toBe(true);
  });

  test('is a matter of send_* only, unless a key is given', async () => {
    const inserted = async (options = {}) => (await enqueue('process_retries', {}, options)).inserted;
    expect([await inserted(), await inserted()]).toEqual([true, true]);
    const key = { unique_key: "'k'" };
    expect([await inserted(key), await inserted(key)]).toEqual([true, false]);
  });

  test.each([
    ['completed', true],
    ['failed', true],
    ['cancelled', true],
    ['processing', false],
    ['retry', false],
    ['paused', false],
  ])('when the first is %s: inserted is %s', async (status, inserted) => {
    await enqueue('send_broadcast', { broadcast_id: 7 });
    await queue.query('update broadcast_queue_jobs set status = $1', [status]);
    expect(await enqueue('send_broadcast', { broadcast_id: 7 })).toMatchObject({
      inserted,
      status: inserted ? 'pending' : status,
    });
  });

  test('from 32 producers at once becomes one job, which all of them are told of', async () => {
    const rows = await Promise.all(Array.from({ length: 32 }, () => enqueue('send_broadcast', { broadcast_id: 7 })));
    expect(rows.filter(({ inserted }) => inserted)).toHaveLength(1);
    expect(new Set(rows.map(({ job_id }) => job_id)).size).toBe(1);
    expect(await queue.jobs()).toHaveLength(1);
  });

  test('waits for the first one to commit, and takes its place when it rolls back', async () => {
    const session = await queue.session();
    await session.query('begin');
    await session.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": 7}')`);
    const second = enqueue('send_broadcast', { broadcast_id: 7 });
    await session.query('rollback');
    expect((await second).inserted).toBe(true);
    expect(await queue.jobs()).toHaveLength(1);
  });
});
