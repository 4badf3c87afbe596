/**
 * Writing the requests: path, headers and envelope of one call, and the short ones about an operation. All that is the
 * same for every one is put together once; the envelope is text, so that the payload goes through byte for byte.
 */
import { Webhook } from 'standardwebhooks';
import type { Grant, Job } from '../job.js';
import type { Parcel } from './exchange.js';
import type { Envelope } from './protocol.js';

export interface RequestOptions {
  /** Only its origin and its path are used. */
  readonly baseUrl: string;
  /** `whsec_…`; several while they rotate, and then each signs. Empty: no signature. */
  readonly secrets: readonly string[];
  /** Bearer token, or null. */
  readonly token: string | null;
  /** The daemon's. */
  readonly version: string;
  /** How long a sliced call may last, in seconds, unless it is granted another time. */
  readonly waitSeconds: number;
  /** How many recipients a sliced call may handle, unless it is granted another number. */
  readonly maxItems: number;
}

export interface WrittenRequest extends Parcel {
  /** Method and path, for messages. */
  readonly where: string;
  /** What of it is secret: never to appear in a message, even where the service echoes it. */
  readonly hidden: readonly string[];
}

/**
 * For the call of a job's current step. `grant`: what it may do; null: what the options say.
 * @throws Error for a secret that is not `whsec_` and base64, and TypeError for a base URL that is none
 */
export function createRequestWriter(options: RequestOptions): (job: Job, grant?: Grant | null) => WrittenRequest {
  const base = new URL(options.baseUrl);
  const prefix = `${base.pathname.replace(/\/+$/, '')}/jobs/`;
  const webhooks = options.secrets.map((secret) => new Webhook(secret));
  const secrets = secretsOf(options);
  const headersOfCalls = [...['content-type', 'application/json'], ...headersOfAll(options)];
  const usual: Terms = { maxItems: options.maxItems, perSecond: null, waitSeconds: options.waitSeconds };

  return (job, grant = null) => {
    const path = prefix + encodeURIComponent(job.type);
    const terms = grant ?? usual;
    const body = envelope(job, terms);
    const id = `${headerSafe(job.jobId)}:${job.step.seq}`;
    const signature = sign(webhooks, id, job.databaseNow(), body);
    const headers = [...headersOfCalls, ...headersOfStep(job, id, terms), ...signature.headers];
    return { method: 'POST', path, headers, body, where: `POST ${path}`, hidden: [...secrets, ...signature.values] };
  };
}

export interface OperationWriter {
  /** Asks how it stands, at the path that the service gave it. */
  question(job: Job, location: string): WrittenRequest;
  /** Ends it. */
  ending(jobId: string, location: string): WrittenRequest;
}

/** For the requests about an operation: they have no body, and so nothing to sign. */
export function createOperationWriter(options: RequestOptions): OperationWriter {
  const ours = headersOfAll(options);
  const hidden = secretsOf(options);

  function write(method: 'GET' | 'DELETE', path: string, ofJob: string[]): WrittenRequest {
    const where = `${method} ${path.replace(/\?.*/, '').slice(0, MAX_SHOWN_PATH_LENGTH)}`;
    return { method, path, headers: [...ours, ...ofJob], body: '', where, hidden };
  }

  return {
    question: (job, location) => write('GET', location, headersOfJob(job)),
    ending: (jobId, location) => write('DELETE', location, ['x-job-id', headerSafe(jobId)]),
  };
}

/** Characters of an operation's path that a message shows; the service chose it. */
const MAX_SHOWN_PATH_LENGTH = 200;

function secretsOf({ token, secrets }: RequestOptions): readonly string[] {
  return token ? [token, ...secrets] : secrets;
}

function headersOfAll({ version, token }: RequestOptions): string[] {
  return [
    ...['accept', 'application/json, application/problem+json'],
    ...['user-agent', `broadcastd/${version}`],
    ...(token ? ['authorization', `Bearer ${token}`] : []),
  ];
}

/** A grant, or the options' own terms: without a shared limit there is no pace to keep. */
type Terms = Omit<Grant, 'perSecond'> & { readonly perSecond: number | null };

function headersOfStep(job: Job, id: string, { waitSeconds }: Terms): string[] {
  return [
    // Whole seconds (RFC 7240, 4.3).
    ...['prefer', `respond-async, wait=${Math.ceil(waitSeconds)}`],
    // A quoted string, as the draft of the header says (draft-ietf-httpapi-idempotency-key-header, 2.1).
    ...['idempotency-key', `"${id}"`],
    ...['x-job-attempt', String(job.attempt)],
    ...headersOfJob(job),
  ];
}

function headersOfJob(job: Job): string[] {
  return [
    ...['x-job-id', headerSafe(job.jobId)],
    ...['x-job-epoch', String(job.epoch)],
    ...(job.traceparent !== null && TRACEPARENT.test(job.traceparent) ? ['traceparent', job.traceparent] : []),
  ];
}

/** W3C Trace Context, 3.2. The row's value is the producer's: what is no traceparent is not sent. */
const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?$/;

/** A producer's id may hold anything: all but printable ASCII is percent-encoded, and so is what quotes or encodes. */
function headerSafe(jobId: string): string {
  return /^[!#$&-[\]-~]*$/.test(jobId) ? jobId : jobId.replace(/[^!#$&-[\]-~]/gu, encodeURIComponent);
}

/** The numbers inside the payload may exceed what JavaScript holds, so it is spliced in as it is and never parsed. */
function envelope(job: Job, { maxItems, perSecond, waitSeconds }: Terms): string {
  const about: Envelope['job'] = {
    id: job.jobId,
    type: job.type,
    queue: job.queue,
    created_at: job.createdAt.toISOString(),
    scheduled_at: job.scheduledAt.toISOString(),
    expires_at: job.expiresAt?.toISOString() ?? null,
    dry_run: job.dryRun,
    epoch: job.epoch,
    attempt: job.attempt,
    max_attempts: job.maxAttempts,
  };
  const step: Envelope['step'] = {
    seq: job.step.seq,
    cursor: job.step.cursor,
    scope: job.step.scope,
    max_items: maxItems,
    wait_seconds: waitSeconds,
    per_second: perSecond,
    previous_failure: job.step.previousFailure,
  };
  return `{"protocol":1,"job":${JSON.stringify(about)},"payload":${job.payload},"step":${JSON.stringify(step)}}`;
}

/**
 * Standard Webhooks: v1, HMAC-SHA256 over id, timestamp and body. The receiver accepts any one of the signatures.
 * @param nowMs the database's clock
 */
function sign(webhooks: readonly Webhook[], id: string, nowMs: number, body: string) {
  if (webhooks.length === 0) return { headers: [], values: [] };
  const values = webhooks.map((webhook) => webhook.sign(id, new Date(nowMs), body));
  const timestamp = String(Math.floor(nowMs / 1000));
  const headers = ['webhook-id', id, 'webhook-timestamp', timestamp, 'webhook-signature', values.join(' ')];
  return { headers, values };
}
