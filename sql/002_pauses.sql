-- serves: 1
-- Pausing a queue, or all of them: durable, and obeyed by every daemon at its next claim, because the claim itself looks
-- here. What runs already goes on to the end of its call.

create table broadcast_queue_pauses (
  -- '*' stands for every queue
  queue_name  varchar(50) primary key check (queue_name = '*' or queue_name ~ '^[a-z][a-z0-9_-]{0,49}$'),
  paused_at   timestamptz not null default clock_timestamp(),
  paused_by   text        not null default current_user,
  reason      text
);

-- True if it was not paused before.
create function broadcast_pause_queue(queue text default '*', reason text default null, paused_by text default null)
returns boolean language plpgsql set search_path from current as $$
begin
  insert into broadcast_queue_pauses (queue_name, reason, paused_by)
    values (queue, broadcast_pause_queue.reason, coalesce(broadcast_pause_queue.paused_by, current_user))
    on conflict (queue_name) do nothing;
  if not found then
    return false;
  end if;
  if queue not in ('*', 'broadcasts', 'segment-broadcasts', 'retries', 'cleanup')
     and not exists (select from broadcast_queue_jobs j where j.queue_name = queue and j.due_at is not null) then
    raise notice 'no job waits in a queue called "%"; is that its name?', queue;
  end if;
  return true;
end $$;

-- True if it was paused. Resuming '*' lifts the pause of all; a queue that was paused by its name stays so.
create function broadcast_resume_queue(queue text default '*')
returns boolean language plpgsql set search_path from current as $$
begin
  delete from broadcast_queue_pauses where queue_name = queue;
  if found then
    perform pg_notify('broadcast_queue', '');
    return true;
  end if;
  return false;
end $$;
