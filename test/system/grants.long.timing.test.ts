/** A limit of messages a second, as the service sees its calls come. */
import { expect, test } from '@jest/globals';
import { held, type RecordedRequest, replyJson, type Script } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { until } from '../support/until.js';

const stage = setStage();

const answerAfter = (ms: number, script: Script) => held(new Promise((resolve) => setTimeout(resolve, ms)), script);

/** A sliced service that takes its time: what each slice was allowed, and from when to when it went on. */
function slicedService(recipients: number) {
  const slices: { job: string; items: number; perSecond: number | null; at: number }[] = [];
  const processed = new Map<string, number>();
  stage.service.otherwise((request: RecordedRequest) => {
    const { job, step } = JSON.parse(request.body);
    const items = Math.min(step.max_items, recipients - (processed.get(job.id) ?? 0));
    slices.push({ job: job.id, items, perSecond: step.per_second, at: performance.now() });
    const sent = (processed.get(job.id) ?? 0) + items;
    processed.set(job.id, sent);
    const progress = { total: recipients, processed: sent, sent };
    const status = sent < recipients ? 'continue' : 'completed';
    const answer = replyJson(200, { status, cursor: String(sent), progress }, { 'x-broadcast-level': '2' });
    return answerAfter(step.per_second === null ? 0 : (items / step.per_second) * 1000, answer);
  });
  return slices;
}

test('three replicas and four broadcasts keep to one limit, and to a lower one within two seconds', async () => {
  const slices = slicedService(700);
  await stage.database.query(`select broadcast_set_limit('queue:broadcasts', 400)`);
  const daemons = await Promise.all([1, 2, 3].map(() => stage.start()));
  await Promise.all(daemons.map((daemon) => daemon.line(({ msg }) => msg.startsWith('listening'))));
  await stage.database.query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n) from generate_series(1, 4) n`,
  );
  await stage.service.received(3);
  await stage.database.query(`select broadcast_set_limit('queue:broadcasts', 100)`);
  const changedAt = performance.now();
  await until(
    'some have gone out under the lower limit',
    async () => slices.filter(({ perSecond }) => perSecond === 100).length >= 3,
  );
  await stage.database.query(`select broadcast_set_limit('queue:broadcasts', 1000)`);
  await until(
    'all jobs are completed',
    async () =>
      (await stage.database.query(`select from broadcast_queue_jobs where status <> 'completed'`)).length === 0,
    20_000,
  );

  // No slice begins before the one before it has had its time.
  const tooEarly = slices.slice(1).map(({ at }, i) => {
    const before = slices[i];
    return before?.perSecond ? before.at + (before.items / before.perSecond) * 1000 - at : 0;
  });
  expect(Math.max(...tooEarly)).toBeLessThan(30);
  for (const { items, perSecond } of slices) expect(items).toBeLessThanOrEqual(perSecond ?? 0);
  const lastFast = Math.max(...slices.filter(({ perSecond }) => perSecond === 400).map(({ at }) => at + 1000));
  expect(lastFast - changedAt).toBeLessThan(2000);
  expect(new Set(slices.slice(0, 4).map(({ job }) => job)).size).toBeGreaterThan(1);
}, 40_000);
