/** The daemon's connections for statements, in three pools, so that nobody who looks stands in the way of a claim. */
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { type Database, openDatabase } from '../db/pool.js';
import type { Meter } from '../metrics/index.js';
import type { Worker } from '../queue/ports.js';

export interface Databases {
  /** The queue's own. */
  readonly database: Database;
  /** For a scrape of the metrics: one connection, and little time. */
  readonly measured: Database;
  /** For whoever looks at the queue, or works on many jobs at once. */
  readonly shown: Database;
  close(): Promise<void>;
}

export function openDatabases({ database: config }: Config, worker: Worker, meter: Meter, logger: Logger): Databases {
  const where = {
    url: config.url,
    schema: config.schema,
    // A direct connection for LISTEN is given when the other one goes through a transaction pooler.
    pooled: config.listenUrl !== null,
    onQuery: meter.query,
  };
  const database = openDatabase({
    ...where,
    applicationName: `broadcastd ${worker.id}`,
    onPooled: (how) =>
      logger.info({ how }, 'the database connection goes through a pooler: statements are planned anew each time'),
    connectionsMax: 5,
    statementTimeoutMs: 15_000,
  });
  const measured = openDatabase({
    ...where,
    applicationName: `broadcastd metrics ${worker.id}`,
    connectionsMax: 1,
    statementTimeoutMs: 2000,
  });
  const shown = openDatabase({
    ...where,
    applicationName: `broadcastd api ${worker.id}`,
    connectionsMax: 3,
    statementTimeoutMs: 5000,
  });
  return {
    database,
    measured,
    shown,
    close: async () => void (await Promise.all([database.close(), measured.close(), shown.close()])),
  };
}
