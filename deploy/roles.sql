-- Roles for broadcastd: who may do what with the queue's tables and functions, and nobody else anything.
--
--     enqueuer   adds jobs, by broadcast_enqueue, broadcast_enqueue_many or a plain INSERT that names no other columns
--                than a job's own wishes; reads broadcast_progress and the table's public columns. Changes nothing.
--     operator   an enqueuer and viewer who also pauses, resumes, cancels, retries and resends jobs, and pauses queues.
--                Limits, windows, gates, retention and deleting are the worker's, as they are an admin's in the API.
--     worker     the daemon with AUTO_MIGRATE=false: reads and writes every row, and has no DDL.
--     viewer     reads everything, writes nothing.
--
-- The tables belong to whoever ran `broadcastd migrate`. Run this afterwards, as a superuser or that role (which needs
-- CREATEROLE where the roles are missing), and again after each upgrade, for a new version may bring new tables:
--
--     psql "$MIGRATE_DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/roles.sql
--
-- The roles are made where they are missing, without login. Let yours in by membership:
--
--     create role bot login password '…' in role broadcastd_enqueuer;
--     create role daemon login password '…' in role broadcastd_worker;
--
-- Other names, of a role that exists already too, and another schema are settings of the session, before this file:
--
--     psql "$MIGRATE_DATABASE_URL" -v ON_ERROR_STOP=1 \
--          -c "set broadcastd.schema = 'queue_a'" -c "set broadcastd.enqueuer = 'bot'" -f deploy/roles.sql
--
-- It is plain SQL, so any client may run it. It may run any number of times: what it does not grant, it takes away.

begin;

-- Nothing that others made may stand in for what is named here.
set local search_path = pg_catalog, pg_temp;

do $roles$
declare
  schema_name  text := coalesce(nullif(current_setting('broadcastd.schema', true), ''), 'public');
  enqueuer     text := coalesce(nullif(current_setting('broadcastd.enqueuer', true), ''), 'broadcastd_enqueuer');
  operator     text := coalesce(nullif(current_setting('broadcastd.operator', true), ''), 'broadcastd_operator');
  worker       text := coalesce(nullif(current_setting('broadcastd.worker', true), ''), 'broadcastd_worker');
  viewer       text := coalesce(nullif(current_setting('broadcastd.viewer', true), ''), 'broadcastd_viewer');

  -- What a producer may say about a job. The rest is the daemon's to write.
  wishes constant text :=
    'job_id, queue_name, job_type, job_data, max_attempts, scheduled_at, priority, unique_key, expires_at, dry_run, '
    'traceparent, send_window';
  -- live_key is among them because finding the live job of a key reads it.
  public_columns constant text :=
    'id, job_id, queue_name, job_type, job_data, status, attempts, max_attempts, error_message, error_code, result, '
    'scheduled_at, started_at, completed_at, next_retry_at, created_at, updated_at, priority, unique_key, live_key, '
    'expires_at, progress, progress_rate, progress_at, hold_reason, flags, dry_run, traceparent, due_at, send_window, '
    'bot_id, step_seq, step_scope';
  -- What the operators' functions write.
  operated constant text :=
    'status, attempts, epoch, lease_id, scheduled_at, next_retry_at, completed_at, stalled_calls, stalled_since, '
    'hold_reason, paused_from, pause_requested_at, error_code, error_message, updated_at, operation_url, outage_calls, '
    'step_seq, step_cursor, step_scope, previous_failure, flags, progress_rate, progress_at';
  for_enqueuers constant text[] := array[
    'broadcast_enqueue', 'broadcast_enqueue_many', 'broadcast_progress', 'broadcast_usual_queue', 'broadcast_usual_key',
    'broadcast_queue_vanished', 'broadcast_window_fault', 'broadcast_window_is_sound', 'broadcast_window_opens'];
  for_viewers constant text[] := array['broadcast_progress', 'broadcast_usual_queue', 'broadcast_usual_key',
    'broadcast_window_fault', 'broadcast_window_opens', 'broadcast_window_wait', 'broadcast_why_waiting',
    'broadcast_queue_outage_codes', 'broadcast_queue_processing_ms', 'broadcast_failure_cause', 'broadcast_redacted'];
  for_operators constant text[] := for_enqueuers || for_viewers || array[
    'broadcast_queue_lock', 'broadcast_pause', 'broadcast_resume', 'broadcast_cancel', 'broadcast_retry',
    'broadcast_resend', 'broadcast_pause_queue', 'broadcast_resume_queue', 'broadcast_queue_act',
    'broadcast_queue_request',
    -- called by broadcast_queue_act, and of no use without DELETE on the tables, which they have not
    'broadcast_delete'];

  jobs      text := format('%I.broadcast_queue_jobs', schema_name);
  owner     oid := (select relowner from pg_class where oid = to_regclass(jobs));
  role      text;
  everyone  text;
  item      record;
begin
  if owner is null then
    raise exception 'there is no table broadcast_queue_jobs in the schema "%"', schema_name
      using hint = 'Run "broadcastd migrate" first, or set broadcastd.schema to the value of DATABASE_SCHEMA.';
  end if;

  foreach role in array array[enqueuer, operator, worker, viewer] loop
    if role = 'public' then
      raise exception 'public is everybody, and cannot be one of the roles';
    end if;
    if role = pg_get_userbyid(owner) then
      raise exception 'the role "%" owns the tables, so it may do everything', role
        using hint = 'Name another role; only migrations need the owner.';
    end if;
    if to_regrole(quote_ident(role)) is null then
      execute format('create role %I nologin', role);
    end if;
  end loop;

  -- From here on as SQL.
  enqueuer := quote_ident(enqueuer);
  operator := quote_ident(operator);
  worker := quote_ident(worker);
  viewer := quote_ident(viewer);
  everyone := concat_ws(', ', enqueuer, operator, worker, viewer);

  -- Whoever may create functions or operators where the queue's functions look for theirs could slip in one that fits
  -- better, and have it run by the daemon (CVE-2018-1058). Before PostgreSQL 15, everybody may create in "public".
  execute format('revoke create on schema %I from public', schema_name);
  if exists (select from pg_namespace n, aclexplode(n.nspacl) acl
             where n.nspname = schema_name and acl.grantee = 0 and acl.privilege_type = 'CREATE') then
    raise warning 'everybody may still create objects in the schema "%", and so have code run by the daemon', schema_name
      using hint = format('As its owner: REVOKE CREATE ON SCHEMA %I FROM PUBLIC', schema_name);
  end if;
  execute format('grant usage on schema %I to %s', schema_name, everyone);

  -- All that migrations make is called so, and an older table that stepped aside for ours is called broadcast_queue_jobs_….
  for item in
    select c.oid::regclass as name, c.relname = 'broadcast_queue_migrations' as is_history,
           c.relname = 'broadcast_queue_audit' as is_audit
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = schema_name and c.relkind in ('r', 'p', 'v') and c.relname like 'broadcast\_queue\_%'
      and c.relname not like 'broadcast\_queue\_jobs\_%'
  loop
    execute format('revoke all on %s from public, %s', item.name, everyone);
    execute format('grant select on %s to %s, %s, %s', item.name, viewer, operator, worker);
    if not item.is_history then
      execute format('grant insert, delete on %s to %s', item.name, worker);
    end if;
    -- What the audit log says stays as it was said.
    if not item.is_history and not item.is_audit then
      execute format('grant update on %s to %s', item.name, worker);
    end if;
  end loop;

  execute format('grant select (%s), insert (%s) on %s to %s, %s', public_columns, wishes, jobs, enqueuer, operator);
  execute format('grant update (%s) on %s to %s', operated, jobs, operator);
  execute format('grant insert on %I.broadcast_queue_attempts to %s', schema_name, operator);
  execute format('grant insert on %I.broadcast_queue_abandoned to %s', schema_name, operator);
  -- The commands lock the row of a pause before they change it, so that the audit log says what was before.
  execute format('grant insert, update, delete on %I.broadcast_queue_pauses to %s', schema_name, operator);
  -- Only added to: nobody but the worker, which lets go of what is a year old, takes anything out of the audit log.
  execute format('grant insert on %I.broadcast_queue_audit to %s', schema_name, operator);
  execute format('grant insert, update, delete on %I.broadcast_queue_requests to %s', schema_name, operator);

  -- A bot may have functions of its own whose names begin like ours, so ours are told by their owner as well.
  for item in
    select p.oid::regprocedure as signature, p.proname::text as name
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = schema_name and p.proowner = owner and p.proname like 'broadcast\_%'
  loop
    execute format('revoke all on routine %s from public, %s', item.signature, everyone);
    execute format('grant execute on routine %s to %s', item.signature, concat_ws(', ', worker,
      case when item.name = any (for_enqueuers) then enqueuer end,
      case when item.name = any (for_operators) then operator end,
      case when item.name = any (for_viewers) then viewer end));
  end loop;
end $roles$;

commit;
