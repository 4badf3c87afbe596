/**
 * Jobs as people see them: one with its history, or those that fit a filter. The table has no index for people's filters,
 * because every job would pay for it, so a page is a walk along the primary key, newest first: in short statements that
 * hold nothing, for a second or two at most. Where that does not reach the end, the page says how far it came, and the
 * next one goes on from there.
 */
import { type Database, identifier, type Row } from '../pool.js';
import { type JsonText, jsonText } from './json-text.js';

/** All members must fit; null: any. */
export interface JobFilter {
  readonly queue_name: string | null;
  readonly status: string | null;
  readonly job_type: string | null;
  readonly created_from: string | null;
  readonly created_to: string | null;
  readonly finished_from: string | null;
  readonly finished_to: string | null;
  /** Contained in the error's message, in capitals or not. */
  readonly error: string | null;
  /** Members of job_data by name, compared as text. */
  readonly data: Readonly<Record<string, string>>;
  readonly error_code: string | null;
  /** As broadcast_failure_cause has it. */
  readonly cause: string | null;
}

export const anyJob: JobFilter = {
  queue_name: null,
  status: null,
  job_type: null,
  created_from: null,
  created_to: null,
  finished_from: null,
  finished_to: null,
  error: null,
  data: {},
  error_code: null,
  cause: null,
};

/** A row under the table's names; `omitted` names what is too long for a list. */
export interface JobRow {
  readonly id: string;
  readonly job_id: string;
  readonly queue_name: string;
  readonly job_type: string;
  readonly job_data: JsonText | null;
  readonly status: string;
  readonly attempts: number;
  readonly max_attempts: number;
  readonly error_message: string | null;
  readonly error_code: string | null;
  readonly result: JsonText | null;
  readonly scheduled_at: Date;
  readonly started_at: Date | null;
  readonly completed_at: Date | null;
  readonly next_retry_at: Date | null;
  readonly created_at: Date;
  readonly updated_at: Date;
  readonly priority: number;
  readonly unique_key: string | null;
  readonly expires_at: Date | null;
  readonly due_at: Date | null;
  readonly epoch: number;
  readonly step_seq: number;
  readonly step_scope: string;
  readonly progress: JsonText | null;
  readonly progress_rate: number | null;
  readonly progress_at: Date | null;
  readonly hold_reason: string | null;
  readonly paused_from: string | null;
  readonly pause_requested_at: Date | null;
  readonly previous_failure: string | null;
  readonly stalled_calls: number;
  readonly outage_calls: number;
  readonly operation_url: string | null;
  readonly send_window: JsonText | null;
  readonly flags: string[];
  readonly dry_run: boolean;
  readonly traceparent: string | null;
  readonly bot_id: string | null;
  readonly omitted: string[];
}

export interface AttemptRow {
  readonly epoch: number;
  readonly attempt: number;
  readonly step_seq: number;
  readonly worker_id: string | null;
  readonly outcome: string;
  readonly error_code: string | null;
  readonly error_message: string | null;
  readonly http_status: number | null;
  readonly started_at: Date | null;
  readonly finished_at: Date;
}

/** What only one job by itself is shown with: who holds it, and why nobody does. */
type Seen = {
  readonly step_cursor: string | null;
  readonly worker_id: string | null;
  readonly lease_expires_at: Date | null;
  readonly waiting_because: string | null;
};

export function jobReports(database: Database, redacted: readonly string[]) {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;
  const jobs = at('broadcast_queue_jobs');
  const columns = columnsOf((column) => shown(at, column, redacted));

  const sql = {
    one: `
      select ${columns.whole}, j.step_cursor, l.worker_id, l.expires_at as lease_expires_at,
             coalesce(${at('broadcast_why_waiting')}(j.job_id), ${PAUSING}) as waiting_because
      from ${jobs} j left join ${at('broadcast_queue_leases')} l on l.lease_id = j.lease_id and j.status = 'processing'
      where j.job_id = $1::uuid`,
    history: `
      select epoch, attempt, step_seq, worker_id, outcome, error_code, error_message, http_status, started_at, finished_at
      from (select * from ${at('broadcast_queue_attempts')} a where a.job = $1::bigint order by a.id desc limit 100) newest
      order by id`,
    listed: `select ${columns.listed} from ${jobs} j where j.id = any($1::bigint[]) order by j.id desc`,
    existing: `select j.job_id::text from ${jobs} j where j.job_id = any($1::uuid[]) order by j.id desc`,
    names: `select j.job_id::text from ${jobs} j where j.id = any($1::bigint[]) order by j.id desc`,
    // $1 below this id, $2 rows to look at, $3 rows to find, then the filter.
    walk: `
      with walked as materialized (
        select j.id, ${FITS} and ($15::text is null or ${at('broadcast_failure_cause')}(coalesce(j.error_message, '')) = $15) as fits
        from ${jobs} j where j.id < $1::bigint order by j.id desc limit $2::integer)
      select coalesce((select array_agg(f.id) from (
               select w.id from walked w where w.fits order by w.id desc limit $3::integer) f), '{}')::text[] as found,
             (select min(w.id) from walked w)::text as last, (select count(*) from walked) = $2::integer as more`,
    total: `
      select coalesce(sum(jobs), 0)::float8 as jobs from ${at('broadcast_queue_totals')}
      where ($1::text is null or queue_name = $1) and ($2::text is null or status = $2)`,
  };

  /** Row ids that fit, newest first; `next`: where to go on, null at the end of the table. */
  async function walk(filter: JobFilter, from: string, most: number): Promise<{ ids: string[]; next: string | null }> {
    const ids: string[] = [];
    const enough = performance.now() + WALK_MS;
    // Where the counts know how many there are, nobody has to look for more.
    const expected = from === FIRST && isCounted(filter) ? await total(filter) : Number.POSITIVE_INFINITY;
    if (expected === 0) return { ids, next: null };
    let position = from;
    let stride = Math.min(most + 1, STRIDE_MAX);
    while (true) {
      const [row] = await database.query<{ found: string[]; last: string | null; more: boolean }>(
        sql.walk,
        [position, stride, most - ids.length + 1, ...valuesOf(filter)],
        'walk',
      );
      if (!row || row.last === null) return { ids, next: null };
      ids.push(...row.found);
      if (ids.length > most) return { ids: ids.slice(0, most), next: ids[most - 1] ?? null };
      if (!row.more || ids.length >= expected) return { ids, next: null };
      if (performance.now() > enough) return { ids, next: row.last };
      position = row.last;
      stride = Math.min(stride * 4, STRIDE_MAX);
    }
  }

  async function total(filter: JobFilter): Promise<number> {
    const [row] = await database.query<{ jobs: number }>(sql.total, [filter.queue_name, filter.status]);
    return row?.jobs ?? 0;
  }

  return {
    async page(filter: JobFilter, from: string | null, limit: number) {
      const { ids, next } = await walk(filter, from ?? FIRST, limit);
      const rows = ids.length === 0 ? [] : await database.query<RawJob>(sql.listed, [ids]);
      return { jobs: rows.map(toJob), next };
    },

    /** The names of the jobs that fit, newest first. `next`: where to go on, if the walk did not come to the end. */
    async named(filter: JobFilter, from: string | null, limit: number) {
      const { ids, next } = await walk(filter, from ?? FIRST, limit);
      const rows = ids.length === 0 ? [] : await database.query<{ job_id: string }>(sql.names, [ids]);
      return { names: rows.map(({ job_id }) => job_id), next };
    },

    /** Of these jobs, those that are there. */
    async existing(jobIds: readonly string[]): Promise<string[]> {
      const rows = await database.query<{ job_id: string }>(sql.existing, [jobIds]);
      return rows.map(({ job_id }) => job_id);
    },

    async job(jobId: string): Promise<(JobRow & Seen & { readonly history: AttemptRow[] }) | null> {
      const [row] = await database.query<RawJob & Seen>(sql.one, [jobId]);
      if (!row) return null;
      return { ...toJob(row), history: await database.query<AttemptRow & Row>(sql.history, [row.id]) };
    },
  };
}

/** What is called just now waits for nobody, but whoever asked for a pause waits for the call's end. */
const PAUSING = `
  case when j.status = 'processing' and j.lease_id is not null and j.pause_requested_at is not null
    then format('a call is open; it pauses when that ends, as asked at %s%s',
           to_char(j.pause_requested_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), ': ' || j.hold_reason) end`;

/** Above every id. */
const FIRST = '9223372036854775807';
const WALK_MS = 1500;
/** About thirty milliseconds of a small server's time. */
const STRIDE_MAX = 20_000;

function isCounted({ queue_name: _queue, status, data, ...rest }: JobFilter): boolean {
  return status !== null && Object.keys(data).length === 0 && Object.values(rest).every((value) => value === null);
}

/** $4 to $14; the names of the members are $13, their values $14. */
const FITS = `
  ($4::text is null or j.queue_name = $4) and ($5::text is null or j.status = $5)
  and ($6::text is null or j.job_type = $6)
  and ($7::timestamptz is null or j.created_at >= $7) and ($8::timestamptz is null or j.created_at < $8)
  and ($9::timestamptz is null or j.completed_at >= $9) and ($10::timestamptz is null or j.completed_at < $10)
  and ($11::text is null or position(lower($11) in lower(j.error_message)) > 0)
  and ($12::text is null or coalesce(j.error_code, '') = $12)
  and (select coalesce(bool_and(coalesce(j.job_data ->> m.name = m.value, false)), true)
       from unnest($13::text[], $14::text[]) m (name, value))`;

function valuesOf(filter: JobFilter): unknown[] {
  return [
    filter.queue_name,
    filter.status,
    filter.job_type,
    filter.created_from,
    filter.created_to,
    filter.finished_from,
    filter.finished_to,
    filter.error,
    filter.error_code,
    Object.keys(filter.data),
    Object.values(filter.data),
    filter.cause,
  ];
}

const PLAIN = [
  ...['job_id', 'queue_name', 'job_type', 'status', 'attempts', 'max_attempts', 'error_message', 'error_code'],
  ...['scheduled_at', 'started_at', 'completed_at', 'next_retry_at', 'created_at', 'updated_at', 'priority'],
  ...['expires_at', 'due_at', 'epoch', 'step_seq', 'step_scope', 'progress_rate', 'progress_at', 'hold_reason'],
  ...['paused_from', 'pause_requested_at', 'previous_failure', 'stalled_calls', 'outage_calls', 'operation_url'],
  ...['flags', 'dry_run', 'traceparent'],
];

/** So much of a payload or a result, stored and as text, goes into a list. */
const LISTED_BYTES = 8192;

function columnsOf(as: (column: string) => string) {
  const plain = PLAIN.map((name) => `j.${name}`).join(', ');
  const others = `${as('unique_key')} as unique_key, ${as('bot_id')} as bot_id,
    j.progress::text as progress, j.send_window::text as send_window`;
  // The stored size first: it costs nothing to ask.
  const fits = (column: string) => `case when pg_column_size(j.${column}) <= ${LISTED_BYTES}
    then octet_length(j.${column}::text) <= ${LISTED_BYTES} else j.${column} is null end`;
  const short = (column: string) => `case when ${fits(column)} then ${as(column)}::text end as ${column}`;
  const omitted = (column: string) => `case when ${fits(column)} then null else '${column}' end`;
  const base = `j.id, ${plain}, ${others}`;
  return {
    whole: `${base}, ${as('job_data')}::text as job_data, ${as('result')}::text as result, '{}'::text[] as omitted`,
    listed: `${base}, ${short('job_data')}, ${short('result')},
      array_remove(array[${omitted('job_data')}, ${omitted('result')}], null) as omitted`,
  };
}

/** A column of `j` as it may be shown. The names were checked when the configuration was read. */
function shown(at: (name: string) => string, column: string, redacted: readonly string[]): string {
  const hides = (...names: string[]) => names.some((name) => redacted.includes(name));
  // A key that is made of hidden members would tell them.
  const told = { unique_key: ['broadcast_id', 'broadcastId', 'segment_id', 'segmentId', 'bot_id'], bot_id: ['bot_id'] };
  if (column === 'unique_key' || column === 'bot_id') {
    return hides(...told[column]) ? `case when j.${column} is not null then '[redacted]' end` : `j.${column}`;
  }
  if (redacted.length === 0) return `j.${column}`;
  return `${at('broadcast_redacted')}(j.${column}, array[${redacted.map((name) => `'${name}'`).join(', ')}])`;
}

/** As the driver gives it: JSON as text. */
type RawJob = Omit<JobRow, 'job_data' | 'result' | 'progress' | 'send_window'> & {
  job_data: string | null;
  result: string | null;
  progress: string | null;
  send_window: string | null;
};

function toJob<R extends RawJob>(row: R) {
  return {
    ...row,
    job_data: jsonText(row.job_data),
    result: jsonText(row.result),
    progress: jsonText(row.progress),
    send_window: jsonText(row.send_window),
  };
}
