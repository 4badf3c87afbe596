/** Checks of the queue's own tables: are they all there, may this role use them, is nothing switched off or broken. */

import type { Config } from '../../config.js';
import { knownMigrations, type Migration, pendingMigrations, SchemaError } from '../../db/migrate.js';
import { type Database, identifier } from '../../db/pool.js';
import { isSqlState } from '../commands.js';
import { one } from './connection.js';
import { type Check, type Finding, failed, ok, warning } from './finding.js';

/** To be run before the others, which make no sense without the tables. */
export async function checkSchema({ url, schema, autoMigrate }: Config['database']): Promise<Finding> {
  try {
    const known = await knownMigrations();
    const missing = await pendingMigrations(url, schema);
    if (missing.length === 0) return ok(`the schema "${schema}" is up to date, at ${known.at(-1)?.name}`);
    const words = `the schema "${schema}" lacks ${missing.join(', ')}`;
    return autoMigrate
      ? warning(words, 'Run "broadcastd migrate", or start a daemon: it does so by itself.')
      : failed(words, 'Run "broadcastd migrate": AUTO_MIGRATE is off, so no daemon does it.');
  } catch (error) {
    if (isSqlState(error, '42501')) return failed(`this role may not even look: ${error.message}`, ROLES_AGAIN);
    if (!(error instanceof SchemaError)) throw error;
    const [what, ...advice] = error.message.split(/[:;.] /);
    return failed(what ?? error.message, advice.join('. ') || 'Run the broadcastd that fits this schema.');
  }
}

export function schemaChecks(database: Database): Check[] {
  const { schema } = database;
  return [
    { name: 'privileges', run: () => privileges(database) },
    {
      name: 'triggers',
      async run() {
        const expected = namesOf(await knownMigrations(), 'trigger');
        const rows = await database.query<{ name: string; table: string; enabled: string }>(
          `select t.tgname as name, c.relname as table, t.tgenabled as enabled
           from pg_trigger t join pg_class c on c.oid = t.tgrelid
           where not t.tgisinternal and c.relnamespace = to_regnamespace($1) and c.relname like 'broadcast\\_queue\\_%'`,
          [identifier(schema)],
        );
        const gone = expected.filter((name) => !rows.some((row) => row.name === name));
        const off = rows.filter(({ name, enabled }) => expected.includes(name) && !['O', 'A'].includes(enabled));
        const silenced = await database.query<{ role: string | null }>(
          `select pg_get_userbyid(nullif(setrole, 0)) as role from pg_db_role_setting
           where 'broadcastd.notify=off' = any(setconfig)
             and setdatabase in (0, (select oid from pg_database where datname = current_database()))`,
        );
        return whole([
          ...gone.map((name) => failed(`the trigger ${name} is missing`, RESTORE)),
          ...off.map(({ name, table }) =>
            failed(
              `the trigger ${name} is disabled`,
              `ALTER TABLE ${schema}.${table} ENABLE TRIGGER ${name}; without it jobs start late, or are counted wrongly.`,
            ),
          ),
          ...silenced.map(({ role }) =>
            warning(
              `broadcastd.notify is off for ${role ?? 'everybody'}: what they insert starts at the next poll`,
              `ALTER ROLE ${role ?? 'ALL'} RESET broadcastd.notify, unless it is meant so for bulk loads.`,
            ),
          ),
          ok(`all ${expected.length} triggers are on`),
        ]);
      },
    },
    {
      name: 'indexes',
      async run() {
        const expected = namesOf(await knownMigrations(), 'index');
        const rows = await database.query<{ name: string; valid: boolean }>(
          `select c.relname as name, i.indisvalid and i.indisready as valid
           from pg_index i join pg_class c on c.oid = i.indexrelid join pg_class t on t.oid = i.indrelid
           where t.relnamespace = to_regnamespace($1) and t.relname like 'broadcast\\_queue\\_%'`,
          [identifier(schema)],
        );
        const gone = expected.filter((name) => !rows.some((row) => row.name === name));
        return whole([
          ...gone.map((name) => failed(`the index ${name} is missing: each claim reads the whole table`, RESTORE)),
          ...rows
            .filter(({ valid }) => !valid)
            .map(({ name }) =>
              failed(`the index ${name} is invalid`, `REINDEX INDEX CONCURRENTLY ${schema}.${name} builds it anew.`),
            ),
          ok(`all ${rows.length} indexes are valid`),
        ]);
      },
    },
    {
      name: 'sequence',
      async run() {
        const { used, last } = await one<{ used: number; last: string }>(
          database,
          `select coalesce(max(last_value / max_value::float8), 0)::float8 as used,
                  coalesce(max(last_value), 0)::text as last
           from pg_sequences where schemaname = $1 and sequencename like 'broadcast\\_queue\\_%'`,
          [schema],
        );
        const words = `the ids are at ${last}, ${(used * 100).toFixed(1)} % of what there is`;
        if (used < 0.5) return ok(words);
        const mend = 'Somebody set a sequence far ahead: set it back above the largest id that is really in use.';
        return used < 0.9 ? warning(words, mend) : failed(words, mend);
      },
    },
  ];
}

const ROLES_AGAIN =
  'Run deploy/roles.sql again as the owner of the tables, and let the role in: GRANT broadcastd_worker TO <role>.';
const RESTORE = 'Create it again as in the files of sql/, or restore the schema from a backup.';

/** The problems; or, where there are none, the last word. */
function whole(findings: readonly Finding[]): Finding[] {
  const problems = findings.filter(({ outcome }) => outcome !== 'ok');
  return problems.length > 0 ? problems : findings.slice(-1);
}

/** What the migrations create, and none of them drops again. */
function namesOf(migrations: readonly Migration[], kind: 'trigger' | 'index'): string[] {
  const names = new Set<string>();
  for (const { sql } of migrations) {
    const statements = new RegExp(`^\\s*(create|drop)(?: unique)? ${kind}(?: if (?:not )?exists)? (\\w+)`, 'gim');
    for (const [, verb, name] of sql.matchAll(statements)) {
      if (name !== undefined) verb?.toLowerCase() === 'create' ? names.add(name) : names.delete(name);
    }
  }
  return [...names];
}

async function privileges(database: Database): Promise<Finding[]> {
  const { schema } = database;
  const row = await one<{ role: string; superuser: boolean; anybody: boolean; usage: boolean; missing: string[] }>(
    database,
    `select current_user::text as role,
       (select rolsuper from pg_roles where rolname = current_user) as superuser,
       exists (select from pg_namespace n, aclexplode(n.nspacl) acl
               where n.nspname = $1 and acl.grantee = 0 and acl.privilege_type = 'CREATE') as anybody,
       has_schema_privilege($1, 'usage') as usage,
       array(
         select privilege || ' on ' || c.relname
         from pg_class c cross join unnest(case c.relname
           when 'broadcast_queue_migrations' then array['SELECT']
           when 'broadcast_queue_audit' then array['SELECT', 'INSERT', 'DELETE']
           else array['SELECT', 'INSERT', 'UPDATE', 'DELETE'] end) privilege
         where c.relnamespace = to_regnamespace($2) and c.relkind = 'r' and c.relname like 'broadcast\\_queue\\_%'
           and c.relname not like 'broadcast\\_queue\\_jobs\\_%' and not has_table_privilege(c.oid, privilege)
         union all
         select 'EXECUTE on ' || p.proname from pg_proc p
         where p.pronamespace = to_regnamespace($2) and p.proname like 'broadcast\\_%'
           and p.prorettype <> 'trigger'::regtype and not has_function_privilege(p.oid, 'execute')
         order by 1)::text[] as missing`,
    [schema, identifier(schema)],
  );
  const { missing } = row;
  const mend = ROLES_AGAIN;
  const anybody = warning(
    `everybody may create objects in the schema "${schema}", and so have code run by the daemon`,
    `As its owner: REVOKE CREATE ON SCHEMA ${schema} FROM PUBLIC.`,
  );
  if (!row.usage) return [failed(`the role ${row.role} may not use the schema "${schema}"`, mend)];
  if (missing.length > 0) {
    const some = missing.slice(0, 3).join(', ') + (missing.length > 3 ? ` and ${missing.length - 3} more` : '');
    return [failed(`the role ${row.role} lacks ${some}`, mend), ...(row.anybody ? [anybody] : [])];
  }
  return whole([
    ...(row.superuser
      ? [
          warning(
            `the role ${row.role} is a superuser`,
            'Give the daemon a role of its own with deploy/roles.sql: it needs no more than broadcastd_worker.',
          ),
        ]
      : []),
    ...(row.anybody ? [anybody] : []),
    ok(`the role ${row.role} may do all that a daemon does`),
  ]);
}
