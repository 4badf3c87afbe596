/**
 * The connections for statements, and the one place that reads a driver's error: is the database away (worth another
 * try, nobody's fault), does it refuse a value (that row's fault), or is it a bug. Every statement has a deadline on
 * both sides, and a client that erred is never reused.
 */
import { accessSync, constants } from 'node:fs';
import pg from 'pg';
import { DatabaseUnavailable, DataRefused } from '../errors.js';

export interface DatabaseSettings {
  /** null: the driver reads PGHOST, PGUSER and so on. */
  readonly url: string | null;
  readonly schema: string;
  readonly applicationName: string;
  /** The connection is known to go through a pooler: nothing may outlive a statement. Otherwise that is found out. */
  readonly pooled: boolean;
  /** Called once, when the connection turns out to go through a pooler. */
  readonly onPooled?: (how: string) => void;
  readonly connectionsMax: number;
  readonly statementTimeoutMs: number;
  /** Told of every statement, also of one that failed (no rows then); must not throw. */
  readonly onQuery?: (query: { readonly name: string | null; readonly ms: number; readonly rows: number }) => void;
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
  /** `waiting`: statements without one. */
  connections(): { readonly total: number; readonly idle: number; readonly waiting: number };
  close(): Promise<void>;
}

export function openDatabase(settings: DatabaseSettings): Database {
  let pooled = settings.pooled;
  let pool = openPool(settings, pooled ? {} : sessionOptions(settings));
  const pools = [pool];

  /** Of several statements that meet the refusal, the first one changes over and tells. */
  function changeOver(how: string): void {
    if (pooled) return;
    pooled = true;
    pool = openPool(settings, {});
    pools.push(pool);
    settings.onPooled?.(how);
  }

  return {
    schema: settings.schema,
    async query<R extends Row>(text: string, values: readonly unknown[] = [], name?: string) {
      for (let round = 1; ; round++) {
        const asPooled = pooled;
        const statement = { text, values: [...values], ...(name === undefined || asPooled ? {} : { name }) };
        const askedAt = performance.now();
        let rows: R[] = [];
        try {
          // pool.query destroys the client after any error, so a half-open or demoted connection is not met twice.
          rows = (await pool.query<R>(statement)).rows;
          return rows;
        } catch (error) {
          if (!asPooled && isPoolersRefusal(error)) changeOver(messageOf(error));
          else if (!isTransientConflict(error) || round >= CONFLICT_ROUNDS_MAX) throw translated(error);
        } finally {
          settings.onQuery?.({ name: name ?? null, ms: performance.now() - askedAt, rows: rows.length });
        }
      }
    },
    connections() {
      const sum = { total: 0, idle: 0, waiting: 0 };
      for (const { totalCount, idleCount, waitingCount } of pools) {
        sum.total += totalCount;
        sum.idle += idleCount;
        sum.waiting += waitingCount;
      }
      return sum;
    },
    async close() {
      await Promise.all(pools.map((each) => each.end()));
    },
  };
}

function openPool(
  settings: DatabaseSettings,
  session: Pick<pg.PoolConfig, 'statement_timeout' | 'options' | 'onConnect'>,
) {
  const pool = new pg.Pool({
    ...connectionOptions(settings.url, settings.applicationName),
    ...session,
    max: settings.connectionsMax,
    // A little longer than the server's own, so that the server's clear error wins where the connection lives.
    query_timeout: settings.statementTimeoutMs + 2000,
    idleTimeoutMillis: 60_000,
  });
  // A dying idle connection is the pool's affair: without a listener it would end the process.
  pool.on('error', () => {});
  pool.on('connect', (client) => client.on('error', () => {}));
  return pool;
}

/** What a connection of our own is opened with. A pooler refuses it, or drops it, which is then seen on connecting. */
function sessionOptions({ schema, statementTimeoutMs }: DatabaseSettings) {
  // Our statements name the schema of every table and function, but operators are looked up: only there and, first,
  // in pg_catalog, lest another role's operator in "public" fits better (CVE-2018-1058).
  const searchPath = `-c search_path=${identifier(schema)},pg_temp`;
  return {
    statement_timeout: statementTimeoutMs,
    options: `${PLANNER_OPTIONS} ${searchPath}`,
    async onConnect(client: pg.ClientBase) {
      const { rows } = await client.query("select current_setting('plan_cache_mode') as mode");
      if (rows[0]?.mode !== 'force_generic_plan') throw new SettingsDropped();
    },
  };
}

class SettingsDropped extends Error {
  override readonly name = 'SettingsDropped';
  override readonly message = 'the settings that a connection was opened with are dropped';
}

/** PgBouncer (08P01) and RDS Proxy (0A000) refuse what would outlive a transaction; other poolers just drop it. */
function isPoolersRefusal(error: unknown): boolean {
  return (
    error instanceof SettingsDropped || /unsupported startup parameter|command-line options/i.test(messageOf(error))
  );
}

/**
 * What every connection of ours has in common.
 * @throws DatabaseUnavailable when a certificate's file that the address names cannot be read
 */
export function connectionOptions(url: string | null, applicationName: string): pg.ClientConfig {
  return {
    ...(url === null ? {} : { connectionString: withReadableFiles(url) }),
    application_name: applicationName,
    types: { getTypeParser },
    connectionTimeoutMillis: 5000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
  };
}

/** The driver reads these files as well, but where it cannot, it throws without saying what the file is for. */
function withReadableFiles(url: string): string {
  const parameters = new URLSearchParams(url.split('?')[1] ?? '');
  for (const name of ['sslrootcert', 'sslcert', 'sslkey']) {
    const file = parameters.get(name);
    if (!file) continue;
    try {
      accessSync(file, constants.R_OK);
    } catch (error) {
      const message = `the file that ${name} names in its address cannot be read: ${messageOf(error)}`;
      throw new DatabaseUnavailable(message, { cause: error });
    }
  }
  return url;
}

/** PostgreSQL's times reach further than a Date: infinity is the last that one can hold (or the first), and what is merely
 * further comes right before it. */
function instantOf(text: string): Date {
  const ms = Number(pg.types.getTypeParser(pg.types.builtins.TIMESTAMPTZ)(text));
  const furthest = 8.64e15;
  return new Date(Number.isNaN(ms) ? furthest - 1 : Math.min(Math.max(ms, -furthest), furthest));
}

// pg declares a type of result for each of its own parsers, and none for one that picks among them.
const getTypeParser = ((oid: number, format?: 'text') =>
  oid === pg.types.builtins.TIMESTAMPTZ
    ? instantOf
    : pg.types.getTypeParser(oid, format)) as typeof pg.types.getTypeParser;

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
  const advice = encryptionAdvice(code, message);
  if (advice !== null) return new DatabaseUnavailable(`${message}; ${advice}`, { cause: error });
  const isSqlState = /^[0-9A-Z]{5}$/.test(code);
  if (isSqlState && DATA_CLASSES.includes(code.slice(0, 2))) {
    return new DataRefused(message, { cause: error });
  }
  const away = isSqlState
    ? AWAY_CLASSES.includes(code.slice(0, 2)) || AWAY_CODES.includes(code)
    : code !== '' || AWAY_MESSAGES.test(message);
  return away ? new DatabaseUnavailable(message || code, { cause: error }) : error;
}

/** The driver checks the certificate whenever the address asks for TLS, unlike psql: the commonest stumbling block. */
function encryptionAdvice(code: string, message: string): string | null {
  if (UNTRUSTED_CERTIFICATE.test(code)) {
    return (
      "the server's certificate is not trusted here: add sslmode=verify-full&sslrootcert=<file of its CA> to the " +
      'address, or sslmode=no-verify to encrypt without checking it'
    );
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return 'write the host as the certificate names it, or add sslmode=no-verify to encrypt without checking it';
  }
  if (/no pg_hba.conf entry.*(no encryption|SSL off)/.test(message)) {
    return 'if the server demands TLS, add sslmode=verify-full to the address';
  }
  if (/server does not support SSL/.test(message)) return 'add sslmode=disable to the address, or turn TLS on there';
  return null;
}

const UNTRUSTED_CERTIFICATE = /^(SELF_SIGNED_CERT_IN_CHAIN|DEPTH_ZERO_SELF_SIGNED_CERT|UNABLE_TO_)/;

// Read by their members: an error that comes from another realm is no instance of our Error.

function codeOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

function messageOf(error: unknown): string {
  if (typeof error !== 'object' || error === null || !('message' in error)) return String(error);
  return String(error.message);
}
