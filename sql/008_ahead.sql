-- serves: 1
-- Jobs claimed before there is a slot for them, and what that asks of the tables.

-- How many of the lease's jobs, from the first of job_ids, may have been called; null: any of them (a claim of a daemon
-- that claims nothing ahead). When the lease expires the others have lost nothing.
alter table broadcast_queue_leases add column begun integer;

-- The same rule as before. A check is looked at whenever a row is written, so the usual names are known at a glance.
alter table broadcast_queue_jobs drop constraint queue_name_is_addressable;
alter table broadcast_queue_jobs add constraint queue_name_is_addressable check (
  queue_name in ('broadcasts', 'segment-broadcasts', 'retries', 'cleanup')
  or queue_name ~ '^[a-z][a-z0-9_-]{0,49}$'
     and queue_name not in ('status', 'statistics', 'health', 'job', 'jobs', 'broadcast', 'pause', 'resume', 'limits',
                            'queues', 'workers', 'failures', 'events', 'schedules', 'audit'));
