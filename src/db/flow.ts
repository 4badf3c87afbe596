/** Limits, gates and the breaker: the functions of sql/004_flow.sql, as the core asks for them. */
import type { FlowStore, GrantAnswer, Worker } from '../queue/ports.js';
import { type Database, identifier, type Row } from './pool.js';

export function flowStore(database: Database, worker: Worker): FlowStore {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;
  const sql = {
    grant: `select items, per_second, wait_ms, lasts_ms, receipt::text from ${at('broadcast_queue_grant')}($1, $2, $3)`,
    used: `select ${at('broadcast_queue_grant_used')}($1::jsonb, $2, $3)`,
    pace: `select min(per_second) as per_second from ${at('broadcast_queue_limits')}
           where key in ('queue:' || $1::text, 'bot:' || $2::text)`,
    closeGate: `select ${at('broadcast_close_gate')}($1, $2, $3)`,
    failed: `select refund, wait_ms, opened
             from ${at('broadcast_queue_service_failed')}($1, $2, $3, $4, $5, $6, $7, $8)`,
    answers: `select ${at('broadcast_queue_service_answers')}() as was_open`,
  };

  return {
    async grant(queue, bot, most) {
      const [row] = await database.query<GrantRow>(sql.grant, [queue, bot, most], 'grant');
      return toAnswer(row);
    },
    async used(receipt, items, used) {
      await database.query(sql.used, [receipt, items, used], 'grant_used');
    },
    async pace(queue, bot) {
      const [row] = await database.query<{ per_second: number | null }>(sql.pace, [queue, bot]);
      return row?.per_second ?? null;
    },
    async closeGate(key, ms, reason) {
      await database.query(sql.closeGate, [key, ms, reason]);
    },
    async serviceFailed({ claim, code, message, isLast, calls, failures }) {
      const values = [claim.job.id, claim.leaseId, code, message, isLast, worker.id, calls, failures];
      const [row] = await database.query<{ refund: boolean; wait_ms: number | null; opened: boolean }>(
        sql.failed,
        values,
      );
      return { refund: row?.refund ?? false, waitMs: row?.wait_ms ?? 0, opened: row?.opened ?? false };
    },
    async serviceAnswers() {
      const [row] = await database.query<{ was_open: boolean }>(sql.answers);
      return row?.was_open ?? false;
    },
  };
}

interface GrantRow extends Row {
  items: number | null;
  per_second: number | null;
  wait_ms: number | null;
  lasts_ms: number | null;
  receipt: string | null;
}

function toAnswer(row: GrantRow | undefined): GrantAnswer {
  if (!row || row.items === null || row.per_second === null) return { kind: 'no limit' };
  const waitMs = row.wait_ms ?? 0;
  if (row.items === 0 || row.receipt === null) return { kind: 'later', waitMs };
  const { items, per_second: perSecond, receipt } = row;
  return { kind: 'granted', items, perSecond, waitMs, lastsMs: row.lasts_ms ?? 0, receipt };
}

/** The highest level of the protocol that the service has claimed to any daemon; null: it has not said. */
export async function serviceLevel(database: Database): Promise<number | null> {
  const services = `${identifier(database.schema)}.broadcast_queue_services`;
  const [row] = await database.query<{ level: number | null }>(`select level from ${services} where name = 'default'`);
  return row?.level ?? null;
}

export async function learnServiceLevel(database: Database, level: number): Promise<void> {
  const services = `${identifier(database.schema)}.broadcast_queue_services`;
  await database.query(`update ${services} set level = greatest(level, $1) where name = 'default'`, [level]);
}

/** @param limits messages a second by key; what the database has already stays as it is */
export async function initialLimits(database: Database, limits: Readonly<Record<string, number>>): Promise<void> {
  const entries = Object.entries(limits);
  if (entries.length === 0) return;
  await database.query(
    `insert into ${identifier(database.schema)}.broadcast_queue_limits (key, per_second, updated_by)
     select key, per_second, 'RATE_LIMITS' from unnest($1::text[], $2::float8[]) as given (key, per_second)
     on conflict do nothing`,
    [entries.map(([key]) => key), entries.map(([, perSecond]) => perSecond)],
  );
}
