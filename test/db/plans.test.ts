/**
 * The plans of the statements that run all the time, on a table of 230,000 rows (1,150,000 with LONG_TESTS=1) of which a
 * handful may go: the others are over, paused, far in the future, or of a bot whose gate is closed. With no statistics, with statistics of another time,
 * and with fresh ones; planned once for all values, as the daemon has it done, and for given ones, as behind a pooler.
 */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import pg from 'pg';
import { type Database, openDatabase, type Row } from '../../src/db/pool.js';
import { statements } from '../../src/db/statements.js';
import { claim, openQueue, settlement, type TestQueue } from '../support/store.js';

const sql = statements('public');
const SCALE = process.env.LONG_TESTS === '1' ? 5 : 1;
let queue: TestQueue;
/** One connection each. */
let daemon: Database;
let pooled: Database;
const given = { lease: String(randomUUID()), ids: [] as string[], settlements: '[]', halfway: '-infinity' };

beforeAll(async () => {
  queue = await openQueue();
  const settings = { url: queue.url, schema: 'public', applicationName: 'test', connectionsMax: 1 };
  daemon = openDatabase({ ...settings, pooled: false, statementTimeoutMs: 30_000 });
  pooled = openDatabase({ ...settings, pooled: true, statementTimeoutMs: 30_000 });
  await daemon.query('set broadcastd.notify = off');
  await daemon.query('alter table broadcast_queue_jobs set (autovacuum_enabled = off)');
});
afterAll(async () => {
  await Promise.all([daemon.close(), pooled.close()]);
  await queue.close();
});

async function insertFuture(count: number): Promise<void> {
  await daemon.query(
    `insert into broadcast_queue_jobs (job_type, job_data, priority, scheduled_at)
     select 'send_broadcast', case when n % 2 = 0 then '{}' else jsonb_build_object('bot_id', n % 40) end, 1 + n % 5,
            now() + n * interval '1 minute'
     from generate_series(1, $1::integer) n`,
    [count],
  );
}

/** Due before all others, and of a bot that may not be called. */
async function insertGated(count: number): Promise<void> {
  await daemon.query("select broadcast_close_gate('bot:shut', 3600000)");
  await daemon.query(
    `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
     select 'send_broadcast', '{"bot_id": "shut"}', now() - interval '1 day' from generate_series(1, $1::integer)`,
    [count],
  );
}

async function insertDue(count: number): Promise<void> {
  await daemon.query(
    `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
     select 'send_broadcast', case when n % 2 = 0 then '{}' else jsonb_build_object('bot_id', n % 20) end,
            now() - n * interval '1 second'
     from generate_series(1, $1::integer) n`,
    [count],
  );
}

async function load(): Promise<void> {
  await daemon.query('truncate broadcast_queue_jobs, broadcast_queue_leases');
  await daemon.query(`insert into broadcast_queue_jobs (job_type, job_data, status, completed_at)
    select 'send_broadcast', '{"broadcast_id": 1}', 'completed', now() from generate_series(1, ${100_000 * SCALE})`);
  await daemon.query('analyze broadcast_queue_jobs');
  await insertFuture(100_000 * SCALE);
  await insertGated(20_000 * SCALE);
  await daemon.query(`insert into broadcast_queue_jobs (job_type, job_data, status)
    select 'send_broadcast', '{"broadcast_id": 1}', 'paused' from generate_series(1, ${10_000 * SCALE})`);
  await insertDue(100);
  const claims = await claim(queue.store(), 50);
  given.lease = claims[0]?.leaseId ?? given.lease;
  given.ids = claims.map(({ job }) => job.id);
  given.halfway = new Date(Math.min(...claims.map(({ job }) => job.scheduledAt.getTime()))).toISOString();
  given.settlements = JSON.stringify(
    claims.map((claimed) => ({ ...settlement(claimed), lease: claimed.leaseId, count: 'keep', ran_ms: 1 })),
  );
}

type Value = string | number | boolean | null;

/** Each statement and values for it, as literals of SQL. */
const CASES: Record<string, () => [text: string, values: Value[]]> = {
  claim: () => [sql.claim, [randomUUID(), 'worker', 30_000, 1_048_576, '{broadcasts,retries}', '{50,5}', '{0,0}', 2]],
  usualClaim: () => [
    sql.usualClaim,
    [randomUUID(), 'worker', 30_000, 1_048_576, '{broadcasts,retries}', '{50,5}', '{0,0}', 2],
  ],
  goOn: () => [
    sql.goOn,
    // Behind the first half of what is due; those that name no bot are every second.
    [randomUUID(), 'worker', 30_000, 1_048_576, '{broadcasts}', '{10}', '{10}', '{0}', `{${given.halfway}}`, '{0}'],
  ],
  begin: () => [sql.begin, [`{${given.lease},${randomUUID()}}`, '{20,5}']],
  settle: () => [sql.settle, [given.settlements, `{${given.lease}}`, 'worker']],
  beat: () => [
    sql.beat,
    ['worker', '1', 'host', 1, '{}', `{${given.lease},${randomUUID()}}`, `{${given.ids.join()}}`, 30_000],
  ],
  release: () => [sql.release, [`{${given.lease}}`]],
  reap: () => [sql.reap, [1, false]],
  tick: () => [sql.tick, ['cleanup', '2026-01-01T00:00:00Z', 'cleanup_queue', '{}']],
  prune: () => [sql.prune, [7, 30, null, 0, 1000, false]],
};

interface Plan extends Row {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Index Name'?: string;
  readonly 'Index Cond'?: string;
  readonly 'Actual Rows'?: number;
  readonly 'Shared Hit Blocks'?: number;
  readonly 'Shared Read Blocks'?: number;
  readonly Plans?: Plan[];
}

/** The plan that a connection makes of a statement; `options` of EXPLAIN. */
async function explain(database: Database, name: string, options = ''): Promise<Plan> {
  await prepare(database, name);
  try {
    return await explainPrepared(database, name, options);
  } finally {
    await database.query('deallocate statement');
  }
}

async function prepare(database: Database, name: string): Promise<void> {
  await database.query(`prepare statement as ${CASES[name]?.()[0]}`);
}

async function explainPrepared(database: Database, name: string, options = ''): Promise<Plan> {
  const [, values] = CASES[name]?.() ?? ['', []];
  const literals = values.map((value) => (typeof value === 'string' ? pg.escapeLiteral(value) : String(value)));
  const [row] = await database.query<{ 'QUERY PLAN': { Plan: Plan }[] }>(
    `explain (format json ${options}) execute statement (${literals.join()})`,
  );
  const plan = row?.['QUERY PLAN'][0]?.Plan;
  if (!plan) throw new Error('EXPLAIN told nothing');
  return plan;
}

/** The pages that a statement of so many rows reads and writes, and then does not do; its functions' as well. */
async function pagesOf(rows: number, explaining: () => Promise<Plan>): Promise<number> {
  await daemon.query('begin');
  const plan = await explaining();
  await daemon.query('rollback');
  expect(plan['Actual Rows']).toBe(rows);
  return (plan['Shared Hit Blocks'] ?? 0) + (plan['Shared Read Blocks'] ?? 0);
}

/** How a plan reads the table of jobs: each way once. */
function ways(plan: Plan): string[] {
  const found = new Set<string>();
  const look = (node: Plan) => {
    if (node['Relation Name'] === 'broadcast_queue_jobs' && node['Node Type'] !== 'ModifyTable') {
      // Of a bitmap, its child names the index. The claim's index may be entered at its top; any other without a
      // condition is read from end to end.
      const by = node['Node Type'] === 'Bitmap Heap Scan' ? node.Plans?.[0] : node;
      const index = by?.['Index Name'] ?? 'nothing';
      const isWhole = index.endsWith('_pkey') && by?.['Index Cond'] === undefined;
      found.add(`${node['Node Type']} by ${index}${isWhole ? ', all of it' : ''}`);
    }
    for (const child of node.Plans ?? []) look(child);
  };
  look(plan);
  return [...found].sort();
}

const BY_DUE = 'Index Scan by broadcast_queue_jobs_due';
const BY_DUE_ALONE = 'Index Only Scan by broadcast_queue_jobs_due';
const BY_ID = 'Index Scan by broadcast_queue_jobs_pkey';
const BY_IDS = 'Bitmap Heap Scan by broadcast_queue_jobs_pkey';
const ALLOWED: Record<string, string[]> = {
  claim: [BY_DUE, BY_DUE_ALONE, BY_ID, BY_IDS],
  usualClaim: [BY_DUE, BY_DUE_ALONE, BY_ID, BY_IDS],
  goOn: [BY_DUE, BY_DUE_ALONE, BY_ID, BY_IDS],
  tick: [],
};
/** Some hundred for the rows and their index entries, wherever in the table they are; the table has 15,000. */
const PAGES_MAX = 1500;

function expectIndexes(name: string, plan: Plan): void {
  const allowed = ALLOWED[name] ?? [BY_ID, BY_IDS];
  expect(ways(plan).filter((way) => !allowed.includes(way))).toEqual([]);
}

describe('on an empty table', () => {
  test.each(Object.keys(CASES))('the plan of %s, which is kept, goes by an index', async (name) => {
    expectIndexes(name, await explain(daemon, name));
  });

  test('the plan of the claim is as good when the table has filled', async () => {
    await prepare(daemon, 'claim');
    await explainPrepared(daemon, 'claim', ', analyze');
    await insertFuture(50_000);
    await insertGated(20_000);
    await insertDue(100);
    expect(await pagesOf(50, () => explainPrepared(daemon, 'claim', ', analyze, buffers'))).toBeLessThan(PAGES_MAX);
    await daemon.query('deallocate statement');
  });
});

/** What the planner knows, in the order in which it can be brought about. */
const STATISTICS: [string, () => Promise<unknown>][] = [
  ['statistics from before any job waited or was claimed', load],
  [
    'no statistics',
    async () => {
      await daemon.query("delete from pg_statistic where starelid = 'broadcast_queue_jobs'::regclass");
      await daemon.query(
        "update pg_class set reltuples = -1, relpages = 0 where oid = 'broadcast_queue_jobs'::regclass",
      );
    },
  ],
  ['fresh statistics', () => daemon.query('analyze broadcast_queue_jobs')],
];

describe.each(STATISTICS)('with %s', (_, bringAbout) => {
  beforeAll(() => bringAbout(), 60_000 * SCALE);

  test.each(Object.keys(CASES))('the plan of %s goes by an index', async (name) => {
    expectIndexes(name, await explain(daemon, name));
  });

  test.each(Object.keys(CASES))('behind a pooler the plan of %s goes by an index', async (name) => {
    expectIndexes(name, await explain(pooled, name));
  });

  test('a claim of fifty, half of them of bots, reads some hundred pages, not the table', async () => {
    expect(await pagesOf(50, () => explain(daemon, 'claim', ', analyze, buffers'))).toBeLessThan(PAGES_MAX);
  });

  test('a claim that goes on behind another reads its twenty jobs, not what stands before them', async () => {
    expect(await pagesOf(20, () => explain(daemon, 'goOn', ', analyze, buffers'))).toBeLessThan(PAGES_MAX / 2);
  });
});

describe('with 10,000 limits, where there was one before', () => {
  beforeAll(async () => {
    await daemon.query("select broadcast_set_limit('queue:broadcasts', 30), broadcast_set_limit('bot:shop', 25)");
    await daemon.query('analyze broadcast_queue_limits');
    // The plans are made now, and kept.
    for (const text of Object.values(ASKS)) for (let n = 0; n < 7; n++) await daemon.query(text);
    await daemon.query(`insert into broadcast_queue_limits (key, per_second, max_concurrent)
      select case when n % 2 = 0 then 'bot:' else 'queue:q' end || n, 10, 10 from generate_series(1, 10000) n`);
  });

  const ASKS = {
    'a grant': "select * from broadcast_queue_grant('broadcasts', 'shop', 100)",
    'what was used of it': `select broadcast_queue_grant_used(
      '{"bot:shop": "2026-01-01T00:00:00Z", "queue:broadcasts": "2026-01-01T00:00:00Z"}', 100, 99)`,
    'whether a bot may be called': "select broadcast_queue_bot_opens('shop')",
  };

  test.each(Object.entries(ASKS))('%s reads a few pages, not all limits', async (_, text) => {
    const explaining = async () => {
      const [row] = await daemon.query<{ 'QUERY PLAN': { Plan: Plan }[] }>(
        `explain (format json, analyze, buffers) ${text}`,
      );
      const plan = row?.['QUERY PLAN'][0]?.Plan;
      if (!plan) throw new Error('EXPLAIN told nothing');
      return plan;
    };
    const [table] = await daemon.query<{ pages: number }>(
      "select (pg_relation_size('broadcast_queue_limits') / 8192)::integer as pages",
    );
    expect(await pagesOf(1, explaining)).toBeLessThan((table?.pages ?? 0) / 2);
  });

  test('a claim reads a few pages more', async () => {
    await daemon.query("update broadcast_queue_limits set next_free_at = now() where key = 'queue:broadcasts'");
    expect(await pagesOf(50, () => explain(daemon, 'claim', ', analyze, buffers'))).toBeLessThan(PAGES_MAX);
  });
});
