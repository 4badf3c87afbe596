/**
 * Every statement the queue makes. Each is one transaction, moves rows along the states of sql/001_jobs.sql, and answers
 * from the database's clock. A write to a processing job is fenced by its lease.
 */
import { claimStatement, goOnStatement, usualClaimStatement } from './claim.js';
import { identifier } from './pool.js';

export function statements(schema: string) {
  const jobs = `${identifier(schema)}.broadcast_queue_jobs`;
  const leases = `${identifier(schema)}.broadcast_queue_leases`;
  const attempts = `${identifier(schema)}.broadcast_queue_attempts`;
  const workers = `${identifier(schema)}.broadcast_queue_workers`;
  const schedules = `${identifier(schema)}.broadcast_queue_schedules`;
  const abandoned = `${identifier(schema)}.broadcast_queue_abandoned`;
  const retention = `${identifier(schema)}.broadcast_queue_retention`;
  const usualQueue = `${identifier(schema)}.broadcast_usual_queue`;

  return {
    claim: claimStatement(schema),
    usualClaim: usualClaimStatement(schema),
    goOn: goOnStatement(schema),

    // $1 leases, $2 how many of their jobs may be called. Whoever reaps one of these meets us at its row.
    begin: `
      update ${leases} l set begun = greatest(l.begun, told.begun)
      from unnest($1::uuid[], $2::integer[]) told (lease_id, begun)
      where l.lease_id = told.lease_id and l.lease_id = any($1::uuid[])
      returning l.lease_id`,

    // $1 settlements as JSON, $2 leases that are finished with them, $3 worker.
    // Fenced: a row whose lease is not the one named is left alone and answered with `lost`.
    settle: `
      with s as materialized (
        select *, row_number() over () as place from json_to_recordset($1::json) as s (
          id bigint, lease uuid, status text, due_ms float8, count text, code text, error text, http integer,
          result text, progress text, gained float8, next_cursor text, operation text, hold text, paused_from text,
          previous text, flags text[], stalled text, unstarted boolean, epoch_above integer, record text, ran_ms float8)
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
            operation_url = s.operation,
            outage_calls = case when s.count = 'reset' or s.status = 'completed' then 0 else j.outage_calls end,
            previous_failure = s.previous,
            flags = case when s.flags is null then j.flags
                    else array(select distinct f from unnest(j.flags || s.flags) f order by f) end,
            stalled_calls = case when s.stalled is not null then j.stalled_calls + (s.stalled = 'call')::integer
                            when s.status in ('pending', 'paused') then j.stalled_calls else 0 end,
            stalled_since = case when s.stalled is not null then coalesce(j.stalled_since, clock_timestamp())
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
        when (select j.status = 'cancelled' from ${jobs} j where j.id = s.id) then 'cancelled'
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

    // $1 leases whose jobs were never begun.
    release: `
      with gone as (
        delete from ${leases} where lease_id = any($1::uuid[]) returning lease_id, job_ids, created_at
      )
      update ${jobs} j set ${handedBack('gone.created_at')}
      from gone cross join unnest(gone.job_ids) held (id)
      where j.id = held.id and j.id = any(array(select unnest(job_ids) from gone))
        and j.lease_id = gone.lease_id and j.status = 'processing'
      returning j.id`,

    // $1 lease ms, $2 pause what may have been carried out.
    // Right after a restart of the server every holder gets the time to renew first: an outage costs nobody an attempt.
    reap: `
      with expired as materialized (
        select lease_id, worker_id, job_ids, begun, created_at from ${leases}
        where expires_at < clock_timestamp()
          and pg_postmaster_start_time() < clock_timestamp() - $1::float8 * interval '1 millisecond'
        order by expires_at limit 50
        for update skip locked
      ), freed as (
        update ${jobs} j
        set status = case when j.pause_requested_at is not null then 'paused'
                     when ${IN_DOUBT} then 'paused'
                     when j.attempts >= j.max_attempts then 'failed' else 'retry' end,
            -- with its attempts spent, a resume starts it over
            paused_from = case when j.pause_requested_at is not null or ${IN_DOUBT}
                          then case when j.attempts >= j.max_attempts then 'pending' else 'retry' end end,
            hold_reason = case when j.pause_requested_at is not null
                            then coalesce(j.hold_reason, 'paused by an operator')
                          when ${IN_DOUBT}
                            then 'the service may have carried it out: its worker stopped answering; '
                                 || 'resume it to call again, or cancel it' end,
            pause_requested_at = null, lease_id = null, next_retry_at = clock_timestamp(),
            completed_at = case when j.pause_requested_at is null and j.attempts >= j.max_attempts
                             and not (${IN_DOUBT}) then clock_timestamp() end,
            error_code = 'lease_expired', previous_failure = 'lease_expired',
            error_message = 'the worker ' || e.worker_id || ' stopped renewing its lease in mid-call',
            -- to ask after an operation cannot repeat anything
            flags = case when j.operation_url is not null then j.flags
                    else array(select distinct f from unnest(j.flags || '{possible_duplicate}'::text[]) f order by f) end,
            stalled_calls = j.stalled_calls + 1, stalled_since = coalesce(j.stalled_since, clock_timestamp()),
            updated_at = clock_timestamp()
        from expired e cross join unnest(e.job_ids) with ordinality held (id, place)
        where j.id = held.id and j.id = any(array(select unnest(job_ids) from expired))
          and j.lease_id = e.lease_id and j.status = 'processing' and coalesce(held.place <= e.begun, true)
        returning j.id, j.job_id, j.job_type, j.status, j.epoch, j.attempts, j.step_seq, j.error_message,
                  e.worker_id, e.created_at
      ), uncalled as (
        update ${jobs} j set ${handedBack('e.created_at')}
        from expired e cross join unnest(e.job_ids) with ordinality held (id, place)
        where j.id = held.id and j.id = any(array(select unnest(job_ids) from expired where begun is not null))
          and j.lease_id = e.lease_id and j.status = 'processing' and held.place > e.begun
        returning j.job_id, j.job_type, j.status, e.worker_id
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
      from (select) always left join (
        select job_id, job_type, status, worker_id from freed
        union all select job_id, job_type, status, worker_id from uncalled) f on true`,

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

    // $1 the job's row, $2 the operation.
    abandon: `
      with added as (
        insert into ${abandoned} (job, operation_url)
        select job_id, $2::text from ${jobs} where id = $1::bigint and status = 'cancelled'
        returning id
      )
      select pg_notify('broadcast_queue_recall', '') from added`,

    // At most ten tries, over about half a day.
    abandoned: `
      with due as materialized (
        select id from ${abandoned} where due_at <= clock_timestamp() order by id limit 20 for update skip locked
      ), given_up as (
        delete from ${abandoned} a using due where a.id = due.id and a.tries >= 10
      )
      update ${abandoned} a
      set tries = a.tries + 1, due_at = clock_timestamp() + least(power(2, a.tries) * 30, 7200) * interval '1 second'
      from due where a.id = due.id and a.tries < 10
      returning a.id, a.job as job_id, a.operation_url, a.tries`,

    // How many differences it folded into the totals, of $1 at most.
    fold: `select ${identifier(schema)}.broadcast_queue_fold($1) as folded`,

    ended: `delete from ${abandoned} where id = $1`,

    leave: `delete from ${workers} where worker_id = $1`,

    // $1 days for completed, $2 days for failed and cancelled, $3 queue or null, $4 after this id, $5 rows to look at,
    // $6 the days given hold for the completed of every queue, whatever its own retention.
    // Walks the primary key and stops at the first batch that was created after all limits: nothing later can have
    // finished earlier, but for rows of transactions that were open for days, and those go another night.
    prune: `
      with walked as materialized (
        select id, status, completed_at, queue_name, created_at from ${jobs}
        where id > $4::bigint order by id limit $5::integer
      ), old as materialized (
        select w.id, w.completed_at from walked w
        left join ${retention} r on r.queue_name = w.queue_name and r.status = w.status
                                    and not ($6::boolean and w.status = 'completed')
        where w.status in ('completed', 'failed', 'cancelled') and ($3::text is null or w.queue_name = $3)
          and w.completed_at < now() - interval '1 day'
            * coalesce(r.days, case when w.status = 'completed' then $1::float8 else $2::float8 end)
      ), doomed as (
        delete from ${jobs} j using old
        where j.id = old.id and j.id = any(array(select id from old)) and j.completed_at = old.completed_at
        returning j.id
      ), told as (
        delete from ${attempts} a using doomed where a.job = doomed.id
      )
      select (select count(*)::integer from doomed) as deleted,
             case when count(*) = $5::integer and min(created_at) < now() - interval '1 day'
                         * least($1::float8, $2::float8, (select min(days) from ${retention}))
               then max(id) end as last_id
      from walked`,
  };
}

/**
 * A claimed job that was never called is as it was before: due, and its attempt given back. A first claim is one that set
 * started_at, to its own time.
 */
const handedBack = (claimedAt: string) => `
  status = case when j.pause_requested_at is not null then 'paused'
           when j.step_seq > 0 or j.operation_url is not null then 'processing' else 'pending' end,
  paused_from = case when j.pause_requested_at is null then null
                when j.step_seq > 0 or j.operation_url is not null then 'processing' else 'pending' end,
  hold_reason = case when j.pause_requested_at is not null then coalesce(j.hold_reason, 'paused by an operator') end,
  pause_requested_at = null, lease_id = null,
  attempts = greatest(j.attempts - 1, 0), next_retry_at = now(),
  started_at = case when j.started_at = ${claimedAt} then null else j.started_at end, updated_at = now()`;

/** The call may have been carried out, and such a job is left to an operator ($2). */
const IN_DOUBT = `$2::boolean and starts_with(j.job_type, 'send_') and j.operation_url is null`;

/** A pause was asked for while the call ran, and the call did not end the job. */
const PAUSING = `j.pause_requested_at is not null and s.status in ('pending', 'retry', 'processing')`;

/** Seconds since `processed` last rose, or since the start. */
const SINCE = `greatest(extract(epoch from clock_timestamp() - coalesce(j.progress_at, j.started_at))::float8, 0.001)`;

/** Exponentially smoothed over about a minute; the first slice counts as it is. */
const SMOOTHED_RATE = `
  s.gained / ${SINCE}
  + (coalesce(j.progress_rate, s.gained / ${SINCE}) - s.gained / ${SINCE}) * exp(-${SINCE} / 60)`;
