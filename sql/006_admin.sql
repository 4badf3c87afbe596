-- serves: 1
-- What operators need beside the queue itself: who did what, many jobs at one stroke, enqueueing once under a key of the
-- caller's, failures by their cause, and payloads with some members hidden. The daemon's API stands on it; SQL may, too.

-- Every change that somebody makes through the API, written in the change's own transaction. Rows are never altered; each
-- new one lets go of a few that are more than a year old.
create table broadcast_queue_audit (
  id          bigint generated always as identity primary key,
  at          timestamptz not null default clock_timestamp(),
  actor       text        not null,
  role        text        not null,
  -- such as job.retry, queue.pause, limit.set
  action      text        not null,
  -- the job's id, or the queue's, the limit's or the gate's name
  target      text        not null,
  before      jsonb,
  after       jsonb,
  request_id  text        not null
);

-- Requests to enqueue that came with an Idempotency-Key, by who sent them. Kept for a day.
create table broadcast_queue_requests (
  actor        text        not null,
  key          text        not null,
  fingerprint  text        not null,
  job          uuid,
  created_at   timestamptz not null default clock_timestamp(),
  primary key (actor, key)
);
create index broadcast_queue_requests_age on broadcast_queue_requests (created_at);

-- Enqueues one job at an actor's request. `verdict`: inserted; found, where a live job has its unique key; repeated,
-- where the same request came before under this key; conflict, where another one did. Of requests at the same time
-- under one key the later ones wait for the first.
create function broadcast_queue_request(
  actor text, role text, request_id text, key text, request jsonb, out job uuid, out verdict text
) language plpgsql set search_path from current as $$
declare
  print  text := encode(sha256(convert_to(request::text, 'UTF8')), 'hex');
  seen   broadcast_queue_requests;
begin
  if key is not null then
    delete from broadcast_queue_requests r where (r.actor, r.key) in (
      select o.actor, o.key from broadcast_queue_requests o where o.created_at < clock_timestamp() - interval '1 day'
      order by o.created_at limit 20 for update skip locked);
    insert into broadcast_queue_requests as r (actor, key, fingerprint)
      values (broadcast_queue_request.actor, broadcast_queue_request.key, print) on conflict do nothing;
    if not found then
      select * into seen from broadcast_queue_requests r
        where r.actor = broadcast_queue_request.actor and r.key = broadcast_queue_request.key;
      job := seen.job;
      verdict := case when seen.fingerprint = print then 'repeated' else 'conflict' end;
      return;
    end if;
  end if;

  select e.job_id, case when e.inserted then 'inserted' else 'found' end into job, verdict
  from broadcast_enqueue(
    job_type     => request ->> 'job_type',
    job_data     => request -> 'job_data',
    queue        => coalesce(request ->> 'queue', request ->> 'queue_name'),
    delay        => (request ->> 'delay')::interval,
    priority     => coalesce((request ->> 'priority')::integer, 0),
    max_attempts => coalesce((request ->> 'max_attempts')::integer, 3),
    unique_key   => case when request ? 'unique_key' then request ->> 'unique_key' else 'auto' end,
    expires_at   => (request ->> 'expires_at')::timestamptz,
    scheduled_at => (request ->> 'scheduled_at')::timestamptz,
    dry_run      => coalesce((request ->> 'dry_run')::boolean, false),
    traceparent  => request ->> 'traceparent',
    send_window  => nullif(request -> 'send_window', 'null')) e;
  if key is not null then
    update broadcast_queue_requests r set job = broadcast_queue_request.job
      where r.actor = broadcast_queue_request.actor and r.key = broadcast_queue_request.key;
  end if;
  if verdict = 'inserted' then
    insert into broadcast_queue_audit (actor, role, request_id, action, target, after)
      select broadcast_queue_request.actor, broadcast_queue_request.role, broadcast_queue_request.request_id,
             'job.enqueue', job, jsonb_build_object('job_type', j.job_type, 'queue_name', j.queue_name, 'status', j.status)
      from broadcast_queue_jobs j where j.job_id = job;
  end if;
end $$;

-- Deletes a job that has ended, and what its attempts told.
create function broadcast_delete(job_id uuid) returns text
language plpgsql set search_path from current as $$
declare
  j broadcast_queue_jobs := broadcast_queue_lock(broadcast_delete.job_id);
begin
  if j.status not in ('completed', 'failed', 'cancelled') then
    raise exception 'job % is %: only a completed, failed or cancelled job can be deleted', j.job_id, j.status
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  delete from broadcast_queue_attempts a where a.job = j.id;
  delete from broadcast_queue_jobs b where b.id = j.id;
  return 'deleted';
end $$;

-- The same action on many jobs, and one line in the audit log for all. What is not there, or in a status that does not
-- allow it, or would be the second live job of its unique key, is skipped. Fifty at a time keep within what PostgreSQL
-- remembers of a transaction's parts without looking them up.
create function broadcast_queue_act(
  action text, jobs uuid[], actor text, role text, request_id text, out changed integer, out skipped integer
) language plpgsql set search_path from current as $$
declare
  one     uuid;
  j       broadcast_queue_jobs;
  becomes text;
  was     jsonb := '{}';
  became  jsonb := '{}';
begin
  changed := 0;
  skipped := 0;
  -- In one order, so that two of these never wait for each other.
  foreach one in array array(select distinct id from unnest(jobs) id order by id) loop
    begin
      j := broadcast_queue_lock(one);
      becomes := case action when 'retry' then broadcast_retry(one) when 'cancel' then broadcast_cancel(one)
                 when 'delete' then broadcast_delete(one) end;
      was := was || jsonb_build_object(one, j.status);
      became := became || jsonb_build_object(one, becomes);
      changed := changed + 1;
    exception when no_data_found or object_not_in_prerequisite_state or unique_violation then
      skipped := skipped + 1;
    end;
  end loop;
  if changed > 0 then
    insert into broadcast_queue_audit (actor, role, request_id, action, target, before, after)
      values (actor, role, request_id, 'jobs.' || action, format('%s jobs', changed), was, became);
  end if;
end $$;

-- What the messages of failures with one cause have in common: ids, numbers and quoted words are left out.
create function broadcast_failure_cause(message text) returns text
language sql immutable parallel safe
return left(
  regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(
    left(message, 2048),
    '"[^"]*"|''[^'']*''|`[^`]*`|“[^”]*”', '"…"', 'g'),
    '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<id>', 'g'),
    '\m(0x[0-9a-fA-F]+|(?=[0-9a-fA-F]*[0-9])[0-9a-fA-F]{8,})\M', '<hex>', 'g'),
    '[0-9]+([.,:][0-9]+)*', '<n>', 'g'),
    '\s+', ' ', 'g'),
  300);

-- A payload with the values of these members hidden, wherever they stand; what lies deeper than anybody means it to is
-- hidden whole.
create function broadcast_redacted(payload jsonb, hidden text[], depth integer default 0) returns jsonb
language plpgsql immutable parallel safe set search_path from current as $$
begin
  if depth > 30 then
    return '"[redacted]"';
  end if;
  return case jsonb_typeof(payload)
    when 'object' then (
      select coalesce(jsonb_object_agg(m.key, case when m.key = any(hidden) then '"[redacted]"'
                                                else broadcast_redacted(m.value, hidden, depth + 1) end), '{}')
      from jsonb_each(payload) m)
    when 'array' then (
      select coalesce(jsonb_agg(broadcast_redacted(e.value, hidden, depth + 1) order by e.place), '[]')
      from jsonb_array_elements(payload) with ordinality e (value, place))
    else payload end;
end $$;
