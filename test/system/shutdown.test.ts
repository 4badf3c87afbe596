import { expect, test } from '@jest/globals';
import pg from 'pg';
import { hang, held, reply } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { gate, until } from '../support/until.js';

const stage = setStage({ CONCURRENCY: '*=10', SHUTDOWN_GRACE_MS: '1000' });

const insert = (count: number) =>
  stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n) from generate_series(1, $1) n`,
    [count],
  );

const rows = () =>
  stage.database.query<{ status: string; attempts: number; lease_id: string | null; flags: string[]; due: boolean }>(
    `select status, attempts, lease_id, flags, due_at <= now() as due from broadcast_queue_jobs order by id`,
  );

test('SIGTERM: what finishes within the grace is completed, the rest is handed back at once, exit 0', async () => {
  const daemon = await stage.start();
  const soon = gate();
  stage.service.otherwise(({ body }) =>
    JSON.parse(body).payload.broadcast_id <= 3 ? held(soon.opened, reply(200)) : hang(),
  );
  await insert(5);
  await stage.service.received(5);

  daemon.signal('SIGTERM');
  const toldAt = performance.now();
  await daemon.line(({ msg }) => msg.startsWith('stopping'));
  soon.open();
  expect(await daemon.ended).toBe(0);

  expect(performance.now() - toldAt).toBeLessThan(1000 + 2000);
  expect((await rows()).map(({ status }) => status)).toEqual([...Array(3).fill('completed'), 'pending', 'pending']);
  for (const handedBack of (await rows()).slice(3)) {
    expect(handedBack).toMatchObject({ attempts: 0, due: true, flags: ['possible_duplicate'] });
  }
  const leases = await stage.database.query('select * from broadcast_queue_leases');
  const workers = await stage.database.query('select * from broadcast_queue_workers');
  expect({ leases, workers }).toEqual({ leases: [], workers: [] });
});

test('what a stopping daemon handed back is called by another with the same key and the reason', async () => {
  const first = await stage.start({ SHUTDOWN_GRACE_MS: '100' });
  stage.service.next(hang());
  await insert(1);
  await stage.service.received(1);
  const second = await stage.start();
  first.signal('SIGTERM');
  expect(await first.ended).toBe(0);
  const handedBackAt = performance.now();
  await stage.service.received(2);
  expect(performance.now() - handedBackAt).toBeLessThan(2500);

  const [before, after] = stage.service.requests;
  expect(after?.headers['idempotency-key']).toBe(before?.headers['idempotency-key']);
  expect(after?.headers['x-job-attempt']).toBe('1');
  expect(JSON.parse(after?.body ?? '').step.previous_failure).toBe('shutdown');
  await second.line(({ msg }) => msg === 'job completed');
});

test('a claim that was on its way when the daemon was told to stop is handed back, and nothing of it is called', async () => {
  const daemon = await stage.start({ POLL_INTERVAL_MS: '50', SHUTDOWN_GRACE_MS: '10000' });
  const answer = gate();
  stage.service.next(held(answer.opened, reply(200)));
  await insert(1);
  await stage.service.received(1);
  const bot = new pg.Client({ connectionString: stage.database.url });
  await bot.connect();
  try {
    await bot.query('begin; lock table broadcast_queue_jobs in access exclusive mode');
    await until('a claim waits for the table', async () => {
      const waiting = await stage.database.query(
        `select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%with recursive%'
         and datname = current_database()`,
      );
      return waiting.length > 0;
    });
    daemon.signal('SIGTERM');
    await daemon.line(({ msg }) => msg.startsWith('stopping'));
    await bot.query(
      `insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', '{"broadcast_id": 2}')`,
    );
    await bot.query('commit');
  } finally {
    await bot.end();
  }
  await until('it is claimed and handed back', async () => {
    const late = await stage.database.query(
      `select 1 from broadcast_queue_jobs where epoch = 1 and status = 'pending'`,
    );
    return late.length === 1;
  });
  answer.open();
  expect(await daemon.ended).toBe(0);
  expect(stage.service.requests).toHaveLength(1);
  expect(await rows()).toMatchObject([
    { status: 'completed' },
    { status: 'pending', attempts: 0, lease_id: null, due: true },
  ]);
});

test('a stopping daemon claims nothing more and says that it is not ready', async () => {
  const daemon = await stage.start({ SHUTDOWN_GRACE_MS: '5000' });
  const soon = gate();
  stage.service.next(held(soon.opened, reply(200)));
  await insert(1);
  await stage.service.received(1);
  daemon.signal('SIGTERM');
  await daemon.line(({ msg }) => msg.startsWith('stopping'));

  await insert(1);
  const readiness = await fetch(`${daemon.url}/readyz`);
  expect(readiness.status).toBe(503);
  expect(await readiness.json()).toEqual({ status: 'not_ready', missing: ['it is stopping'] });
  expect((await fetch(`${daemon.url}/livez`)).status).toBe(200);
  soon.open();
  expect(await daemon.ended).toBe(0);
  expect(stage.service.requests).toHaveLength(1);
  expect((await rows()).map(({ status }) => status)).toEqual(['completed', 'pending']);
});

test('a second signal ends the daemon at once', async () => {
  const daemon = await stage.start({ SHUTDOWN_GRACE_MS: '60000' });
  stage.service.next(hang());
  await insert(1);
  await stage.service.received(1);
  daemon.signal('SIGTERM');
  await daemon.line(({ msg }) => msg.startsWith('stopping'));
  daemon.signal('SIGINT');
  expect(await daemon.ended).toBe(1);
  expect((await rows())[0]).toMatchObject({ status: 'processing', attempts: 1 });
});

test('SIGTERM amid a backlog: what was claimed ahead is as it was, nothing was called twice, and it ends at once', async () => {
  const leases = () => stage.database.query('select lease_id from broadcast_queue_leases order by 1');
  const before = await leases();
  const daemon = await stage.start({ CONCURRENCY: '*=50' });
  stage.service.otherwise(reply(200));
  await insert(5000);
  await stage.service.received(1500);
  daemon.signal('SIGTERM');
  const toldAt = performance.now();
  expect(await daemon.ended).toBe(0);
  expect(performance.now() - toldAt).toBeLessThan(1000 + 2000);

  const completed = (await rows()).filter(({ status }) => status === 'completed').length;
  expect(completed).toBeGreaterThanOrEqual(1500);
  expect(stage.service.requests).toHaveLength(completed);
  const [left] = await stage.database.query(
    `select count(*)::integer as jobs, bool_and(attempts = 0 and started_at is null and flags = '{}') as untouched
     from broadcast_queue_jobs where status = 'pending'`,
  );
  expect(left).toEqual({ jobs: 5000 - completed, untouched: completed < 5000 ? true : null });
  expect(await leases()).toEqual(before);
});
