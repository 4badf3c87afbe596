import { expect, test } from '@jest/globals';
import { replyJson } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { until } from '../support/until.js';
import { openWire } from '../support/wire.js';

const stage = setStage();

/** When each broadcast arrived at the service, by its id, on this process's clock. */
function arrivals(): ReadonlyMap<number, number> {
  const at = new Map<number, number>();
  stage.service.otherwise(({ body }) => {
    at.set(JSON.parse(body).payload.broadcast_id, performance.now());
    return replyJson(200, { sent: 1 });
  });
  return at;
}

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;

test('a row inserted while the daemon is idle reaches the service in under 10 ms at the median', async () => {
  const daemon = await stage.start();
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  const arrived = arrivals();
  const took: number[] = [];
  for (let id = 1; id <= 60; id++) {
    const insertedAt = performance.now();
    await stage.database.query(`insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', $1)`, [
      { broadcast_id: id },
    ]);
    await stage.service.received(id);
    took.push((arrived.get(id) ?? Number.NaN) - insertedAt);
    await until('it completed', async () => {
      const [left] = await stage.database.query(`select 1 from broadcast_queue_jobs where status <> 'completed'`);
      return !left;
    });
  }
  expect(median(took.slice(10))).toBeLessThan(10);
});

test('a delayed job starts within 50 ms of its time, though the poll comes every two seconds', async () => {
  const daemon = await stage.start();
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  arrivals();
  await stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n), clock_timestamp() + n * interval '330 milliseconds'
     from generate_series(1, 9) n`,
  );
  await stage.service.received(9);
  const rows = await stage.database.query<{ late_ms: number }>(
    `select extract(epoch from started_at - scheduled_at)::float8 * 1000 as late_ms from broadcast_queue_jobs`,
  );
  expect(rows).toHaveLength(9);
  for (const { late_ms } of rows) expect(late_ms).toBeGreaterThanOrEqual(0);
  expect(median(rows.map(({ late_ms }) => late_ms))).toBeLessThan(50);
});

test('an idle daemon asks the database at most once a second', async () => {
  const wire = await openWire(stage.database.url);
  try {
    const daemon = await stage.start({ DATABASE_URL: wire.url });
    await daemon.line(({ msg }) => msg.startsWith('listening'));
    await stage.database.query('select pg_sleep(1)');
    const before = wire.statements;
    await stage.database.query('select pg_sleep(10)');
    expect(wire.statements - before).toBeLessThanOrEqual(10);
    expect(wire.statements - before).toBeGreaterThan(0);
  } finally {
    await wire.close();
  }
}, 30_000);

test('two daemons and 10,000 rows: each is called exactly once', async () => {
  const calls = new Map<number, number>();
  stage.service.otherwise(({ body }) => {
    const id = JSON.parse(body).payload.broadcast_id;
    calls.set(id, (calls.get(id) ?? 0) + 1);
    return replyJson(200, { sent: 1 });
  });
  await stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n) from generate_series(1, 10000) n`,
  );
  const daemons = await Promise.all([1, 2].map(() => stage.start({ CONCURRENCY: '*=50' })));
  await until(
    'all completed',
    async () => {
      const [left] = await stage.database.query(
        `select 1 from broadcast_queue_jobs where status <> 'completed' limit 1`,
      );
      return !left;
    },
    60_000,
  );
  expect(calls.size).toBe(10_000);
  expect([...calls.values()].filter((count) => count !== 1)).toEqual([]);
  const shares = await until('all are told of', async () => {
    const told = daemons.map(({ lines }) => lines.filter(({ msg }) => msg === 'job completed').length);
    return told.reduce((sum, share) => sum + share, 0) >= 10_000 && told;
  });
  expect(shares.every((share) => share > 1000)).toBe(true);
  expect(shares.reduce((sum, share) => sum + share, 0)).toBe(10_000);
}, 90_000);

test('ten slots serve the urgent first, then what was due first', async () => {
  const order: number[] = [];
  stage.service.otherwise(({ body }) => {
    order.push(JSON.parse(body).payload.broadcast_id);
    return replyJson(200, { sent: 1 });
  });
  await stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data, priority, scheduled_at)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n), n % 3, now() - (n % 7) * interval '1 minute'
     from generate_series(1, 60) n`,
  );
  await stage.start({ CONCURRENCY: 'broadcasts=1' });
  await stage.service.received(60);
  const expected = await stage.database.query<{ n: number }>(
    `select (job_data ->> 'broadcast_id')::integer as n from broadcast_queue_jobs order by priority desc, scheduled_at, id`,
  );
  expect(order).toEqual(expected.map(({ n }) => n));
});
