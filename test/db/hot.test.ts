/** What a settlement costs: a new version of the row on the same page, and no change of any index. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { jobStore } from '../../src/db/jobs.js';
import { type Database, openDatabase } from '../../src/db/pool.js';
import type { Settlement, Store } from '../../src/queue/ports.js';
import { claim, openQueue, SETTINGS, settlement, type TestQueue, worker } from '../support/store.js';

let queue: TestQueue;
/** Of one connection, so that it alone knows of all updates, and can be told to tell. */
let database: Database;
let store: Store;

beforeAll(async () => {
  queue = await openQueue();
  database = openDatabase({
    pooled: false,
    url: queue.url,
    schema: 'public',
    applicationName: 'test',
    connectionsMax: 1,
    statementTimeoutMs: 5000,
  });
  store = jobStore(database, worker('worker'), SETTINGS);
});
afterAll(async () => {
  await database.close();
  await queue.close();
});

async function updates(): Promise<{ all: number; hot: number }> {
  await database.query('select pg_stat_force_next_flush()');
  const [row] = await database.query<{ all: number; hot: number }>(
    `select n_tup_upd::integer as all, n_tup_hot_upd::integer as hot from pg_stat_user_tables
     where relname = 'broadcast_queue_jobs'`,
  );
  return row ?? { all: 0, hot: 0 };
}

const WORDS: Partial<Settlement>[] = [
  { status: 'completed', result: '{"sent": 1}', progress: { processed: 1 } },
  { status: 'failed', errorMessage: 'refused', errorCode: 'http_400' },
];

test.each(WORDS)('settling a claimed job without a unique key changes no index: $status', async (word) => {
  // As many as have room on one page in all three versions.
  await database.query('truncate broadcast_queue_jobs');
  for (let n = 0; n < 5; n++) await queue.insert();
  const claims = await claim(store);
  const before = await updates();
  await store.settle(
    claims.map((claimed) => settlement(claimed, word)),
    [],
  );
  const after = await updates();
  expect([after.all - before.all, after.hot - before.hot]).toEqual([5, 5]);
});
