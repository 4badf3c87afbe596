/**
 * `broadcastd migrate`: brings the schema up to date, and a table of the older shape over to it; with `--plan` it says
 * what it would do and changes nothing. Only this command touches an older table; `start` explains and exits.
 */
import { bringOver } from '../db/legacy.js';
import { checkLegacy, planLegacy } from '../db/legacy-plan.js';
import { findOldTable } from '../db/legacy-shape.js';
import { connected, migrate, pendingMigrations } from '../db/migrate.js';
import { findOldPollers } from '../db/old-pollers.js';
import { describeBroughtOver, describePlan, describePollers } from './legacy-words.js';

export interface MigrateOptions {
  /** Change nothing. */
  readonly plan?: boolean | undefined;
  /** An IANA name; needed for an older table whose times have no zone. */
  readonly legacyTimezone?: string | undefined;
  /** One JSON document instead of sentences. */
  readonly json?: boolean | undefined;
  /** A line of the answer. */
  readonly print: (line: string) => void;
  /** A line beside the answer: warnings, and that it takes longer. */
  readonly complain: (line: string) => void;
}

/** @throws DatabaseUnavailable; SchemaError when schema and daemon do not fit together, and what to do about it */
export async function migrateCommand(url: string | null, schema: string, options: MigrateOptions): Promise<void> {
  const { plan = false, json = false, legacyTimezone = null, print, complain } = options;
  await connected(url, async (client) => {
    const old = await findOldTable(client, schema);
    if (!old) return ordinary();

    const timezone = await checkLegacy(client, old, legacyTimezone);
    if (plan) {
      const planned = await planLegacy(client, old, timezone);
      const found = await findOldPollers(client);
      if (json) return print(JSON.stringify({ kind: 'older table', ...planned, ...found }, null, 2));
      for (const line of [...describePlan(planned), ...describePollers(found)]) print(line);
      return;
    }
    const found = await findOldPollers(client);
    for (const line of describePollers(found)) complain(line);
    const done = await bringOver(client, old, timezone, complain);
    if (json) return print(JSON.stringify({ kind: 'older table', ...done, ...found }, null, 2));
    for (const line of describeBroughtOver(done, schema)) print(line);
  });

  async function ordinary(): Promise<void> {
    if (legacyTimezone !== null) {
      complain(`note: the schema "${schema}" has no older table; --legacy-timezone was not needed`);
    }
    const names = plan ? await pendingMigrations(url, schema) : await migrate(url, schema);
    if (json) return print(JSON.stringify({ kind: 'ordinary', [plan ? 'missing' : 'applied']: names }, null, 2));
    if (names.length === 0) print('The schema is up to date.');
    else print(`${plan ? 'To be applied' : 'Applied'}: ${names.join(', ')}.`);
  }
}
