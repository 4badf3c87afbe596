import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { jobStore } from '../../src/db/jobs.js';
import { type Database, openDatabase } from '../../src/db/pool.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';

let database: TestDatabase;
let connection: Database;

beforeAll(async () => {
  database = await createDatabase();
  connection = openDatabase({
    url: database.url,
    schema: 'public',
    applicationName: 'test',
    pooled: false,
    connectionsMax: 1,
    statementTimeoutMs: 5000,
  });
});
afterAll(async () => {
  await connection.close();
  await database.drop();
});
beforeEach(async () => {
  await database.query('truncate broadcast_queue_jobs, broadcast_queue_pauses');
  await database.query(
    `insert into broadcast_queue_jobs (job_type, job_data, queue_name)
     select 'send_broadcast', '{"broadcast_id": 1}', queue from unnest(array['a', 'b', 'c']) queue`,
  );
});

async function claimedQueues(): Promise<string[]> {
  const settings = {
    leaseMs: 1000,
    maxPayloadBytes: 1000,
    ambiguous: 'retry' as const,
    slots: {},
    masked: (text: string) => text,
  };
  const store = jobStore(connection, { id: 'w', version: '0', host: 'h', pid: 1 }, settings);
  const { claims } = await store.claim(randomUUID(), new Map(), 5);
  return claims.map(({ job }) => job.queue).sort();
}

const call = async (sql: string) => Object.values((await database.query(`select ${sql}`))[0] ?? {})[0];

test('a paused queue is not claimed from, the others are', async () => {
  expect(await call(`broadcast_pause_queue('b', 'wrong text')`)).toBe(true);
  expect(await call(`broadcast_pause_queue('b')`)).toBe(false);
  expect(await claimedQueues()).toEqual(['a', 'c']);
  expect(await call(`broadcast_resume_queue('b')`)).toBe(true);
  expect(await claimedQueues()).toEqual(['b']);
  expect(await call(`broadcast_resume_queue('b')`)).toBe(false);
});

test('a global stop pauses every queue, and lifting it leaves a queue paused that was so by its name', async () => {
  await call(`broadcast_pause_queue('b')`);
  await call(`broadcast_pause_queue()`);
  expect(await claimedQueues()).toEqual([]);
  await call(`broadcast_resume_queue()`);
  expect(await claimedQueues()).toEqual(['a', 'c']);
});

test('who paused it, when and why is kept', async () => {
  await call(`broadcast_pause_queue('b', 'wrong text', 'alice')`);
  expect(await database.query('select * from broadcast_queue_pauses')).toEqual([
    { queue_name: 'b', paused_at: expect.any(Date), paused_by: 'alice', reason: 'wrong text' },
  ]);
});
