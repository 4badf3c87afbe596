import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import {
  claim,
  claimOne,
  fromNow,
  msBetween,
  openQueue,
  settlement,
  sqlState,
  type TestQueue,
} from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

const WITH_DEFAULT = {
  queue_name: 'broadcasts',
  status: 'pending',
  attempts: 0,
  max_attempts: 3,
  priority: 0,
  epoch: 0,
  stalled_calls: 0,
  outage_calls: 0,
  step_seq: 0,
  step_scope: 'all',
  flags: [],
  dry_run: false,
};
const NULL_AT_FIRST = {
  error_message: null,
  result: null,
  started_at: null,
  completed_at: null,
  next_retry_at: null,
  unique_key: null,
  expires_at: null,
  lease_id: null,
  error_code: null,
  previous_failure: null,
  stalled_since: null,
  step_cursor: null,
  progress: null,
  progress_rate: null,
  progress_at: null,
  hold_reason: null,
  paused_from: null,
  pause_requested_at: null,
  traceparent: null,
  operation_url: null,
  send_window: null,
};
const OF_THE_MOMENT = ['id', 'job_id', 'scheduled_at', 'created_at', 'updated_at'];

/** What a row has of which only its type and payload were given. */
const FRESH = {
  ...WITH_DEFAULT,
  ...NULL_AT_FIRST,
  job_type: 'send_broadcast',
  job_data: { broadcast_id: '1' },
  id: expect.stringMatching(/^\d+$/),
  job_id: expect.stringMatching(/^[0-9a-f-]{36}$/),
  scheduled_at: expect.any(Date),
  created_at: expect.any(Date),
  updated_at: expect.any(Date),
  due_at: expect.any(Date),
  live_key: null,
  bot_id: null,
  names_bot: false,
};

describe('a row', () => {
  test('needs a type and a payload; everything else has a default', async () => {
    const row = await queue.insert();
    expect(row).toEqual(FRESH);
    expect([row.created_at, row.updated_at, row.due_at]).toEqual(Array(3).fill(row.scheduled_at));
  });

  test('gets the defaults for explicit NULLs in all of its optional columns, its ids as well', async () => {
    const optional = [...Object.keys(WITH_DEFAULT), ...Object.keys(NULL_AT_FIRST), ...OF_THE_MOMENT];
    const [one, two] = [
      await queue.insert(),
      await queue.insert(Object.fromEntries(optional.map((name) => [name, null]))),
    ];
    expect(two).toEqual(FRESH);
    expect(BigInt(two.id)).toBe(BigInt(one.id) + 1n);
  });

  test.each([...Object.keys(WITH_DEFAULT), ...OF_THE_MOMENT])(
    'gets the default for a NULL in %s alone',
    async (name) => {
      expect(await queue.insert({ [name]: null })).toEqual(FRESH);
    },
  );

  test('keeps what is given beside a NULL', async () => {
    expect(await queue.insert({ status: null, priority: 7, queue_name: 'mine' })).toMatchObject({
      status: 'pending',
      priority: 7,
      queue_name: 'mine',
    });
  });

  test('works with every trigger disabled', async () => {
    const session = await queue.session();
    await session.query('set session_replication_role = replica');
    await session.query("insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', '{}')");
    const claimed = await claimOne(queue.store());
    expect(await queue.store().settle([settlement(claimed)], [claimed.leaseId])).toEqual(['settled']);
  });

  test.each([{ job_type: null }, { job_data: null }])('is refused with %j', async (columns) => {
    expect(await sqlState(queue.insert(columns))).toBe('23502');
  });
});

describe('the checks', () => {
  const BAD = '23514';
  test.each([
    [{ status: 'done' }, BAD],
    [{ status: 'Pending' }, BAD],
    [{ max_attempts: 0 }, BAD],
    [{ attempts: -1 }, BAD],
    [{ step_scope: 'some' }, BAD],
    [{ queue_name: '' }, BAD],
    [{ queue_name: 'Upper' }, BAD],
    [{ queue_name: '1st' }, BAD],
    [{ queue_name: 'a b' }, BAD],
    [{ queue_name: 'a/b' }, BAD],
    [{ queue_name: 'a\nb' }, BAD],
    [{ queue_name: 'q\n' }, BAD],
    [{ queue_name: 'ä' }, BAD],
    [{ queue_name: 'q'.repeat(51) }, '22001'],
    [{ due_at: fromNow('0') }, '428C9'],
    [{ live_key: 'k' }, '428C9'],
  ])('refuse %j', async (columns, code) => {
    expect(await sqlState(queue.insert(columns))).toBe(code);
  });

  test.each([
    ...['status', 'statistics', 'health', 'job', 'jobs', 'broadcast', 'pause', 'resume', 'limits', 'queues'],
    ...['workers', 'failures', 'events', 'schedules', 'audit'],
  ])('refuse the queue name %s, which is a word of the routes', async (queue_name) => {
    expect(await sqlState(queue.insert({ queue_name }))).toBe(BAD);
  });

  test.each(['broadcasts', 'segment-broadcasts', 'retries', 'cleanup', 'a', 'my_queue-2', 'q'.repeat(50), 'statusx'])(
    'let the queue name %s pass',
    async (queue_name) => {
      expect(await queue.insert({ queue_name })).toMatchObject({ queue_name });
    },
  );

  test('let one job live per queue and key', async () => {
    await queue.insert({ unique_key: 'k' });
    expect(await sqlState(queue.insert({ unique_key: 'k' }))).toBe('23505');
    await queue.insert({ unique_key: 'k', queue_name: 'other' });
    await queue.insert({ unique_key: 'k', status: 'completed' });
    await queue.query("update broadcast_queue_jobs set status = 'failed' where queue_name = 'broadcasts'");
    await queue.insert({ unique_key: 'k' });
  });

  test('let one job have a job_id', async () => {
    const { job_id } = await queue.insert();
    expect(await sqlState(queue.insert({ job_id }))).toBe('23505');
  });
});

describe('the due time', () => {
  const scheduled_at = new Date('2026-01-01T00:00:00Z');
  const next_retry_at = new Date('2026-02-02T00:00:00Z');
  const statuses = ['pending', 'retry', 'processing', 'paused', 'completed', 'failed', 'cancelled'];
  const combinations = statuses.flatMap((status) =>
    [null, randomUUID()].flatMap((lease_id) => [null, next_retry_at].map((next) => ({ status, lease_id, next }))),
  );

  function expected({ status, lease_id, next }: (typeof combinations)[number]): Date | null {
    if (status === 'pending') return scheduled_at;
    if (status === 'retry' || (status === 'processing' && lease_id === null)) return next ?? scheduled_at;
    return null;
  }

  test.each(combinations)('of $status, lease $lease_id, next retry $next', async (columns) => {
    const { status, lease_id, next } = columns;
    const row = await queue.insert({ status, lease_id, next_retry_at: next, scheduled_at });
    expect(row.due_at).toEqual(expected(columns));
  });

  test.each(['processing', 'retry', 'paused', 'failed'])(
    'makes a job that was %s claimable by a plain UPDATE to pending',
    async (status) => {
      const left = {
        lease_id: randomUUID(),
        next_retry_at: fromNow('1 hour'),
        attempts: 3,
        completed_at: fromNow('0'),
      };
      const { id } = await queue.insert({ status, ...left });
      expect(await claim(queue.store())).toEqual([]);
      await queue.query("update broadcast_queue_jobs set status = 'pending'");
      expect((await claimOne(queue.store())).job).toMatchObject({ id, attempt: 1 });
      expect(await queue.job(id)).toMatchObject({ completed_at: null });
    },
  );
});

describe('sizes', () => {
  test.each(['2147483647', '9007199254740992'])('ids pass %s', async (last) => {
    await queue.query(`alter table broadcast_queue_jobs alter column id restart with ${last}`);
    await queue.insert();
    const second = await queue.insert();
    expect(second.id).toBe(String(BigInt(last) + 1n));
    const store = queue.store();
    const claims = await claim(store);
    expect(claims[1]?.job.id).toBe(second.id);
    const { leaseId } = claims[0] ?? { leaseId: '' };
    expect((await store.beat(new Map([[leaseId, [second.id]]]))).has(second.id)).toBe(true);
    expect(
      await store.settle(
        claims.map((claimed) => settlement(claimed)),
        [leaseId],
      ),
    ).toEqual(['settled', 'settled']);
  });

  test('a payload of 5 MB can be inserted; its claim tells the size and leaves it where it is', async () => {
    await queue.query(
      "insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', to_jsonb(repeat('x', 5000000)))",
    );
    await queue.insert();
    const [large, small] = await claim(queue.store());
    expect(large).toMatchObject({ oversizeBytes: 5_000_002, job: { payload: '' } });
    expect(small).toMatchObject({ oversizeBytes: null, job: { payload: '{"broadcast_id": "1"}' } });
  });

  test('a payload of exactly the limit is fetched; the limit counts bytes', async () => {
    await queue.insert({ job_data: '"ää"' });
    await queue.insert({ job_data: '"äää"' });
    const claims = await claim(queue.store('worker', { maxPayloadBytes: 6 }));
    expect(claims.map(({ oversizeBytes, job }) => [oversizeBytes, job.payload])).toEqual([
      [null, '"ää"'],
      [8, ''],
    ]);
  });
});

test('sessions in other time zones write the same moments', async () => {
  const zones = ['Pacific/Kiritimati', 'UTC', 'America/New_York'];
  for (const zone of zones) {
    const session = await queue.session();
    await session.query(`set timezone = '${zone}'`);
    await session.query(
      `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
       values ('send_broadcast', '{}', default), ('send_broadcast', '{}', now() + interval '1 minute')`,
    );
    await session.query("select broadcast_enqueue('send_broadcast', '{}', delay => interval '1 minute')");
    const store = queue.store();
    const { claims, nextDueMs } = await store.claim(randomUUID(), new Map(), 10);
    expect(claims).toHaveLength(1);
    expect(nextDueMs).toBeGreaterThan(50_000);
    expect(nextDueMs).toBeLessThanOrEqual(60_000);
    const [first] = claims;
    if (first) await store.settle([settlement(first, { status: 'retry', dueInMs: 90_000 })], [first.leaseId]);
    await session.query(
      "update broadcast_queue_jobs set scheduled_at = now() + interval '1 hour' where status = 'pending'",
    );
  }
  const rows = (await queue.jobs()).filter(({ status }) => status === 'retry');
  expect(rows.map((row) => Math.round(msBetween(row.updated_at, row.due_at) / 1000))).toEqual(zones.map(() => 90));
});
