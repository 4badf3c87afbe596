-- serves: 1
-- How long finished jobs are kept where the daemon's RETENTION_DAYS and DEAD_LETTER_DAYS are not what a queue needs.

create table broadcast_queue_retention (
  queue_name  varchar(50)      not null,
  status      varchar(50)      not null,
  days        double precision not null,
  primary key (queue_name, status),
  constraint status_is_final check (status in ('completed', 'failed', 'cancelled')),
  constraint days_in_range check (days between 0 and 36500)
);

-- Null days: as the daemon's settings say. Obeyed by the next cleanup_queue.
create function broadcast_set_retention(queue text, status text, days double precision) returns void
language plpgsql set search_path from current as $$
begin
  if days is null then
    delete from broadcast_queue_retention r
      where r.queue_name = queue and r.status = broadcast_set_retention.status;
  else
    insert into broadcast_queue_retention as r (queue_name, status, days)
      values (queue, broadcast_set_retention.status, broadcast_set_retention.days)
      on conflict on constraint broadcast_queue_retention_pkey do update set days = excluded.days;
  end if;
end $$;
