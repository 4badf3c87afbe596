/** /metrics of real daemons: that what happened is in it, and that it neither lies nor gets in the way. */
import { expect, test } from '@jest/globals';
import pg from 'pg';
import { queueMeasures } from '../../src/db/measures.js';
import { openDatabase } from '../../src/db/pool.js';
import { letEverythingHappen } from '../support/eventful.js';
import { scrape } from '../support/scrape.js';
import { setStage } from '../support/stage.js';
import { until } from '../support/until.js';

const stage = setStage({ RETRY_BASE_DELAY_MS: '300' });

test('what happened is counted, by job type, queue, outcome and code', async () => {
  const daemon = await stage.start();
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  const before = await scrape(daemon);
  expect(before.value('broadcastd_outcomes_total')).toBe(0);
  expect(before.value('broadcastd_jobs')).toBe(0);
  await letEverythingHappen(stage);

  const after = await until('the figures of the queue are read anew', async () => {
    const now = await scrape(daemon);
    return now.value('broadcastd_jobs', { status: 'completed' }) === 9 && now;
  });
  const sent = { job_type: 'send_broadcast', queue: 'broadcasts' };
  const outcome = (outcome: string) => after.value('broadcastd_outcomes_total', { ...sent, outcome });
  expect(outcome('completed')).toBe(8);
  expect(outcome('failed')).toBe(1);
  expect(outcome('continued')).toBe(1);
  expect(after.value('broadcastd_outcomes_total', { job_type: 'send_segment_broadcast', outcome: 'completed' })).toBe(
    1,
  );
  const attempts = after.value('broadcastd_attempts_total');
  expect(after.value('broadcastd_outcomes_total')).toBe(attempts);
  expect(after.value('broadcastd_run_seconds_count')).toBe(attempts);
  expect(after.value('broadcastd_wait_seconds_count')).toBe(attempts);
  expect(after.value('broadcastd_failures_total', { code: 'http_400' })).toBe(1);
  expect(after.value('broadcastd_failures_total', { code: 'http_500' })).toBe(1);
  expect(after.value('broadcastd_failures_total', { code: 'throttled' })).toBe(1);
  expect(after.value('broadcastd_failures_total', { code: 'http_502' })).toBeGreaterThanOrEqual(5);
  expect(after.value('broadcastd_messages_total', sent)).toBe(70);
  expect(after.value('broadcastd_slices_total', sent)).toBe(1);
  expect(after.value('broadcastd_gate_closings_total', { gate: 'bot' })).toBe(1);
  expect(after.value('broadcastd_gate_closed', { gate: 'bot:shop' })).toBe(0);
  expect(after.value('broadcastd_breaker_openings_total')).toBe(1);
  expect(after.value('broadcastd_breaker_open')).toBe(0);
  expect(after.value('broadcastd_limit_messages_per_second', { key: 'queue:segment-broadcasts' })).toBe(1000);
  expect(after.value('broadcastd_jobs', { queue: 'broadcasts', status: 'failed' })).toBe(1);
  // A job claimed ahead may have been put back before it began: a claim, a settlement, and no attempt.
  const claims = after.value('broadcastd_claim_batch_jobs_sum');
  expect(claims).toBeGreaterThanOrEqual(attempts);
  expect(await stage.database.query('select sum(epoch)::integer as claims from broadcast_queue_jobs')).toEqual([
    { claims },
  ]);
  expect(after.value('broadcastd_settle_batch_jobs_sum')).toBe(claims);
  expect(after.value('broadcastd_query_seconds_count', { statement: 'claim' })).toBeGreaterThan(0);
  expect(after.value('broadcastd_notifications_total', { channel: 'wake' })).toBeGreaterThan(0);
  expect(after.value('broadcastd_listening')).toBe(1);
  expect(after.value('broadcastd_daemons')).toBe(1);
  expect(after.value('broadcastd_slots', { queue: 'broadcasts' })).toBe(2);
  expect(after.text).not.toMatch(/NaN|undefined|null/);
}, 40_000);

test('jobs that wait, run and are paused show in their queue', async () => {
  stage.service.otherwise({ kind: 'hang', when: 'before headers' });
  await stage.database.query(`select broadcast_pause_queue('later')`);
  await stage.database.query(
    `insert into broadcast_queue_jobs (queue_name, job_type, job_data, scheduled_at, priority)
     select case when n <= 5 then 'broadcasts' else 'later' end, 'send_broadcast', jsonb_build_object('broadcast_id', n),
            now() - n * interval '1 minute', n % 2 from generate_series(1, 7) n`,
  );
  const daemon = await stage.start();
  await stage.service.received(2);
  const now = await scrape(daemon);
  expect(now.value('broadcastd_active_jobs', { queue: 'broadcasts' })).toBe(2);
  expect(now.value('broadcastd_jobs', { queue: 'broadcasts', status: 'processing' })).toBe(2);
  expect(now.value('broadcastd_ready_jobs', { queue: 'broadcasts' })).toBe(3);
  // Of the higher priority the two oldest are taken, so the oldest that waits is of the lower.
  expect(now.value('broadcastd_oldest_ready_age_seconds', { queue: 'broadcasts' })).toBeGreaterThanOrEqual(240);
  expect(now.value('broadcastd_ready_jobs', { queue: 'later' })).toBe(2);
  expect(now.value('broadcastd_oldest_ready_age_seconds', { queue: 'later' })).toBeGreaterThanOrEqual(420);
  expect(now.value('broadcastd_queue_paused', { queue: 'later' })).toBe(1);
  expect(now.value('broadcastd_queue_paused', { queue: 'broadcasts' })).toBe(0);
  await stage.database.query(`select broadcast_resume_queue('later')`);
});

test('with METRICS_TOKEN only its bearer may read, and an admin token does not do', async () => {
  const token = 'a-token-for-prometheus-alone';
  const admin = 'an-admin-token-of-the-api-itself';
  const daemon = await stage.start({ METRICS_TOKEN: token, ADMIN_TOKENS: `alice:admin:${admin}` });
  expect((await scrape(daemon, token)).value('broadcastd_build_info')).toBe(1);
  for (const wrong of [undefined, '', `${token}x`, admin]) {
    const refused = await fetch(`${daemon.url}/metrics`, {
      headers: wrong === undefined ? {} : { authorization: `Bearer ${wrong}` },
    });
    expect(refused.status).toBe(401);
    expect(refused.headers.get('www-authenticate')).toMatch(/^Bearer/);
    expect(refused.headers.get('content-type')).toMatch(/^application\/problem\+json/);
    expect(await refused.json()).toMatchObject({ status: 401, code: 'not_authenticated' });
  }
  expect(daemon.output()).not.toContain(token);
});

test('a hundred scrapes at once ask the database once', async () => {
  const daemon = await stage.start();
  const all = await Promise.all(Array.from({ length: 100 }, () => scrape(daemon)));
  expect(all.every(({ status }) => status === 200)).toBe(true);
  const totals = Math.max(
    ...all.map((one) => one.value('broadcastd_query_seconds_count', { statement: 'measure_totals' })),
  );
  expect(totals).toBe(1);
});

test('a figure that cannot be read in time is missing, is told of, and holds up neither the others nor the jobs', async () => {
  const daemon = await stage.start();
  const blocker = new pg.Client({ connectionString: stage.database.url });
  await blocker.connect();
  try {
    await blocker.query('begin; lock table broadcast_queue_workers in access exclusive mode');
    const askedAt = performance.now();
    const reading = scrape(daemon);
    await stage.database.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": 1}')`);
    await until('the job is completed', async () => {
      const rows = await stage.database.query(`select from broadcast_queue_jobs where status = 'completed'`);
      return rows.length === 1;
    });
    const now = await reading;
    expect(performance.now() - askedAt).toBeLessThan(5000);
    expect(now.value('broadcastd_daemons')).toBeNaN();
    expect(now.value('broadcastd_figures_unread_total', { figure: 'daemons' })).toBe(1);
    expect(now.value('broadcastd_queue_paused')).toBe(0);
    expect(now.value('broadcastd_notification_queue_usage_ratio')).toBe(0);
    const told = await daemon.line(({ msg }) => msg === 'a figure for /metrics cannot be read');
    expect(told).toMatchObject({ level: 'warn', figure: 'daemons' });
  } finally {
    await blocker.end();
  }
  await until('it is read again', async () => (await scrape(daemon)).value('broadcastd_daemons') > 0, 15_000);
}, 30_000);

test('while the database is away a scrape is answered, says so, and shows nothing of the queue', async () => {
  const daemon = await stage.start();
  expect((await scrape(daemon)).value('broadcastd_jobs')).toBe(0);
  const name = new URL(stage.database.url).pathname.slice(1);
  const letIn = (yes: boolean) =>
    stage.database.query('update pg_database set datallowconn = $1 where datname = $2', [yes, name]);
  await letIn(false);
  try {
    await stage.database.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where datname = current_database() and application_name like 'broadcastd %'`,
    );
    const away = await until('the figures are gone', async () => {
      const now = await scrape(daemon);
      return Number.isNaN(now.value('broadcastd_jobs')) && now.value('broadcastd_database_down_seconds') > 0 && now;
    });
    expect(away.status).toBe(200);
    expect(away.value('broadcastd_daemons')).toBeNaN();
    expect(away.value('broadcastd_breaker_open')).toBeNaN();
    expect(away.value('broadcastd_database_errors_total')).toBeGreaterThan(0);
    expect(away.value('broadcastd_build_info')).toBe(1);
  } finally {
    await letIn(true);
  }
  await until('all is well again', async () => {
    const now = await scrape(daemon);
    return now.value('broadcastd_jobs') === 0 && now.value('broadcastd_database_down_seconds') === 0;
  });
}, 30_000);

test('a transaction that stays open is seen to hold back vacuum, by a role that may not look into it', async () => {
  const open = new pg.Client({ connectionString: stage.database.url });
  await open.connect();
  try {
    await open.query('begin isolation level repeatable read; select 1');
    const role = `plain_${process.pid}`;
    await stage.database.query(`create role ${role} login password 'plain'; grant usage on schema public to ${role}`);
    const url = new URL(stage.database.url);
    url.username = role;
    url.password = 'plain';
    const database = openDatabase({
      url: url.href,
      schema: 'public',
      applicationName: 'broadcastd metrics test',
      pooled: false,
      connectionsMax: 1,
      statementTimeoutMs: 2000,
    });
    const [mine] = (await open.query('select pg_current_snapshot()::text as snapshot')).rows;
    const [seen] = await queueMeasures(database).xmin();
    await database.close();
    await stage.database.query(`drop owned by ${role}; drop role ${role}`);
    expect(seen?.xmin).toBe(String(mine.snapshot).split(':')[0]);
    expect(seen?.age).toBeGreaterThanOrEqual(1);
  } finally {
    await open.end();
  }
});

test('job types and queues beyond a hundred are counted as other', async () => {
  await stage.database.query(
    `insert into broadcast_queue_jobs (queue_name, job_type, job_data)
     select 'queue-' || n, 'type_' || n, '{}' from generate_series(1, 130) n`,
  );
  const daemon = await stage.start({ CONCURRENCY: '*=2' });
  await until('all have failed', async () => {
    const rows = await stage.database.query(`select from broadcast_queue_jobs where status <> 'failed'`);
    return rows.length === 0;
  });
  const now = await scrape(daemon);
  const names = (label: string) => new Set(now.series.map(({ labels }) => labels[label]).filter(Boolean));
  expect(names('job_type').size).toBe(101);
  expect(now.value('broadcastd_outcomes_total', { outcome: 'failed' })).toBe(130);
  expect(now.value('broadcastd_outcomes_total', { outcome: 'failed', job_type: 'other' })).toBe(34);
  expect(now.value('broadcastd_jobs', { status: 'failed' })).toBe(130);
  expect(now.value('broadcastd_jobs', { status: 'failed', queue: 'other' })).toBe(34);
}, 30_000);
