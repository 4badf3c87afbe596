/**
 * The sandbox's own tables, in a schema of their own beside the daemon's, and its sample users. They stand for what a
 * bot's team has: people, the broadcasts it wrote, and the ledger that makes sure nobody gets one twice.
 *
 *   users        who there is, and why some must not or cannot be reached
 *   broadcasts   what there is to send; any id that is asked for comes into being
 *   ledger       one row per broadcast and person, written before the send: the guard against duplicates
 *   deliveries   what the pretended messenger really delivered. No unique constraint: it is the evidence
 *   retry_queue  people whose send failed for a passing reason
 *   operations   what the service runs by itself at level 3, and how far it has come
 *   jobs, calls  what the service remembers of the daemon: the latest epoch of each job, the answer to each key
 *   requests     the calls received, for a look from outside
 */
import pg from 'pg';
import { DatabaseUnavailable } from '../errors.js';
import { isDatabaseAway } from './answer.js';

/** The first half of every advisory lock that the sandbox takes, so that it never meets the daemon's. */
export const LOCK_CLASS = 0x5a9db0;

/** A stored answer or an ended operation is only a short cut: the ledger still stands when it is gone. */
const ANSWERS_KEPT_DAYS = 60;

/**
 * Makes tables and users where there are none yet. Safe when several sandboxes start at once: one does it while the
 * others wait.
 * @param recipients how many users to make when there are none
 * @throws DatabaseUnavailable
 */
export async function prepareSchema(databaseUrl: string, recipients: number): Promise<void> {
  const client = new pg.Client({
    connectionString: databaseUrl,
    application_name: 'broadcastd-sandbox-setup',
    connectionTimeoutMillis: 10_000,
    statement_timeout: 120_000,
    query_timeout: 130_000,
  });
  client.on('error', () => {}); // The statement in hand, or the next one, says the same.
  try {
    await client.connect();
    await client.query('begin');
    await client.query('select pg_advisory_xact_lock($1, 0)', [LOCK_CLASS]);
    // Not `if not exists` alone: even where there is nothing to do, making an index locks a table that another sandbox
    // sends from.
    const { rows } = await client.query(`select to_regclass('broadcast_sandbox.operations') is null as bare`);
    if (rows[0]?.bare) await client.query(TABLES);
    const { rowCount } = await client.query(SEED, [recipients]);
    if (rowCount !== 0) await client.query('analyze broadcast_sandbox.users');
    await client.query('delete from broadcast_sandbox.calls where created_at < now() - make_interval(days => $1)', [
      ANSWERS_KEPT_DAYS,
    ]);
    await client.query(
      `delete from broadcast_sandbox.operations
       where status <> 'running' and created_at < now() - make_interval(days => $1)`,
      [ANSWERS_KEPT_DAYS],
    );
    await client.query('commit');
  } catch (error) {
    if (isDatabaseAway(error)) {
      throw new DatabaseUnavailable(`The sandbox cannot use its database: ${String(error)}`, { cause: error });
    }
    throw error;
  } finally {
    await client.end().catch(() => {}); // A connection that broke is already gone.
  }
}

const TABLES = `
create schema if not exists broadcast_sandbox;

create table if not exists broadcast_sandbox.users (
  user_id           bigint primary key,
  segments          text[] not null default '{}',
  language          text not null,
  opted_out_at      timestamptz,
  blocked_bot       boolean not null default false,
  deactivated       boolean not null default false,
  -- The first try of each broadcast fails for a passing reason.
  flaky             boolean not null default false,
  last_broadcast_at timestamptz,
  -- How many broadcasts on the day of the last one, for the frequency limit.
  sent_that_day     integer not null default 0
) with (fillfactor = 60);

create table if not exists broadcast_sandbox.broadcasts (
  broadcast_id text primary key,
  text         text not null,
  -- The bot's team says that there is no such broadcast.
  unknown      boolean not null default false,
  created_at   timestamptz not null default now()
);

-- One index only: with another the planner, whose statistics are stale in mid-broadcast, takes the wrong one.
create table if not exists broadcast_sandbox.ledger (
  broadcast_id text not null,
  user_id      bigint not null,
  -- The job that made the latest try.
  job_id       text not null,
  epoch        bigint not null,
  -- The step that made it: a step that sends again knows by it whom it has sent to itself.
  step         bigint not null default 0,
  -- Of an A/B test: every try sends the same.
  variant      text,
  state        text not null check (state in ('sending', 'sent', 'failed', 'skipped', 'unknown')),
  reason       text,
  claimed_at   timestamptz not null default clock_timestamp(),
  settled_at   timestamptz,
  primary key (broadcast_id, user_id)
) with (fillfactor = 50);

create table if not exists broadcast_sandbox.deliveries (
  broadcast_id    text not null,
  user_id         bigint not null,
  job_id          text not null,
  epoch           bigint not null,
  idempotency_key text,
  variant         text,
  delivered_at    timestamptz not null default clock_timestamp()
);
create index if not exists deliveries_broadcast on broadcast_sandbox.deliveries (broadcast_id);

create table if not exists broadcast_sandbox.retry_queue (
  broadcast_id text not null,
  user_id      bigint not null,
  tries        integer not null,
  due_at       timestamptz not null,
  primary key (broadcast_id, user_id)
);
create index if not exists retry_queue_due on broadcast_sandbox.retry_queue (due_at);

create table if not exists broadcast_sandbox.jobs (
  job_id       text primary key,
  epoch        bigint not null,
  -- The audience ends here: frozen when the job is first called, so that people who join meanwhile wait for the next.
  last_user_id bigint,
  -- How many people that were.
  total        integer
);

create table if not exists broadcast_sandbox.calls (
  idempotency_key text primary key,
  job_id          text not null,
  fingerprint     text not null,
  -- Null while the work goes on, or when it was cut short: which of the two, the job's advisory lock tells.
  answer          text,
  status          integer not null default 200,
  created_at      timestamptz not null default now()
);

create table if not exists broadcast_sandbox.operations (
  operation_id    text primary key default gen_random_uuid(),
  idempotency_key text not null unique,
  job_id          text not null,
  job_type        text not null,
  epoch           bigint not null,
  -- The body of the call that began it.
  request         text not null,
  status          text not null default 'running' check (status in ('running', 'completed', 'failed', 'cancelled')),
  -- Where to go on.
  cursor          text,
  progress        jsonb,
  error           text,
  created_at      timestamptz not null default now()
);
create index if not exists operations_job on broadcast_sandbox.operations (job_id);

create table if not exists broadcast_sandbox.requests (
  request_no       bigint generated always as identity primary key,
  idempotency_key  text,
  job_id           text not null,
  job_type         text not null,
  epoch            bigint not null,
  attempt          integer not null,
  previous_failure text,
  received_at      timestamptz not null default clock_timestamp(),
  answered_status  integer
);
`;

/**
 * i times a number coprime to 100 visits every remainder once in each hundred users: of any hundred in a row exactly 5
 * have opted out, 3 block the bot, 1 is deactivated, 1 is flaky, 20 are premium, 10 new and 15 inactive.
 */
const SEED = `
insert into broadcast_sandbox.users
  (user_id, segments, language, opted_out_at, blocked_bot, deactivated, flaky)
select i + 1,
       array_remove(array[
         case when kind < 20 then 'premium' end,
         case when kind between 20 and 29 then 'new' end,
         case when kind >= 85 then 'inactive' end], null),
       (array['en', 'es', 'de', 'fr', 'pt', 'uk'])[1 + i % 6],
       case when fate < 5 then timestamptz '2026-01-01 00:00:00+00' end,
       fate between 5 and 7,
       fate = 8,
       fate = 9
from (select i, i * 37 % 100 as fate, (i * 61 + i / 100 * 7) % 100 as kind
      from generate_series(0::bigint, $1::bigint - 1) as i) as person
where not exists (select from broadcast_sandbox.users)`;
