-- serves: 1
-- Jobs claimed before there is a slot for them, and what that asks of the tables.

-- How many of the lease's jobs, from the first of job_ids, may have been called; null: any of them (a claim of a daemon
-- that claims nothing ahead). When the lease expires the others have lost nothing.
alter table broadcast_queue_leases add column begun integer;
