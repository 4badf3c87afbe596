/**
 * Everything that can be wrong with a request, in one catalogue: documents after RFC 9457, with a `code` for machines and
 * words that say what happened and what to do. The same table is printed in docs/api.md and on the page /docs. Whatever
 * is thrown while a request is answered becomes one of these here, and nowhere else.
 */
import type { FastifyError } from 'fastify';
import { DatabaseUnavailable, DataRefused } from '../errors.js';

interface Kind {
  readonly status: number;
  readonly title: string;
  readonly cause: string;
  readonly advice: string;
}

export const catalogue = {
  invalid_request: {
    status: 400,
    title: 'The request is not as the route wants it',
    cause: 'A member of the path, the query or the body is missing, unknown, of the wrong type or out of range.',
    advice: '`detail` names the member. /openapi.json has the whole schema of every route.',
  },
  invalid_json: {
    status: 400,
    title: 'The body cannot be read',
    cause: 'The body is not JSON, is empty where one is needed, or holds a member such as `__proto__`.',
    advice: 'Send one JSON object, in UTF-8.',
  },
  invalid_value: {
    status: 400,
    title: 'The database refuses a value',
    cause: 'A value has the right type but cannot be kept: a NUL in a text, an unknown time zone, an impossible date.',
    advice: '`detail` has the database’s words.',
  },
  invalid_cursor: {
    status: 400,
    title: 'The cursor is not one of this list',
    cause: '`cursor` was not the `nextCursor` of a page of the same list.',
    advice: 'Begin again without a cursor, and hand on each `nextCursor` as it is.',
  },
  hidden_member: {
    status: 400,
    title: 'The payload’s member is hidden',
    cause: 'REDACT_PAYLOAD hides this member of job_data from everybody, so it cannot be searched for either.',
    advice: 'Look for the job by its id, or by a member that is not hidden.',
  },
  not_authenticated: {
    status: 401,
    title: 'A token is needed',
    cause: 'The request has no `Authorization: Bearer …`, or its token is none of ADMIN_TOKENS.',
    advice: 'Send the secret of one of the ADMIN_TOKENS, without its name and role.',
  },
  role_too_low: {
    status: 403,
    title: 'The token’s role does not allow it',
    cause:
      'A viewer reads; an operator also acts on jobs and queues; limits, windows, deletion and stopping all need an admin.',
    advice: 'Use a token of the role that `detail` names.',
  },
  no_such_route: {
    status: 404,
    title: 'There is no such route',
    cause: 'No route has this method and path.',
    advice: '/docs lists the routes.',
  },
  no_such_job: {
    status: 404,
    title: 'There is no such job',
    cause: 'No row has this job_id: it is mistyped, or the cleanup or somebody deleted it.',
    advice: 'GET /api/admin/queue/jobs finds jobs by what their payload holds; GET /audit tells who deleted one.',
  },
  no_such_limit: {
    status: 404,
    title: 'There is no such limit',
    cause: 'No limit has this key.',
    advice: 'GET /api/admin/queue/limits lists them.',
  },
  status_does_not_allow_it: {
    status: 409,
    title: 'The job’s status does not allow it',
    cause:
      'Failed, cancelled and waiting jobs are retried, paused ones resumed, ended ones deleted, live ones cancelled.',
    advice: 'Read the job again: its status is in `detail`.',
  },
  unique_key_taken: {
    status: 409,
    title: 'Another live job has this unique key',
    cause: 'The same broadcast was enqueued again since, and at most one live job of a queue may have its unique key.',
    advice: 'Let the other job end, or cancel it, and try again.',
  },
  idempotency_conflict: {
    status: 409,
    title: 'The Idempotency-Key was used for another request',
    cause: 'A request with this key came within the last day, and its body was another one.',
    advice: 'Use a new key for a new job.',
  },
  body_too_large: {
    status: 413,
    title: 'The body is too large',
    cause: 'A job’s body may be a little larger than MAX_PAYLOAD_BYTES, any other one 1 MiB.',
    advice: 'Send less, or keep the bulk elsewhere and enqueue its address.',
  },
  unsupported_media_type: {
    status: 415,
    title: 'The body is not JSON',
    cause: 'The request has a body whose Content-Type is not application/json.',
    advice: 'Send `Content-Type: application/json`.',
  },
  too_many_failed_sign_ins: {
    status: 429,
    title: 'Too many wrong tokens',
    cause: 'This address has sent ten wrong tokens within a minute. Right ones still work.',
    advice: 'Wait for `Retry-After` seconds, and mend the token.',
  },
  internal: {
    status: 500,
    title: 'Something went wrong here',
    cause: 'A fault in the daemon.',
    advice: 'Its log has the error, under the request id of this answer.',
  },
  no_tokens: {
    status: 503,
    title: 'The API is closed',
    cause: 'ADMIN_TOKENS is not set, so nobody may use the API.',
    advice:
      'Start the daemon with ADMIN_TOKENS=name:role:secret, with the role viewer, operator or admin and a secret of 24 characters or more.',
  },
  database_unavailable: {
    status: 503,
    title: 'The database does not answer',
    cause: 'It is away, restarting, or has no connection free.',
    advice: 'Try again after `Retry-After` seconds.',
  },
  took_too_long: {
    status: 503,
    title: 'The database took too long',
    cause: 'A statement of the API was cut off at its deadline, so that the queue does not suffer.',
    advice: 'Narrow the filter or ask for fewer rows; if the database is busy, try again later.',
  },
  too_many_listeners: {
    status: 503,
    title: 'Too many live views are open',
    cause: 'Fifty clients listen to the events of this daemon.',
    advice: 'Close one, ask another daemon, or poll /status.',
  },
} as const satisfies Record<string, Kind>;

export type Code = keyof typeof catalogue;

/** Thrown wherever a request cannot be granted. */
export class Refusal extends Error {
  override readonly name = 'Refusal';

  constructor(
    readonly code: Code,
    detail: string,
    readonly headers: Readonly<Record<string, string>> = {},
  ) {
    super(detail);
  }
}

/** What is sent. */
export interface ProblemDocument {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly code: Code;
  readonly detail: string;
  readonly request_id: string;
}

export function problemDocument({ code, message }: Refusal, requestId: string): ProblemDocument {
  const { status, title, advice } = catalogue[code];
  return { type: `/docs#${code}`, title, status, code, detail: message || advice, request_id: requestId };
}

/**
 * @param bodyLimit of the route, in bytes
 * @returns what to answer, or null: nobody's fault but ours
 */
export function refusalOf(error: unknown, bodyLimit?: number): Refusal | null {
  if (error instanceof Refusal) return error;
  const { code, message, statusCode } = read(error);
  if (error instanceof DatabaseUnavailable) {
    const isSlow = read(error.cause).code === '57014' || /Query read timeout/.test(message);
    if (isSlow)
      return new Refusal('took_too_long', 'the database did not finish in time; narrow the filter, or try later');
    return new Refusal('database_unavailable', 'the database does not answer just now', { 'retry-after': '5' });
  }
  if (error instanceof DataRefused) {
    if (read(error.cause).code !== '23505') return new Refusal('invalid_value', `the database refuses it: ${message}`);
    return new Refusal(
      'unique_key_taken',
      'another live job has this unique key; cancel that one first, or let it end',
    );
  }
  switch (code) {
    case 'P0002':
      return new Refusal('no_such_job', message);
    case '55000':
      return new Refusal('status_does_not_allow_it', message);
    case '54001':
      return new Refusal('invalid_value', 'the value is nested too deeply to be kept');
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new Refusal('body_too_large', `the body is larger than the ${bodyLimit} bytes that this route takes`);
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new Refusal('unsupported_media_type', 'send the body as application/json');
  }
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) return new Refusal('invalid_request', message);
  return null;
}

// Read by their members: an error that comes from another realm is no instance of our Error.
function read(error: unknown): Partial<Pick<FastifyError, 'code' | 'statusCode'>> & { message: string } {
  if (typeof error !== 'object' || error === null) return { message: String(error) };
  // A driver's and a framework's errors have these members or lack them; both are fine here.
  const { code, message, statusCode } = error as Partial<FastifyError>;
  return { ...(code ? { code } : {}), ...(statusCode ? { statusCode } : {}), message: message ?? '' };
}
