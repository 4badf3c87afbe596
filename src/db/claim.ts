/**
 * The claim: the one statement that decides who does what next. It costs the same whether a thousand jobs wait or ten
 * million, and whatever they wait for: everything is read by the claim's index, in its order, and only as far as slots
 * are free.
 */
import { identifier } from './pool.js';

/**
 * $1 lease, $2 worker, $3 lease ms, $4 max bytes, $5 queues, $6 their free slots, $7 how many jobs more of each may be
 * claimed ahead, $8 free slots of each other queue.
 *
 * One row per job, in the order of the line, or one without a job; each says in how many milliseconds to look again.
 */
export function claimStatement(schema: string): string {
  const at = (name: string) => `${identifier(schema)}.${name}`;
  const jobs = at('broadcast_queue_jobs');
  const leases = at('broadcast_queue_leases');
  const limits = at('broadcast_queue_limits');
  const services = at('broadcast_queue_services');

  return `
    with recursive
    ${lanes(jobs)},
    ${service(services, at('broadcast_queue_gates'))},
    ${wanted(at('broadcast_queue_pauses'), limits)},
    bots as materialized (
      select wanted.queue_name, lane.priority, b.place, b.id, b.bot_id, b.opens_at
      from wanted cross join unnest(wanted.priorities, wanted.bots) lane (priority, bots)
      cross join ${at('broadcast_queue_bots_due')}(wanted.queue_name, lane.priority, wanted.free) b
      where wanted.free > 0 and lane.bots
    ),
    ${rooms(jobs, leases, limits)},
    ${due(jobs, at('broadcast_window_wait'))},
    probe as (
      update ${services} s
      set probes = s.probes + 1, open_until = clock_timestamp() + interval '1 second'
        * case when first.outage_calls >= ${PROBES_AT_A_BRISK_PACE} then ${SLOW_PROBE_PAUSE_S}
          else least(power(2, s.probes + 1), ${PROBE_PAUSE_MAX_S}) end
      from (select outage_calls from due where probes order by line limit 1) first
      where s.name = 'default' and s.opened_at is not null and s.open_until <= now()
      returning s.open_until
    ), chosen as materialized (
      -- First those that there are slots for, then the others so that all queues come to their end together.
      select due.*, row_number() over (order by share, line) as place from due
      -- While the breaker tries whether the service is back, one daemon makes one call.
      where not probes or line = (select min(line) from due where probes) and exists (select from probe)
    ),
    ${taken(jobs, leases)},
    counted as (
      update ${limits} l set claims = l.claims + 1
      where l.key = any(array(
        select room.key from room join claimed on room.queue_name = claimed.queue_name or room.bot_id = claimed.bot_id))
    )
    select ${nextLook(jobs)} as next_due_ms, exists (select from room) as capped,
      ${last('queue_name not in (select queue_name from wanted where true = any(bots))')} as last,
      ${answer(schema)}`;
}

/**
 * The same claim for the usual case that no limit, pause, gate, breaker or bot has its say: half the time, since a node of
 * a plan costs whether it is needed or not, and a lone job waits for all of them. `usual` tells whether that is the case;
 * where it is not, this claim takes nothing, and the whole one is to be asked. Values and answer are as there.
 */
export function usualClaimStatement(schema: string): string {
  const at = (name: string) => `${identifier(schema)}.${name}`;
  const jobs = at('broadcast_queue_jobs');
  return `
    with recursive
    lane (queue_name, priority) as (
      (select queue_name, priority from ${jobs} where due_at is not null
       order by queue_name, priority desc, names_bot limit 1)
      union all
      select next.queue_name, next.priority from lane cross join lateral (
        (select j.queue_name, j.priority from ${jobs} j
         where j.due_at is not null and j.queue_name = lane.queue_name and j.priority < lane.priority
         order by j.priority desc, j.names_bot limit 1)
        union all
        (select j.queue_name, j.priority from ${jobs} j
         where j.due_at is not null and j.queue_name > lane.queue_name
         order by j.queue_name, j.priority desc, j.names_bot limit 1)
        limit 1) next
    ), queue as materialized (
      select queue_name, array_agg(priority order by priority desc) as priorities from lane group by queue_name
    ),
    ${service(at('broadcast_queue_services'), at('broadcast_queue_gates'))},
    usual as materialized (
      select not exists (select from service where troubled or half_open or opens_at is not null)
        and not exists (select from ${at('broadcast_queue_limits')})
        and not exists (select from ${at('broadcast_queue_pauses')})
        and not exists (
          select from lane cross join lateral (
            select from ${jobs} j
            where j.queue_name = lane.queue_name and j.priority = lane.priority and j.names_bot and j.due_at is not null
            order by j.due_at limit 1) of_bot) as holds
    ), wanted as materialized (
      select queue_name, priorities, coalesce(slots.free, $8::integer) as at_once, coalesce(slots.ahead, 0) as ahead
      from queue left join unnest($5::text[], $6::integer[], $7::integer[]) slots (queue_name, free, ahead)
        using (queue_name)
      where coalesce(slots.free, $8::integer) + coalesce(slots.ahead, 0) > 0 and (select holds from usual)
    ), in_line as materialized (
      select due.id, due.due_at, row_number() over () as line, wanted.queue_name, due.priority, at_once, ahead
      from wanted cross join lateral (
        select j.*
        from unnest(wanted.priorities) lane (priority) cross join lateral (
          select j.id, j.priority, j.due_at from ${jobs} j
          where j.queue_name = wanted.queue_name and j.priority = lane.priority and not j.names_bot
            and j.due_at <= now()
          order by j.due_at, j.id limit wanted.at_once + wanted.ahead
          for no key update skip locked) j
        limit wanted.at_once + wanted.ahead) due
    ), due as materialized (
      ${shared}
    ), chosen as materialized (
      select *, row_number() over (order by share, line) as place from due
    ),
    ${taken(jobs, at('broadcast_queue_leases'))}
    select (
        select (extract(epoch from min(soon.due_at)) - extract(epoch from now()))::float8 * 1000
        from wanted cross join unnest(wanted.priorities) lane (priority) cross join lateral (
          select j.due_at from ${jobs} j
          where j.queue_name = wanted.queue_name and j.priority = lane.priority and not j.names_bot
            and j.due_at > now()
          order by j.due_at limit 1) soon) as next_due_ms,
      false as capped, ${last('true')} as last, (select holds from usual) as usual,
      ${answer(schema)}`;
}

/**
 * Goes on behind the last jobs of an earlier claim, in their lanes, and so passes over neither the lanes nor what was
 * claimed before: its dead entries stay in the index until they are vacuumed, and until a transaction that began before
 * has ended. Brings nothing where anything at all has its say that the whole claim would have to weigh.
 *
 * $1 to $7 as there, $8 to $10 priority, time due and id of each queue's last job. Answers as the claim does, but does not
 * know what comes next.
 */
export function goOnStatement(schema: string): string {
  const at = (name: string) => `${identifier(schema)}.${name}`;
  const jobs = at('broadcast_queue_jobs');
  const limits = at('broadcast_queue_limits');
  const pauses = at('broadcast_queue_pauses');
  return `
    with
    ${service(at('broadcast_queue_services'), at('broadcast_queue_gates'))},
    lane as materialized (
      select * from unnest($5::text[], $6::integer[], $7::integer[], $8::smallint[], $9::timestamptz[], $10::bigint[])
        lane (queue_name, at_once, ahead, priority, due_at, id)
      where not exists (select from service where troubled or half_open or opens_at is not null)
        and not exists (select from ${limits} l where l.key = 'queue:' || lane.queue_name)
        and not exists (select from ${pauses} p where p.queue_name in (lane.queue_name, '*'))
    ), in_line as materialized (
      select due.id, due.due_at, row_number() over () as line, lane.queue_name, lane.priority, at_once, ahead
      from lane cross join lateral (
        select j.id, j.due_at from ${jobs} j
        where j.queue_name = lane.queue_name and j.priority = lane.priority and not j.names_bot
          and j.due_at <= now() and (j.due_at, j.id) > (lane.due_at, lane.id)
        order by j.due_at, j.id limit lane.at_once + lane.ahead
        for no key update skip locked) due
    ), due as materialized (
      ${shared}
    ), chosen as materialized (
      select *, row_number() over (order by share, line) as place from due
    ),
    ${taken(jobs, at('broadcast_queue_leases'))}
    select 0::float8 as next_due_ms, false as capped, ${last('true')} as last,
      ${answer(schema)}`;
}

/**
 * Writes the claim down. Rows to be written are named twice, by a join and by an array: without the array a plan made
 * while the table was empty, and kept, would read the table from end to end in the join.
 */
const taken = (jobs: string, leases: string) => `
  claimed as (
    update ${jobs} j
    set status = 'processing', lease_id = $1::uuid, epoch = j.epoch + 1,
        -- a pending row with its attempts spent was set back by hand: it starts over
        attempts = case when j.status = 'pending' and j.attempts >= j.max_attempts then 1 else j.attempts + 1 end,
        started_at = coalesce(j.started_at, now()), completed_at = null, pause_requested_at = null,
        hold_reason = null, updated_at = now()
    from chosen where j.id = chosen.id and j.id = any(array(select id from chosen))
    returning j.*, chosen.place, chosen.share > 0 as ahead,
              (extract(epoch from now()) - extract(epoch from chosen.due_at))::float8 * 1000 as waited_ms
  ), leased as (
    insert into ${leases} (lease_id, worker_id, job_ids, begun, created_at, expires_at)
    select $1::uuid, $2::text, array_agg(id order by place), count(*) filter (where not ahead), now(),
           clock_timestamp() + $3::float8 * interval '1 millisecond'
    from claimed having count(*) > 0
  )`;

/** Where each queue's line was left, as JSON, for going on there. */
const last = (condition: string) => `
  (select json_agg(json_build_array(queue_name, priority, due_at, id)) from (
     select distinct on (queue_name) queue_name, priority, due_at, id from chosen
     where ${condition} order by queue_name, line desc) last)`;

/** What a handler is told of its job. What few jobs have is looked up only where somebody has it. */
function answer(schema: string): string {
  const at = (name: string) => `${identifier(schema)}.${name}`;
  const limits = at('broadcast_queue_limits');
  const counted = (member: string) => `case when c.progress is null then 0 else
      coalesce((jsonb_path_query_first(c.progress, '$.${member} ? (@ >= 1 && @ < 1e15)') #>> '{}')::float8, 0) end`;
  return `
      c.ahead, c.id, c.job_id, c.queue_name, c.job_type, c.bot_id,
      left(coalesce(c.job_data ->> 'broadcast_id', c.job_data ->> 'broadcastId'), 100) as broadcast_id,
      left(coalesce(c.job_data ->> 'segment_id', c.job_data ->> 'segmentId'), 100) as segment_id,
      c.attempts, c.max_attempts, c.epoch, c.step_seq, c.step_cursor, c.step_scope, c.operation_url,
      c.previous_failure, c.dry_run, c.traceparent, c.created_at, c.scheduled_at, c.expires_at,
      octet_length(data.json) as payload_bytes,
      case when octet_length(data.json) <= $4::integer then data.json end as job_data,
      c.started_at = now() as first,
      coalesce(c.expires_at <= now() and c.started_at = now(), false) as expired,
      case when c.send_window is not null or (select exists (select from ${at('broadcast_queue_windows')}))
        then ${at('broadcast_window_wait')}(c.send_window, c.queue_name, c.scheduled_at, c.started_at = now()) end
        as window_wait_ms,
      case when (select exists (select from ${limits} where per_second is not null)) then
        exists (select from ${limits} l where l.key in ('queue:' || c.queue_name, 'bot:' || c.bot_id)
                                          and l.per_second is not null) else false end as limited,
      (select troubled from service) as troubled,
      ${counted('processed')} as processed, ${counted('skipped')} as skipped,
      c.stalled_calls, coalesce(extract(epoch from now() - c.stalled_since)::float8 * 1000, 0) as stalled_ms,
      c.waited_ms, extract(epoch from clock_timestamp())::float8 * 1000 as now_ms
    from (select) always
    left join (claimed c cross join lateral (select c.job_data::text offset 0) data (json)) on true
    order by c.place`;
}

/** Pauses between the breaker's probes double up to this; a job that has probed so often waits longer. */
const PROBE_PAUSE_MAX_S = 8;
const PROBES_AT_A_BRISK_PACE = 10;
const SLOW_PROBE_PAUSE_S = 60;

/** Cleaning up calls nobody, so it does not wait for the service. */
const CALLS_NOBODY = `'cleanup'`;

/**
 * `line`: every queue and priority that holds jobs, by a loose scan of the claim's index, one probe each, so that rows
 * of a priority that are far in the future do not stand in the way of a lower one that is due. Jobs that name a bot stand
 * apart from the others.
 */
export const lanes = (jobs: string) => `
  line (queue_name, priority, names_bot) as (
    (select queue_name, priority, names_bot from ${jobs} where due_at is not null
     order by queue_name, priority desc, names_bot limit 1)
    union all
    select next.queue_name, next.priority, next.names_bot from line cross join lateral (
      (select j.queue_name, j.priority, j.names_bot from ${jobs} j
       where not line.names_bot and j.due_at is not null and j.queue_name = line.queue_name
         and j.priority = line.priority and j.names_bot
       -- in order, lest the planner read the table until it meets one
       order by j.due_at limit 1)
      union all
      (select j.queue_name, j.priority, j.names_bot from ${jobs} j
       where j.due_at is not null and j.queue_name = line.queue_name and j.priority < line.priority
       order by j.priority desc, j.names_bot limit 1)
      union all
      (select j.queue_name, j.priority, j.names_bot from ${jobs} j
       where j.due_at is not null and j.queue_name > line.queue_name
       order by j.queue_name, j.priority desc, j.names_bot limit 1)
      limit 1) next
  ), lane as materialized (
    select queue_name, priority, bool_or(not names_bot) as others, bool_or(names_bot) as bots
    from line group by queue_name, priority
  )`;

/** Whether the service may be called: when its gate and its breaker open; a probe alone; a success would be news. */
const service = (services: string, gates: string) => `
  service as materialized (
    select nullif(greatest(now(), s.open_until, (select g.closed_until from ${gates} g where g.key = 'service')), now())
             as opens_at,
           s.opened_at is not null and s.open_until <= now() as half_open,
           s.opened_at is not null or s.streak > 0 as troubled
    from ${services} s where s.name = 'default'
  )`;

/** Each queue that holds jobs: its priorities, highest first, and how many jobs of it this claim may take. */
const wanted = (pauses: string, limits: string) => `
  queue as materialized (
    select queue_name, array_agg(priority order by priority desc) as priorities,
           array_agg(others order by priority desc) as others, array_agg(bots order by priority desc) as bots
    from lane group by queue_name
  ), wanted as materialized (
    select queue.*, shut.opens_at,
           case when shut.opens_at is not null
                  or exists (select from ${pauses} p where p.queue_name in (queue.queue_name, '*')) then 0
                else at_once + case when slots.ahead = 0 or service.troubled
                    or exists (select from ${limits} l where l.key = 'queue:' || queue.queue_name
                                 or true = any(queue.bots) and starts_with(l.key, 'bot:')) then 0
                  else coalesce(slots.ahead, 0) end
                end as free,
           at_once, slots.ahead
    from queue left join unnest($5::text[], $6::integer[], $7::integer[]) slots (queue_name, free, ahead)
      using (queue_name)
    cross join lateral (select coalesce(slots.free, $8::integer) as at_once) slot
    cross join service
    cross join lateral (
      select greatest(case when queue.queue_name <> ${CALLS_NOBODY} then service.opens_at end,
        (select l.next_free_at - interval '100 milliseconds' from ${limits} l
         where l.key = 'queue:' || queue.queue_name and l.per_second is not null
           and l.next_free_at > now() + interval '100 milliseconds')) as opens_at) shut
  )`;

/**
 * How many more jobs at once the limits allow the queues and bots in question. Their rows are locked, and a row that
 * another claim holds, or has counted under since this statement began, leaves no room just now.
 */
const rooms = (jobs: string, leases: string, limits: string) => `
  seen as materialized (
    select l.key, l.claims from ${limits} l
    where l.max_concurrent is not null and l.key = any(array(
      select 'queue:' || queue_name from wanted where free > 0
      union all select distinct 'bot:' || bot_id from bots where id is not null))
  ), capped as materialized (
    select l.key, l.claims, l.max_concurrent from ${limits} l
    where l.max_concurrent is not null and l.key = any(array(select key from seen))
    for no key update skip locked
  ), running as materialized (
    select 'queue:' || j.queue_name as queue_key, 'bot:' || j.bot_id as bot_key, count(*)::integer as jobs
    from ${leases} l cross join unnest(l.job_ids) held (id) join ${jobs} j on j.id = held.id
    where exists (select from seen) and j.lease_id = l.lease_id and j.status = 'processing'
      and j.id = any(array(select unnest(job_ids) from ${leases} where exists (select from seen)))
    group by j.queue_name, j.bot_id
  ), room as materialized (
    select seen.key, capped.claims is distinct from seen.claims as is_contended,
           case when starts_with(seen.key, 'queue:') then substr(seen.key, 7) end as queue_name,
           case when starts_with(seen.key, 'bot:') then substr(seen.key, 5) end as bot_id,
           case when capped.claims = seen.claims then greatest(capped.max_concurrent - coalesce(
             (select sum(jobs)::integer from running where seen.key in (queue_key, bot_key)), 0), 0) else 0 end as jobs
    from seen left join capped using (key)
  )`;

/**
 * The jobs themselves, locked. Each lane is read in the index's own order; the subqueries are nested so that nothing
 * sorts or materializes between the index and the limit where no job names a bot. `probes`: it would call the service
 * while that may only be tried.
 */
const due = (jobs: string, windowWait: string) => `
  allowed as materialized (
    select wanted.*, least(wanted.free, (select room.jobs from room where room.queue_name = wanted.queue_name)) as slots
    from wanted
  ), of_bots as materialized (
    -- A bot's room is one for all queues and priorities.
    select b.queue_name, b.priority, b.id
    from (select bots.*, row_number() over (partition by bots.bot_id order by bots.priority desc, bots.place) as of_bot
          from bots join allowed using (queue_name) where bots.id is not null and allowed.slots > 0) b
    where b.of_bot <= coalesce((select room.jobs from room where room.bot_id = b.bot_id), b.of_bot)
  ), in_line as materialized (
    select due.id, due.due_at, due.outage_calls, row_number() over () as line, allowed.queue_name, due.priority,
           at_once, ahead,
           (select half_open from service) and allowed.queue_name <> ${CALLS_NOBODY}
             and coalesce(due.started_at is not null or due.expires_at > now(), true)
             and ${windowWait}(due.send_window, allowed.queue_name, due.scheduled_at, due.started_at is null) is null
             as probes
    from allowed cross join lateral (
      select j.*
      from unnest(allowed.priorities, allowed.others, allowed.bots) lane (priority, others, bots)
      cross join lateral (
        select j.* from (
          select * from (
           select ${DUE_COLUMNS} from ${jobs} j
           where lane.others and j.queue_name = allowed.queue_name and j.priority = lane.priority and not j.names_bot
             and j.due_at <= now()
           order by j.due_at, j.id limit allowed.slots
           for no key update skip locked) others
          union all
          select * from (
           -- "is true", lest the planner go by the time due and read all that is
           select ${DUE_COLUMNS} from ${jobs} j
           where lane.bots and (j.due_at <= now()) is true and j.id = any(array(
             select b.id from of_bots b where b.queue_name = allowed.queue_name and b.priority = lane.priority))
           order by j.due_at, j.id limit allowed.slots
           for no key update skip locked) of_bots) j
        order by j.due_at, j.id limit allowed.slots) j
      limit allowed.slots) due
    where allowed.slots > 0
  ), due as materialized (
    ${shared}
  )`;

/** How far behind the free slots of its queue each job is: above 0, as a part of what is claimed ahead. */
const shared = `
    select *, greatest(row_number() over (partition by queue_name order by line) - at_once, 0)::float8
                / greatest(ahead, 1) as share
    from in_line`;

const DUE_COLUMNS =
  'j.id, j.priority, j.due_at, j.outage_calls, j.send_window, j.scheduled_at, j.started_at, j.expires_at';

/** When the next job comes due, or something opens that jobs wait for. */
const nextLook = (jobs: string) => `
  (select (extract(epoch from min(soon.at)) - extract(epoch from now()))::float8 * 1000
   from (
     select soon.due_at from wanted cross join unnest(wanted.priorities) lane (priority)
     cross join unnest(array[false, true]) names (bot) cross join lateral (
       select j.due_at from ${jobs} j
       where j.queue_name = wanted.queue_name and j.priority = lane.priority and j.names_bot = names.bot
         and j.due_at > now()
       order by j.due_at limit 1) soon
     where wanted.free > 0
     union all select opens_at from wanted
     union all select opens_at from bots where id is null
     union all select open_until from probe
     union all select now() + interval '20 milliseconds' from room where is_contended
     union all select now() + interval '1 second' from service where half_open and not exists (select from probe)
   ) soon (at))`;
