/** Sending again, when an operator asks: whom each scope of the sandbox reaches, and whom none of them does. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { type Sandbox, startSandbox } from '../../src/sandbox/server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { call, callThrough, report } from '../support/sandbox-calls.js';

let database: TestDatabase;
let sandbox: Sandbox;
let url: string;

beforeAll(async () => {
  database = await createDatabase();
  sandbox = await startSandbox({ databaseUrl: database.url });
  url = sandbox.url;
});

afterAll(async () => {
  await sandbox.close();
  await database.drop();
});

test('failed: those who failed are tried once more, and nobody else', async () => {
  const options = { job: 'failed', payload: { broadcast_id: 'failed' } };
  await callThrough(url, options);
  const answers = await callThrough(url, { ...options, seq: 10, scope: 'failed', maxItems: 20 });
  expect(answers.map(({ status }) => status)).toEqual([202, 202, 200]);
  for (const { body } of answers) expect(body.progress).toMatchObject({ total: 1000, processed: 1000 });
  expect(answers.at(-1)?.body.progress).toMatchObject({
    sent: 910,
    failed: 40,
    reasons: { blocked: 30, deactivated: 10 },
  });
  expect(await deliveriesOf('failed')).toEqual({ people: 910, deliveries: 910 });
  const retries = await call(url, { job: 'retries', type: 'process_retries' });
  expect(retries.body.progress).toMatchObject({ processed: 0 });
});

test('unknown: the uncertain are sent to again only then, and nobody else', async () => {
  const options = { job: 'unknown', payload: { broadcast_id: 'unknown' }, maxItems: 500 };
  const first = await call(url, options);
  await interrupt('unknown', 'user_id between 101 and 150');

  const rest = await callThrough(url, { ...options, seq: 1, cursor: String(first.body.cursor) });
  expect(rest.at(-1)?.body.progress).toMatchObject({ total: 1000, processed: 1000, unknown: 50 });
  for (const [seq, scope] of [
    [10, 'all'],
    [20, 'pending'],
    [30, 'failed'],
  ] as const) {
    const answer = await call(url, { ...options, seq, scope });
    expect(answer.body).toMatchObject({ status: 'completed', progress: { unknown: 50 } });
  }
  const before = await deliveriesOf('unknown');
  expect(before?.people).toBe(before?.deliveries);

  const again = await callThrough(url, { ...options, seq: 40, scope: 'unknown', maxItems: 30 });
  expect(again.map(({ body }) => body.progress?.unknown)).toEqual([20, 0]);
  expect(again.at(-1)?.body.progress).toMatchObject({ total: 1000, processed: 1000 });
  const [outside] = await database.query<{ people: number }>(
    `select count(*)::integer as people
     from (select user_id from broadcast_sandbox.deliveries where broadcast_id = 'unknown'
           group by user_id having count(*) > 1) as twice
     where user_id not between 101 and 150`,
  );
  expect(outside?.people).toBe(0);
});

test('unknown: whom that very step left uncertain it does not send to a second time', async () => {
  const options = { job: 'careful', payload: { broadcast_id: 'careful' } };
  await call(url, options);
  await interrupt('careful', 'user_id <= 100');
  await call(url, { ...options, seq: 1, scope: 'pending' });
  const first = await call(url, { ...options, seq: 2, scope: 'unknown', maxItems: 60 });
  expect(first.body.progress).toMatchObject({ unknown: 40 });
  // As if that slice had died before its answer was stored.
  await interrupt('careful', 'user_id between 51 and 60');
  await database.query(`update broadcast_sandbox.calls set answer = null where idempotency_key = 'careful:2'`);
  const again = await callThrough(url, { ...options, seq: 2, epoch: 2, scope: 'unknown', maxItems: 60 });
  expect(again.at(-1)?.body).toMatchObject({ status: 'completed', progress: { total: 1000, unknown: 10 } });
  const [most] = await database.query<{ times: number }>(
    `select max(times)::integer as times
     from (select count(*) as times from broadcast_sandbox.deliveries where broadcast_id = 'careful' group by user_id) as u`,
  );
  expect(most?.times).toBe(2);
});

test.each(['pending', 'all'])('%s: only whom nobody has handled yet, whatever slices there were', async (scope) => {
  const options = { job: scope, payload: { broadcast_id: scope } };
  await call(url, { ...options, maxItems: 250 });
  const dry = await call(url, { ...options, seq: 1, scope, dryRun: true });
  expect(dry.body).toMatchObject({ audience: 750 });
  const rest = await callThrough(url, { ...options, seq: 2, scope, maxItems: 400 });
  expect(rest.map(({ body }) => body.progress?.processed)).toEqual([650, 1000]);
  expect(await deliveriesOf(scope)).toEqual({ people: 900, deliveries: 900 });
  const nobody = await call(url, { ...options, seq: 9, scope });
  expect(nobody.body).toMatchObject({ status: 'completed', progress: { total: 1000, processed: 1000, sent: 900 } });
  expect((await report(url, scope)).duplicates).toBe(0);
});

test('failed, with people still pending, does not claim that all is done', async () => {
  const options = { job: 'half', payload: { broadcast_id: 'half' } };
  await call(url, { ...options, maxItems: 500 });
  const { body } = await call(url, { ...options, seq: 1, scope: 'failed' });
  expect(body).toMatchObject({ status: 'completed', progress: { total: 1000, processed: 500 } });
});

/** Rows as a crash leaves them: claimed, perhaps delivered, never settled. */
async function interrupt(broadcastId: string, who: string): Promise<void> {
  await database.query(
    `update broadcast_sandbox.ledger set state = 'sending', reason = null, settled_at = null
     where broadcast_id = $1 and ${who}`,
    [broadcastId],
  );
}

async function deliveriesOf(broadcastId: string) {
  const [row] = await database.query<{ people: number; deliveries: number }>(
    `select count(distinct user_id)::integer as people, count(*)::integer as deliveries
     from broadcast_sandbox.deliveries where broadcast_id = $1`,
    [broadcastId],
  );
  return row;
}
