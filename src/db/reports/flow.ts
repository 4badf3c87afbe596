/** What regulates the pace, to be looked at: limits, gates, the breaker, send windows. Few rows, or pages by key. */
import { type Database, identifier, type Row } from '../pool.js';
import { type JsonText, jsonText } from './json-text.js';

export interface LimitRow extends Row {
  readonly key: string;
  readonly per_second: number | null;
  readonly max_concurrent: number | null;
  readonly updated_at: Date;
  readonly updated_by: string;
}

export interface GateRow extends Row {
  readonly key: string;
  readonly closed: boolean;
  readonly closed_until: Date;
  readonly closed_at: Date;
  readonly reason: string | null;
}

export interface Breaker extends Row {
  /** half_open: single probes go out. */
  readonly state: 'closed' | 'open' | 'half_open';
  readonly opened_at: Date | null;
  readonly open_until: Date | null;
  readonly probes: number;
  readonly failures_in_a_row: number;
  readonly last_error: string | null;
  /** Of the protocol, the highest that the service has claimed. */
  readonly service_level: number | null;
}

export function flowReports(database: Database) {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;

  return {
    limits: (after: string, limit: number) =>
      database.query<LimitRow>(
        `select key, per_second, max_concurrent, updated_at, updated_by from ${at('broadcast_queue_limits')}
         where key > $1 order by key limit $2`,
        [after, limit],
      ),

    async limit(key: string): Promise<LimitRow | null> {
      const [row] = await database.query<LimitRow>(
        `select key, per_second, max_concurrent, updated_at, updated_by from ${at('broadcast_queue_limits')}
         where key = $1`,
        [key],
      );
      return row ?? null;
    },

    gates: (after: string, limit: number) =>
      database.query<GateRow>(
        `select key, closed_until > clock_timestamp() as closed, closed_until, closed_at, reason
         from ${at('broadcast_queue_gates')} where key > $1 order by key limit $2`,
        [after, limit],
      ),

    async breaker(): Promise<Breaker> {
      const [row] = await database.query<Breaker>(
        `select case when opened_at is null then 'closed' when open_until <= clock_timestamp() then 'half_open'
                else 'open' end as state,
                opened_at, open_until, probes, streak as failures_in_a_row, last_error, level as service_level
         from ${at('broadcast_queue_services')} where name = 'default'`,
      );
      return row ?? UNTRIED;
    },

    async windows(): Promise<Map<string, JsonText | null>> {
      const rows = await database.query<{ queue_name: string; send_window: string }>(
        `select queue_name, send_window::text from ${at('broadcast_queue_windows')} order by queue_name limit 500`,
      );
      return new Map(rows.map(({ queue_name, send_window }) => [queue_name, jsonText(send_window)]));
    },

    async window(queue: string): Promise<JsonText | null> {
      const [row] = await database.query<{ send_window: string }>(
        `select send_window::text from ${at('broadcast_queue_windows')} where queue_name = $1`,
        [queue],
      );
      return row ? jsonText(row.send_window) : null;
    },
  };
}

/** Nobody has called the service yet. */
const UNTRIED: Breaker = {
  state: 'closed',
  opened_at: null,
  open_until: null,
  probes: 0,
  failures_in_a_row: 0,
  last_error: null,
  service_level: null,
};
