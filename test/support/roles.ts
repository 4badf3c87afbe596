/**
 * deploy/roles.sql in a test's database, with a login for each of its roles and one that is in none. Roles belong to the
 * whole server, so these have names of their own.
 */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import pg from 'pg';
import type { TestDatabase } from './postgres.js';

export const ROLES = ['enqueuer', 'operator', 'worker', 'viewer', 'outsider'] as const;
export type Role = (typeof ROLES)[number];

export interface TestRoles {
  /** The database's address as one of the roles. */
  readonly urls: Readonly<Record<Role, string>>;
  /** Applies the script again. */
  apply(): Promise<void>;
  /** Before the database is dropped. */
  drop(): Promise<void>;
}

export function rolesScript(): Promise<string> {
  return readFile(new URL('../../deploy/roles.sql', import.meta.url), 'utf8');
}

export async function createRoles(database: TestDatabase, schema = 'public'): Promise<TestRoles> {
  const suffix = randomBytes(6).toString('hex');
  const password = randomBytes(12).toString('hex');
  const groupOf = (role: Role) => `broadcastd_${role}_${suffix}`;
  const loginOf = (role: Role) => `${role}_${suffix}`;
  const groups = ROLES.filter((role) => role !== 'outsider');

  const apply = async () => {
    const client = new pg.Client({ connectionString: database.url });
    await client.connect();
    try {
      await client.query("select set_config('broadcastd.schema', $1, false)", [schema]);
      for (const role of groups) {
        await client.query('select set_config($1, $2, false)', [`broadcastd.${role}`, groupOf(role)]);
      }
      await client.query(await rolesScript());
    } finally {
      await client.end();
    }
  };
  await apply();
  for (const role of ROLES) await database.query(`create role ${loginOf(role)} login password '${password}'`);
  for (const role of groups) await database.query(`grant ${groupOf(role)} to ${loginOf(role)}`);

  const urlAs = (role: Role) => {
    const url = new URL(database.url);
    url.username = loginOf(role);
    url.password = password;
    return url.href;
  };
  return {
    urls: {
      enqueuer: urlAs('enqueuer'),
      operator: urlAs('operator'),
      worker: urlAs('worker'),
      viewer: urlAs('viewer'),
      outsider: urlAs('outsider'),
    },
    apply,
    async drop() {
      const all = [...ROLES.map(loginOf), ...groups.map(groupOf)].join(', ');
      await database.query(`drop owned by ${all} cascade`);
      await database.query(`drop role ${all}`);
    },
  };
}
