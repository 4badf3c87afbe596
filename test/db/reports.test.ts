/** The statements behind the API: what they cost on a long table, and what they make of messages and payloads. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { anyJob } from '../../src/db/reports/jobs.js';
import { openReports } from '../../src/db/reports.js';
import { claimOne, openQueue, type TestQueue } from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterAll(() => queue.close());

describe('a failure’s cause', () => {
  test.each([
    ['HTTP 500', 'HTTP <n>'],
    ['user 17 is gone', 'user <n> is gone'],
    ['user 4.5 of 1,000', 'user <n> of <n>'],
    ['the template "Hello" is unknown', 'the template "…" is unknown'],
    [`no column 'phone'`, 'no column "…"'],
    ['job 6f9619ff-8b86-d011-b42d-00c04fc964ff is lost', 'job <id> is lost'],
    ['at 0xDEADBEEF', 'at <hex>'],
    ['key a1b2c3d4e5f6', 'key <hex>'],
    ['connect ECONNREFUSED 10.0.0.7:8080', 'connect ECONNREFUSED <n>'],
    ['deadline exceeded', 'deadline exceeded'],
    ['two\n  lines', 'two lines'],
    ['', ''],
  ])('of %j is %j', async (message, cause) => {
    expect(await queue.query('select broadcast_failure_cause($1) as cause', [message])).toEqual([{ cause }]);
  });

  test('of a long message costs little, whatever is in it', async () => {
    for (const message of [
      '"'.repeat(2048),
      `'"`.repeat(1024),
      '1.'.repeat(1024),
      'a'.repeat(2048),
      '0x'.repeat(1024),
    ]) {
      const begun = performance.now();
      const [row] = await queue.query<{ length: number }>('select length(broadcast_failure_cause($1)) as length', [
        message,
      ]);
      expect(row?.length).toBeLessThanOrEqual(300);
      expect(performance.now() - begun).toBeLessThan(500);
    }
  });
});

test.each([
  ['{"a": 1, "b": {"a": [2]}}', '{"a": "[redacted]", "b": {"a": "[redacted]"}}'],
  ['[{"a": 1}, "a", 12345678901234567890]', '[{"a": "[redacted]"}, "a", 12345678901234567890]'],
  ['{}', '{}'],
  ['[]', '[]'],
  ['null', 'null'],
])('the payload %s is shown as %s', async (payload, shown) => {
  const [row] = await queue.query<{ text: string }>(`select broadcast_redacted($1::jsonb, '{a}')::text as text`, [
    payload,
  ]);
  expect(row?.text).toBe(shown);
});

describe('on a table of a hundred thousand jobs', () => {
  const reports = () => openReports(queue.database, []);

  beforeAll(async () => {
    await queue.query(
      `insert into broadcast_queue_jobs (job_type, job_data, status, error_message)
       select 'send_broadcast', jsonb_build_object('broadcast_id', n), case when n % 10 = 0 then 'failed' else 'completed' end,
              case when n % 10 = 0 then 'HTTP 500: user ' || n end
       from generate_series(1, 100000) n`,
    );
    // As after an autovacuum.
    await queue.query('analyze broadcast_queue_jobs');
  }, 60_000);

  /** Pages of the table and its indexes that a call reads. */
  async function pagesRead(call: () => Promise<unknown>): Promise<number> {
    const pages = async () => {
      // A backend tells of its reads when it is asked to: each connection of the pool is.
      await Promise.all(
        Array.from({ length: 10 }, () => queue.query('select pg_stat_force_next_flush(), pg_sleep(0.02)')),
      );
      const [row] = await queue.query<{ pages: number }>(
        `select (heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::integer as pages
         from pg_statio_user_tables where relname = 'broadcast_queue_jobs'`,
      );
      return row?.pages ?? Number.NaN;
    };
    const before = await pages();
    await call();
    return (await pages()) - before;
  }

  test('a walk to the end reads all of it, as the pages counted below show', async () => {
    expect(await pagesRead(() => reports().page({ ...anyJob, error: 'nowhere' }, null, 50))).toBeGreaterThan(2000);
  });

  test('the status reads a few pages', async () => {
    expect(await pagesRead(() => reports().standing())).toBeLessThan(100);
    expect(await pagesRead(() => reports().ends())).toBeLessThan(100);
  });

  test('a page without a filter reads about as many rows as it shows', async () => {
    expect(await pagesRead(() => reports().page(anyJob, null, 50))).toBeLessThan(1000);
  });

  test('what cannot be there is not looked for', async () => {
    expect(await pagesRead(() => reports().page({ ...anyJob, status: 'paused' }, null, 50))).toBeLessThan(50);
  });

  test('failures are grouped over all of them', async () => {
    const { groups, complete } = await reports().failures(null);
    expect([complete, groups.map(({ message, count }) => [message, count])]).toEqual([
      true,
      [['HTTP <n>: user <n>', 10_000]],
    ]);
  });

  test('a walk that finds nothing reads to the end, and a claim beside it is not held up', async () => {
    const nowhere = { ...anyJob, error: 'nowhere to be found' };
    await queue.insert();
    const walks = Promise.all(Array.from({ length: 3 }, () => reports().page(nowhere, null, 50)));
    const begun = performance.now();
    await claimOne(queue.store());
    const claimed = performance.now() - begun;
    expect((await walks).map(({ jobs, next }) => [jobs.length, next])).toEqual(Array(3).fill([0, null]));
    expect(claimed).toBeLessThan(1000);
  });
});
