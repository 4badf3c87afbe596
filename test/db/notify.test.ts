/** When an insert wakes the daemons, and when it must not. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type pg from 'pg';
import { openQueue, type TestQueue } from '../support/store.js';

let queue: TestQueue;
let listener: pg.Client;
let producer: pg.Client;
const heard: string[] = [];

beforeAll(async () => {
  queue = await openQueue();
  listener = await queue.session();
  producer = await queue.session();
  listener.on('notification', ({ channel, payload }) => heard.push(`${channel}:${payload ?? ''}`));
  await listener.query('listen broadcast_queue; listen broadcast_queue_recall');
});
afterEach(async () => {
  await queue.clear();
  heard.length = 0;
});
afterAll(() => queue.close());

const INSERT = "insert into broadcast_queue_jobs (job_type, job_data, scheduled_at) values ('send_broadcast', '{}', ";

/** What is heard of the producer's statements. A session is told of what was committed before its next statement. */
async function heardOf(...texts: string[]): Promise<string[]> {
  for (const text of texts) await producer.query(text);
  await listener.query('select');
  return heard.splice(0);
}

describe('a notification', () => {
  test.each([
    ['a plain row', "insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', '{}')"],
    ['a row due in the past', `${INSERT} '-infinity')`],
    ['a row due within seconds', `${INSERT} now() + interval '3 seconds')`],
    ['broadcast_enqueue', "select broadcast_enqueue('send_broadcast', '{}')"],
    [
      'broadcast_retry',
      `${INSERT} now() + interval '1 hour')`,
      "update broadcast_queue_jobs set status = 'failed'",
      'select broadcast_retry(job_id) from broadcast_queue_jobs',
    ],
    [
      'broadcast_resume',
      `${INSERT} now() + interval '1 hour')`,
      'select broadcast_pause(job_id) from broadcast_queue_jobs',
      'select broadcast_resume(job_id) from broadcast_queue_jobs',
    ],
  ])('comes of %s, and carries nothing', async (_, ...texts) => {
    expect(await heardOf(...texts)).toEqual(['broadcast_queue:']);
  });

  test('of a cancel goes to those who hold jobs, and wakes nobody to claim', async () => {
    const cancelled = await heardOf(
      `${INSERT} now() + interval '1 hour')`,
      'select broadcast_cancel(job_id) from broadcast_queue_jobs',
    );
    expect(cancelled).toEqual(['broadcast_queue_recall:']);
  });

  test.each([
    ['a row due in a minute', `${INSERT} now() + interval '1 minute')`],
    ['a delayed job', "select broadcast_enqueue('send_broadcast', '{}', delay => '1 minute')"],
    [
      'a row that is paused',
      "insert into broadcast_queue_jobs (job_type, job_data, status) values ('x', '{}', 'paused')",
    ],
    ['an insert of nothing', `insert into broadcast_queue_jobs (job_type, job_data) select 'x', '{}' where false`],
    [
      'a duplicate',
      `${INSERT} now() + interval '1 minute')`,
      "update broadcast_queue_jobs set unique_key = 'k'",
      "select broadcast_enqueue('send_broadcast', '{}', unique_key => 'k')",
    ],
    ['a rollback', 'begin', `${INSERT} now())`, 'rollback'],
  ])('does not come of %s', async (_, ...texts) => {
    expect(await heardOf(...texts)).toEqual([]);
  });

  test('comes once of a statement, however many rows it inserts', async () => {
    const many = "insert into broadcast_queue_jobs (job_type, job_data) select 'x', '{}' from generate_series(1, 500)";
    expect(await heardOf(many)).toHaveLength(1);
    const batch = `select count(*) from broadcast_enqueue_many(
      (select jsonb_agg(jsonb_build_object('job_type', 'x', 'job_data', n)) from generate_series(1, 500) n))`;
    expect(await heardOf(batch)).toHaveLength(1);
  });

  test('comes once of a transaction, however many statements it has', async () => {
    expect(await heardOf('begin', `${INSERT} now())`, `${INSERT} now())`, 'commit')).toHaveLength(1);
  });

  test('comes when one of many rows is due', async () => {
    const text = `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
      select 'x', '{}', now() + n * interval '1 hour' from generate_series(0, 100) n`;
    expect(await heardOf(text)).toHaveLength(1);
  });

  test('can be switched off for a session, and on again', async () => {
    await producer.query('set broadcastd.notify = off');
    expect(await heardOf(`${INSERT} now())`)).toEqual([]);
    await producer.query('reset broadcastd.notify');
    expect(await heardOf(`${INSERT} now())`)).toHaveLength(1);
  });

  test('can be switched off for one transaction', async () => {
    expect(await heardOf('begin', 'set local broadcastd.notify = off', `${INSERT} now())`, 'commit')).toEqual([]);
    expect(await heardOf(`${INSERT} now())`)).toHaveLength(1);
  });

  test('carries nothing of a payload of 10 MB', async () => {
    const text = "insert into broadcast_queue_jobs (job_type, job_data) values ('x', to_jsonb(repeat('x', 10000000)))";
    expect(await heardOf(text)).toEqual(['broadcast_queue:']);
  });
});
