/**
 * What the commands that look at a queue have in common: a database with little besides (no broadcast service is needed
 * to list jobs), a name for the audit log, and errors that say with which code to end.
 */
import { randomUUID } from 'node:crypto';
import { stringify } from '../admin/json.js';
import { type Setting, settings } from '../config/settings.js';
import { type Environment, loadConfig } from '../config.js';
import { pendingMigrations, SchemaError } from '../db/migrate.js';
import { type Database, openDatabase } from '../db/pool.js';
import { type Actor, openReports, type Reports } from '../db/reports.js';
import { RESERVED_QUEUE_NAMES } from '../job.js';
import type { Terminal } from './terminal.js';

/** What main.ts hands in: nobody else touches the process. */
export interface Surroundings {
  readonly env: Environment;
  readonly read: (path: string) => string;
  readonly terminal: Terminal;
  readonly version: string;
  readonly nodeVersion: string;
  /** The person at the terminal, for the audit log. */
  readonly user: string;
  /** Fires at the first Ctrl-C or SIGTERM. */
  readonly signal: () => AbortSignal;
  /** The command answered, and yet did not succeed. */
  readonly endWith: (code: ExitCode) => void;
}

export const EXIT = { failed: 1, usage: 2, notFound: 3, database: 69, configuration: 78 } as const;
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

/** Ends the command, in plain words. */
export class CommandError extends Error {
  override readonly name = 'CommandError';

  constructor(
    readonly exit: ExitCode,
    message: string,
  ) {
    super(message);
  }
}

export interface OpenQueue {
  readonly database: Database;
  readonly reports: Reports;
  readonly by: Actor;
  readonly maxPayloadBytes: number;
}

/** @throws ConfigError, DatabaseUnavailable, SchemaError, and what the work throws */
export async function withQueue<T>(
  { env, read, user }: Pick<Surroundings, 'env' | 'read' | 'user'>,
  work: (queue: OpenQueue) => Promise<T>,
): Promise<T> {
  const { config } = loadConfig(queuesOwn(env), read);
  const { url, schema, listenUrl } = config.database;
  const database = openDatabase({
    url,
    schema,
    applicationName: 'broadcastd command',
    pooled: listenUrl !== null,
    connectionsMax: 2,
    statementTimeoutMs: 10_000,
  });
  try {
    return await work({
      database,
      reports: openReports(database, config.api.redacted),
      by: { name: `command:${user}`, role: 'admin', requestId: randomUUID() },
      maxPayloadBytes: config.jobs.maxPayloadBytes,
    });
  } catch (error) {
    if (isSqlState(error, ...NOT_THERE)) await explainSchema(url, schema);
    throw error;
  } finally {
    await database.close();
  }
}

/**
 * The variables that concern the queue itself, and unknown ones, among which a misspelt one may be. Faults in the others
 * are the daemon's affair.
 */
export function queuesOwn(env: Environment): Environment {
  const foreign = (settings as readonly Setting[])
    .filter(({ name, group }) => group !== 'Database' && !['MAX_PAYLOAD_BYTES', 'REDACT_PAYLOAD'].includes(name))
    .flatMap(({ name }) => [name, `${name}_FILE`]);
  const own = Object.entries(env).filter(([name]) => !foreign.includes(name));
  return { ...Object.fromEntries(own), BROADCAST_SERVICE_URL: 'http://127.0.0.1' };
}

/** SQLSTATEs: no such schema, table, column or function. */
const NOT_THERE = ['3F000', '42P01', '42703', '42883'];

/** @throws SchemaError where the schema is what is missing */
async function explainSchema(url: string | null, schema: string): Promise<void> {
  const missing = await pendingMigrations(url, schema);
  if (missing.length === 0) return;
  throw new SchemaError(`the schema "${schema}" lacks ${missing.join(', ')}: run "broadcastd migrate"`);
}

export function isSqlState(error: unknown, ...states: string[]): error is Error {
  return error instanceof Error && 'code' in error && states.includes(String(error.code));
}

/** One document; JSON of the database's goes in as it is, with all its digits. */
export function printJson(terminal: Terminal, document: unknown): void {
  terminal.print(stringify(document));
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** @throws CommandError */
export function jobIdOf(text: string): string {
  if (UUID.test(text)) return text.toLowerCase();
  const what = `${JSON.stringify(text.slice(0, 60))} is no job id: one looks like 018f6b2e-7d1c-4c11-9d6b-2f4f5a6b7c8d`;
  throw new CommandError(EXIT.usage, `${what}. "broadcastd jobs list" shows them.`);
}

/** @throws CommandError */
export function queueNameOf(text: string): string {
  if (RESERVED_QUEUE_NAMES.includes(text)) {
    const others = RESERVED_QUEUE_NAMES.filter((word) => word !== text).join(', ');
    throw new CommandError(
      EXIT.usage,
      `No queue can be called "${text}": it is a word of the API's paths, as are ${others}.`,
    );
  }
  if (/^[a-z][a-z0-9_-]{0,49}$/.test(text)) return text;
  const what = `${JSON.stringify(text.slice(0, 60))} is no name of a queue`;
  throw new CommandError(EXIT.usage, `${what}: those are of a-z, 0-9, - and _ (at most 50, a letter first).`);
}

/** A name nobody uses is mostly a mistyped one; yet a queue may well be paused before its first job comes. */
export function doubt(terminal: Terminal, queue: string): void {
  terminal.complain(`No job has ever named the queue ${queue}: is that its name? "broadcastd queues list" has them.`);
}

export function noSuchJob(jobId: string): CommandError {
  return new CommandError(
    EXIT.notFound,
    `There is no job ${jobId}: it is mistyped, or was deleted. "broadcastd jobs list --data broadcast_id=…" finds a job by its broadcast.`,
  );
}
