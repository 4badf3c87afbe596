/**
 * What the sandbox answers, as a value: computed first, then written down, then sent. Everything that is not a success
 * is an `application/problem+json` (RFC 9457) with the protocol's own members `code`, `retriable` and `retry_after`.
 */
import { STATUS_CODES } from 'node:http';
import type { FastifyReply } from 'fastify';

export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** JSON text. */
  readonly body: string;
}

export interface ProblemMembers {
  /** Wins over what the status usually means to the daemon. */
  retriable?: boolean;
  /** Whole seconds; sent as the header `Retry-After` as well. */
  retry_after?: number;
  /** With `stale_epoch`: the latest epoch that this service has seen for the job. */
  epoch?: number;
}

/** Thrown where there is no way to return an answer: while a body is parsed, or before a call is understood. */
export class Refusal extends Error {
  override readonly name = 'Refusal';

  constructor(readonly answer: Answer) {
    super(answer.body);
  }
}

export function success(
  body: object,
  { status = 200, headers = {} }: { status?: number; headers?: Record<string, string> } = {},
): Answer {
  return { status, headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) };
}

export function problem(status: number, code: string, detail: string, members: ProblemMembers = {}): Answer {
  const headers: Record<string, string> = { 'content-type': 'application/problem+json' };
  if (members.retry_after !== undefined) headers['retry-after'] = String(members.retry_after);
  const title = STATUS_CODES[status] ?? 'Unknown';
  return { status, headers, body: JSON.stringify({ type: 'about:blank', title, status, detail, code, ...members }) };
}

/** Words whatever was thrown: a refusal as it is, Fastify's own errors by their status, an absent database as 503. */
export function problemFrom(error: unknown): Answer {
  if (error instanceof Refusal) return error.answer;
  if (isDatabaseAway(error)) return problem(503, 'database_unavailable', 'The database cannot be reached.');
  const { status, message } = readError(error);
  if (status >= 500) return problem(500, 'internal', 'The sandbox failed; its log says why.');
  const code = STATUS_CODES[status]?.toLowerCase().replaceAll(/[^a-z]+/g, '_') ?? 'bad_request';
  return problem(status, code, message, { retriable: false });
}

export function send(reply: FastifyReply, answer: Answer): FastifyReply {
  return reply.code(answer.status).headers(answer.headers).send(answer.body);
}

/**
 * SQLSTATE classes 08 (connection), 28 and 3D (no such user or database), 53 (too many connections) and 57 (shut down,
 * cancelled by a timeout), the operating system's refusals, and node-postgres's own errors, which carry no code.
 */
export function isDatabaseAway(error: unknown): boolean {
  const { code, message } = readError(error);
  return (
    /^(08|28|3D|53|57)...$/.test(code) ||
    /^(ECONNREFUSED|ECONNRESET|EPIPE|ETIMEDOUT|ENOTFOUND|EAI_AGAIN|ENOENT)$/.test(code) ||
    /Connection terminated|Query read timeout|timeout (expired|exceeded)|not queryable/i.test(message)
  );
}

/** By its members, not by its class: Fastify's errors, node-postgres's and Node's have none in common that can be told. */
function readError(error: unknown): { code: string; status: number; message: string } {
  const { code, statusCode, message }: { code?: unknown; statusCode?: unknown; message?: unknown } = Object(error);
  return {
    code: typeof code === 'string' ? code : '',
    status: typeof statusCode === 'number' ? statusCode : 500,
    message: String(message ?? error),
  };
}
