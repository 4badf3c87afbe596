-- serves: 4
-- How fast, and whether at all: limits, gates, the breaker and send windows. One state in the database for all daemons.
--
-- A limit is so many messages a second, jobs at once, or both, for a queue or for a bot. Before a call that a limit
-- governs the daemon asks for a grant: how many people the call may reach, at what pace, from when on. Grants of one
-- limit follow one another without overlap: next_free_at is where the last one ends. A grant lasts about a second, and
-- is given a tenth of a second ahead at most, so that a changed limit is obeyed at once. When a call has taken much longer
-- than its grant, by a stumble of a machine, those after it wait for each other's reports until one is in time again; but
-- not where the service is always slower than its pace, for then several calls together come up to the limit.
--
-- A gate keeps everybody from calling until it opens: the bot's, or the service's. The breaker is a gate that failures
-- close, and that opens a little at a time: one call, by one daemon, after pauses that grow, until one succeeds.
--
-- The claim looks here too, and leaves alone what could not be called now: jobs that wait hold no slot and no lease.

create table broadcast_queue_limits (
  key             text primary key,
  -- messages a second
  per_second      double precision,
  -- jobs at once, over all daemons
  max_concurrent  integer,
  next_free_at    timestamptz not null default clock_timestamp(),
  -- until when the last grant is waited for, where it has not been reported; how many in a row were reported late
  held_until      timestamptz,
  late            smallint    not null default 0,
  -- rises with every claim under max_concurrent, so that of two claims at once the later sees that it counted too few
  claims          bigint      not null default 0,
  updated_at      timestamptz not null default clock_timestamp(),
  updated_by      text        not null default current_user,
  constraint key_names_a_queue_or_bot check (key ~ '^(queue:[a-z][a-z0-9_-]{0,49}|bot:.{1,100})$'),
  constraint limits_something check (per_second is not null or max_concurrent is not null),
  constraint per_second_in_range check (per_second between 0.001 and 1000000),
  constraint max_concurrent_in_range check (max_concurrent between 1 and 100000)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- 'service', or 'bot:' and the job_data's bot_id.
create table broadcast_queue_gates (
  key           text primary key check (key ~ '^(service|bot:.{1,100})$'),
  closed_until  timestamptz not null,
  reason        text,
  closed_at     timestamptz not null default clock_timestamp()
);

-- The broadcast service as the daemons have met it. One row.
create table broadcast_queue_services (
  name        text primary key,
  -- the highest level of the protocol that it has claimed; null: it has not said
  level       smallint,
  -- failures in a row and whose they were, an entry for each; calls and failures of the last seconds by daemon
  streak      integer   not null default 0,
  jobs        bigint[]  not null default '{}',
  recent      jsonb     not null default '{}',
  last_error  text,
  -- null: the breaker is closed. Else nothing is called before open_until, and then one job is, as a probe.
  opened_at   timestamptz,
  open_until  timestamptz,
  probes      integer   not null default 0
);
insert into broadcast_queue_services (name) values ('default');

-- Hours that hold for every job of a queue which has none of its own.
create table broadcast_queue_windows (
  queue_name   varchar(50) primary key check (queue_name ~ '^[a-z][a-z0-9_-]{0,49}$'),
  send_window  jsonb       not null
);

-- Send windows. -------------------------------------------------------------------------------------------------------

-- {"from": "22:00", "to": "06:00", "time_zone": "Europe/Berlin", "days": [1, 2, 3, 4, 5], "missed": "wait"}
-- `to` at or before `from` ends on the next day; equal, it lasts a whole one. `days` are those on which it begins,
-- 1 Monday to 7 Sunday, all if left out. `missed`: a job that could not begin in its first window waits for the next
-- one, or with "fail" does not go out any more.
create function broadcast_window_fault(send_window jsonb) returns text
language plpgsql stable set search_path from current as $$
declare
  zone   text := coalesce(send_window ->> 'time_zone', '');
  member text;
begin
  if jsonb_typeof(send_window) <> 'object' then
    return 'it is no JSON object';
  end if;
  select m into member from jsonb_object_keys(send_window) m
    where m not in ('from', 'to', 'time_zone', 'days', 'missed') limit 1;
  if member is not null then
    return format('it has an unknown member "%s"', member);
  elsif not coalesce(send_window ->> 'from', '') ~ '^([01][0-9]|2[0-3]):[0-5][0-9]$' then
    return '"from" is no time such as 09:00';
  elsif not coalesce(send_window ->> 'to', '') ~ '^([01][0-9]|2[0-3]):[0-5][0-9]$' then
    return '"to" is no time such as 21:00';
  elsif not zone ~ '^([A-Za-z_]+(/[A-Za-z_-]+)+|Etc/GMT[+-]1?[0-9]|UTC|GMT)$' then
    -- PostgreSQL would take "Berlin+1" as well, and mean something else by it.
    return '"time_zone" is no name such as Europe/Berlin';
  elsif send_window ? 'days' and (jsonb_typeof(send_window -> 'days') <> 'array'
        or send_window -> 'days' = '[]' or not send_window -> 'days' <@ '[1, 2, 3, 4, 5, 6, 7]') then
    return '"days" is no list of days, 1 (Monday) to 7 (Sunday)';
  elsif coalesce(send_window ->> 'missed', 'wait') not in ('wait', 'fail') then
    return '"missed" is neither "wait" nor "fail"';
  end if;
  -- To try it is a thousand times faster than to look into pg_timezone_names.
  perform now() at time zone zone;
  return null;
exception when invalid_parameter_value then
  return format('the time zone "%s" is unknown', zone);
end $$;

-- No constraint: those are checked at every update of the row, and a time zone that a new version of PostgreSQL does not
-- know any more must not stop a claim.
create function broadcast_window_is_sound() returns trigger
language plpgsql set search_path from current as $$
declare
  fault text := broadcast_window_fault(new.send_window);
begin
  if fault is not null then
    raise exception 'send_window: %', fault using errcode = 'check_violation',
      hint = 'Such as {"from": "09:00", "to": "21:00", "time_zone": "Europe/Berlin", "days": [1, 2, 3, 4, 5]}';
  end if;
  return new;
end $$;

create trigger send_window_is_sound before insert or update of send_window on broadcast_queue_jobs
  for each row when (new.send_window is not null) execute function broadcast_window_is_sound();
-- A job that waits for the window as it was finds out at once how it is now.
create function broadcast_window_changed() returns trigger
language plpgsql set search_path from current as $$
begin
  new.next_retry_at := clock_timestamp();
  return new;
end $$;
create trigger send_window_changed before update of send_window on broadcast_queue_jobs
  for each row when (old.send_window is distinct from new.send_window and old.status in ('retry', 'processing')
                     and old.hold_reason = 'waiting for its send window')
  execute function broadcast_window_changed();

create trigger send_window_is_sound before insert or update of send_window on broadcast_queue_windows
  for each row execute function broadcast_window_is_sound();

-- The window that `at` lies in, else the next one. Local times that a change of the clocks skips or repeats are read as
-- PostgreSQL reads them, so a window is never lost and never comes twice.
create function broadcast_window_opens(
  send_window jsonb, at timestamptz, out opens timestamptz, out closes timestamptz
) language plpgsql stable set search_path from current as $$
declare
  zone       text := send_window ->> 'time_zone';
  begins     time := send_window ->> 'from';
  ends       time := send_window ->> 'to';
  over_night integer := (ends <= begins)::integer;
  day        date;
begin
  -- A window that began yesterday may last until now; of the days to come, seven hold every weekday.
  for ahead in -1..8 loop
    day := (at at time zone zone)::date + ahead;
    continue when send_window ? 'days' and not send_window -> 'days' @> to_jsonb(extract(isodow from day)::integer);
    opens := (day + begins) at time zone zone;
    closes := (day + over_night + ends) at time zone zone;
    if closes <= opens then
      -- It began in an hour that was skipped, and so begins later: then it ends later too.
      closes := opens + ((day + over_night + ends) - (day + begins));
    end if;
    exit when at < closes;
  end loop;
end $$;

-- How long a job must wait for its window, or its queue's, in milliseconds; null where it may go. Negative: it has
-- missed its window, and is not to go out any more.
create function broadcast_window_wait(send_window jsonb, queue text, scheduled_at timestamptz, is_first boolean)
returns double precision language plpgsql stable set search_path from current as $$
declare
  hours  jsonb := coalesce(send_window, (select w.send_window from broadcast_queue_windows w where w.queue_name = queue));
  opens  timestamptz;
begin
  if hours is null then
    return null;
  end if;
  -- The first window after its time is the only one: is it over?
  if is_first and hours ->> 'missed' = 'fail'
     and (select w.closes <= now() from broadcast_window_opens(hours, scheduled_at) w) then
    return -1;
  end if;
  select w.opens into opens from broadcast_window_opens(hours, now()) w;
  return case when opens > now() then extract(epoch from opens - now())::float8 * 1000 end;
exception when others then
  -- The time zone is known no more. Better a broadcast at a wrong hour than a claim that fails for all of them.
  return null;
end $$;

-- Null takes the queue's window away.
create function broadcast_set_window(queue text, send_window jsonb) returns void
language plpgsql set search_path from current as $$
begin
  if broadcast_set_window.send_window is null then
    delete from broadcast_queue_windows w where w.queue_name = queue;
  else
    insert into broadcast_queue_windows as w (queue_name, send_window) values (queue, broadcast_set_window.send_window)
      on conflict (queue_name) do update set send_window = excluded.send_window;
  end if;
  -- Whoever waits for the window as it was finds out at once how it is now.
  update broadcast_queue_jobs j set next_retry_at = clock_timestamp()
    where j.queue_name = queue and j.due_at > clock_timestamp() and j.status in ('retry', 'processing')
      and j.hold_reason = 'waiting for its send window';
  perform pg_notify('broadcast_queue', '');
end $$;

-- Limits. -------------------------------------------------------------------------------------------------------------

-- Sets both members; null is no limit of that kind. What is granted already, a second's worth, still goes out.
create function broadcast_set_limit(
  key text, per_second double precision, max_concurrent integer default null, updated_by text default null
) returns void language plpgsql set search_path from current as $$
begin
  if not coalesce(broadcast_set_limit.key, '') ~ '^(queue:[a-z][a-z0-9_-]{0,49}|bot:.{1,100})$' then
    raise exception 'the key "%" is none: it is queue:<name> or bot:<bot_id>', broadcast_set_limit.key
      using errcode = 'invalid_parameter_value';
  elsif not coalesce(broadcast_set_limit.per_second between 0.001 and 1000000, true) then
    raise exception 'per_second is %, and must be from 0.001 to 1000000', broadcast_set_limit.per_second
      using errcode = 'invalid_parameter_value', hint = 'To stop a queue, SELECT broadcast_pause_queue(''its name'')';
  elsif not coalesce(broadcast_set_limit.max_concurrent between 1 and 100000, true) then
    raise exception 'max_concurrent is %, and must be from 1 to 100000', broadcast_set_limit.max_concurrent
      using errcode = 'invalid_parameter_value';
  elsif coalesce(broadcast_set_limit.per_second, broadcast_set_limit.max_concurrent) is null then
    raise exception 'a limit needs per_second or max_concurrent' using errcode = 'invalid_parameter_value',
      hint = format('To take it away, SELECT broadcast_drop_limit(%L)', broadcast_set_limit.key);
  end if;
  insert into broadcast_queue_limits as l (key, per_second, max_concurrent, updated_by)
    values (broadcast_set_limit.key, broadcast_set_limit.per_second, broadcast_set_limit.max_concurrent,
            coalesce(broadcast_set_limit.updated_by, current_user))
    on conflict on constraint broadcast_queue_limits_pkey do update
      set per_second = excluded.per_second, max_concurrent = excluded.max_concurrent,
          -- a slow limit may have given its next minutes away
          next_free_at = least(l.next_free_at, clock_timestamp() + interval '1 second'),
          updated_at = clock_timestamp(), updated_by = excluded.updated_by;
  perform pg_notify('broadcast_queue', '');
end $$;

-- True if there was one.
create function broadcast_drop_limit(key text) returns boolean
language plpgsql set search_path from current as $$
begin
  delete from broadcast_queue_limits l where l.key = broadcast_drop_limit.key;
  if found then
    perform pg_notify('broadcast_queue', '');
    return true;
  end if;
  return false;
end $$;

-- When nothing keeps this bot's jobs from being called any more; null: nothing does now.
create function broadcast_queue_bot_opens(bot text) returns timestamptz
language plpgsql stable set search_path from current as $$
begin
  return nullif(greatest(
    (select g.closed_until from broadcast_queue_gates g where g.key = 'bot:' || bot),
    (select l.next_free_at - interval '100 milliseconds' from broadcast_queue_limits l
     where l.key = 'bot:' || bot and l.per_second is not null),
    now()), now());
end $$;

-- Asks for what one call may do: at most `most` people, and about a second's worth of every limit that governs it.
-- items null: no limit governs it any more. items 0: not now, but perhaps in wait_ms. Else it may begin in wait_ms, is
-- to keep to per_second, and its time is over lasts_ms later; `receipt` goes back with broadcast_queue_grant_used.
create function broadcast_queue_grant(
  queue text, bot text, most integer,
  out items integer, out per_second double precision, out wait_ms double precision, out lasts_ms double precision,
  out receipt jsonb
) language plpgsql set search_path from current as $$
declare
  l       record;
  moment  timestamptz;
  begins  timestamptz := '-infinity';
  held    timestamptz;
  shut    timestamptz;
begin
  -- In the order of their keys, so that no two calls wait for each other.
  for l in select * from broadcast_queue_limits b
           where b.key in ('queue:' || queue, 'bot:' || bot) and b.per_second is not null
           order by b.key for no key update loop
    per_second := least(per_second, l.per_second);
    begins := greatest(begins, l.next_free_at);
    held := greatest(held, case when l.late between 1 and 2 then l.held_until end);
  end loop;
  if per_second is null then
    return;
  end if;
  moment := clock_timestamp();
  select max(g.closed_until) into shut from broadcast_queue_gates g
    where g.key in ('service', 'bot:' || bot) and g.closed_until > moment;
  if shut is not null or begins > moment + interval '100 milliseconds' then
    items := 0;
    wait_ms := extract(epoch from greatest(shut, begins - interval '80 milliseconds') - moment)::float8 * 1000;
    return;
  elsif held > moment then
    items := 0;
    wait_ms := extract(epoch from greatest(begins, least(held, moment + interval '50 milliseconds')) - moment)::float8 * 1000;
    return;
  end if;
  begins := greatest(begins, moment);
  items := greatest(least(most, floor(per_second)::integer), 1);
  wait_ms := extract(epoch from begins - moment)::float8 * 1000;
  lasts_ms := items / per_second * 1000;
  -- A fiftieth of rest between two grants: no call begins on the dot, and the limit must hold.
  with given as (
    update broadcast_queue_limits b
      set next_free_at = begins + items / b.per_second * 1.02 * interval '1 second',
          -- only the limit that sets the pace is full; on the others calls may run side by side
          held_until = case when b.per_second = broadcast_queue_grant.per_second
                         then begins + (least(lasts_ms, 2000) + 1000) * interval '1 millisecond' end
      where b.key in ('queue:' || queue, 'bot:' || bot) and b.per_second is not null
      returning b.key, b.next_free_at
  ) select jsonb_object_agg(given.key, given.next_free_at) into receipt from given;
end $$;

-- What a grant was really used for. What is left over is given back where nobody was granted the time after it, else it
-- is lost; and a service that did more than it was granted has used what comes next.
create function broadcast_queue_grant_used(receipt jsonb, items integer, used bigint) returns void
language plpgsql set search_path from current as $$
declare
  keys    constant text[] := array(select jsonb_object_keys(receipt));
  moment  constant timestamptz := clock_timestamp();
  freed   boolean;
begin
  -- In the same order as the grants.
  perform from broadcast_queue_limits l where l.key = any(keys) order by l.key for no key update;
  with returned as (
    update broadcast_queue_limits l
    set next_free_at = case
          when used > items then l.next_free_at + least((used - items) / l.per_second, 3600) * interval '1 second'
          when used < items and l.next_free_at = (receipt ->> l.key)::timestamptz
            then greatest(moment, l.next_free_at - (items - used) / l.per_second * 1.02 * interval '1 second')
          else l.next_free_at end,
        late = case when l.held_until is null then l.late
                    when moment > (receipt ->> l.key)::timestamptz + interval '100 milliseconds'
                      then least(l.late + 1, 3) else 0 end,
        held_until = case when l.next_free_at <> (receipt ->> l.key)::timestamptz then l.held_until end
    where l.key = any(keys) and l.per_second is not null
    returning (receipt ->> l.key)::timestamptz as until, l.next_free_at
  ) select bool_or(moment > r.until or r.next_free_at < r.until - interval '20 milliseconds') into freed from returned r;
  if freed then
    perform pg_notify('broadcast_queue', '');
  end if;
end $$;

-- The due jobs of a queue's priority that name a bot, as the claim wants them: those whose bot may be called, in order,
-- of each no more than its limit of jobs at once allows, and more of them than there are slots free, since other daemons
-- claim too. Usually they stand at the head of the line; where jobs of bots that must wait clog it, the line is read bot
-- by bot. A row without id says when one of those opens.
create function broadcast_queue_bots_due(queue text, lane smallint, free integer)
returns table (place bigint, id bigint, bot_id text, opens_at timestamptz)
language plpgsql stable rows 20 set search_path from current as $$
declare
  head_rows constant integer := free * 3 + 50;
  bots_read constant integer := 5000;
begin
  return query
  with recursive head as materialized (
    select j.id, j.bot_id, j.due_at from broadcast_queue_jobs j
    where j.queue_name = queue and j.priority = lane and j.names_bot and j.due_at <= now()
    order by j.due_at, j.id limit head_rows
  ), running as materialized (
    select j.bot_id, count(*)::integer as jobs
    from broadcast_queue_leases l cross join unnest(l.job_ids) held (id) join broadcast_queue_jobs j on j.id = held.id
    where exists (select from head) and j.lease_id = l.lease_id and j.status = 'processing' and j.bot_id is not null
      and j.id = any(array(select unnest(r.job_ids) from broadcast_queue_leases r))
    group by j.bot_id
  ), met as materialized (
    select m.*, broadcast_queue_bot_opens(m.bot_id) as opens_at,
           (select greatest(l.max_concurrent - coalesce((select r.jobs from running r where r.bot_id = m.bot_id), 0), 0)
            from broadcast_queue_limits l where l.key = 'bot:' || m.bot_id) as room
    from (select h.bot_id, array_agg(h.id order by h.due_at, h.id) as ids,
                 array_agg(h.due_at order by h.due_at, h.id) as dues
          from head h group by h.bot_id) m
  ), ready as materialized (
    select j.id, met.bot_id, j.due_at
    from met cross join unnest(met.ids, met.dues) with ordinality j (id, due_at, of_bot)
    where met.opens_at is null and (met.room is null or j.of_bot <= met.room)
  ), clogged as materialized (
    select (select count(*) from head) = head_rows and (select count(*) from ready) < free as yes
  ), bot (bot_id, n) as (
    (select j.bot_id, 1 from clogged cross join lateral (
       select j.bot_id from broadcast_queue_jobs j
       where clogged.yes and j.queue_name = queue and j.priority = lane and j.due_at is not null and j.bot_id is not null
       order by j.bot_id limit 1) j)
    union all
    select j.bot_id, bot.n + 1 from bot cross join lateral (
      select j.bot_id from broadcast_queue_jobs j
      where j.queue_name = queue and j.priority = lane and j.due_at is not null and j.bot_id > bot.bot_id
      order by j.bot_id limit 1) j
    where bot.n < bots_read
  ), behind as materialized (
    select j.id, j.bot_id, j.due_at, b.opens_at
    from (select bot.bot_id, broadcast_queue_bot_opens(bot.bot_id) as opens_at,
                 (select greatest(
                    l.max_concurrent - coalesce((select r.jobs from running r where r.bot_id = bot.bot_id), 0), 0)
                  from broadcast_queue_limits l where l.key = 'bot:' || bot.bot_id) as room
          from bot offset 0) b
    cross join lateral (
      select j.id, j.bot_id, j.due_at from broadcast_queue_jobs j
      where j.queue_name = queue and j.priority = lane and j.bot_id = b.bot_id and j.due_at <= now()
      order by j.due_at, j.id
      limit case when b.opens_at is null then least(free, b.room) else 1 end) j
  )
  select row_number() over (order by r.due_at, r.id), r.id, r.bot_id, null::timestamptz
  from (
    select * from ready where not (select c.yes from clogged c)
    union all
    (select b.id, b.bot_id, b.due_at from behind b where b.opens_at is null order by b.due_at, b.id limit head_rows)
  ) r
  union all
  select 0, null, null, min(w.opens_at)
  from (select met.opens_at from met union all select behind.opens_at from behind) w
  where w.opens_at is not null having count(*) > 0;
end $$;

-- Gates and the breaker. ----------------------------------------------------------------------------------------------

-- Nobody calls for `ms` milliseconds. One that is closed for longer stays so.
create function broadcast_close_gate(key text, ms double precision, reason text default null) returns void
language plpgsql set search_path from current as $$
begin
  insert into broadcast_queue_gates as g (key, closed_until, reason)
    values (broadcast_close_gate.key, clock_timestamp() + ms * interval '1 millisecond',
            left(broadcast_close_gate.reason, 500))
    on conflict on constraint broadcast_queue_gates_pkey do update
      set closed_until = excluded.closed_until, reason = excluded.reason,
          closed_at = case when g.closed_until > clock_timestamp() then g.closed_at else excluded.closed_at end
      where g.closed_until < excluded.closed_until;
end $$;

-- Lets everybody call again at once. True if it was closed. The service's also closes the breaker.
create function broadcast_open_gate(key text) returns boolean
language plpgsql set search_path from current as $$
declare
  was_closed boolean;
begin
  delete from broadcast_queue_gates g where g.key = broadcast_open_gate.key
    returning g.closed_until > clock_timestamp() into was_closed;
  if broadcast_open_gate.key = 'service' then
    was_closed := broadcast_queue_service_answers() or coalesce(was_closed, false);
  end if;
  perform pg_notify('broadcast_queue', '');
  return coalesce(was_closed, false);
end $$;

-- A call failed in a way that says more of the service than of its job. Opens the breaker after five in a row over at
-- least two jobs, when half of twenty within ten seconds failed, at once where it refuses our credentials, or when a job
-- would be given up though nothing has succeeded since it began to fail. `refund`: the failure is not the job's, and
-- costs it nothing: twenty times a job at most. wait_ms: until the next probe.
create function broadcast_queue_service_failed(
  job bigint, lease uuid, error_code text, message text, is_last boolean, worker text, calls integer, failures integer,
  out refund boolean, out wait_ms double precision, out opened boolean
) language plpgsql set search_path from current as $$
declare
  refunds_max constant integer := 20;
  s       broadcast_queue_services;
  moment  timestamptz;
  spent   integer;
begin
  select * into s from broadcast_queue_services where name = 'default' for no key update;
  moment := clock_timestamp();
  s.last_error := left(message, 500);
  s.jobs := array_append(s.jobs, job);
  s.jobs := s.jobs[greatest(cardinality(s.jobs) - 19, 1):];
  opened := false;
  if s.opened_at is null then
    s.streak := s.streak + 1;
    s.recent := coalesce((select jsonb_object_agg(r.key, r.value) from jsonb_each(s.recent) r
                          where (r.value ->> 'at')::float8 > extract(epoch from moment) - 10), '{}')
                || jsonb_build_object(worker, jsonb_build_object(
                     'at', extract(epoch from moment), 'calls', calls, 'failures', failures));
    opened := error_code = 'unauthorized'
      or s.streak >= 5 and s.jobs[1] <> any(s.jobs)
      or is_last and s.streak >= 2
      or (select sum((r.value ->> 'calls')::integer) >= 20
                 and sum((r.value ->> 'failures')::integer) * 2 >= sum((r.value ->> 'calls')::integer)
          from jsonb_each(s.recent) r);
    if opened then
      s.opened_at := moment;
      s.open_until := moment + interval '1 second';
      s.probes := 0;
    end if;
  end if;
  update broadcast_queue_services
    set (streak, jobs, recent, last_error, opened_at, open_until, probes)
      = (s.streak, s.jobs, s.recent, s.last_error, s.opened_at, s.open_until, s.probes)
    where name = 'default';
  if s.opened_at is null then
    refund := false;
    return;
  end if;
  if opened then
    -- The failures that led to this were the service's as well. One that is not settled yet will find its attempt given
    -- back already; the one told of here is given back by its settlement, which follows.
    update broadcast_queue_jobs j
      set attempts = j.attempts - least(f.times, j.attempts, refunds_max - j.outage_calls),
          outage_calls = j.outage_calls + least(f.times, j.attempts, refunds_max - j.outage_calls),
          next_retry_at = case when j.status = 'retry' then s.open_until else j.next_retry_at end
      from (select id, count(*)::integer - (id = job)::integer as times from unnest(s.jobs) id group by id) f
      where j.id = f.id and j.id = any(s.jobs) and f.times > 0 and j.attempts > 0 and j.outage_calls < refunds_max
        and (j.status = 'retry' and j.error_code = any(broadcast_queue_outage_codes())
             or j.status = 'processing' and j.lease_id is not null);
  end if;
  update broadcast_queue_jobs j set outage_calls = j.outage_calls + 1
    where j.id = job and j.lease_id = lease and j.outage_calls < refunds_max
    returning j.outage_calls into spent;
  refund := spent is not null;
  wait_ms := greatest(extract(epoch from s.open_until - moment)::float8 * 1000, 0);
end $$;

-- The failures that count for the breaker (src/queue/flow.ts names the same).
create function broadcast_queue_outage_codes() returns text[] language sql immutable
return array['connection_refused', 'dns', 'tls', 'connection_lost', 'timeout', 'unauthorized',
             'http_502', 'http_503', 'http_504'];

-- A call succeeded: whatever was, the service works. True if the breaker was open.
create function broadcast_queue_service_answers() returns boolean
language plpgsql set search_path from current as $$
declare
  was_open  boolean;
  waiting   bigint[];
begin
  select s.opened_at is not null, s.jobs into was_open, waiting from broadcast_queue_services s
    where s.name = 'default' and (s.streak > 0 or s.opened_at is not null) for no key update;
  if was_open is null then
    return false;
  end if;
  update broadcast_queue_services
    set streak = 0, jobs = '{}', recent = case when was_open then '{}' else recent end,
        opened_at = null, open_until = null, probes = 0
    where name = 'default';
  if was_open then
    -- Those that probed wait for the next turn, which need not come any more.
    update broadcast_queue_jobs j set next_retry_at = clock_timestamp()
      where j.id = any(waiting) and j.status = 'retry' and j.next_retry_at > clock_timestamp()
        and j.outage_calls > 0 and j.error_code = any(broadcast_queue_outage_codes());
    perform pg_notify('broadcast_queue', '');
  end if;
  return was_open;
end $$;
