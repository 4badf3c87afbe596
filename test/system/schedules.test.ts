import { expect, test } from '@jest/globals';
import { held, replyJson } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { gate, until } from '../support/until.js';

const stage = setStage();

test('three daemons and a tick every second: one job per tick', async () => {
  const env = { RETRIES_CRON: '* * * * * *' };
  await Promise.all([stage.start(env), stage.start(env), stage.start(env)]);
  await stage.service.received(4);
  const jobs = await stage.database.query<{ second: string; n: number; queue_name: string }>(
    `select date_trunc('second', created_at) as second, count(*)::integer as n, min(queue_name) as queue_name
     from broadcast_queue_jobs where job_type = 'process_retries' group by 1`,
  );
  expect(jobs.length).toBeGreaterThanOrEqual(4);
  expect(jobs.every(({ n, queue_name }) => n === 1 && queue_name === 'retries')).toBe(true);
});

test('no scheduled job is added while the last one is still live', async () => {
  const answer = gate();
  stage.service.next(held(answer.opened, replyJson(200, { processed: 0 })));
  await stage.start({ RETRIES_CRON: '* * * * * *' });
  await stage.service.received(1);
  const ticks = async () => {
    const rows = await stage.database.query<{ last_tick: Date }>('select last_tick from broadcast_queue_schedules');
    return rows[0]?.last_tick.getTime() ?? 0;
  };
  const first = await ticks();
  await until('three more ticks have passed', async () => (await ticks()) >= first + 3000);
  expect(await stage.database.query('select 1 from broadcast_queue_jobs')).toHaveLength(1);
  answer.open();
  await stage.service.received(2);
});

test('the cleanup deletes finished jobs that are old enough, in batches, with their history, and nothing else', async () => {
  await stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data, status, completed_at, created_at, queue_name)
     select 'send_broadcast', '{"broadcast_id": 1}', status, now() - days * interval '1 day',
            now() - days * interval '1 day', queue
     from unnest(array['completed', 'failed', 'cancelled']) status, unnest(array[1, 8, 31]) days,
          unnest(array['broadcasts', 'other']) queue, generate_series(1, 700)
     order by days desc`,
  );
  await stage.database.query(
    `insert into broadcast_queue_attempts (job, epoch, attempt, outcome) select id, 1, 1, 'retry' from broadcast_queue_jobs`,
  );
  await stage.start({ RETENTION_DAYS: '7', DEAD_LETTER_DAYS: '30' });
  await stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data) values ('cleanup_queue', '{"queue_name": "other"}')`,
  );
  const done = async (deleted: number) =>
    until(`${deleted} are deleted`, async () => {
      const rows = await stage.database.query(
        `select result from broadcast_queue_jobs where job_type = 'cleanup_queue'
                                         and status = 'completed' and (result ->> 'deleted')::integer = $1`,
        [deleted],
      );
      return rows.length > 0;
    });
  // other: completed of 8 and 31 days, failed and cancelled of 31 days
  await done(4 * 700);
  await stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data) values ('cleanup_queue', '{"days_old": 0.5}')`,
  );
  // broadcasts: every completed one, failed and cancelled of 31 days; other: completed of 1 day
  await done(6 * 700);
  const left = await stage.database.query(
    `select queue_name, status, count(*)::integer as n from broadcast_queue_jobs
     where job_type = 'send_broadcast' group by 1, 2 order by 1, 2`,
  );
  expect(left).toEqual(
    ['broadcasts', 'other'].flatMap((queue_name) =>
      ['cancelled', 'failed'].map((status) => ({ queue_name, status, n: 2 * 700 })),
    ),
  );
  const history = await stage.database.query('select count(*)::integer as n from broadcast_queue_attempts');
  expect(history).toEqual([{ n: 8 * 700 }]);
}, 40_000);
