/**
 * Whether an old table can be brought over, and what that will do, counted beforehand. Nothing here changes anything.
 */
import pg from 'pg';
import { prepareReading, REPAIRS, reading, type Verdict } from './legacy-reading.js';
import {
  BACKUP,
  CARRIED,
  type CarriedColumn,
  commandFor,
  type OldColumn,
  type OldTable,
  TABLE,
} from './legacy-shape.js';
import { SchemaError } from './migrate.js';
import { identifier } from './pool.js';

export interface LegacyPlan {
  readonly schema: string;
  readonly owner: string;
  /** As the server spells it; null: all times have their zone. */
  readonly timezone: string | null;
  readonly rows: number;
  readonly statuses: readonly { readonly status: string | null; readonly verdict: Verdict; readonly rows: number }[];
  /** Read in the time zone, as ISO 8601 in UTC; null: no rows. */
  readonly oldest: string | null;
  readonly newest: string | null;
  /** How far the newest created_at lies in the future; above a minute or so the zone is wrong. */
  readonly newestAheadSeconds: number;
  readonly columns: readonly (Omit<OldColumn, 'kind'> & { readonly carried: boolean })[];
  readonly queuesRenamed: readonly { readonly from: string; readonly to: string; readonly rows: number }[];
  readonly repairs: readonly { readonly what: string; readonly rows: number }[];
  /** Local hours that the clock showed twice or not at all, and how many times fall into them. */
  readonly clockChanges: readonly {
    readonly hour: string;
    readonly shown: 'twice' | 'never';
    readonly times: number;
  }[];
  readonly left: readonly { readonly kind: string; readonly name: string; readonly definition: string }[];
  readonly grants: readonly Grant[];
  readonly effort: { readonly seconds: number; readonly bytes: number };
}

export interface Grant {
  readonly on: 'table' | 'column' | 'sequence';
  readonly column: string | null;
  readonly privilege: string;
  /** null: everybody (PUBLIC). */
  readonly grantee: string | null;
  readonly grantable: boolean;
}

/**
 * Everything that stands in the way, at once.
 * @param zone as the user gave it
 * @returns the time zone as the server spells it; null when none is needed
 * @throws SchemaError
 */
export async function checkLegacy(client: pg.Client, old: OldTable, zone: string | null): Promise<string | null> {
  const faults = old.columns.flatMap(({ name, type, kind }) => {
    // `name in CARRIED` says that it is one of its keys.
    const kinds: readonly string[] = name in CARRIED ? CARRIED[name as CarriedColumn] : [kind];
    return kinds.includes(kind) ? [] : [`its column ${name} is of the type ${type}, which cannot be read; change that`];
  });
  const [state] = await rowsOf<{ taken: boolean; may: boolean; mine: boolean; user: string }>(
    client,
    `select to_regclass($1) is not null as taken, has_schema_privilege($2::oid, $3, 'create') as may,
       pg_has_role(current_user, $2::oid, 'member') as mine, current_user as user
     from pg_class where oid = $4`,
    [`${identifier(old.schema)}.${BACKUP}`, await ownerOid(client, old), old.schema, old.oid],
  );
  if (state?.taken) faults.push(`there is a table ${BACKUP} already, the name of the backup; drop it or rename it`);
  if (!state?.mine) {
    faults.push(
      `it belongs to "${old.owner}", and "${state?.user}" may not rename it; connect as its owner (MIGRATE_DATABASE_URL)`,
    );
  }
  if (!state?.may) {
    faults.push(
      `its owner may not create tables beside it; GRANT CREATE ON SCHEMA ${identifier(old.schema)} TO ${identifier(old.owner)}`,
    );
  }
  const unfit = old.uniqueColumns.has('id') ? 'count(*) filter (where id is null)' : 'count(*) - count(distinct id)';
  const [ids] = await rowsOf<{ unfit: string }>(
    client,
    `select ${unfit} as unfit from ${identifier(old.schema)}.${TABLE}`,
  );
  if (ids && ids.unfit !== '0') {
    faults.push(`${ids.unfit} of its rows have no id or that of another row; give each one of its own`);
  }
  if (old.needsTimezone && zone === null) {
    faults.push(
      `its times are stored without a time zone, so say which one was meant: "${commandFor(old, 'Europe/Berlin')}", for example`,
    );
  }
  const [named] = zone === null ? [] : await rowsOf<{ name: string }>(client, ZONE_NAMED, [zone]);
  if (zone !== null && !named) {
    const near = await rowsOf<{ name: string }>(client, ZONES_LIKE, [zone.split(/[/ ]/).at(-1)]);
    const hint = near.length === 0 ? '' : ` (${near.map(({ name }) => name).join(', ')}?)`;
    faults.push(`PostgreSQL knows no time zone "${zone}"${hint}; SELECT name FROM pg_timezone_names lists them`);
  }
  if (faults.length > 0) {
    throw new SchemaError(
      `its older table ${TABLE} cannot be brought over: ${faults.join('. Also, ')}. Nothing was changed.`,
    );
  }
  return old.needsTimezone ? (named?.name ?? null) : null;
}

/** @param timezone as checkLegacy returned it */
export async function planLegacy(client: pg.Client, old: OldTable, timezone: string | null): Promise<LegacyPlan> {
  // One snapshot for all counts; rolled back, for a function of the session may have been made.
  await client.query('begin isolation level repeatable read');
  try {
    await client.query('set local statement_timeout = 0');
    await prepareReading(client, old);
    const from = `${identifier(old.schema)}.${TABLE}`;
    const all = reading(old, from, timezone);
    return {
      schema: old.schema,
      owner: old.owner,
      timezone,
      ...(await totals(client, old, all)),
      columns: old.columns.map(({ kind: _, ...column }) => ({ ...column, carried: column.name in CARRIED })),
      statuses: await rowsOf(
        client,
        `select old_status as status, verdict, count(*)::integer as rows from (${all}) r group by 1, 2 order by 3 desc`,
      ),
      queuesRenamed: await rowsOf(
        client,
        `select old_queue as "from", queue_name as "to", count(*)::integer as rows from (${all}) r
         where old_queue <> queue_name group by 1, 2 order by 1`,
      ),
      clockChanges: timezone === null ? [] : await clockChanges(client, old, from, timezone),
      left: await rowsOf(client, LEFT_BEHIND, [old.oid]),
      grants: await grantsOf(client, old),
    };
  } finally {
    await client.query('rollback');
  }
}

/** The privileges of others than the owner: on the table, on columns that are taken over, on the id's sequence. */
export async function grantsOf(client: pg.Client, old: OldTable): Promise<Grant[]> {
  return rowsOf<Grant>(client, GRANTS, [old.oid, Object.keys(CARRIED)]);
}

async function ownerOid(client: pg.Client, old: OldTable): Promise<number> {
  const [row] = await rowsOf<{ oid: number }>(client, 'select relowner as oid from pg_class where oid = $1', [old.oid]);
  return row?.oid ?? 0;
}

const ZONE_NAMED = 'select name from pg_timezone_names where lower(name) = lower($1)';
const ZONES_LIKE = `
  select name from pg_timezone_names
  where $1 <> '' and name ~ '/' and name !~ '^posix' and position(lower($1) in lower(name)) > 0 order by name limit 3`;

/** Measured with rows of 300 bytes on two cores that had other work to do as well. */
const ROWS_PER_SECOND = 20_000;
const SIZE_RATIO = 2.5;

async function totals(client: pg.Client, old: OldTable, all: string) {
  const [row] = await rowsOf<
    Record<`repair${number}`, number> & {
      rows: number;
      oldest: string | null;
      newest: string | null;
      ahead: number | null;
      bytes: string;
    }
  >(
    client,
    `select count(*)::integer as rows, ${iso('min(created_at)')} as oldest, ${iso('max(created_at)')} as newest,
       extract(epoch from max(created_at) filter (where isfinite(created_at)) - now())::float8 as ahead,
       pg_total_relation_size($1)::text as bytes,
       ${REPAIRS.map(([condition], n) => `(count(*) filter (where ${condition}))::integer as repair${n}`).join(', ')}
     from (${all}) r`,
    [old.oid],
  );
  if (!row) throw new Error('a count returned no row');
  return {
    rows: row.rows,
    oldest: row.oldest,
    newest: row.newest,
    newestAheadSeconds: Math.max(0, Math.round(row.ahead ?? 0)),
    repairs: REPAIRS.map(([, what], n) => ({ what, rows: row[`repair${n}`] ?? 0 })).filter(({ rows }) => rows > 0),
    effort: { seconds: Math.ceil(row.rows / ROWS_PER_SECOND), bytes: Math.round(Number(row.bytes) * SIZE_RATIO) },
  };
}

const iso = (time: string) => `to_char(${time} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')`;

/**
 * Half-hours of the local clock around a change: what was shown twice, PostgreSQL takes for the second time (standard
 * time); what was never shown, for an hour later. Looked for between the table's oldest and newest times.
 */
async function clockChanges(client: pg.Client, old: OldTable, from: string, timezone: string) {
  const locals = old.columns.flatMap(({ name, kind }) => (name in CARRIED && kind === 'local' ? [`t.${name}`] : []));
  const zone = pg.escapeLiteral(timezone);
  return rowsOf<LegacyPlan['clockChanges'][number]>(
    client,
    `with span as (
       select least(${locals.map((column) => `min(${column})`).join(', ')}) as first,
              greatest(${locals.map((column) => `max(${column})`).join(', ')}) as last from ${from} t
     ), slots as (
       select slot from span, generate_series(date_trunc('hour', greatest(first, timestamp '1970-01-01')),
         least(last, localtimestamp + interval '2 years'), interval '30 minutes') slot
     ), changes as (
       select slot, case when (slot at time zone ${zone}) at time zone ${zone} <> slot then 'never' else 'twice' end as shown
       from slots
       where (slot at time zone ${zone}) at time zone ${zone} <> slot
         or (slot at time zone ${zone} - interval '1 hour') at time zone ${zone} = slot
         or (slot at time zone ${zone} - interval '30 minutes') at time zone ${zone} = slot
     )
     select to_char(date_trunc('hour', slot), 'YYYY-MM-DD HH24:MI') as hour, shown, count(*)::integer as times
     from changes join (${from} t cross join lateral unnest(array[${locals.join(', ')}]) time)
       on date_trunc('hour', time) + floor(extract(minute from time) / 30) * interval '30 minutes' = slot
     group by 1, 2 order by 1`,
  );
}

/** What hangs on the table and stays with the backup. */
const LEFT_BEHIND = `
  select 'index' as kind, i.indexrelid::regclass::text as name, pg_get_indexdef(i.indexrelid) as definition
    from pg_index i where i.indrelid = $1 and not i.indisprimary
      -- The new table has this one.
      and pg_get_indexdef(i.indexrelid) !~ '^CREATE UNIQUE INDEX .* USING btree \\(job_id\\)$'
  union all
  select 'trigger', t.tgname::text, pg_get_triggerdef(t.oid) from pg_trigger t where t.tgrelid = $1 and not t.tgisinternal
  union all
  select 'rule', r.rulename::text, pg_get_ruledef(r.oid) from pg_rewrite r where r.ev_class = $1
  union all
  select distinct 'view', v.oid::regclass::text, 'reads the table'
    from pg_depend d join pg_rewrite r on r.oid = d.objid and d.classid = 'pg_rewrite'::regclass
    join pg_class v on v.oid = r.ev_class and v.oid <> $1 where d.refobjid = $1 and d.refclassid = 'pg_class'::regclass
  union all
  select case when c.contype = 'c' then 'check' else 'foreign key' end, c.conname::text, pg_get_constraintdef(c.oid)
    from pg_constraint c where c.conrelid = $1 and c.contype in ('c', 'f')
  union all
  select 'foreign key to it', format('%s of %s', quote_ident(c.conname), c.conrelid::regclass), pg_get_constraintdef(c.oid)
    from pg_constraint c where c.confrelid = $1 and c.conrelid <> $1 and c.contype = 'f'
  union all
  select 'row security policy', p.polname::text, coalesce(pg_get_expr(p.polqual, p.polrelid), '')
    from pg_policy p where p.polrelid = $1
  union all
  select 'publication', p.pubname::text, 'publishes the table'
    from pg_publication_rel r join pg_publication p on p.oid = r.prpubid where r.prrelid = $1
  order by 1, 2`;

const GRANTS = `
  with target as (
    select c.oid, c.relowner, c.relacl, 'table' as on_ from pg_class c where c.oid = $1
    union all
    select s.oid, s.relowner, s.relacl, 'sequence' from pg_class s
    where s.relkind = 'S' and s.oid in (
      select d.objid from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
      where d.refobjid = $1 and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i') and a.attname = 'id')
  )
  select on_ as "on", null as column, privilege_type as privilege, is_grantable as grantable,
    case when grantee <> 0 then pg_get_userbyid(grantee)::text end as grantee
  from target, aclexplode(relacl) where grantee <> relowner
  union all
  select 'column', a.attname, privilege_type, is_grantable, case when grantee <> 0 then pg_get_userbyid(grantee)::text end
  from target join pg_attribute a on a.attrelid = target.oid and on_ = 'table' and a.attname = any ($2),
    aclexplode(a.attacl) where grantee <> relowner
  order by 5 nulls first, 1, 2, 3`;

async function rowsOf<R extends pg.QueryResultRow>(client: pg.Client, text: string, values: unknown[] = []) {
  return (await client.query<R>(text, values)).rows;
}
