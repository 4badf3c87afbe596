/** What `start` does first: bring the schema up to date, or say why it may not. */
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { migrate, pendingMigrations, SchemaError } from '../db/migrate.js';
import { DatabaseUnavailable } from '../errors.js';

/**
 * A database that is only just starting is waited for.
 * @throws DatabaseUnavailable, SchemaError
 */
export async function prepareSchema({ database }: Config, logger: Logger, signal: AbortSignal): Promise<void> {
  const url = database.migrateUrl ?? database.url;
  const deadline = performance.now() + DATABASE_WAIT_MS;
  while (true) {
    try {
      if (database.autoMigrate) {
        for (const name of await migrate(url, database.schema)) logger.info({ migration: name }, 'migration applied');
        return;
      }
      const missing = await pendingMigrations(database.url, database.schema);
      if (missing.length === 0) return;
      throw new SchemaError(
        `the schema lacks ${missing.join(', ')}: run "broadcastd migrate", or set AUTO_MIGRATE=true`,
      );
    } catch (error) {
      if (!(error instanceof DatabaseUnavailable) || performance.now() > deadline || signal.aborted) throw error;
      logger.warn({ error: error.message }, 'the database does not answer yet');
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

const DATABASE_WAIT_MS = 10_000;
