/** The sandbox's connections, and what it keeps besides the sending itself: calls received, broadcasts, reports. */
import pg from 'pg';
import type { Call } from './request.js';
import { LOCK_CLASS } from './schema.js';

export interface Pools {
  /** For single statements. */
  readonly statements: pg.Pool;
  /** One connection for each call at work, for as long as it works: their number bounds the calls at once. */
  readonly runs: pg.Pool;
}

export interface RequestRecord {
  idempotency_key: string | null;
  job_id: string;
  job_type: string;
  epoch: number;
  attempt: number;
  previous_failure: string | null;
  received_at: Date;
  /** Null when no answer was sent, or not yet. */
  answered_status: number | null;
}

/** People of one broadcast. `sending`: their message is under way right now. */
export interface BroadcastReport {
  sent: number;
  failed: number;
  skipped: number;
  unknown: number;
  sending: number;
  /** People with more than one delivery. */
  duplicates: number;
  /** Deliveries of each variant of an A/B test. What people did with them, a messenger would have to tell. */
  variants: Record<string, number>;
}

const REQUESTS_KEPT = 10_000;
const PRUNED_EVERY = 500;

export function openPools(databaseUrl: string, onError: (error: Error) => void): Pools {
  const open = (name: string, max: number, options?: string) => {
    const pool = new pg.Pool({
      connectionString: databaseUrl,
      application_name: `broadcastd-sandbox-${name}`,
      max,
      connectionTimeoutMillis: 5_000,
      idleTimeoutMillis: 10_000,
      statement_timeout: 15_000,
      lock_timeout: 10_000,
      query_timeout: 20_000,
      keepAlive: true,
      ...(options !== undefined && { options }),
    });
    // Both are needed: without them a connection that dies while nobody uses it ends the process.
    pool.on('error', onError);
    pool.on('connect', (client) => client.on('error', onError));
    return pool;
  };
  // In mid-broadcast the statistics are stale: the planner believes the ledger to be empty, and would read all of it.
  return { statements: open('statements', 4), runs: open('runs', 16, '-c enable_seqscan=off') };
}

/** Writes a call down as received; resolves with its number. Only the latest are kept. */
export async function recordRequest({ statements }: Pools, call: Call): Promise<string> {
  const { rows } = await statements.query<{ request_no: string }>(
    `insert into broadcast_sandbox.requests (idempotency_key, job_id, job_type, epoch, attempt, previous_failure)
     values ($1, $2, $3, $4, $5, $6) returning request_no`,
    [call.key, call.jobId, call.type, call.epoch, call.attempt, call.previousFailure],
  );
  const requestNo = rows[0]?.request_no ?? '0';
  if (Number(requestNo) % PRUNED_EVERY === 0) {
    await statements.query('delete from broadcast_sandbox.requests where request_no <= $1', [
      Number(requestNo) - REQUESTS_KEPT,
    ]);
  }
  return requestNo;
}

export async function recordAnswer({ statements }: Pools, requestNo: string, status: number): Promise<void> {
  await statements.query('update broadcast_sandbox.requests set answered_status = $2 where request_no = $1', [
    requestNo,
    status,
  ]);
}

/** The latest first. */
export async function listRequests({ statements }: Pools, limit: number): Promise<RequestRecord[]> {
  const { rows } = await statements.query<RequestRecord>(
    `select idempotency_key, job_id, job_type, epoch::float8 as epoch, attempt, previous_failure, received_at,
            answered_status
     from broadcast_sandbox.requests order by request_no desc limit $1`,
    [limit],
  );
  return rows;
}

/** Any broadcast that is asked for comes into being, but for those that were declared unknown: those are false. */
export async function findBroadcast({ statements }: Pools, broadcastId: string): Promise<boolean> {
  const { rows } = await statements.query<{ unknown: boolean }>(
    `insert into broadcast_sandbox.broadcasts as b (broadcast_id, text) values ($1, $2)
     on conflict (broadcast_id) do update set broadcast_id = b.broadcast_id
     returning b.unknown`,
    [broadcastId, `Hello! This is broadcast ${broadcastId}.`],
  );
  return rows[0]?.unknown !== true;
}

export async function declareBroadcast({ statements }: Pools, broadcastId: string, unknown: boolean): Promise<void> {
  await statements.query(
    `insert into broadcast_sandbox.broadcasts (broadcast_id, text, unknown) values ($1, $2, $3)
     on conflict (broadcast_id) do update set unknown = excluded.unknown`,
    [broadcastId, `Hello! This is broadcast ${broadcastId}.`, unknown],
  );
}

/**
 * Counts from the ledger, and from the deliveries those people whom no ledger knows (level 0). A row in `sending` whose
 * job holds no lock was left by a crash: unknown.
 */
export async function reportBroadcast({ statements }: Pools, broadcastId: string): Promise<BroadcastReport> {
  const { rows } = await statements.query<BroadcastReport>(
    `with running as materialized (
       select objid::bigint as hash from pg_locks
       where locktype = 'advisory' and classid = $2::oid and granted
         and database = (select oid from pg_database where datname = current_database())
     ), state as (
       select case when l.state = 'sending' and (hashtext(l.job_id)::bigint & 4294967295) not in (select hash from running)
                   then 'unknown' else l.state end as state
       from broadcast_sandbox.ledger as l where l.broadcast_id = $1
     ), reached as materialized (
       select user_id, count(*) as times from broadcast_sandbox.deliveries where broadcast_id = $1 group by user_id
     ), variants as materialized (
       select variant, count(*) as times from broadcast_sandbox.deliveries
       where broadcast_id = $1 and variant is not null group by variant
     ), unlisted as (
       select count(*)::integer as people from reached
       where not exists (select from broadcast_sandbox.ledger as l
                         where l.broadcast_id = $1 and l.user_id = reached.user_id)
     )
     select count(*) filter (where state = 'sent')::integer + (select people from unlisted) as sent,
            count(*) filter (where state = 'failed')::integer as failed,
            count(*) filter (where state = 'skipped')::integer as skipped,
            count(*) filter (where state = 'unknown')::integer as unknown,
            count(*) filter (where state = 'sending')::integer as sending,
            (select count(*)::integer from reached where times > 1) as duplicates,
            (select coalesce(jsonb_object_agg(variant, times), '{}') from variants) as variants
     from state`,
    [broadcastId, LOCK_CLASS],
  );
  return rows[0] ?? { sent: 0, failed: 0, skipped: 0, unknown: 0, sending: 0, duplicates: 0, variants: {} };
}

/** How many people there are, by what a broadcast to everybody meets. */
export async function countUsers({ statements }: Pools): Promise<Record<string, number>> {
  const { rows } = await statements.query<Record<string, number>>(
    `select count(*)::integer as users,
            count(*) filter (where opted_out_at is not null)::integer as opted_out,
            count(*) filter (where blocked_bot)::integer as blocked,
            count(*) filter (where deactivated)::integer as deactivated,
            count(*) filter (where flaky)::integer as temporarily_unreachable
     from broadcast_sandbox.users`,
  );
  return rows[0] ?? {};
}
