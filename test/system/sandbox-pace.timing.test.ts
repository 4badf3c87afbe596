/** The sandbox keeps time: a slice ends when its time is over, and a pace is kept and made use of. */
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { type SandboxOptions, startSandbox } from '../../src/sandbox/server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { call, callThrough } from '../support/sandbox-calls.js';

let database: TestDatabase;

beforeEach(async () => {
  database = await createDatabase();
});
afterEach(() => database.drop());

test('a slice ends when its time is over', async () => {
  await withSandbox({}, async (url) => {
    const start = performance.now();
    const options = { job: 'timed', payload: { broadcast_id: 'timed' }, waitSeconds: 0.5, perSecond: 200 };
    const { status, body } = await call(url, options);
    expect(performance.now() - start).toBeLessThan(1000);
    expect(status).toBe(202);
    expect(Number(body.progress?.processed)).toBeGreaterThanOrEqual(60);
    expect(Number(body.progress?.processed)).toBeLessThanOrEqual(160);
  });
});

test('a pace of 200 a second is kept in every second, from slice to slice, and made use of', async () => {
  await withSandbox({}, async (url) => {
    // Everybody can be reached, so that each message leaves its mark.
    await database.query(
      `update broadcast_sandbox.users set opted_out_at = null, blocked_bot = false, deactivated = false, flaky = false`,
    );
    const options = { job: 'paced', payload: { broadcast_id: 'paced' }, perSecond: 200, waitSeconds: 0.7 };
    const start = performance.now();
    const answers = await callThrough(url, options);
    expect(answers.length).toBeGreaterThan(5);
    // At 200 a second, 5 s.
    expect(performance.now() - start).toBeLessThan(6_000);
  });
  const { busiest, messages } = await pace('paced');
  expect(messages).toBe(1000);
  expect(busiest).toBeLessThanOrEqual(204);
});

test('the pace of the sandbox itself holds where the daemon asks for more', async () => {
  await withSandbox({ perSecond: 100 }, async (url) => {
    await call(url, { job: 'slow', payload: { broadcast_id: 'slow' }, perSecond: 5000, maxItems: 200 });
  });
  expect((await pace('slow')).busiest).toBeLessThanOrEqual(102);
});

async function withSandbox(options: Partial<SandboxOptions>, use: (url: string) => Promise<void>): Promise<void> {
  const sandbox = await startSandbox({ databaseUrl: database.url, ...options });
  try {
    await use(sandbox.url);
  } finally {
    await sandbox.close();
  }
}

/** The most deliveries in any one second. */
async function pace(broadcastId: string): Promise<{ busiest: number; messages: number }> {
  const [row] = await database.query<{ busiest: number; messages: number }>(
    `select max(people)::integer as busiest, count(*)::integer as messages
     from (select count(*) over (order by delivered_at
                                 range between current row and interval '1 second' following) as people
           from broadcast_sandbox.deliveries where broadcast_id = $1) as following`,
    [broadcastId],
  );
  return row ?? { busiest: 0, messages: 0 };
}
