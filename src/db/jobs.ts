/**
 * The queue's store: what the core asks for, as the statements of statements.ts, their values and their rows.
 */
import type { Job, Progress, Pruner, Step } from '../job.js';
import type { Claim, Reaped, SettleAnswer, Settlement, Store, Worker } from '../queue/ports.js';
import { type Left, Places } from './places.js';
import type { Database, Row } from './pool.js';
import { statements } from './statements.js';

export interface StoreSettings {
  readonly leaseMs: number;
  readonly maxPayloadBytes: number;
  readonly ambiguous: 'retry' | 'pause';
  /** Slots as shown to operators. */
  readonly slots: Readonly<Record<string, number>>;
  /** Makes secrets unreadable in what the service answered. */
  readonly masked: (text: string) => string;
}

export function jobStore(database: Database, worker: Worker, settings: StoreSettings): Store {
  const sql = statements(database.schema);
  const places = new Places();
  let unusualUntil = Number.NEGATIVE_INFINITY;

  async function claimWhole(values: readonly unknown[]): Promise<readonly ClaimRow[]> {
    if (performance.now() >= unusualUntil) {
      const rows = await database.query<ClaimRow>(sql.usualClaim, values, 'usual_claim');
      if (rows[0]?.usual === true) return rows;
      unusualUntil = performance.now() + UNUSUAL_FOR_MS;
    }
    return database.query<ClaimRow>(sql.claim, values, 'claim');
  }

  return {
    async claim(leaseId, free, others, ahead = NONE) {
      const askedAt = performance.now();
      const lease = [leaseId, worker.id, settings.leaseMs, settings.maxPayloadBytes];
      const left = places.of(ahead, askedAt);
      const queues = left === null ? [...free.keys()] : left.map(([queue]) => queue);
      const atOnce = queues.map((queue) => free.get(queue) ?? 0);
      const beyond = queues.map((queue) => ahead.get(queue) ?? 0);
      const wanted = [queues, atOnce, beyond];
      const rows =
        left === null
          ? await claimWhole([...lease, ...wanted, others])
          : await database.query<ClaimRow>(sql.goOn, [...lease, ...wanted, ...columns(left)], 'go_on');
      const claimed = rows.filter((row) => row.id !== null);
      const answer = {
        claims: claimed.map((row) => toClaim(row, leaseId, askedAt)),
        begun: claimed.filter((row) => !row.ahead).length,
        capped: rows[0]?.capped ?? false,
      };
      if (left === null) {
        places.noteWhole(rows[0]?.last ?? [], askedAt, performance.now());
        return { ...answer, nextDueMs: rows[0]?.next_due_ms ?? null };
      }
      const asked = [...atOnce, ...beyond].reduce((sum, count) => sum + count, 0);
      places.noteFurther(rows[0]?.last ?? [], claimed.length >= asked);
      return { ...answer, nextDueMs: places.wholeInMs(performance.now()), only: new Set(queues) };
    },

    lookAnew() {
      places.lookAnew();
    },

    async begin(begun) {
      const rows = await database.query<{ lease_id: string }>(
        sql.begin,
        [[...begun.keys()], [...begun.values()]],
        'begin',
      );
      return new Set(rows.map((row) => row.lease_id));
    },

    async settle(settlements, finishedLeases) {
      const rows = await database.query<{ answer: SettleAnswer }>(
        sql.settle,
        [settings.masked(JSON.stringify(settlements.map(toRecord))), finishedLeases, worker.id],
        'settle',
      );
      return rows.map(({ answer }) => answer);
    },

    async beat(leases) {
      const rows = await database.query<{ id: string }>(
        sql.beat,
        [
          worker.id,
          worker.version,
          worker.host,
          worker.pid,
          JSON.stringify(settings.slots),
          [...leases.keys()],
          [...leases.values()].flat(),
          settings.leaseMs,
        ],
        'beat',
      );
      return new Set(rows.map(({ id }) => id));
    },

    async release(leaseIds) {
      const rows = await database.query(sql.release, [leaseIds]);
      return rows.length;
    },

    async reap() {
      const rows = await database.query<ReapRow>(sql.reap, [settings.leaseMs, settings.ambiguous === 'pause'], 'reap');
      const reaped: Reaped[] = rows.flatMap((row) =>
        row.job_id === null
          ? []
          : [{ jobId: row.job_id, type: row.job_type ?? '', status: row.status ?? '', workerId: row.worker_id ?? '' }],
      );
      return { reaped, nextExpiryMs: rows[0]?.next_expiry_ms ?? null };
    },

    async tick({ name, type, data }, tick) {
      const rows = await database.query(sql.tick, [name, tick, type, data]);
      return rows.length > 0;
    },

    async fold() {
      const rows = await database.query<{ folded: number }>(sql.fold, [FOLD_MAX], 'fold');
      return (rows[0]?.folded ?? 0) === FOLD_MAX;
    },

    async abandon(jobRowId, operation) {
      await database.query(sql.abandon, [jobRowId, operation]);
    },

    async abandoned() {
      const rows = await database.query<{ id: string; job_id: string; operation_url: string; tries: number }>(
        sql.abandoned,
        [],
        'abandoned',
      );
      return rows.map((row) => ({ id: row.id, jobId: row.job_id, operation: row.operation_url, tries: row.tries }));
    },

    async ended(abandonedId) {
      await database.query(sql.ended, [abandonedId]);
    },

    async leave() {
      await database.query(sql.leave, [worker.id]);
    },
  };
}

/** @returns the number of jobs deleted by one batch, and the id to go on after; null when the end is reached */
export async function pruneBatch(
  database: Database,
  what: Parameters<Pruner['prune']>[0],
  afterId: string,
): Promise<{ deleted: number; lastId: string | null }> {
  const rows = await database.query<{ deleted: number; last_id: string | null }>(statements(database.schema).prune, [
    what.completedOlderThanDays,
    what.deadOlderThanDays,
    what.queue,
    afterId,
    PRUNE_BATCH_ROWS,
    what.everyQueueAlike,
  ]);
  return { deleted: rows[0]?.deleted ?? 0, lastId: rows[0]?.last_id ?? null };
}

/** Where limits or bots had their say they soon will again, and asking first whether they do costs a round trip. */
const UNUSUAL_FOR_MS = 60_000;

const PRUNE_BATCH_ROWS = 1000;
const FOLD_MAX = 10_000;

/** The highest epoch that a service may ask for: later claims must still fit into the column. */
const EPOCH_MAX = 2_000_000_000;

const NONE: ReadonlyMap<string, number> = new Map();

/** Each queue's priority, time due and id, as columns. */
function columns(left: readonly Left[]): unknown[] {
  return [left.map(([, priority]) => priority), left.map(([, , dueAt]) => dueAt), left.map(([, , , id]) => id)];
}

interface ClaimRow extends Row {
  next_due_ms: number | null;
  last: readonly Left[] | null;
  ahead: boolean;
  capped: boolean;
  usual?: boolean;
  id: string | null;
  job_id: string;
  queue_name: string;
  job_type: string;
  broadcast_id: string | null;
  segment_id: string | null;
  job_data: string | null;
  payload_bytes: number;
  attempts: number;
  max_attempts: number;
  epoch: number;
  step_seq: number;
  step_cursor: string | null;
  step_scope: Step['scope'];
  previous_failure: string | null;
  dry_run: boolean;
  traceparent: string | null;
  operation_url: string | null;
  bot_id: string | null;
  window_wait_ms: number | null;
  limited: boolean;
  troubled: boolean;
  created_at: Date;
  scheduled_at: Date;
  expires_at: Date | null;
  first: boolean;
  expired: boolean;
  processed: number;
  skipped: number;
  stalled_calls: number;
  stalled_ms: number;
  waited_ms: number;
  now_ms: number;
}

interface ReapRow extends Row {
  next_expiry_ms: number | null;
  job_id: string | null;
  job_type: string | null;
  status: string | null;
  worker_id: string | null;
}

function toClaim(row: ClaimRow, leaseId: string, askedAt: number): Claim {
  const job: Job = {
    id: row.id ?? '',
    jobId: row.job_id,
    queue: row.queue_name,
    type: row.job_type,
    broadcastId: row.broadcast_id,
    segmentId: row.segment_id,
    payload: row.job_data ?? '',
    attempt: row.attempts,
    maxAttempts: row.max_attempts,
    epoch: row.epoch,
    step: {
      seq: row.step_seq,
      cursor: row.step_cursor,
      scope: row.step_scope,
      previousFailure: row.previous_failure,
      operation: row.operation_url,
    },
    dryRun: row.dry_run,
    traceparent: row.traceparent,
    createdAt: row.created_at,
    scheduledAt: row.scheduled_at,
    expiresAt: row.expires_at,
    databaseNow: () => row.now_ms + (performance.now() - askedAt),
  };
  return {
    job,
    leaseId,
    bot: row.bot_id,
    first: row.first,
    expired: row.expired,
    oversizeBytes: row.job_data === null ? row.payload_bytes : null,
    processed: row.processed,
    skipped: row.skipped,
    stalledCalls: row.stalled_calls,
    stalledForMs: row.stalled_ms,
    waitedMs: row.waited_ms,
    windowWaitMs: row.window_wait_ms,
    limited: row.limited,
    troubled: row.troubled,
  };
}

/** A settlement as the record that the statement unpacks: short names, nothing that is absent. */
function toRecord(settlement: Settlement): Record<string, unknown> {
  const progress: Progress | null = settlement.progress;
  return {
    id: settlement.id,
    lease: settlement.leaseId,
    status: settlement.status,
    due_ms: settlement.dueInMs ?? undefined,
    count: settlement.attempts,
    code: settlement.errorCode ?? undefined,
    error: settlement.errorMessage ?? undefined,
    http: settlement.httpStatus ?? undefined,
    result: settlement.result ?? undefined,
    progress: progress === null ? undefined : JSON.stringify(progress),
    gained: settlement.gained || undefined,
    next_cursor: settlement.nextCursor ?? undefined,
    operation: settlement.operation ?? undefined,
    hold: settlement.holdReason ?? undefined,
    paused_from: settlement.pausedFrom ?? undefined,
    previous: settlement.previousFailure ?? undefined,
    flags: settlement.flags.length > 0 ? settlement.flags : undefined,
    stalled: settlement.stalled ?? undefined,
    unstarted: settlement.unstarted || undefined,
    epoch_above: settlement.raiseEpochAbove === null ? undefined : Math.min(settlement.raiseEpochAbove, EPOCH_MAX),
    record: settlement.record ?? undefined,
    ran_ms: settlement.ranMs,
  };
}
