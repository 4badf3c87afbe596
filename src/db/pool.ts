/**
 * The connections for statements, and the one place that reads a driver's error: is the database away (worth another
 * try, nobody's fault), does it refuse a value (that row's fault), or is it a bug. Every statement has a deadline on
 * both sides, and a client that erred is never reused.
 */
import pg from 'pg';
import { DatabaseUnavailable, DataRefused } from '../errors.js';

export interface DatabaseSettings {
  /** null: the driver reads PGHOST, PGUSER and so on. */
  readonly url: string | null;
  readonly schema: string;
  readonly applicationName: string;
  /** The connection goes through a transaction pooler: nothing may outlive a statement. */
  readonly pooled: boolean;
  readonly connectionsMax: number;
  readonly statementTimeoutMs: number;
}

export interface Row {
  readonly [column: string]: unknown;
}

export interface Database {
  readonly schema: string;
  /**
   * Runs one statement in a transaction of its own; tries again, a few times, after a deadlock or a serialization
   * failure.
   * @param name a statement with a name is planned once per connection, where there is no pooler
   * @throws DatabaseUnavailable, DataRefused, or the driver's error (a bug, a missing privilege, a wrong schema)
   */
  query<R extends Row>(text: string, values?: readonly unknown[], name?: string): Promise<R[]>;
  close(): Promise<void>;
}

export function openDatabase(settings: DatabaseSettings): Database {
  const pool = new pg.Pool({
    ...connectionOptions(settings.url, settings.applicationName),
    ...(settings.pooled ? {} : { statement_timeout: settings.statementTimeoutMs, options: PLANNER_OPTIONS }),
    max: settings.connectionsMax,
    // A little longer than the server's own, so that the server's clear error wins where the connection lives.
    query_timeout: settings.statementTimeoutMs + 2000,
    idleTimeoutMillis: 60_000,
  });
  // A dying idle connection is the pool's affair: without a listener it would end the process.
  pool.on('error', () => {});
  pool.on('connect', (client) => client.on('error', () => {}));

  return {
    schema: settings.schema,
    async query<R extends Row>(text: string, values: readonly unknown[] = [], name?: string) {
      const statement = { text, values: [...values], ...(name === undefined || settings.pooled ? {} : { name }) };
      for (let round = 1; ; round++) {
        try {
          // pool.query destroys the client after any error, so a half-open or demoted connection is not met twice.
          return (await pool.query<R>(statement)).rows;
        } catch (error) {
          if (isTransientConflict(error) && round < CONFLICT_ROUNDS_MAX) continue;
          throw translated(error);
        }
      }
    },
    async close() {
      await pool.end();
    },
  };
}

/** What every connection of ours has in common. */
export function connectionOptions(url: string | null, applicationName: string): pg.ClientConfig {
  return {
    ...(url === null ? {} : { connectionString: url }),
    application_name: applicationName,
    connectionTimeoutMillis: 5000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
  };
}

/** A name as SQL, quoted. */
export function identifier(name: string): string {
  return pg.escapeIdentifier(name);
}

/**
 * Plans are kept, so they must be right for the table as it will be and not only as it was when it was empty: every
 * statement of ours has an index to go by, and no sequential scan of it is ever right.
 */
const PLANNER_OPTIONS = '-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c jit=off';

const CONFLICT_ROUNDS_MAX = 5;

/** Serialization failures and deadlocks: the same statement again usually goes through. */
function isTransientConflict(error: unknown): boolean {
  const code = codeOf(error);
  return code === '40001' || code === '40P01';
}

/** SQLSTATE classes (PostgreSQL manual, appendix A) that say nothing about our statement. */
const AWAY_CLASSES = ['08', '53', '57', '58', '40'];
/** Read-only after a failover, and a lock that somebody else holds. */
const AWAY_CODES = ['25006', '55P03', 'XX000'];
const DATA_CLASSES = ['22', '23'];
const AWAY_MESSAGES =
  /timeout exceeded|Query read timeout|Connection terminated|connection.*(closed|ended)|not queryable|server closed/i;

export function translated(error: unknown): unknown {
  const code = codeOf(error) ?? '';
  const message = messageOf(error);
  const isSqlState = /^[0-9A-Z]{5}$/.test(code);
  if (isSqlState && DATA_CLASSES.includes(code.slice(0, 2))) {
    return new DataRefused(message, { cause: error });
  }
  const away = isSqlState
    ? AWAY_CLASSES.includes(code.slice(0, 2)) || AWAY_CODES.includes(code)
    : code !== '' || AWAY_MESSAGES.test(message);
  return away ? new DatabaseUnavailable(message || code, { cause: error }) : error;
}

// Read by their members: an error that comes from another realm is no instance of our Error.

function codeOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

function messageOf(error: unknown): string {
  if (typeof error !== 'object' || error === null || !('message' in error)) return String(error);
  return String(error.message);
}
