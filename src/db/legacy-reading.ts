/**
 * What an old row means: one SELECT over the old table with everything the new row needs, beside what it was before.
 * The plan counts over it and the migration copies from it, so the one cannot say what the other does not do. No row
 * is left out: what does not fit is made fit.
 *
 * A row that nobody can vouch for is paused, never sent: the old program may have sent it and not have got round to
 * writing that down. What is certain to be unsent is only what became due within the last hour.
 */
import pg from 'pg';
import { type CarriedColumn, kindOf, type OldTable } from './legacy-shape.js';
import { identifier } from './pool.js';

/** What becomes of a row. `stale`, `future` and `unknown` are paused ones, with the reason that their name says. */
export const VERDICTS = {
  completed: 'completed',
  failed: 'failed',
  cancelled: 'cancelled',
  pending: 'pending',
  paused: 'paused',
  processing: 'paused',
  retry: 'paused',
  stale: 'paused',
  future: 'paused',
  unknown: 'paused',
} as const satisfies Record<string, string>;

export type Verdict = keyof typeof VERDICTS;

/** The columns of `reading` that are the new row's. */
export const NEW_COLUMNS = [
  'id, job_id, queue_name, job_type, job_data, status, attempts, max_attempts, error_message, result, scheduled_at',
  'started_at, completed_at, next_retry_at, created_at, updated_at, hold_reason, paused_from',
].join(', ');

/** What was made fit, as a condition over `reading` and in words for the plan. */
export const REPAIRS: readonly (readonly [condition: string, words: string])[] = [
  ['old_job_id is null', 'job_id missing or not a UUID: a new one is made'],
  ['old_job_id is not null and not first_of_its_name', 'job_id used before by another row: a new one is made'],
  ['old_queue is distinct from queue_name', 'queue_name changed (see above), or broadcasts where there was none'],
  ['old_type is distinct from job_type', 'job_type missing or longer than 50 characters: "unknown", or cut'],
  ['not has_data', "job_data missing: '{}'"],
  ['has_data and old_data is null', 'job_data is not JSON: kept as {"legacy_text": …}'],
  ['has_result and old_result is null', 'result is not JSON: kept as {"legacy_text": …}'],
  ['old_attempts is distinct from attempts', 'attempts missing or out of range: 0'],
  ['old_max_attempts is distinct from max_attempts', 'max_attempts missing or out of range: 3'],
  ['old_error is distinct from error_message', 'error_message longer than 2 KiB: cut'],
  ['old_created_at is null', 'created_at missing: the earliest other time of the row, or now'],
  ['old_scheduled_at is null', 'scheduled_at missing: created_at'],
  [
    "status in ('completed', 'failed', 'cancelled') and old_completed_at is null",
    'completed_at missing on a finished row: the last other time of the row',
  ],
];

/** The function that `reading` needs where JSON is stored as text; of this session, and gone with it. */
export async function prepareReading(client: pg.Client, old: OldTable): Promise<void> {
  const textual = (['job_data', 'result'] as const).some((column) => ['json', 'text'].includes(kindOf(old, column)));
  if (!textual) return;
  await client.query(
    `create or replace function pg_temp.broadcast_legacy_json(value text) returns jsonb language plpgsql as $$
     begin return value::jsonb; exception when others then return null; end $$`,
  );
}

/** @returns a SELECT over the table called `from`; its columns: NEW_COLUMNS, `verdict`, and those REPAIRS speaks of */
export function reading(old: OldTable, from: string, timezone: string | null): string {
  const schema = old.schema === 'public' ? '' : `${identifier(old.schema)}.`;
  return `
    select r.*, ${statusOf} as status, ${reasonOf(schema)} as hold_reason,
      case when ${statusOf} = 'paused' then 'pending' end as paused_from
    from (
      select o.id, o.old_job_id, o.first_of_its_name, o.old_queue, o.old_type, o.has_data, o.old_data, o.has_result,
        o.old_result, o.old_status, o.old_attempts, o.old_max_attempts, o.old_error,
        o.created_at as old_created_at, o.scheduled_at as old_scheduled_at, o.completed_at as old_completed_at,
        coalesce(case when o.first_of_its_name then o.old_job_id end, gen_random_uuid()) as job_id,
        ${queueName} as queue_name,
        coalesce(left(o.old_type, 50), 'unknown') as job_type,
        case when not o.has_data then '{}' else coalesce(o.old_data, o.data_as_text) end as job_data,
        case when o.old_attempts between 0 and 2147483647 then o.old_attempts::integer else 0 end as attempts,
        case when o.old_max_attempts between 1 and 2147483647 then o.old_max_attempts::integer else 3 end
          as max_attempts,
        ${cutError} as error_message,
        case when o.has_result then coalesce(o.old_result, o.result_as_text) end as result,
        coalesce(o.scheduled_at, ${created}) as scheduled_at,
        o.started_at,
        case when o.old_status in ('completed', 'failed', 'cancelled')
          then coalesce(o.completed_at, o.updated_at, o.started_at, ${created}) else o.completed_at end as completed_at,
        o.next_retry_at,
        ${created} as created_at,
        coalesce(o.updated_at, o.completed_at, o.started_at, ${created}) as updated_at,
        ${verdict} as verdict
      from (${oldRows(old, from, timezone)}) o
    ) r`;
}

/** The old values in types that can be worked with; what is missing or cannot be read is null. */
function oldRows(old: OldTable, from: string, timezone: string | null): string {
  const value = (column: CarriedColumn, type: string) =>
    kindOf(old, column) === 'missing' ? `null::${type}` : `t.${column}::${type}`;
  const instant = (column: CarriedColumn) =>
    kindOf(old, column) === 'local'
      ? `t.${column} at time zone ${pg.escapeLiteral(timezone ?? 'UTC')}`
      : value(column, 'timestamptz');
  const json = (column: 'job_data' | 'result') =>
    ['json', 'text'].includes(kindOf(old, column))
      ? `pg_temp.broadcast_legacy_json(t.${column}::text)`
      : value(column, 'jsonb');
  const wrapped = (column: 'job_data' | 'result') => `jsonb_build_object('legacy_text', ${value(column, 'text')})`;
  const uuid =
    kindOf(old, 'job_id') === 'text'
      ? `case when t.job_id::text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then t.job_id::text::uuid end`
      : value('job_id', 'uuid');
  const times = ['scheduled_at', 'started_at', 'completed_at', 'next_retry_at', 'created_at', 'updated_at'] as const;
  return `
    select ${value('id', 'bigint')} as id, ${uuid} as old_job_id,
      ${old.uniqueColumns.has('job_id') && kindOf(old, 'job_id') === 'uuid' ? 'true' : `row_number() over (partition by ${uuid} order by t.id) = 1`} as first_of_its_name,
      ${value('queue_name', 'text')} as old_queue, ${value('job_type', 'text')} as old_type,
      ${value('job_data', 'text')} is not null as has_data, ${json('job_data')} as old_data,
      ${wrapped('job_data')} as data_as_text,
      ${value('result', 'text')} is not null as has_result, ${json('result')} as old_result,
      ${wrapped('result')} as result_as_text,
      ${value('status', 'text')} as old_status,
      ${value('attempts', 'bigint')} as old_attempts, ${value('max_attempts', 'bigint')} as old_max_attempts,
      ${value('error_message', 'text')} as old_error, ${times.map((column) => `${instant(column)} as ${column}`).join(', ')}
    from ${from} t
    -- Keeps the planner from repeating each expression wherever its value is used.
    offset 0`;
}

const created = 'coalesce(o.created_at, least(o.scheduled_at, o.started_at, o.completed_at, o.updated_at, now()))';

/** Words that the API's routes use; the same as in the table's own check, as a test makes sure. */
const RESERVED_QUEUES = [
  ...['status', 'statistics', 'health', 'job', 'jobs', 'broadcast', 'pause', 'resume', 'limits', 'queues', 'workers'],
  ...['failures', 'events', 'schedules', 'audit'],
];

const notReserved = (name: string) => `${name} not in (${RESERVED_QUEUES.map((word) => `'${word}'`).join(', ')})`;
const addressable = `regexp_replace(lower(o.old_queue), '[^a-z0-9_-]', '-', 'g')`;
const queueName = `
  case
    when o.old_queue is null then 'broadcasts'
    when o.old_queue ~ '^[a-z][a-z0-9_-]{0,49}$' and ${notReserved('o.old_queue')} then o.old_queue
    when ${addressable} ~ '^[a-z]' and ${notReserved(addressable)} then left(${addressable}, 50)
    else left('q-' || ${addressable}, 50)
  end`;

/** 2 KiB of UTF-8, cut before a character's first byte: the bytes after it are those whose two high bits are 10. */
const bytes = `convert_to(o.old_error, 'UTF8')`;
const startsCharacter = (at: number) => `get_byte(${bytes}, ${at}) & 192 <> 128`;
const cutError = `
  case
    when octet_length(o.old_error) > 512 and octet_length(${bytes}) > 2048 then convert_from(substring(${bytes} from 1 for case
      when ${startsCharacter(2048)} then 2048 when ${startsCharacter(2047)} then 2047
      when ${startsCharacter(2046)} then 2046 else 2045 end), 'UTF8')
    else o.old_error
  end`;

const verdict = `
  case
    when o.old_status in ('completed', 'failed', 'cancelled', 'paused', 'processing', 'retry') then o.old_status
    when o.old_status is distinct from 'pending' then 'unknown'
    -- A wrong time zone, most likely: then its age is unknown.
    when o.created_at > now() + interval '1 minute' then 'future'
    when greatest(o.created_at, o.scheduled_at) >= now() - interval '1 hour' then 'pending'
    else 'stale'
  end`;

const statusOf = `case when r.verdict in ('completed', 'failed', 'cancelled', 'pending') then r.verdict else 'paused' end`;

/** How the reason begins of each row that may have been sent: people and statements find them by it. */
export const MAYBE_SENT = 'may have been sent already';

function reasonOf(schema: string): string {
  const reasons: Partial<Record<Verdict, string>> = {
    processing: `'${MAYBE_SENT} (it was processing in the old table)'`,
    retry: `'${MAYBE_SENT} (it waited for a retry in the old table)'`,
    stale: `'${MAYBE_SENT} (it was pending in the old table for more than an hour)'`,
    future: `'${MAYBE_SENT} (it was pending in the old table with a created_at in the future, so its age is unknown)'`,
    unknown: `'${MAYBE_SENT} (' || coalesce('its status in the old table was "' || left(r.old_status, 50) || '"',
      'it had no status in the old table') || ')'`,
    paused: `'it was paused in the old table'`,
  };
  const whens = Object.entries(reasons).map(([name, reason]) => `when '${name}' then ${reason}`);
  const whatToDo = [
    pg.escapeLiteral(`: to send it, SELECT ${schema}broadcast_resume('`),
    pg.escapeLiteral(`'); to drop it, SELECT ${schema}broadcast_cancel('`),
    pg.escapeLiteral("')"),
  ].join(' || r.job_id || ');
  return `case r.verdict ${whens.join(' ')} end || ${whatToDo}`;
}
