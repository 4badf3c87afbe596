/** How the queues stand, and what is done to a queue as a whole: pause, resume, send window, cleanup. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Type } from 'typebox';
import { JsonText, noJobs, type QueueCounts, type Reports } from '../../db/reports.js';
import { route, strict } from '../route.js';
import * as schemas from '../schemas.js';

const ofQueue = strict({ queueName: schemas.QueueName });
const WithReason = strict({ reason: Type.Optional(schemas.Reason) });

export const queueRoutes = [
  route({
    method: 'GET',
    url: '/api/admin/queue/status',
    role: 'viewer',
    summary: 'Everything at a glance: each queue by status, the statistics, the breaker.',
    answers: { 200: schemas.StatusAnswer },
    async run({ reports, state }) {
      const [standing, ends, breaker] = await Promise.all([reports.standing(), reports.ends(), reports.breaker()]);
      const queues = Object.fromEntries([...standing.queues].map(([name, { counts }]) => [name, counts]));
      return {
        200: {
          running: isRunning(state()),
          queues,
          statistics: statistics(standing, ends),
          activeJobs: sum(standing).active,
          allPaused: standing.allPaused,
          breaker,
          timestamp: new Date(),
        },
      };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/statistics',
    role: 'viewer',
    summary: 'Exact numbers over all queues.',
    answers: { 200: schemas.Statistics },
    async run({ reports }) {
      const [standing, ends] = await Promise.all([reports.standing(), reports.ends()]);
      return { 200: statistics(standing, ends) };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/queues',
    role: 'viewer',
    summary: 'Every queue: counts, pause, send window.',
    answers: { 200: schemas.Queues },
    async run({ reports }) {
      const [{ queues, allPaused }, windows] = await Promise.all([reports.standing(), reports.windows()]);
      const rows = [...queues].map(([queueName, { counts, paused }]) => ({
        ...{ queueName, ...counts, isPaused: (paused ?? allPaused) !== null, pause: paused ?? allPaused },
        send_window: windows.get(queueName) ?? null,
      }));
      return { 200: { count: rows.length, allPaused, queues: rows, timestamp: new Date() } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/:queueName/status',
    role: 'viewer',
    summary: 'One queue: its jobs by status, and whether it is paused.',
    params: ofQueue,
    answers: { 200: schemas.QueueStatus },
    async run({ reports, params: { queueName } }) {
      const { queues, allPaused } = await reports.standing();
      const { counts, paused } = queues.get(queueName) ?? { counts: noJobs(), paused: null };
      const pause = paused ?? allPaused;
      return { 200: { queueName, ...counts, isPaused: pause !== null, pause, timestamp: new Date() } };
    },
  }),
  route({
    method: 'POST',
    url: '/api/admin/queue/:queueName/pause',
    role: 'operator',
    summary: 'Every daemon stops claiming from the queue. What runs goes on to the end of its call.',
    params: ofQueue,
    body: WithReason,
    bodyIsOptional: true,
    answers: { 200: schemas.Done },
    async run({ reports, params: { queueName }, body, by }) {
      const paused = await reports.pause(queueName, body.reason ?? null, by);
      const doubt = await doubtAbout(reports, queueName);
      return done(`the queue ${queueName} ${paused ? 'is paused' : 'was paused already'}${doubt}`);
    },
  }),
  route({
    method: 'POST',
    url: '/api/admin/queue/:queueName/resume',
    role: 'operator',
    summary: 'The daemons claim from the queue again.',
    params: ofQueue,
    answers: { 200: schemas.Done },
    async run({ reports, params: { queueName }, by }) {
      const resumed = await reports.resume(queueName, by);
      const { allPaused } = await reports.standing();
      const still = allPaused === null ? '' : '; but all queues are paused: POST /api/admin/queue/resume lets them go';
      const doubt = await doubtAbout(reports, queueName);
      return done(`the queue ${queueName} ${resumed ? 'is resumed' : 'was not paused'}${still}${doubt}`);
    },
  }),
  route({
    method: 'POST',
    url: '/api/admin/queue/pause',
    role: 'admin',
    summary: 'Every daemon stops claiming, from every queue.',
    body: WithReason,
    bodyIsOptional: true,
    answers: { 200: schemas.Done },
    async run({ reports, body, by }) {
      const paused = await reports.pause('*', body.reason ?? null, by);
      return done(paused ? 'all queues are paused' : 'all queues were paused already');
    },
  }),
  route({
    method: 'POST',
    url: '/api/admin/queue/resume',
    role: 'admin',
    summary: 'Lifts the pause of all. A queue that was paused by its name stays so.',
    answers: { 200: schemas.Done },
    async run({ reports, by }) {
      const resumed = await reports.resume('*', by);
      return done(resumed ? 'all queues are resumed, but for those paused by name' : 'not all queues were paused');
    },
  }),
  route({
    method: 'POST',
    url: '/api/admin/queue/:queueName/cleanup',
    role: 'admin',
    summary: 'Deletes completed jobs that ended longer ago than so many days.',
    params: ofQueue,
    body: strict({ daysOld: Type.Number({ minimum: 0, maximum: 36_500 }) }),
    answers: { 200: schemas.Cleaned },
    async run({ reports, params: { queueName }, body: { daysOld }, by, signal }) {
      let jobsCleared = 0;
      let after: string | null = '0';
      const enough = performance.now() + CLEANUP_MS;
      // In small batches with pauses between them, so that a claim does not feel it.
      while (after !== null && performance.now() < enough && !signal.aborted) {
        const batch: Awaited<ReturnType<Reports['clean']>> = await reports.clean(queueName, daysOld, after, by);
        jobsCleared += batch.deleted;
        after = batch.last_id;
        if (after !== null) await sleep(5);
      }
      return { 200: { queueName, jobsCleared, daysOld, complete: after === null } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/:queueName/window',
    role: 'viewer',
    summary: 'The hours in which the queue’s jobs may be sent.',
    params: ofQueue,
    answers: { 200: schemas.QueueWindow },
    async run({ reports, params: { queueName } }) {
      return { 200: { queueName, send_window: await reports.window(queueName) } };
    },
  }),
  route({
    method: 'PUT',
    url: '/api/admin/queue/:queueName/window',
    role: 'admin',
    summary: 'Sets the hours in which the queue’s jobs may be sent. A job’s own window goes before it.',
    params: ofQueue,
    body: schemas.Window,
    answers: { 200: schemas.QueueWindow },
    async run({ reports, params: { queueName }, bodyText, by }) {
      await reports.setWindow(queueName, new JsonText(bodyText), by);
      return { 200: { queueName, send_window: await reports.window(queueName) } };
    },
  }),
  route({
    method: 'DELETE',
    url: '/api/admin/queue/:queueName/window',
    role: 'admin',
    summary: 'Takes the queue’s send window away.',
    params: ofQueue,
    answers: { 200: schemas.Done },
    async run({ reports, params: { queueName }, by }) {
      await reports.setWindow(queueName, null, by);
      return done(`the queue ${queueName} has no send window`);
    },
  }),
];

/** A request should not last longer than people wait. */
const CLEANUP_MS = 20_000;

type Standing = Awaited<ReturnType<Reports['standing']>>;

function sum({ queues }: Standing): QueueCounts {
  const all = noJobs();
  for (const { counts } of queues.values()) {
    // Both have the same members.
    for (const name of Object.keys(all) as (keyof QueueCounts)[]) all[name] += counts[name];
  }
  return all;
}

function statistics(standing: Standing, ends: { oldest: Date | null; newest: Date | null }) {
  const { active: _active, ...all } = sum(standing);
  return {
    total_jobs: Object.values(all).reduce((total, count) => total + count, 0),
    pending_jobs: all.pending,
    processing_jobs: all.processing,
    completed_jobs: all.completed,
    failed_jobs: all.failed,
    retry_jobs: all.retry,
    paused_jobs: all.paused,
    cancelled_jobs: all.cancelled,
    avg_processing_time_sec: standing.averageSeconds,
    oldest_job: ends.oldest,
    newest_job: ends.newest,
  };
}

export function isRunning({ running, draining }: { running: boolean; draining: boolean }): boolean {
  return running && !draining;
}

/** A name nobody uses is mostly a mistyped one; yet a queue may well be paused before its first job comes. */
async function doubtAbout(reports: Reports, queue: string): Promise<string> {
  return (await reports.isKnownQueue(queue)) ? '' : '; no job has ever named this queue: is that its name?';
}

function done(message: string) {
  return { 200: { success: true as const, message } };
}
