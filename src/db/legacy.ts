/**
 * Brings a table of the older shape over, in one transaction: the old table steps aside under another name, ours is made
 * by the ordinary migrations, the rows are copied and counted, and only then does anybody see it. A bot that inserts or
 * updates meanwhile waits for the lock, and PostgreSQL then looks the name up again: its statement ends in the new table.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type pg from 'pg';
import { grantsOf } from './legacy-plan.js';
import { NEW_COLUMNS, prepareReading, reading, VERDICTS, type Verdict } from './legacy-reading.js';
import { BACKUP, findOldTable, type OldTable, TABLE } from './legacy-shape.js';
import { apply, enterSchema, knownMigrations, SchemaError } from './migrate.js';
import { identifier } from './pool.js';

export interface BroughtOver {
  readonly rows: number;
  readonly verdicts: Readonly<Partial<Record<Verdict, number>>>;
  /** Names of the migrations that made the new table. */
  readonly applied: readonly string[];
  /** Without the schema. */
  readonly backup: string;
  /** How long the table was locked: what a bot's statement waited at most. */
  readonly lockedMs: number;
}

const TRIES_MAX = 5;
const LOCK_WITHIN_MS = 3000;
const PAUSE_MS = 1000;

/**
 * @param timezone as checkLegacy returned it
 * @param say told, in a sentence, when the lock has to be tried for again
 * @throws SchemaError when the table cannot be brought over; then nothing was changed
 */
export async function bringOver(
  client: pg.Client,
  old: OldTable,
  timezone: string | null,
  say: (sentence: string) => void,
): Promise<BroughtOver> {
  for (let round = 1; ; round++) {
    // Read committed, whatever the database's default: what is written while we wait for the lock must be seen.
    await client.query('begin isolation level read committed');
    try {
      const done = await inTransaction(client, old.schema, timezone);
      await client.query('commit');
      // Only for the planner's sake; autovacuum would come to it as well.
      await client.query(`analyze ${identifier(old.schema)}.${TABLE}`).catch(() => {});
      return done;
    } catch (error) {
      await client.query('rollback').catch(() => {});
      if (!isAboutLocks(error)) throw refusal(error);
      const waited = `${TABLE} could not be locked in time${await holders(client, old)}`;
      if (round === TRIES_MAX) {
        throw new SchemaError(`${waited}, ${round} times. Nothing was changed. End these transactions, or try again.`);
      }
      say(`${waited}; trying again (${round + 1} of ${TRIES_MAX}).`);
      await pause(PAUSE_MS);
    }
  }
}

async function inTransaction(client: pg.Client, schema: string, timezone: string | null): Promise<BroughtOver> {
  await client.query(`set local lock_timeout = ${LOCK_WITHIN_MS}`);
  await client.query('set local statement_timeout = 0');
  await enterSchema(client, schema);
  await client.query(`lock table ${TABLE} in access exclusive mode`);
  const lockedAt = performance.now();
  // Whoever holds one of the smaller locks below may be waiting for ours: give way before its deadlock check ends it.
  await client.query('set local lock_timeout = 500');
  const old = await findOldTable(client, schema);
  if (!old) throw new SchemaError(`somebody else has just brought ${TABLE} over. This process changed nothing.`);
  const grants = await grantsOf(client, old);

  const highestDrawn = await stepAside(client, old);
  const applied = await makeTable(client, old.owner);
  await prepareReading(client, old);
  // In the order of ids, as the bot wrote them: rows that are looked for together lie together.
  const ordered = reading(old, `(select * from ${BACKUP} order by id)`, timezone);
  // With all triggers, for the counts by status are kept by them.
  await client.query(`insert into ${TABLE} (${NEW_COLUMNS}) select ${NEW_COLUMNS} from (${ordered}) r`);
  await client.query(
    `select setval(pg_get_serial_sequence($1, 'id'), greatest((select max(id) from ${TABLE}), $2::bigint, 0) + 1, false)`,
    [TABLE, highestDrawn],
  );
  const verdicts = await count(client, reading(old, BACKUP, timezone));
  for (const statement of grantStatements(await identitySequence(client), grants)) await client.query(statement);
  await client.query(
    `comment on table ${BACKUP} is 'broadcastd: ${TABLE} as it was before it was brought over; drop it when nobody needs it'`,
  );
  const rows = Object.values(verdicts).reduce((sum, n) => sum + n, 0);
  return { rows, verdicts, applied, backup: BACKUP, lockedMs: Math.round(performance.now() - lockedAt) };
}

/**
 * Renames the old table and all that has a name of its own in the schema: indexes (with their constraints) and sequences.
 * @returns the highest id that was ever drawn from a sequence; also of rows that are not committed yet
 */
async function stepAside(client: pg.Client, { oid, schema }: OldTable): Promise<string> {
  const { rows } = await client.query<{ name: string; kind: 'i' | 'S' }>(NAMED_PARTS, [oid]);
  const names = await client.query<{ name: string }>(
    'select relname as name from pg_class where relnamespace = to_regnamespace($1)',
    [identifier(schema)],
  );
  const taken = new Set(names.rows.map(({ name }) => name));
  await client.query(`alter table ${TABLE} rename to ${BACKUP}`);
  let highest = 0n;
  for (const { name, kind } of rows) {
    const free = freeName(name, taken);
    await client.query(
      `alter ${kind === 'S' ? 'sequence' : 'index'} ${identifier(name)} rename to ${identifier(free)}`,
    );
    if (kind !== 'S') continue;
    const drawn = await client.query<{ last: string }>(`select last_value::text as last from ${identifier(free)}`);
    const last = BigInt(drawn.rows[0]?.last ?? 0);
    if (last > highest) highest = last;
  }
  return String(highest);
}

const NAMED_PARTS = `
  select c.relname as name, case c.relkind when 'S' then 'S' else 'i' end as kind from pg_class c
  where c.relnamespace = (select relnamespace from pg_class where oid = $1) and (
    c.oid in (select indexrelid from pg_index where indrelid = $1)
    or c.relkind = 'S' and c.oid in (
      select objid from pg_depend
        where classid = 'pg_class'::regclass and refclassid = 'pg_class'::regclass and refobjid = $1 and deptype in ('a', 'i')
      union all
      select d.refobjid from pg_attrdef a join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = a.oid
        where a.adrelid = $1 and d.refclassid = 'pg_class'::regclass))
  order by 1`;

/** PostgreSQL cuts names after 63 bytes. */
function freeName(name: string, taken: Set<string>): string {
  for (let n = 1; ; n++) {
    const suffix = n === 1 ? '_legacy' : `_legacy${n}`;
    let stem = name;
    while (Buffer.byteLength(stem + suffix) > 63) stem = stem.slice(0, -1);
    if (taken.has(stem + suffix)) continue;
    taken.add(stem + suffix);
    return stem + suffix;
  }
}

/** Our tables and functions, by the ordinary migrations, as the old table's owner. */
async function makeTable(client: pg.Client, owner: string): Promise<string[]> {
  const known = await knownMigrations();
  await client.query(`set local role ${identifier(owner)}`);
  for (const migration of known) await apply(client, migration);
  await client.query('reset role');
  return known.map(({ name }) => name);
}

/** What each row was to become, counted in the backup, against what has become of it. */
async function count(client: pg.Client, all: string): Promise<Partial<Record<Verdict, number>>> {
  const meant = await client.query<{ verdict: Verdict; rows: number }>(
    `select verdict, count(*)::integer as rows from (${all}) r group by 1`,
  );
  const found = await client.query<{ status: string; rows: number }>(
    `select status, count(*)::integer as rows from ${TABLE} group by 1`,
  );
  const expected = new Map<string, number>();
  for (const { verdict, rows } of meant.rows) {
    expected.set(VERDICTS[verdict], (expected.get(VERDICTS[verdict]) ?? 0) + rows);
  }
  const wrong = [...new Set([...expected.keys(), ...found.rows.map(({ status }) => status)])].filter(
    (status) => expected.get(status) !== found.rows.find((row) => row.status === status)?.rows,
  );
  if (wrong.length > 0) {
    throw new SchemaError(
      `the copy of ${TABLE} has another number of ${wrong.join(', ')} jobs than the old table. Everything was undone.`,
    );
  }
  return Object.fromEntries(meant.rows.map(({ verdict, rows }) => [verdict, rows]));
}

async function identitySequence(client: pg.Client): Promise<string> {
  const { rows } = await client.query<{ name: string }>(`select pg_get_serial_sequence($1, 'id') as name`, [TABLE]);
  return rows[0]?.name ?? '';
}

function grantStatements(sequence: string, grants: Awaited<ReturnType<typeof grantsOf>>): string[] {
  return grants.map(({ on, column, privilege, grantee, grantable }) => {
    const columns = column === null ? '' : ` (${identifier(column)})`;
    const target = on === 'sequence' ? `sequence ${sequence}` : `table ${TABLE}`;
    const to = grantee === null ? 'public' : identifier(grantee);
    return `grant ${privilege}${columns} on ${target} to ${to}${grantable ? ' with grant option' : ''}`;
  });
}

/** The lock was not to be had in time, or there was a deadlock: another try may do. */
function isAboutLocks(error: unknown): boolean {
  return ['55P03', '40P01'].includes(sqlState(error));
}

/** What PostgreSQL refused, with the assurance that nothing happened; a lost connection stays what it is. */
function refusal(error: unknown): unknown {
  // Data, integrity, syntax and privileges (PostgreSQL manual, appendix A): not the ways in which a server goes away.
  if (!['22', '23', '42', '0A', '2B', '55'].includes(sqlState(error).slice(0, 2))) return error;
  const { message, detail } = error as { message: string; detail?: string }; // it has an SQLSTATE: the driver's own
  return new SchemaError(
    `bringing ${TABLE} over failed: ${message}${detail ? ` (${detail})` : ''}. Everything was undone, nothing was changed.`,
    { cause: error },
  );
}

function sqlState(error: unknown): string {
  if (typeof error !== 'object' || error === null || !('code' in error)) return '';
  return typeof error.code === 'string' && /^[0-9A-Z]{5}$/.test(error.code) ? error.code : '';
}

/** The sessions that stand in the way, as far as we may see. */
async function holders(client: pg.Client, { oid }: OldTable): Promise<string> {
  const { rows } = await client.query<{ pid: number; name: string; state: string; seconds: number }>(
    `select distinct a.pid, coalesce(nullif(a.application_name, ''), a.usename, '?') as name,
       coalesce(a.state, '?') as state, coalesce(extract(epoch from now() - a.xact_start)::integer, 0) as seconds
     from pg_locks l join pg_stat_activity a using (pid)
     where l.relation = $1 and l.database = (select oid from pg_database where datname = current_database())
       and l.granted and a.pid <> pg_backend_pid() order by seconds desc limit 5`,
    [oid],
  );
  if (rows.length === 0) return '';
  const who = rows.map(({ pid, name, state, seconds }) => `pid ${pid} "${name}", ${state}, for ${seconds} s`);
  return ` because of transactions that use it (${who.join('; ')})`;
}
