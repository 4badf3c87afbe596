/**
 * Writing the request: path, headers and envelope of one call. All that is the same for every call is put together
 * once; the envelope is text, so that the payload goes through byte for byte.
 */
import { Webhook } from 'standardwebhooks';
import type { Job } from '../job.js';
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
  /** How long a sliced call may last, in seconds. */
  readonly waitSeconds: number;
  /** How many recipients a sliced call may handle. */
  readonly maxItems: number;
}

export interface WrittenRequest extends Parcel {
  /** Method and path, for messages. */
  readonly where: string;
  /** What of it is secret: never to appear in a message, even where the service echoes it. */
  readonly hidden: readonly string[];
}

/** @throws Error for a secret that is not `whsec_` and base64, and TypeError for a base URL that is none */
export function createRequestWriter(options: RequestOptions): (job: Job) => WrittenRequest {
  const base = new URL(options.baseUrl);
  const prefix = `${base.pathname.replace(/\/+$/, '')}/jobs/`;
  const webhooks = options.secrets.map((secret) => new Webhook(secret));
  const secrets = options.token ? [options.token, ...options.secrets] : options.secrets;
  const headersOfAll = [
    ...['content-type', 'application/json'],
    ...['accept', 'application/json, application/problem+json'],
    ...['user-agent', `broadcastd/${options.version}`],
    ...['prefer', `respond-async, wait=${options.waitSeconds}`],
    ...(options.token ? ['authorization', `Bearer ${options.token}`] : []),
  ];

  return (job) => {
    const path = prefix + encodeURIComponent(job.type);
    const body = envelope(job, options);
    const id = `${headerSafe(job.jobId)}:${job.step.seq}`;
    const signature = sign(webhooks, id, job.databaseNow(), body);
    const headers = [...headersOfAll, ...headersOfJob(job, id), ...signature.headers];
    return { path, headers, body, where: `POST ${path}`, hidden: [...secrets, ...signature.values] };
  };
}

function headersOfJob(job: Job, id: string): string[] {
  return [
    // A quoted string, as the draft of the header says (draft-ietf-httpapi-idempotency-key-header, 2.1).
    ...['idempotency-key', `"${id}"`],
    ...['x-job-id', headerSafe(job.jobId)],
    ...['x-job-epoch', String(job.epoch)],
    ...['x-job-attempt', String(job.attempt)],
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
function envelope(job: Job, { maxItems, waitSeconds }: RequestOptions): string {
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
    per_second: null,
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
