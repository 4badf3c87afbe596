/**
 * Every statement the queue makes. Each is one transaction, moves rows along the states of sql/001_jobs.sql, and answers
 * from the database's clock. A write to a processing job is fenced by its lease.
 */
import { identifier } from './pool.js';

export function statements(schema: string) {
  const jobs = `${identifier(schema)}.broadcast_queue_jobs`;
  const leases = `${identifier(schema)}.broadcast_queue_leases`;
  const attempts = `${identifier(schema)}.broadcast_queue_attempts`;
  const workers = `${identifier(schema)}.broadcast_queue_workers`;
  const pauses = `${identifier(schema)}.broadcast_queue_pauses`;
  const schedules = `${identifier(schema)}.broadcast_queue_schedules`;
  const usualQueue = `${identifier(schema)}.broadcast_usual_queue`;

  return {
    // Rows to be written are named twice, by a join and by an array: without the array a plan made while the table was
    // empty, and kept, would read the table from end to end in the join.

    // $1 queues, $2 their free slots, $3 free slots of each other queue, $4 lease, $5 worker, $6 lease ms, $7 max bytes.
    // `lane` finds every queue and priority by a loose scan of the claim's index, one probe each, so that rows of a
    // priority that are far in the future do not stand in the way of a lower one that is due. Each lane is read in the
    // index's own order and only as far as slots are free: the subqueries are nested so that nothing sorts or
    // materializes between the index and the limit.
    claim: `
      with recursive lane (queue_name, priority) as (
        (select queue_name, priority from ${jobs} where due_at is not null order by queue_name, priority desc limit 1)
        union all
        select next.queue_name, next.priority from lane cross join lateral (
          (select j.queue_name, j.priority from ${jobs} j
           where j.due_at is not null and j.queue_name = lane.queue_name and j.priority < lane.priority
           order by j.priority desc limit 1)
          union all
          (select j.queue_name, j.priority from ${jobs} j
           where j.due_at is not null and j.queue_name > lane.queue_name
           order by j.queue_name, j.priority desc limit 1)
          limit 1) next
      ), wanted as materialized (
        select lane.queue_name, array_agg(lane.priority order by lane.priority desc) as priorities,
               case when exists (select from ${pauses} p where p.queue_name in (lane.queue_name, '*')) then 0
                    else coalesce(min(slots.free), $3::integer) end as free
        from lane left join unnest($1::text[], $2::integer[]) slots (queue_name, free) using (queue_name)
        group by lane.queue_name
      ), due as materialized (
        select due.id, due.status, due.due_at, row_number() over () as place
        from wanted cross join lateral (
          select j.id, j.status, j.due_at
          from unnest(wanted.priorities) lane (priority) cross join lateral (
            select j.id, j.status, j.due_at from ${jobs} j
            where j.queue_name = wanted.queue_name and j.priority = lane.priority and j.due_at <= now()
            order by j.due_at, j.id limit wanted.free
            for no key update skip locked) j
          limit wanted.free) due
        where wanted.free > 0
      ), claimed as (
        update ${jobs} j
        set status = 'processing', lease_id = $4::uuid, epoch = j.epoch + 1,
            -- a pending row with its attempts spent was set back by hand: it starts over
            attempts = case when j.status = 'pending' and j.attempts >= j.max_attempts then 1 else j.attempts + 1 end,
            started_at = coalesce(j.started_at, now()), completed_at = null, pause_requested_at = null,
            hold_reason = null, updated_at = now()
        from due where j.id = due.id and j.id = any(array(select id from due))
        returning j.*, due.place, (extract(epoch from now()) - extract(epoch from due.due_at))::float8 * 1000 as waited_ms
      ), leased as (
        insert into ${leases} (lease_id, worker_id, job_ids, created_at, expires_at)
        select $4::uuid, $5::text, array_agg(id order by place), now(),
               clock_timestamp() + $6::float8 * interval '1 millisecond'
        from claimed having count(*) > 0
      )
      select
        (select (extract(epoch from min(soon.due_at)) - extract(epoch from now()))::float8 * 1000
         from wanted cross join unnest(wanted.priorities) lane (priority) cross join lateral (
           select j.due_at from ${jobs} j
           where j.queue_name = wanted.queue_name and j.priority = lane.priority and j.due_at > now()
           order by j.due_at limit 1) soon
         where wanted.free > 0) as next_due_ms,
        c.id, c.job_id, c.queue_name, c.job_type,
        left(coalesce(c.job_data ->> 'broadcast_id', c.job_data ->> 'broadcastId'), 100) as broadcast_id,
        left(coalesce(c.job_data ->> 'segment_id', c.job_data ->> 'segmentId'), 100) as segment_id, c.attempts, c.max_attempts, c.epoch, c.step_seq, c.step_cursor,
        c.step_scope, c.previous_failure, c.dry_run, c.traceparent, c.created_at, c.scheduled_at, c.expires_at,
        octet_length(data.json) as payload_bytes,
        case when octet_length(data.json) <= $7::integer then data.json end as job_data,
        c.started_at = now() as first,
        coalesce(c.expires_at <= now() and c.started_at = now(), false) as expired,
        coalesce((jsonb_path_query_first(c.progress, '$.processed ? (@ >= 1 && @ < 1e15)') #>> '{}')::float8, 0) as processed,
        c.stalled_calls, coalesce(extract(epoch from now() - c.stalled_since)::float8 * 1000, 0) as stalled_ms,
        c.waited_ms, extract(epoch from clock_timestamp())::float8 * 1000 as now_ms
      from (select) always
      left join (claimed c cross join lateral (select c.job_data::text offset 0) data (json)) on true
      order by c.place`,

    // $1 settlements as JSON, $2 leases that are finished with them, $3 worker.
    // Fenced: a row whose lease is not the one named is left alone and answered with `lost`.
    settle: `
      with s as materialized (
        select *, row_number() over () as place from json_to_recordset($1::json) as s (
          id bigint, lease uuid, status text, due_ms float8, count text, code text, error text, http integer,
          result text, progress text, gained float8, next_cursor text, hold text, paused_from text, previous text, flags text[],
          stalled boolean, unstarted boolean, epoch_above integer, record text, ran_ms float8)
      ), settled as (
        update ${jobs} j
        set status = case when ${PAUSING} then 'paused' else s.status end,
            paused_from = case when ${PAUSING} then s.status else s.paused_from end,
            hold_reason = case when ${PAUSING} then coalesce(j.hold_reason, 'paused by an operator') else s.hold end,
            pause_requested_at = null,
            lease_id = case when s.status = 'processing' then null else j.lease_id end,
            epoch = greatest(j.epoch, s.epoch_above),
            attempts = case s.count when 'reset' then 0 when 'refund' then greatest(j.attempts - 1, 0)
                       else j.attempts end,
            error_message = s.error, error_code = s.code,
            result = coalesce(s.result::jsonb, j.result),
            progress = coalesce(s.progress::jsonb, j.progress),
            progress_rate = case when s.gained is null then j.progress_rate else ${SMOOTHED_RATE} end,
            progress_at = case when s.gained is null then j.progress_at else clock_timestamp() end,
            step_seq = case when s.next_cursor is null then j.step_seq else j.step_seq + 1 end,
            step_cursor = coalesce(s.next_cursor, j.step_cursor),
            previous_failure = s.previous,
            flags = case when s.flags is null then j.flags
                    else array(select distinct f from unnest(j.flags || s.flags) f order by f) end,
            stalled_calls = case when s.stalled then j.stalled_calls + 1
                            when s.status in ('pending', 'paused') then j.stalled_calls else 0 end,
            stalled_since = case when s.stalled then coalesce(j.stalled_since, clock_timestamp())
                            when s.status in ('pending', 'paused') then j.stalled_since end,
            started_at = case when s.unstarted then null else j.started_at end,
            next_retry_at = clock_timestamp() + s.due_ms * interval '1 millisecond',
            completed_at = case when s.status in ('completed', 'failed', 'cancelled') then clock_timestamp() end,
            updated_at = clock_timestamp()
        from s
        where j.id = s.id and j.id = any(array(select id from s)) and j.lease_id = s.lease and j.status = 'processing'
        returning j.id, s.place, j.epoch, j.attempts, j.step_seq
      ), recorded as (
        insert into ${attempts}
          (job, epoch, attempt, step_seq, worker_id, outcome, error_code, error_message, http_status, started_at)
        select j.id, j.epoch, j.attempts, j.step_seq, $3::text, s.record, s.code, coalesce(s.error, s.hold), s.http,
               clock_timestamp() - s.ran_ms * interval '1 millisecond'
        from s join settled j using (place) where s.record is not null
      ), finished as (
        delete from ${leases} where lease_id = any($2::uuid[])
      )
      select case
        when settled.id is not null then 'settled'
        -- not EXISTS, which PostgreSQL 18 may plan as a hash over the whole table
        when (select j.lease_id = s.lease and j.status in ('completed', 'failed', 'retry', 'cancelled', 'paused')
              from ${jobs} j where j.id = s.id) then 'already'
        else 'lost' end as answer
      from s left join settled using (place)
      order by s.place`,

    // $1 worker, $2 version, $3 host, $4 pid, $5 slots, $6 leases, $7 job ids held under them, $8 lease ms.
    // The lease's row is the lock that a heartbeat and the reaper meet at: whoever comes second finds it changed.
    beat: `
      with here as (
        insert into ${workers} as w (worker_id, version, host, pid, slots) values ($1, $2, $3, $4, $5::jsonb)
        on conflict (worker_id) do update set last_seen_at = now()
      ), renewed as (
        update ${leases} set expires_at = clock_timestamp() + $8::float8 * interval '1 millisecond'
        where lease_id = any($6::uuid[])
        returning lease_id
      )
      select j.id from ${jobs} j join renewed using (lease_id)
      where j.id = any($7::bigint[]) and j.status = 'processing'`,

    // $1 leases whose jobs were never begun. A first claim is one that set started_at, to its own time.
    release: `
      with gone as (
        delete from ${leases} where lease_id = any($1::uuid[]) returning lease_id, job_ids, created_at
      )
      update ${jobs} j
      set status = case when j.pause_requested_at is not null then 'paused'
                   when j.step_seq > 0 then 'processing' else 'pending' end,
          paused_from = case when j.pause_requested_at is null then null
                        when j.step_seq > 0 then 'processing' else 'pending' end,
          hold_reason = case when j.pause_requested_at is not null
                          then coalesce(j.hold_reason, 'paused by an operator') end,
          pause_requested_at = null, lease_id = null,
          attempts = greatest(j.attempts - 1, 0), next_retry_at = now(),
          started_at = case when j.started_at = gone.created_at then null else j.started_at end, updated_at = now()
      from gone cross join unnest(gone.job_ids) held (id)
      where j.id = held.id and j.id = any(array(select unnest(job_ids) from gone))
        and j.lease_id = gone.lease_id and j.status = 'processing'
      returning j.id`,

    // $1 lease ms, $2 pause what may have been carried out.
    // Right after a restart of the server every holder gets the time to renew first: an outage costs nobody an attempt.
    reap: `
      with expired as materialized (
        select lease_id, worker_id, job_ids, created_at from ${leases}
        where expires_at < clock_timestamp()
          and pg_postmaster_start_time() < clock_timestamp() - $1::float8 * interval '1 millisecond'
        order by expires_at limit 50
        for update skip locked
      ), freed as (
        update ${jobs} j
        set status = case when j.pause_requested_at is not null then 'paused'
                     when $2::boolean and starts_with(j.job_type, 'send_') then 'paused'
                     when j.attempts >= j.max_attempts then 'failed' else 'retry' end,
            -- with its attempts spent, a resume starts it over
            paused_from = case when j.pause_requested_at is not null or $2::boolean and starts_with(j.job_type, 'send_')
                          then case when j.attempts >= j.max_attempts then 'pending' else 'retry' end end,
            hold_reason = case when j.pause_requested_at is not null
                            then coalesce(j.hold_reason, 'paused by an operator')
                          when $2::boolean and starts_with(j.job_type, 'send_')
                            then 'the service may have carried it out: its worker stopped answering; '
                                 || 'resume it to call again, or cancel it' end,
            pause_requested_at = null, lease_id = null, next_retry_at = clock_timestamp(),
            completed_at = case when j.pause_requested_at is null and j.attempts >= j.max_attempts
                             and not ($2::boolean and starts_with(j.job_type, 'send_')) then clock_timestamp() end,
            error_code = 'lease_expired', previous_failure = 'lease_expired',
            error_message = 'the worker ' || e.worker_id || ' stopped renewing its lease in mid-call',
            flags = array(select distinct f from unnest(j.flags || '{possible_duplicate}'::text[]) f order by f),
            stalled_calls = j.stalled_calls + 1, stalled_since = coalesce(j.stalled_since, clock_timestamp()),
            updated_at = clock_timestamp()
        from expired e cross join unnest(e.job_ids) held (id)
        where j.id = held.id and j.id = any(array(select unnest(job_ids) from expired))
          and j.lease_id = e.lease_id and j.status = 'processing'
        returning j.id, j.job_id, j.job_type, j.status, j.epoch, j.attempts, j.step_seq, j.error_message,
                  e.worker_id, e.created_at
      ), gone as (
        delete from ${leases} l using expired where l.lease_id = expired.lease_id
      ), recorded as (
        insert into ${attempts}
          (job, epoch, attempt, step_seq, worker_id, outcome, error_code, error_message, started_at)
        select id, epoch, attempts, step_seq, worker_id, 'lease_expired', 'lease_expired', error_message, created_at
        from freed
      ), forgotten as (
        delete from ${workers} where last_seen_at < now() - interval '1 day'
      )
      select (select extract(epoch from greatest(min(l.expires_at), pg_postmaster_start_time()
                                                 + $1::float8 * interval '1 millisecond') - clock_timestamp())::float8 * 1000
              from ${leases} l where l.lease_id not in (select lease_id from expired)
              having count(*) > 0) as next_expiry_ms,
             f.job_id, f.job_type, f.status, f.worker_id
      from (select) always left join freed f on true`,

    // $1 schedule, $2 its tick, $3 job type, $4 payload.
    // The schedule's row lets one daemon through per tick; the unique key, one live job at a time.
    tick: `
      with mine as (
        insert into ${schedules} as s (name, last_tick) values ($1, $2)
        on conflict (name) do update set last_tick = excluded.last_tick where s.last_tick < excluded.last_tick
        returning name
      )
      insert into ${jobs} (queue_name, job_type, job_data, unique_key)
      select ${usualQueue}($3), $3, $4::jsonb, 'schedule:' || name from mine
      on conflict (queue_name, live_key) where live_key is not null do nothing
      returning id`,

    leave: `delete from ${workers} where worker_id = $1`,

    // $1 days for completed, $2 days for failed and cancelled, $3 queue or null, $4 after this id, $5 rows to look at.
    // Walks the primary key and stops at the first batch that was created after both limits: nothing later can have
    // finished earlier, but for rows of transactions that were open for days, and those go another night.
    prune: `
      with walked as materialized (
        select id, status, completed_at, queue_name, created_at from ${jobs}
        where id > $4::bigint order by id limit $5::integer
      ), doomed as (
        delete from ${jobs} j using walked w
        where j.id = w.id and j.id = any(array(select id from walked))
          and ($3::text is null or j.queue_name = $3)
          and (j.status = 'completed' and j.completed_at < now() - $1::float8 * interval '1 day'
               or j.status in ('failed', 'cancelled') and j.completed_at < now() - $2::float8 * interval '1 day')
        returning j.id
      ), told as (
        delete from ${attempts} a using doomed where a.job = doomed.id
      )
      select (select count(*)::integer from doomed) as deleted,
             case when count(*) = $5::integer
                    and min(created_at) < now() - least($1::float8, $2::float8) * interval '1 day'
               then max(id) end as last_id
      from walked`,
  };
}

/** A pause was asked for while the call ran, and the call did not end the job. */
const PAUSING = `j.pause_requested_at is not null and s.status in ('pending', 'retry', 'processing')`;

/** Seconds since `processed` last rose, or since the start. */
const SINCE = `greatest(extract(epoch from clock_timestamp() - coalesce(j.progress_at, j.started_at))::float8, 0.001)`;

/** Exponentially smoothed over about a minute; the first slice counts as it is. */
const SMOOTHED_RATE = `
  s.gained / ${SINCE}
  + (coalesce(j.progress_rate, s.gained / ${SINCE}) - s.gained / ${SINCE}) * exp(-${SINCE} / 60)`;
