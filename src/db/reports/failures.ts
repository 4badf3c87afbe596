/**
 * Dead letters by their cause: failed jobs of one type, with one error code and messages that differ in ids and numbers
 * only. Like a page of jobs this is a walk along the primary key, and like it says when it did not reach the end.
 */
import { type Database, identifier, type Row } from '../pool.js';

export interface FailureGroup {
  readonly job_type: string;
  readonly error_code: string | null;
  /** The messages' common form. */
  readonly message: string;
  readonly count: number;
  readonly first_seen: Date;
  readonly last_seen: Date;
  readonly sample: { readonly job_id: string; readonly error_message: string | null };
}

export function failureReports(database: Database) {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;

  const sql = {
    total: `
      select coalesce(sum(jobs), 0)::float8 as jobs from ${at('broadcast_queue_totals')}
      where status = 'failed' and ($1::text is null or queue_name = $1)`,
    // $1 below this id, $2 rows to look at, $3 queue or null. One row at least, with the walk's end.
    walk: `
      with walked as materialized (
        select j.id, j.status = 'failed' and ($3::text is null or j.queue_name = $3) as failed
        from ${at('broadcast_queue_jobs')} j where j.id < $1::bigint order by j.id desc limit $2::integer
      ), failure as (
        select j.job_id, j.job_type, j.error_code, j.error_message, coalesce(j.completed_at, j.updated_at) as failed_at,
               ${at('broadcast_failure_cause')}(coalesce(j.error_message, '')) as message
        from ${at('broadcast_queue_jobs')} j where j.id = any(array(select id from walked where failed))
      ), grouped as (
        select job_type, error_code, message, count(*)::integer as count, min(failed_at) as first_seen,
               max(failed_at) as last_seen, (array_agg(job_id::text order by failed_at desc))[1] as sample_id,
               (array_agg(error_message order by failed_at desc))[1] as sample_message
        from failure group by job_type, error_code, message
      ), edge as (
        select min(id)::text as last, count(*) = $2::integer as more from walked)
      select edge.*, grouped.* from edge left join grouped on true`,
  };

  return {
    /** @returns the largest groups first; `complete` false: older failures were not looked at */
    async failures(queue: string | null): Promise<{ groups: FailureGroup[]; complete: boolean }> {
      const groups = new Map<string, FailureGroup>();
      const [counted] = await database.query<{ jobs: number }>(sql.total, [queue]);
      const expected = counted?.jobs ?? 0;
      const enough = performance.now() + WALK_MS;
      let found = 0;
      let position = FIRST;
      let more = expected > 0;
      while (more && found < expected && performance.now() < enough && groups.size < GROUPS_MAX) {
        const rows = await database.query<WalkRow>(sql.walk, [position, STRIDE, queue], 'failures');
        more = rows[0]?.more ?? false;
        position = rows[0]?.last ?? position;
        for (const row of rows) {
          if (row.count === null) continue;
          found += row.count;
          const key = JSON.stringify([row.job_type, row.error_code, row.message]);
          groups.set(key, merged(groups.get(key), row));
        }
      }
      return {
        groups: [...groups.values()].sort((a, b) => b.count - a.count),
        complete: !more || found >= expected,
      };
    },
  };
}

const FIRST = '9223372036854775807';
const STRIDE = 20_000;
const WALK_MS = 1500;
const GROUPS_MAX = 2000;

interface FoundGroup extends Row {
  count: number;
  job_type: string;
  error_code: string | null;
  message: string;
  first_seen: Date;
  last_seen: Date;
  sample_id: string;
  sample_message: string | null;
}

type WalkRow = { last: string | null; more: boolean } & (FoundGroup | (Row & { count: null }));

function merged(known: FailureGroup | undefined, row: FoundGroup): FailureGroup {
  const { job_type, error_code, message, count, first_seen, last_seen } = row;
  const sample = { job_id: row.sample_id, error_message: row.sample_message };
  if (!known) return { job_type, error_code, message, count, first_seen, last_seen, sample };
  return {
    ...known,
    count: known.count + count,
    first_seen: first_seen < known.first_seen ? first_seen : known.first_seen,
    last_seen: last_seen > known.last_seen ? last_seen : known.last_seen,
    sample: last_seen > known.last_seen ? sample : known.sample,
  };
}
