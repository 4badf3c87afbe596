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

/** People who got a message, and those of them who opened it and who clicked in it. */
interface Engagement {
  delivered: number;
  opened: number;
  clicked: number;
}

interface Variants {
  /** Of an A/B test. */
  variants: Record<string, Engagement>;
}

/** People of one broadcast. `sending`: their message is under way right now. */
interface LedgerReport {
  sent: number;
  failed: number;
  skipped: number;
  unknown: number;
  sending: number;
  /** People with more than one delivery. */
  duplicates: number;
}

export type BroadcastReport = LedgerReport & Engagement & Variants;

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

export async function reportBroadcast(pools: Pools, broadcastId: string): Promise<BroadcastReport> {
  return { ...(await reportLedger(pools, broadcastId)), ...(await reportEngagement(pools, broadcastId)) };
}

/**
 * Counts from the ledger, and from the deliveries those people whom no ledger knows (level 0). A row in `sending` whose
 * job holds no lock was left by a crash: unknown.
 */
async function reportLedger({ statements }: Pools, broadcastId: string): Promise<LedgerReport> {
  const { rows } = await statements.query<LedgerReport>(
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
            (select count(*)::integer from reached where times > 1) as duplicates
     from state`,
    [broadcastId, LOCK_CLASS],
  );
  return rows[0] ?? { sent: 0, failed: 0, skipped: 0, unknown: 0, sending: 0, duplicates: 0 };
}

/**
 * What pretended people do with a message, decided by a hash of broadcast and person: always the same. Of each text
 * between 30 and 69 in a hundred open it, and a quarter of those click, so that an A/B test has a winner.
 */
async function reportEngagement({ statements }: Pools, broadcastId: string): Promise<Engagement & Variants> {
  const { rows } = await statements.query<Engagement & { variant: string | null }>(
    `with person as (
       select distinct user_id, variant, ${hundredths('user_id')} as mood
       from broadcast_sandbox.deliveries where broadcast_id = $1
     )
     select variant, count(*)::integer as delivered,
            count(*) filter (where mood < appeal)::integer as opened,
            count(*) filter (where mood < appeal / 4)::integer as clicked
     from person, lateral (select 30 + ${hundredths(`coalesce(variant, '')`)} * 2 / 5 as appeal) as text
     group by variant`,
    [broadcastId],
  );
  const sum = (of: keyof Engagement) => rows.reduce((people, row) => people + row[of], 0);
  const variants = rows.flatMap(({ variant, ...engagement }) => (variant === null ? [] : [[variant, engagement]]));
  return {
    ...{ delivered: sum('delivered'), opened: sum('opened'), clicked: sum('clicked') },
    variants: Object.fromEntries(variants),
  };
}

/** From 0 to 99. From the hash's end, since its beginning has chosen the variant. */
function hundredths(what: string): string {
  return `('x' || right(md5($1 || ':' || ${what}), 8))::bit(32)::bigint % 100`;
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
