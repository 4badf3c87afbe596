/**
 * What a live view is told: which jobs changed since a position. Nothing is written for that. A look reads the jobs that
 * some daemon holds, those that it held at the last look, those whose attempts told something, and the newest few
 * thousand rows by the time of their last change; so an old job that is begun and done between two looks is seen in the
 * counts only.
 */
import { type Database, identifier, type Row } from '../pool.js';

export interface ChangedJob extends Row {
  readonly job_id: string;
  readonly queue_name: string;
  readonly job_type: string;
  readonly status: string;
  readonly attempts: number;
  readonly max_attempts: number;
  readonly error_message: string | null;
  readonly hold_reason: string | null;
  readonly processed: number | null;
  readonly total: number | null;
  readonly per_second: number | null;
  readonly active: boolean;
  readonly updated_at: Date;
}

/** Where a look ended: the next one begins there. */
export interface LiveState {
  /** Of the database's clock, in microseconds since 1970. */
  readonly at: string;
  /** The newest attempt. */
  readonly attempt: string;
  /** Row ids that were held. */
  readonly held: readonly string[];
}

export function liveReports(database: Database) {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;
  const jobs = at('broadcast_queue_jobs');

  const sql = {
    now: `
      select (extract(epoch from clock_timestamp()) * 1000000)::bigint::text as at,
             coalesce((select max(id) from ${at('broadcast_queue_attempts')}), 0)::text as attempt,
             array(select unnest(job_ids) from ${at('broadcast_queue_leases')} limit ${HELD_MAX})::text[] as held`,
    // $1 microseconds, $2 attempt, $3 held before, $4 held now, $5 most. A little before $1 as well: what was being
    // committed at the last look.
    changed: `
      with named as (
        select unnest($3::bigint[] || $4::bigint[]) as id
        union select a.job from (
          select job from ${at('broadcast_queue_attempts')} where id > $2::bigint order by id desc limit ${NEWEST}) a
        union select n.id from (
          select id, updated_at from ${jobs} order by id desc limit ${NEWEST}) n
        where n.updated_at > to_timestamp($1::float8 / 1000000) - interval '2 seconds')
      select ${COLUMNS}
      from ${jobs} j where j.id = any(array(select id from named))
        and j.updated_at > to_timestamp($1::float8 / 1000000) - interval '2 seconds'
      order by j.updated_at desc limit $5`,
    running: `
      select ${COLUMNS} from ${jobs} j
      where j.id = any($1::bigint[]) and j.lease_id is not null and j.status = 'processing'
      order by j.id desc limit $2`,
  };

  return {
    /** The position of now. */
    async livePosition(): Promise<LiveState> {
      const [row] = await database.query<LiveState & Row>(sql.now);
      return row ?? { at: '0', attempt: '0', held: [] };
    },

    /** Of the jobs held at a position, those that still are. */
    running: ({ held }: LiveState, limit: number) => database.query<ChangedJob>(sql.running, [held, limit]),

    /** Jobs that changed between a position and now, the latest first. */
    changedSince: (since: LiveState, now: LiveState, limit: number) =>
      database.query<ChangedJob>(sql.changed, [since.at, since.attempt, since.held, now.held, limit]),
  };
}

const COLUMNS = `
  j.job_id, j.queue_name, j.job_type, j.status, j.attempts, j.max_attempts, left(j.error_message, 500) as error_message,
  j.hold_reason, (j.progress ->> 'processed')::float8 as processed, (j.progress ->> 'total')::float8 as total,
  j.progress_rate as per_second, j.lease_id is not null and j.status = 'processing' as active, j.updated_at`;

const HELD_MAX = 2000;
/** Rows of the table that a look reads from its end. */
const NEWEST = 5000;
