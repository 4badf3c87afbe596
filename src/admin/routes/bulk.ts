/** Many jobs at one stroke: by their ids, by a filter, or as a group of failures with one cause. */
import { Type } from 'typebox';
import type { JobFilter, Reports } from '../../db/reports.js';
import { Refusal } from '../problems.js';
import { type Asked, type Route, route, strict } from '../route.js';
import * as schemas from '../schemas.js';
import { filterOf } from './jobs.js';

const MOST = 10_000;
const options = {
  dryRun: Type.Optional(Type.Boolean({ description: 'Only says how many it would be.' })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: MOST, description: 'Jobs at most; 1000 if left out.' })),
};
const Chosen = strict({
  ids: Type.Optional(Type.Array(schemas.JobId, { minItems: 1, maxItems: MOST })),
  filter: Type.Optional(schemas.Filter),
  ...options,
});
const Group = strict({
  job_type: Type.String({ minLength: 1, maxLength: 50 }),
  error_code: Type.Union([Type.String({ maxLength: 200 }), Type.Null()]),
  message: Type.String({ maxLength: 300, description: 'The common form, as GET /failures has it.' }),
  queue: Type.Optional(schemas.QueueName),
  ...options,
});

type Action = 'retry' | 'cancel' | 'delete';

export const bulkRoutes = [
  many('retry', 'operator', 'Sends many jobs back to the line, by ids or by filter.'),
  many('cancel', 'operator', 'Takes many jobs back, by ids or by filter.'),
  many('delete', 'admin', 'Deletes many jobs that have ended, by ids or by filter.'),
  route({
    method: 'GET',
    url: '/api/admin/queue/failures',
    role: 'viewer',
    summary: 'Dead letters by cause: job type, error code, and the message without its ids and numbers.',
    query: strict({ queue: Type.Optional(schemas.QueueName), limit: Type.Optional(schemas.Limit) }),
    answers: { 200: schemas.Failures },
    async run({ reports, query: { queue, limit = schemas.LIMIT } }) {
      const { groups, complete } = await reports.failures(queue ?? null);
      const shown = groups.slice(0, limit);
      return { 200: { count: shown.length, groups: shown, complete: complete && shown.length === groups.length } };
    },
  }),
  group('retry', 'retry', 'operator', 'Sends a group of failures back to the line.'),
  group('discard', 'delete', 'admin', 'Deletes a group of failures.'),
];

function many(action: Action, role: 'operator' | 'admin', summary: string): Route {
  return route({
    method: 'POST',
    url: `/api/admin/queue/jobs/${action}`,
    role,
    summary,
    body: Chosen,
    answers: { 200: schemas.Bulk },
    problems: ['hidden_member'],
    async run(asked) {
      const { ids, filter, dryRun = false, limit = ids?.length ?? 1000 } = asked.body;
      if ((ids === undefined) === (filter === undefined)) {
        throw new Refusal('invalid_request', 'give ids or filter: one of the two');
      }
      if (ids !== undefined) {
        const wanted = new Set(ids.map((id) => id.toLowerCase()));
        const there = await asked.reports.existing([...wanted]);
        const done = await act(asked, action, there.slice(0, limit), there.length <= limit, dryRun);
        return { 200: { ...done, skipped: done.skipped + wanted.size - there.length } };
      }
      const { data = {}, ...rest } = filter ?? {};
      return { 200: await actOnFitting(asked, action, filterOf(rest, data, asked.redacted), limit, dryRun) };
    },
  });
}

function group(name: string, action: Action, role: 'operator' | 'admin', summary: string): Route {
  return route({
    method: 'POST',
    url: `/api/admin/queue/failures/${name}`,
    role,
    summary,
    body: Group,
    answers: { 200: schemas.Bulk },
    async run(asked) {
      const { job_type, error_code, message, queue, dryRun = false, limit = 1000 } = asked.body;
      const failed = filterOf({ status: 'failed', queue }, {}, asked.redacted);
      const filter = { ...failed, job_type, error_code: error_code ?? '', cause: message };
      return { 200: await actOnFitting(asked, action, filter, limit, dryRun) };
    },
  });
}

type AskedBulk = Pick<Asked<unknown, unknown, unknown>, 'reports' | 'by' | 'signal'>;

async function actOnFitting(asked: AskedBulk, action: Action, filter: JobFilter, limit: number, dryRun: boolean) {
  const names: string[] = [];
  let next: string | null = null;
  const enough = performance.now() + SEARCH_MS;
  do {
    const page: Awaited<ReturnType<Reports['named']>> = await asked.reports.named(filter, next, limit - names.length);
    names.push(...page.names);
    next = page.next;
  } while (next !== null && names.length < limit && performance.now() < enough && !asked.signal.aborted);
  return act(asked, action, names, next === null, dryRun);
}

/** In batches, each with its row of the audit log: what is done is done, also where the caller goes away. */
async function act({ reports, by, signal }: AskedBulk, action: Action, names: string[], all: boolean, dryRun: boolean) {
  let [changed, skipped, done] = [0, 0, 0];
  const enough = performance.now() + WORK_MS;
  while (!dryRun && done < names.length && performance.now() < enough && !signal.aborted) {
    const batch = await reports.actOnJobs(action, names.slice(done, done + BATCH), by);
    changed += batch.changed;
    skipped += batch.skipped;
    done += BATCH;
  }
  return { matched: names.length, changed, skipped, dryRun, complete: all && (dryRun || done >= names.length) };
}

const BATCH = 50;
const SEARCH_MS = 10_000;
/** A request should not last longer than people wait. */
const WORK_MS = 20_000;
