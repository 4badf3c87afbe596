/**
 * The older shape of broadcast_queue_jobs that bots had before broadcastd: a serial integer id, times without a zone, and
 * no notion of leases. This file recognises such a table and says how it looks; what its rows mean stands in
 * legacy-reading.ts, what will happen to them in legacy-plan.ts, and doing it in legacy.ts. `start` only ever recognises.
 */
import type pg from 'pg';
import { identifier } from './pool.js';

export const TABLE = 'broadcast_queue_jobs';
export const BACKUP = 'broadcast_queue_jobs_legacy';

/** What a column's values can be read as. `local` is a time without a zone, `instant` one with it. */
type Kind = 'integer' | 'uuid' | 'text' | 'jsonb' | 'json' | 'local' | 'instant' | 'other';

export interface OldColumn {
  readonly name: string;
  /** As PostgreSQL writes it, such as `character varying(50)`. */
  readonly type: string;
  readonly kind: Kind;
  /** The default's expression; null: none. */
  readonly default: string | null;
}

export interface OldTable {
  readonly oid: number;
  readonly schema: string;
  readonly owner: string;
  readonly columns: readonly OldColumn[];
  /** An index sees to it that no two rows have the same value in these; some may have none. */
  readonly uniqueColumns: ReadonlySet<string>;
  /** Some of its times are without a zone, so that somebody must say which one was meant. */
  readonly needsTimezone: boolean;
}

/** The columns that are taken over, and what the old ones of these names may hold. */
export const CARRIED = {
  id: ['integer'],
  job_id: ['uuid', 'text'],
  queue_name: ['text'],
  job_type: ['text'],
  job_data: ['jsonb', 'json', 'text'],
  status: ['text'],
  attempts: ['integer'],
  max_attempts: ['integer'],
  error_message: ['text'],
  result: ['jsonb', 'json', 'text'],
  scheduled_at: ['local', 'instant'],
  started_at: ['local', 'instant'],
  completed_at: ['local', 'instant'],
  next_retry_at: ['local', 'instant'],
  created_at: ['local', 'instant'],
  updated_at: ['local', 'instant'],
} as const satisfies Record<string, readonly Kind[]>;

export type CarriedColumn = keyof typeof CARRIED;

/** A table with all of these, and none of OURS, is of the older shape. */
const CHARACTERISTIC = ['id', 'job_type', 'job_data', 'status', 'created_at'];
const OURS = ['lease_id', 'epoch'];

/** @returns null when the schema has no such table, or one that is neither ours nor of the older shape */
export async function findOldTable(client: pg.Client, schema: string): Promise<OldTable | null> {
  const { rows: tables } = await client.query<{ oid: number; owner: string }>(
    `select oid, pg_get_userbyid(relowner) as owner from pg_class
     where oid = to_regclass($1) and relkind = 'r' and to_regclass($2) is null`,
    [`${identifier(schema)}.${TABLE}`, `${identifier(schema)}.broadcast_queue_migrations`],
  );
  const [table] = tables;
  if (!table) return null;
  const { rows } = await client.query<OldColumn & { unique: boolean }>(COLUMNS, [table.oid]);
  const columns = rows.map(({ unique: _, ...column }) => column);
  const names = columns.map(({ name }) => name);
  if (!CHARACTERISTIC.every((name) => names.includes(name)) || OURS.some((name) => names.includes(name))) return null;
  return {
    ...table,
    schema,
    columns,
    uniqueColumns: new Set(rows.filter(({ unique }) => unique).map(({ name }) => name)),
    needsTimezone: columns.some(({ name, kind }) => name in CARRIED && kind === 'local'),
  };
}

export function kindOf(old: OldTable, column: CarriedColumn): Kind | 'missing' {
  return old.columns.find(({ name }) => name === column)?.kind ?? 'missing';
}

/** The command that brings such a table over, as it is to be typed. */
export function commandFor(old: Pick<OldTable, 'needsTimezone'>, timezone = 'ZONE', flags = ''): string {
  return `broadcastd migrate${flags}${old.needsTimezone ? ` --legacy-timezone ${timezone}` : ''}`;
}

/** For whoever met an old table and will not touch it: what it is, and what to do. */
export function explainOldTable(old: OldTable): string {
  const zone = old.needsTimezone
    ? ' ZONE is the time zone that its times (stored without one) were meant in, such as Europe/Berlin.'
    : '';
  return (
    `the schema "${old.schema}" has a table ${TABLE} of an older shape, with another program's jobs in it. ` +
    `Look at what will become of them with "${commandFor(old, 'ZONE', ' --plan')}", stop the program that ` +
    `polled the table, and bring it over with "${commandFor(old)}".${zone} Nothing was changed.`
  );
}

const COLUMNS = `
  select a.attname as name, format_type(a.atttypid, a.atttypmod) as type, pg_get_expr(d.adbin, d.adrelid) as default,
    case
      when a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) then 'integer'
      when a.atttypid = 'uuid'::regtype then 'uuid'
      when a.atttypid = 'jsonb'::regtype then 'jsonb'
      when a.atttypid = 'json'::regtype then 'json'
      when a.atttypid = 'timestamp'::regtype then 'local'
      when a.atttypid = 'timestamptz'::regtype then 'instant'
      when t.typcategory in ('S', 'E') then 'text'
      else 'other'
    end as kind,
    exists (
      select from pg_index i
      where i.indrelid = a.attrelid and i.indisunique and i.indisvalid and i.indnkeyatts = 1
        and i.indkey[0] = a.attnum and i.indpred is null
    ) as unique
  from pg_attribute a
  join pg_type t on t.oid = a.atttypid
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
  order by a.attnum`;
