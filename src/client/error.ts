/**
 * The one error of the library: a word for programs, a sentence for people. What the database says about the queue is put
 * into the bot's terms; what it says about itself (it is away, the transaction is aborted) reaches the bot as it is.
 */

/**
 * - `invalid_argument`: an argument or option is wrong; nothing was sent to the database
 * - `refused`: the database does not take a value
 * - `no_such_job`, `wrong_state`: there is no such job, or its status does not allow that
 * - `not_allowed`: the connection's role lacks a privilege
 * - `not_installed`: the queue is not in this schema, or is older than the library
 * - `conflict`: another transaction came in between; the same again goes through
 */
export type BroadcastQueueErrorCode =
  | 'invalid_argument'
  | 'refused'
  | 'no_such_job'
  | 'wrong_state'
  | 'not_allowed'
  | 'not_installed'
  | 'conflict';

export class BroadcastQueueError extends Error {
  override readonly name = 'BroadcastQueueError';

  constructor(
    readonly code: BroadcastQueueErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** What the method that failed is, and what it works on. */
export interface Circumstances {
  readonly method: string;
  readonly schema: string;
  /** The least role of deploy/roles.sql that may call it. */
  readonly role: 'enqueuer' | 'viewer' | 'operator' | 'worker';
}

/** The driver's error in the bot's terms, or as it is. */
export function translated(error: unknown, { method, schema, role }: Circumstances): unknown {
  // An error of another realm or driver is no instance of ours, so it is read by its members.
  if (typeof error !== 'object' || error === null || !('code' in error) || !('message' in error)) return error;
  const code = meaningOf(String(error.code));
  if (code === null) return error;
  return new BroadcastQueueError(code, `${method}: ${error.message}${adviceFor(code, schema, role)}`, { cause: error });
}

/** By SQLSTATE (PostgreSQL manual, appendix A). */
function meaningOf(sqlState: string): BroadcastQueueErrorCode | null {
  if (!/^[0-9A-Z]{5}$/.test(sqlState)) return null;
  switch (sqlState) {
    case 'P0002':
      return 'no_such_job';
    case '55000':
      return 'wrong_state';
    case '42501':
      return 'not_allowed';
    case '40001':
    case '40P01':
      return 'conflict';
    // No such schema, table, function or column.
    case '3F000':
    case '42P01':
    case '42883':
    case '42703':
      return 'not_installed';
    default:
      return /^(22|23)/.test(sqlState) ? 'refused' : null;
  }
}

function adviceFor(code: BroadcastQueueErrorCode, schema: string, role: Circumstances['role']): string {
  switch (code) {
    case 'not_allowed':
      return `; this takes the rights of the role broadcastd_${role} or more (deploy/roles.sql)`;
    case 'not_installed':
      return `; run "broadcastd migrate", or give the queue's schema in the option schema (now "${schema}")`;
    case 'conflict':
      return '; another transaction came in between: do the same again, in a new transaction';
    default:
      return '';
  }
}
