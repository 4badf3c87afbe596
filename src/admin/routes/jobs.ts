/** Jobs: found, looked at, acted on one by one, and enqueued. */
import { Type } from 'typebox';
import type { JobFilter, Reports } from '../../db/reports.js';
import { cursorOf, idOf } from '../cursors.js';
import { Refusal } from '../problems.js';
import { type Asked, type Route, route, strict } from '../route.js';
import * as schemas from '../schemas.js';

const ofQueue = strict({ queueName: schemas.QueueName });
const ofJob = strict({ jobId: schemas.JobId });

export const jobRoutes = [
  route({
    method: 'GET',
    url: '/api/admin/queue/jobs',
    role: 'viewer',
    summary: 'Jobs of all queues that fit a filter, newest first. `data.<name>=value` looks into job_data.',
    query: schemas.JobsQuery,
    answers: { 200: schemas.JobsPage },
    problems: ['invalid_cursor', 'hidden_member'],
    async run({ reports, redacted, query: { queue, limit = schemas.LIMIT, cursor, ...rest } }) {
      const filter = filterOf({ queue, ...rest }, dataIn(rest), redacted);
      const { jobs, next } = await reports.page(filter, idOf('jobs', cursor), limit);
      return { 200: { limit, count: jobs.length, nextCursor: cursorOf('jobs', next), jobs } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/:queueName/jobs',
    role: 'viewer',
    summary: 'The same of one queue. A page may be short of `limit` and still have a `nextCursor`: it goes on there.',
    params: ofQueue,
    query: schemas.QueueJobsQuery,
    answers: { 200: schemas.QueueJobsPage },
    problems: ['invalid_cursor', 'hidden_member'],
    async run({ reports, redacted, params: { queueName }, query: { limit = schemas.LIMIT, cursor, ...rest } }) {
      const filter = filterOf({ queue: queueName, ...rest }, dataIn(rest), redacted);
      const { jobs, next } = await reports.page(filter, idOf('jobs', cursor), limit);
      const status = rest.status ?? null;
      return { 200: { queueName, status, limit, count: jobs.length, nextCursor: cursorOf('jobs', next), jobs } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/:queueName/failed',
    role: 'viewer',
    summary: 'The dead letters of one queue, newest first.',
    params: ofQueue,
    query: schemas.PageQuery,
    answers: { 200: schemas.FailedPage },
    problems: ['invalid_cursor'],
    async run({ reports, redacted, params: { queueName }, query: { limit = schemas.LIMIT, cursor } }) {
      const filter = filterOf({ queue: queueName, status: 'failed' }, {}, redacted);
      const { jobs, next } = await reports.page(filter, idOf('jobs', cursor), limit);
      const nextCursor = cursorOf('jobs', next);
      return { 200: { queueName, limit, count: jobs.length, nextCursor, failedJobs: jobs } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/job/:jobId',
    role: 'viewer',
    summary: 'One job, its history and, while it waits, why.',
    params: ofJob,
    answers: { 200: schemas.ShownJob },
    problems: ['no_such_job'],
    async run({ reports, params: { jobId } }) {
      return { 200: await shown(reports, jobId) };
    },
  }),
  retry('/api/admin/queue/job/:jobId/retry'),
  retry('/api/admin/queue/broadcast/:jobId/retry'),
  acting('cancel', 'Takes back a job that has not ended. A call that runs is aborted.', {
    reason: Type.Optional(schemas.Reason),
  }),
  acting('pause', 'Pauses a job; one that runs, at the end of its call.', { reason: Type.Optional(schemas.Reason) }),
  acting('resume', 'Lets a paused job go on; with a scope in a new step, for those people only.', {
    scope: Type.Optional(schemas.Scope),
  }),
  route({
    method: 'POST',
    url: '/api/admin/queue/job/:jobId/resend',
    role: 'operator',
    summary:
      'Begins again, also what is completed, for those whom the scope names. For services that work in slices; one with ' +
      'a ledger sends to nobody who has it already, whatever the scope.',
    params: ofJob,
    body: strict({ scope: schemas.Scope }),
    answers: { 200: schemas.JobDone },
    problems: ['no_such_job', 'status_does_not_allow_it', 'unique_key_taken'],
    async run({ reports, params: { jobId }, body: { scope }, by }) {
      return done(jobId, await reports.actOnJob('resend', jobId, scope, by));
    },
  }),
  route({
    method: 'POST',
    url: '/api/admin/queue/jobs',
    role: 'operator',
    summary: 'Enqueues a job. With an `Idempotency-Key` the same request again answers with the same job, for a day.',
    body: schemas.NewJob,
    takesPayload: true,
    answers: { 200: schemas.EnqueuedJob, 201: schemas.EnqueuedJob },
    problems: ['idempotency_conflict', 'invalid_value', 'no_such_job'],
    async run(asked) {
      const { reports, body, bodyText, by } = asked;
      const faults = contradictions(body);
      if (faults !== null) throw new Refusal('invalid_request', faults);
      const { job, verdict } = await reports.request(by, idempotencyKey(asked), bodyText);
      if (verdict === 'conflict') {
        throw new Refusal('idempotency_conflict', 'this Idempotency-Key was used for a request with another body');
      }
      if (job === null) throw new Error('a request without a job');
      const row = { ...(await shown(reports, job)), inserted: verdict === 'inserted' };
      return verdict === 'inserted' ? { 201: row } : { 200: row };
    },
  }),
];

function retry(url: string): Route {
  return route({
    method: 'POST',
    url,
    role: 'operator',
    summary: 'Sends a failed, cancelled or waiting job back to the line; it goes on at its cursor.',
    params: ofJob,
    answers: { 200: schemas.JobDone },
    problems: ['no_such_job', 'status_does_not_allow_it', 'unique_key_taken'],
    async run({ reports, params: { jobId }, by }) {
      return done(jobId, await reports.actOnJob('retry', jobId, null, by));
    },
  });
}

function acting(
  action: 'cancel' | 'pause' | 'resume',
  summary: string,
  members: { reason?: Type.TSchema; scope?: Type.TSchema },
): Route {
  return route({
    method: 'POST',
    url: `/api/admin/queue/job/:jobId/${action}`,
    role: 'operator',
    summary,
    params: ofJob,
    body: Type.Unsafe<{ reason?: string; scope?: string }>(Type.Object(members, { additionalProperties: false })),
    bodyIsOptional: true,
    answers: { 200: schemas.JobDone },
    problems: ['no_such_job', 'status_does_not_allow_it'],
    async run({ reports, params: { jobId }, body: { reason, scope }, by }) {
      return done(jobId, await reports.actOnJob(action, jobId, reason ?? scope ?? null, by));
    },
  });
}

async function shown(reports: Reports, jobId: string) {
  const job = await reports.job(jobId);
  if (!job) throw new Refusal('no_such_job', `no job ${jobId}`);
  return job;
}

function done(jobId: string, status: string) {
  const now = status === 'pausing' ? 'runs, and pauses when its call ends' : `is ${status}`;
  return { 200: { success: true as const, message: `job ${jobId} ${now}`, job_id: jobId, status } };
}

/** @throws Refusal */
function idempotencyKey({ headers }: Asked<unknown, unknown, unknown>): string | null {
  const given = headers['idempotency-key'];
  if (given === undefined) return null;
  // The draft standard has it in quotes; most people leave them out.
  const key =
    typeof given === 'string' ? /^(?:"([\x21\x23-\x7e]{1,200})"|([\x21\x23-\x7e]{1,200}))$/.exec(given) : null;
  if (!key)
    throw new Refusal('invalid_request', 'Idempotency-Key must be 1 to 200 printable characters without spaces');
  return key[1] ?? key[2] ?? null;
}

function contradictions(job: Readonly<Record<string, unknown>>): string | null {
  if (job.queue !== undefined && job.queue_name !== undefined) return 'give queue or queue_name, not both';
  if (job.delay !== undefined && job.scheduled_at !== undefined) return 'give delay or scheduled_at, not both';
  return null;
}

/** What a request may ask for, as both queries and bodies have it. */
export interface AskedFilter {
  readonly queue?: string | undefined;
  readonly status?: string;
  readonly job_type?: string;
  readonly created_from?: string;
  readonly created_to?: string;
  readonly finished_from?: string;
  readonly finished_to?: string;
  readonly error?: string;
  readonly error_code?: string;
}

/** @throws Refusal when a hidden member is asked for: whether it fits would tell its value */
export function filterOf(
  asked: AskedFilter,
  data: Readonly<Record<string, string>>,
  redacted: readonly string[],
): JobFilter {
  const hidden = Object.keys(data).find((name) => redacted.includes(name));
  if (hidden !== undefined)
    throw new Refusal('hidden_member', `job_data.${hidden} is hidden, and cannot be searched for`);
  return {
    queue_name: asked.queue ?? null,
    status: asked.status ?? null,
    job_type: asked.job_type ?? null,
    created_from: asked.created_from ?? null,
    created_to: asked.created_to ?? null,
    finished_from: asked.finished_from ?? null,
    finished_to: asked.finished_to ?? null,
    error: asked.error ?? null,
    data,
    error_code: asked.error_code ?? null,
    cause: null,
  };
}

/** The members `data.<name>` of a query. */
function dataIn(query: object): Record<string, string> {
  const members = Object.entries(query).filter(([name]) => name.startsWith('data.'));
  return Object.fromEntries(members.map(([name, value]) => [name.slice(5), String(value)]));
}
