-- serves: 1
-- How fast a broadcast goes, and so when it will be done: written with every slice, readable by SQL.

alter table broadcast_queue_jobs
  -- recipients a second, over about the last minute
  add column progress_rate double precision,
  -- when `processed` last rose, or when the job was sent back to go on
  add column progress_at timestamptz;

drop function broadcast_progress(uuid);

-- How far a broadcast is, for bots that speak SQL only. No row for an unknown job. per_second and eta_seconds are null
-- until a second slice tells, and once it has ended.
create function broadcast_progress(job_id uuid)
returns table (
  status varchar, attempts integer, total bigint, processed bigint, sent bigint, skipped bigint, failed bigint,
  unknown bigint, percent numeric, per_second numeric, eta_seconds numeric, reasons jsonb, error_message text,
  hold_reason text, progress_at timestamptz, updated_at timestamptz
) language sql stable set search_path from current as $$
  select j.status, j.attempts,
    c.total, c.processed, (p ->> 'sent')::bigint, (p ->> 'skipped')::bigint, (p ->> 'failed')::bigint,
    (p ->> 'unknown')::bigint,
    round(100.0 * c.processed / nullif(c.total, 0), 1),
    case when c.runs then round(j.progress_rate::numeric, 1) end,
    case when c.runs then round(((c.total - c.processed) / nullif(j.progress_rate, 0))::numeric) end,
    p -> 'reasons', j.error_message, j.hold_reason, j.progress_at, j.updated_at
  from broadcast_queue_jobs j
  cross join lateral (select j.progress) as progress (p)
  cross join lateral (
    select (p ->> 'total')::bigint, (p ->> 'processed')::bigint, j.status in ('pending', 'processing', 'retry')
  ) as c (total, processed, runs)
  where j.job_id = broadcast_progress.job_id
$$;
