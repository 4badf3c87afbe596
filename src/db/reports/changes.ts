/**
 * What operators change. Each change is one statement, and the row of the audit log that tells who made it, with the
 * state before and after, is part of that statement: there is never one without the other.
 */
import { type Database, identifier, type Row } from '../pool.js';
import type { JsonText } from './json-text.js';

/** Who makes a change, and in which request. */
export interface Actor {
  readonly name: string;
  readonly role: string;
  readonly requestId: string;
}

export type JobAction = 'retry' | 'cancel' | 'pause' | 'resume' | 'resend' | 'delete';
export type BulkAction = 'retry' | 'cancel' | 'delete';

export function changeReports(database: Database) {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;
  const jobs = at('broadcast_queue_jobs');
  const audit = at('broadcast_queue_audit');

  /**
   * A statement whose $1 to $5 are actor, role, request, action and target. `was` and `becomes` are JSON expressions;
   * `becomes` may name `answer`, what the change returned. The state before is read first, and locked.
   */
  const audited = (was: string, change: string, becomes: string, onlyIf = 'true') => `
    with earlier as materialized (select (${was}) as state),
    done as materialized (select earlier.state, (${change}) as answer from earlier),
    forgotten as (
      delete from ${audit} where id = any(array(
        select id from ${audit} where at < now() - interval '1 year' order by id limit 10))),
    logged as (
      insert into ${audit} (actor, role, request_id, action, target, before, after)
      select $1, $2, $3, $4, $5, state, ${becomes} from done where ${onlyIf})
    select answer from done`;

  const ofJob = `select jsonb_build_object('status', status, 'attempts', attempts, 'epoch', epoch)
                 from ${jobs} where job_id = $5::uuid for no key update`;
  const onJob = (call: string) => audited(ofJob, call, `jsonb_build_object('status', answer)`);
  const ofLimit = `select jsonb_build_object('per_second', per_second, 'max_concurrent', max_concurrent)
                   from ${at('broadcast_queue_limits')} where key = $5 for update`;
  const ofWindow = `select send_window from ${at('broadcast_queue_windows')} where queue_name = $5 for update`;
  const ofPause = `select jsonb_build_object('paused_by', paused_by, 'reason', reason)
                   from ${at('broadcast_queue_pauses')} where queue_name = $5 for update`;
  const ofGate = `select jsonb_build_object('closed_until', closed_until, 'reason', reason)
                  from ${at('broadcast_queue_gates')} where key = $5 for update`;

  const sql = {
    job: {
      retry: onJob(`${at('broadcast_retry')}($5::uuid)`),
      cancel: onJob(`${at('broadcast_cancel')}($5::uuid, $6)`),
      pause: onJob(`${at('broadcast_pause')}($5::uuid, $6)`),
      resume: onJob(`${at('broadcast_resume')}($5::uuid, $6)`),
      resend: onJob(`${at('broadcast_resend')}($5::uuid, $6)`),
      delete: onJob(`${at('broadcast_delete')}($5::uuid)`),
    } satisfies Record<JobAction, string>,
    many: `select changed, skipped from ${at('broadcast_queue_act')}($1, $2::uuid[], $3, $4, $5)`,
    request: `select job::text, verdict from ${at('broadcast_queue_request')}($1, $2, $3, $4, $5::jsonb)`,
    pauseQueue: audited(
      ofPause,
      `${at('broadcast_pause_queue')}($5, $6, $1)`,
      `jsonb_build_object('paused_by', $1::text, 'reason', $6::text)`,
      'answer',
    ),
    resumeQueue: audited(ofPause, `${at('broadcast_resume_queue')}($5)`, 'null::jsonb', 'answer'),
    setLimit: audited(
      ofLimit,
      `${at('broadcast_set_limit')}($5, $6::float8, $7::integer, $1)::text`,
      `jsonb_build_object('per_second', $6::float8, 'max_concurrent', $7::integer)`,
    ),
    dropLimit: audited(ofLimit, `${at('broadcast_drop_limit')}($5)`, 'null::jsonb', 'answer'),
    openGate: audited(ofGate, `${at('broadcast_open_gate')}($5)`, 'null::jsonb', 'answer'),
    setWindow: audited(ofWindow, `${at('broadcast_set_window')}($5, $6::jsonb)::text`, '$6::jsonb'),
    // $6 days, $7 after this id, $8 rows to look at. Rows finish after they are created: the walk may stop there.
    clean: `
      with walked as materialized (
        select id, status, completed_at, queue_name, created_at from ${jobs}
        where id > $7::bigint order by id limit $8::integer),
      doomed as (
        delete from ${jobs} j using walked w
        where j.id = w.id and j.id = any(array(select id from walked)) and j.queue_name = $5 and j.status = 'completed'
          and j.completed_at <= now() - $6::float8 * interval '1 day'
        returning j.id),
      told as (delete from ${at('broadcast_queue_attempts')} a using doomed where a.job = doomed.id),
      logged as (
        insert into ${audit} (actor, role, request_id, action, target, after)
        select $1, $2, $3, $4, $5, jsonb_build_object('days_old', $6::float8, 'deleted', count(*))
        from doomed having count(*) > 0)
      select (select count(*)::integer from doomed) as deleted,
             case when count(*) = $8::integer and min(created_at) < now() - $6::float8 * interval '1 day'
               then max(id)::text end as last_id
      from walked`,
  };

  async function change<T>(text: string, by: Actor, action: string, target: string, ...values: unknown[]): Promise<T> {
    const rows = await database.query<{ answer: T } & Row>(text, [
      ...[by.name, by.role, by.requestId, action, target],
      ...values,
    ]);
    const [row] = rows;
    if (!row) throw new Error(`${action} gave no answer`);
    return row.answer;
  }

  return {
    /**
     * @param detail the scope of a resume or resend, the reason of a cancel or pause
     * @returns the job's status after it
     * @throws SQLSTATE P0002 where there is no such job, 55000 where its status does not allow it
     */
    actOnJob: (action: JobAction, jobId: string, detail: string | null, by: Actor) =>
      change<string>(
        sql.job[action],
        by,
        `job.${action}`,
        jobId,
        ...(action === 'retry' || action === 'delete' ? [] : [detail]),
      ),

    /** @param jobIds fifty at most */
    async actOnJobs(action: BulkAction, jobIds: readonly string[], by: Actor) {
      const values = [action, jobIds, by.name, by.role, by.requestId];
      const [row] = await database.query<{ changed: number; skipped: number }>(sql.many, values);
      return row ?? { changed: 0, skipped: 0 };
    },

    /** @param request the members of broadcast_enqueue, as JSON text */
    async request(by: Actor, key: string | null, request: string) {
      const [row] = await database.query<{
        job: string | null;
        verdict: 'inserted' | 'found' | 'repeated' | 'conflict';
      }>(sql.request, [by.name, by.role, by.requestId, key, request]);
      if (!row) throw new Error('the request gave no answer');
      return row;
    },

    /** `*` is every queue. @returns false where it was paused already */
    pause: (queue: string, reason: string | null, by: Actor) =>
      change<boolean>(sql.pauseQueue, by, 'queue.pause', queue, reason),
    /** @returns false where it was not paused */
    resume: (queue: string, by: Actor) => change<boolean>(sql.resumeQueue, by, 'queue.resume', queue),

    setLimit: (key: string, perSecond: number | null, maxConcurrent: number | null, by: Actor) =>
      change<string>(sql.setLimit, by, 'limit.set', key, perSecond, maxConcurrent),
    /** @returns false where there was none */
    dropLimit: (key: string, by: Actor) => change<boolean>(sql.dropLimit, by, 'limit.drop', key),
    /** @returns false where it was open */
    openGate: (key: string, by: Actor) => change<boolean>(sql.openGate, by, 'gate.open', key),
    /** @param sendWindow null takes it away */
    setWindow: (queue: string, sendWindow: JsonText | null, by: Actor) =>
      change<string>(sql.setWindow, by, 'window.set', queue, sendWindow?.text ?? null),

    /** Deletes completed jobs of one batch of rows. @returns where to go on, null at the end */
    async clean(queue: string, daysOld: number, after: string, by: Actor) {
      const values = [by.name, by.role, by.requestId, 'queue.cleanup', queue, daysOld, after, CLEAN_BATCH_ROWS];
      const [row] = await database.query<{ deleted: number; last_id: string | null }>(sql.clean, values);
      return row ?? { deleted: 0, last_id: null };
    },
  };
}

const CLEAN_BATCH_ROWS = 1000;
