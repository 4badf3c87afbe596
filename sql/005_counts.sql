-- serves: 1
-- How many jobs there are by queue and status, exactly and at once, however many rows the table has; and why one waits.
--
-- Each statement that changes jobs leaves what it changed as a few rows of differences, in its own transaction; the
-- daemons fold them into totals every few seconds. Nobody waits for anybody, for differences are only ever added, and a
-- total is its row and the differences that are not folded yet: never stale, never a count over the table.

create table broadcast_queue_counts (
  queue_name     varchar(50) not null,
  status         varchar(50) not null,
  jobs           bigint      not null,
  -- of completed jobs: from their first call to their end, in sum
  processing_ms  bigint      not null,
  primary key (queue_name, status)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

create table broadcast_queue_differences (
  id             bigint generated always as identity primary key,
  queue_name     varchar(50) not null,
  status         varchar(50) not null,
  jobs           bigint      not null,
  processing_ms  bigint      not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

create view broadcast_queue_totals as
  select queue_name, status, sum(jobs)::bigint as jobs, sum(processing_ms)::bigint as processing_ms
  from (select queue_name, status, jobs, processing_ms from broadcast_queue_counts
        union all
        select queue_name, status, jobs, processing_ms from broadcast_queue_differences) counted
  group by queue_name, status
  having sum(jobs) <> 0;

create function broadcast_queue_processing_ms(status text, started_at timestamptz, completed_at timestamptz)
returns bigint language sql immutable parallel safe
return case when status = 'completed' and completed_at > started_at
         then (extract(epoch from completed_at - started_at) * 1000)::bigint else 0 end;

-- Runs with its owner's rights: whoever may change jobs changes their number.
create function broadcast_queue_count() returns trigger
language plpgsql security definer set search_path from current as $$
begin
  if tg_op = 'INSERT' then
    insert into broadcast_queue_differences (queue_name, status, jobs, processing_ms)
      select queue_name, status, count(*), sum(broadcast_queue_processing_ms(status, started_at, completed_at))
      from added group by queue_name, status;
  elsif tg_op = 'DELETE' then
    insert into broadcast_queue_differences (queue_name, status, jobs, processing_ms)
      select queue_name, status, -count(*), -sum(broadcast_queue_processing_ms(status, started_at, completed_at))
      from removed group by queue_name, status;
  else
    insert into broadcast_queue_differences (queue_name, status, jobs, processing_ms)
      select queue_name, status, sum(n), sum(ms)
      from (select queue_name, status, 1 as n, broadcast_queue_processing_ms(status, started_at, completed_at) as ms
            from added
            union all
            select queue_name, status, -1, -broadcast_queue_processing_ms(status, started_at, completed_at)
            from removed) changed
      group by queue_name, status
      having sum(n) <> 0 or sum(ms) <> 0;
  end if;
  return null;
end $$;

create trigger broadcast_queue_count_insert after insert on broadcast_queue_jobs
  referencing new table as added for each statement execute function broadcast_queue_count();
create trigger broadcast_queue_count_update after update on broadcast_queue_jobs
  referencing old table as removed new table as added for each statement execute function broadcast_queue_count();
create trigger broadcast_queue_count_delete after delete on broadcast_queue_jobs
  referencing old table as removed for each statement execute function broadcast_queue_count();

create function broadcast_queue_count_none() returns trigger
language plpgsql security definer set search_path from current as $$
begin
  delete from broadcast_queue_differences;
  delete from broadcast_queue_counts;
  return null;
end $$;
create trigger broadcast_queue_count_truncate after truncate on broadcast_queue_jobs
  for each statement execute function broadcast_queue_count_none();

insert into broadcast_queue_counts (queue_name, status, jobs, processing_ms)
  select queue_name, status, count(*), sum(broadcast_queue_processing_ms(status, started_at, completed_at))
  from broadcast_queue_jobs group by queue_name, status;

-- Folds up to `most` differences into the totals; how many it folded. Several daemons may do so at once.
create function broadcast_queue_fold(most integer) returns integer
language plpgsql set search_path from current as $$
declare
  folded integer;
begin
  with oldest as materialized (
    select id from broadcast_queue_differences order by id limit most for update skip locked
  ), gone as (
    delete from broadcast_queue_differences d using oldest where d.id = oldest.id
    returning d.queue_name, d.status, d.jobs, d.processing_ms
  ), added as (
    insert into broadcast_queue_counts as c (queue_name, status, jobs, processing_ms)
      select queue_name, status, sum(jobs), sum(processing_ms) from gone
      group by queue_name, status order by queue_name, status
      on conflict (queue_name, status) do update
        set jobs = c.jobs + excluded.jobs, processing_ms = c.processing_ms + excluded.processing_ms
  )
  select count(*) into folded from oldest;
  return folded;
end $$;

-- Why this job is not being called now, in one sentence; null where it is being called or has ended.
create function broadcast_why_waiting(job_id uuid) returns text
language plpgsql stable set search_path from current as $$
declare
  j      broadcast_queue_jobs;
  found_ record;
  opens_in_ms  double precision;
  utc constant text := 'YYYY-MM-DD HH24:MI:SS "UTC"';
begin
  select * into j from broadcast_queue_jobs b where b.job_id = broadcast_why_waiting.job_id;
  if not found or j.status in ('completed', 'failed', 'cancelled')
     or j.status = 'processing' and j.lease_id is not null then
    return null;
  elsif j.status = 'paused' then
    return format('paused: %s', coalesce(j.hold_reason, 'by an operator'));
  end if;

  select * into found_ from broadcast_queue_pauses p where p.queue_name in (j.queue_name, '*') order by 1 limit 1;
  if found then
    return format('%s paused by %s since %s%s',
      case found_.queue_name when '*' then 'all queues are' else format('the queue %s is', j.queue_name) end,
      found_.paused_by, to_char(found_.paused_at at time zone 'UTC', utc), coalesce(': ' || found_.reason, ''));
  end if;

  if j.queue_name <> 'cleanup' and (j.due_at <= clock_timestamp() or j.error_code = 'throttled'
                                    or j.error_code = any(broadcast_queue_outage_codes())) then
    select * into found_ from broadcast_queue_services s
      where s.name = 'default' and s.opened_at is not null;
    if found then
      return format('the breaker is open since %s, because the service fails (%s); the next probe goes out at %s',
        to_char(found_.opened_at at time zone 'UTC', utc), found_.last_error,
        to_char(greatest(found_.open_until, clock_timestamp()) at time zone 'UTC', utc));
    end if;
    select * into found_ from broadcast_queue_gates g
      where g.key in ('service', 'bot:' || j.bot_id) and g.closed_until > clock_timestamp()
      order by g.closed_until desc limit 1;
    if found then
      return format('the gate %s is closed until %s: %s', found_.key,
        to_char(found_.closed_until at time zone 'UTC', utc), coalesce(found_.reason, 'no reason was given'));
    end if;
  end if;

  if j.due_at > clock_timestamp() then
    return case
      when j.hold_reason is not null and j.operation_url is null
        then format('%s, until %s', j.hold_reason, to_char(j.due_at at time zone 'UTC', utc))
      when j.operation_url is not null
        then format('the service is at it, and is asked again at %s', to_char(j.due_at at time zone 'UTC', utc))
      when j.status = 'retry' then format('retry %s of %s at %s, after: %s', least(j.attempts + 1, j.max_attempts),
        j.max_attempts, to_char(j.due_at at time zone 'UTC', utc), coalesce(j.error_message, 'no error is known'))
      else format('due at %s', to_char(j.due_at at time zone 'UTC', utc)) end;
  end if;

  opens_in_ms := broadcast_window_wait(j.send_window, j.queue_name, j.scheduled_at, j.started_at is null);
  if opens_in_ms > 0 then
    return format('waiting for its send window, until %s',
      to_char((clock_timestamp() + opens_in_ms * interval '1 millisecond') at time zone 'UTC', utc));
  end if;

  select * into found_ from broadcast_queue_limits l
    where l.key in ('queue:' || j.queue_name, 'bot:' || j.bot_id) and l.per_second is not null
      and l.next_free_at > clock_timestamp()
    order by l.next_free_at desc limit 1;
  if found then
    return format('the limit %s (%s a second) is used up until %s', found_.key, found_.per_second,
      to_char(found_.next_free_at at time zone 'UTC', utc));
  end if;

  for found_ in
    select l.key, l.max_concurrent, (
        select count(*) from broadcast_queue_leases h cross join unnest(h.job_ids) held (id)
        join broadcast_queue_jobs r on r.id = held.id and r.lease_id = h.lease_id
        where r.status = 'processing' and l.key in ('queue:' || r.queue_name, 'bot:' || r.bot_id)) as running
    from broadcast_queue_limits l
    where l.key in ('queue:' || j.queue_name, 'bot:' || j.bot_id) and l.max_concurrent is not null
  loop
    if found_.running >= found_.max_concurrent then
      return format('%s of %s jobs at once are running under the limit %s', found_.running, found_.max_concurrent,
        found_.key);
    end if;
  end loop;

  if not exists (select from broadcast_queue_workers w where w.last_seen_at > clock_timestamp() - interval '30 seconds') then
    return 'no daemon is running';
  elsif not exists (
    select from broadcast_queue_workers w
    where w.last_seen_at > clock_timestamp() - interval '30 seconds'
      and coalesce((w.slots ->> j.queue_name)::integer, (w.slots ->> '*')::integer, 0) > 0) then
    return format('no running daemon has slots for the queue %s (CONCURRENCY)', j.queue_name);
  end if;
  if j.due_at > clock_timestamp() - interval '3 seconds' then
    return 'due now: it is called as soon as a daemon has taken it';
  end if;
  return format('due since %s: every slot of its queue is busy, or other jobs come first',
    to_char(j.due_at at time zone 'UTC', utc));
end $$;
