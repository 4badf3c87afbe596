/**
 * The plans of the statements that run all the time, on a table of 200,000 rows of which a handful is due: with no
 * statistics, with statistics of another time, and with fresh ones.
 */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import pg from 'pg';
import { statements } from '../../src/db/jobs.js';
import type { Row } from '../../src/db/pool.js';
import { claim, openQueue, settlement, type TestQueue } from '../support/store.js';

const sql = statements('public');
let queue: TestQueue;
let session: pg.Client;
const given = { lease: '', ids: [] as string[], settlements: '' };

beforeAll(async () => {
  queue = await openQueue();
  session = await queue.session();
  await session.query('set broadcastd.notify = off');
  await session.query('alter table broadcast_queue_jobs set (autovacuum_enabled = off)');
  await session.query(`insert into broadcast_queue_jobs (job_type, job_data, status, completed_at)
    select 'send_broadcast', '{"broadcast_id": 1}', 'completed', now() from generate_series(1, 100000)`);
  await session.query('analyze broadcast_queue_jobs');
  await session.query(`insert into broadcast_queue_jobs (job_type, job_data, priority, scheduled_at)
    select 'send_broadcast', '{"broadcast_id": 1}', 1 + n % 5, now() + n * interval '1 minute'
    from generate_series(1, 100000) n`);
  await insertDue(100);
  const claims = await claim(queue.store(), 50);
  given.lease = claims[0]?.leaseId ?? '';
  given.ids = claims.map(({ job }) => job.id);
  given.settlements = JSON.stringify(
    claims.map((claimed) => ({ ...settlement(claimed), lease: claimed.leaseId, count: 'keep', ran_ms: 1 })),
  );
}, 60_000);
afterAll(() => queue.close());

async function insertDue(count: number): Promise<void> {
  await session.query(
    `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
     select 'send_broadcast', '{"broadcast_id": 1}', now() - n * interval '1 second' from generate_series(1, $1::integer) n`,
    [count],
  );
}

type Value = string | number | boolean | null;

/** Each statement and values for it, as literals of SQL. */
const CASES: Record<string, () => [text: string, values: Value[]]> = {
  claim: () => [sql.claim, ['{broadcasts,retries}', '{50,5}', 2, randomUUID(), 'worker', 30_000, 1_048_576]],
  settle: () => [sql.settle, [given.settlements, `{${given.lease}}`, 'worker']],
  beat: () => [
    sql.beat,
    ['worker', '1', 'host', 1, '{}', `{${given.lease},${randomUUID()}}`, `{${given.ids.join()}}`, 30_000],
  ],
  release: () => [sql.release, [`{${given.lease}}`]],
  reap: () => [sql.reap, [1, false]],
  tick: () => [sql.tick, ['cleanup', '2026-01-01T00:00:00Z', 'cleanup_queue', '{}', 0]],
  prune: () => [sql.prune, [7, 30, null, 0, 1000]],
};

interface Plan extends Row {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Index Name'?: string;
  readonly 'Actual Rows'?: number;
  readonly 'Shared Hit Blocks'?: number;
  readonly 'Shared Read Blocks'?: number;
  readonly Plans?: Plan[];
}

async function explain(name: string, mode: 'generic' | 'custom', options = ''): Promise<Plan> {
  const [text, values] = CASES[name]?.() ?? ['', []];
  const literals = values.map((value) => (typeof value === 'string' ? pg.escapeLiteral(value) : String(value)));
  await session.query(`set plan_cache_mode = force_${mode}_plan`);
  await session.query(`prepare statement as ${text}`);
  try {
    const { rows } = await session.query(`explain (format json ${options}) execute statement (${literals.join()})`);
    // What EXPLAIN's JSON looks like is Postgres' affair; the tests read these members.
    return rows[0]['QUERY PLAN'][0].Plan as Plan;
  } finally {
    await session.query('deallocate statement');
  }
}

/** How a plan reads the table of jobs: each way once. */
function ways(plan: Plan): string[] {
  const found = new Set<string>();
  const look = (node: Plan) => {
    if (node['Relation Name'] === 'broadcast_queue_jobs' && node['Node Type'] !== 'ModifyTable') {
      found.add(`${node['Node Type']} by ${node['Index Name'] ?? 'nothing'}`);
    }
    for (const child of node.Plans ?? []) look(child);
  };
  look(plan);
  return [...found].sort();
}

const BY_DUE = 'Index Scan by broadcast_queue_jobs_due';
const BY_DUE_ALONE = 'Index Only Scan by broadcast_queue_jobs_due';
const BY_ID = 'Index Scan by broadcast_queue_jobs_pkey';
const ALLOWED: Record<string, string[]> = {
  claim: [BY_DUE, BY_DUE_ALONE, BY_ID],
  // Many ids in one array: a bitmap of them is as good, and needs an index as well.
  beat: [BY_ID, 'Bitmap Heap Scan by nothing'],
  tick: [],
};
/** Not made for a generic plan, which cannot know how few rows its limit is; the driver never asks for one. */
const CUSTOM_ONLY = ['prune'];

/** What the planner knows, in the order in which it can be brought about. */
const STATISTICS: [string, () => Promise<unknown>][] = [
  ['statistics from before any job waited or was claimed', async () => {}],
  [
    'no statistics',
    async () => {
      await session.query("delete from pg_statistic where starelid = 'broadcast_queue_jobs'::regclass");
      await session.query(
        "update pg_class set reltuples = -1, relpages = 0 where oid = 'broadcast_queue_jobs'::regclass",
      );
    },
  ],
  ['fresh statistics', () => session.query('analyze broadcast_queue_jobs')],
];

describe.each(STATISTICS)('with %s', (_, prepare) => {
  beforeAll(async () => {
    await prepare();
  });

  describe.each(['generic', 'custom'] as const)('a %s plan', (mode) => {
    const names = Object.keys(CASES).filter((name) => mode === 'custom' || !CUSTOM_ONLY.includes(name));
    test.each(names)('of %s reaches the jobs by an index only', async (name) => {
      const allowed = ALLOWED[name] ?? [BY_ID];
      const found = ways(await explain(name, mode));
      expect(found.filter((way) => !allowed.includes(way))).toEqual([]);
    });
  });

  test('a claim of fifty reads some hundred pages, not the table', async () => {
    await session.query('begin');
    const plan = await explain('claim', 'generic', ', analyze, buffers');
    await session.query('rollback');
    expect(plan['Actual Rows']).toBe(50);
    const pages = (plan['Shared Hit Blocks'] ?? 0) + (plan['Shared Read Blocks'] ?? 0);
    expect(pages).toBeLessThan(1500);
  });
});
