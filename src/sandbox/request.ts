/** What the daemon sends, as far as this service reads it. Members it does not know are nobody's fault. */
import { createHash } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { type Answer, problem } from './answer.js';

/** Postgres can hold no NUL in a text. */
const Name = Type.String({ minLength: 1, maxLength: 200, pattern: '^[^\\u0000]+$' });
const Count = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });

export const Body = Type.Object({
  protocol: Type.Literal(1),
  job: Type.Object({
    id: Name,
    type: Name,
    epoch: Count,
    attempt: Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1 }),
    dry_run: Type.Optional(Type.Boolean()),
  }),
  payload: Type.Unknown(),
  step: Type.Object({
    seq: Count,
    cursor: Type.Optional(Type.Union([Type.String({ maxLength: 4096 }), Type.Null()])),
    scope: Type.Optional(Type.Enum(['all', 'pending', 'failed', 'unknown'])),
    per_second: Type.Optional(Type.Union([Type.Number({ exclusiveMinimum: 0 }), Type.Null()])),
    previous_failure: Type.Optional(Type.Union([Type.String(), Type.Null()])),
  }),
});
export type Body = Static<typeof Body>;

/** A larger whole number has already lost digits to JSON.parse: such an id must be sent as a string. */
const Id = Type.Union([Name, Type.Integer({ minimum: -Number.MAX_SAFE_INTEGER, maximum: Number.MAX_SAFE_INTEGER })]);
const BroadcastPayload = Type.Union([Type.Object({ broadcast_id: Id }), Type.Object({ broadcastId: Id })]);
const SegmentPayload = Type.Union([Type.Object({ segment_id: Id }), Type.Object({ segmentId: Id })]);
const RetriesPayload = Type.Object({ limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000_000 })) });

/** What a job asks for. `segment` null means everybody; `limit` is the most people of one call. */
export type Task =
  | { readonly kind: 'broadcast'; readonly broadcastId: string; readonly segment: string | null }
  | { readonly kind: 'retries'; readonly limit: number };

/** A call that was understood. */
export interface Call {
  readonly type: string;
  readonly key: string | null;
  readonly jobId: string;
  readonly epoch: number;
  readonly attempt: number;
  readonly previousFailure: string | null;
  /** Messages a second that the daemon asks for; null for no limit. */
  readonly perSecond: number | null;
  readonly fingerprint: string;
  readonly body: Body;
}

export function readCall(type: string, headers: IncomingHttpHeaders, body: Body): Call {
  const header = headers['idempotency-key'];
  return {
    type,
    // A quoted string by the IETF's draft; by hand, the quotes are easily forgotten.
    key: typeof header === 'string' && header !== '' ? header.replace(/^"(.*)"$/, '$1') : null,
    jobId: body.job.id,
    epoch: body.job.epoch,
    attempt: body.job.attempt,
    previousFailure: body.step.previous_failure ?? null,
    perSecond: body.step.per_second ?? null,
    fingerprint: fingerprint(body),
    body,
  };
}

/** What the job wants done, or the refusal. Nothing that this level cannot do is done half: it would send for real. */
export function readTask(call: Call): { task: Task } | { refusal: Answer } {
  const { body, type } = call;
  const refuse = (status: number, code: string, detail: string) => ({
    refusal: problem(status, code, detail, { retriable: false }),
  });
  if (body.job.type !== type) return refuse(422, 'type_mismatch', `The path says ${type}, the body ${body.job.type}.`);
  if (body.job.dry_run) return refuse(422, 'dry_run_unsupported', 'Below level 2 a dry run would send for real.');
  const scope = body.step.scope ?? 'all';
  if (scope === 'failed' || scope === 'unknown') {
    return refuse(422, 'scope_unsupported', `Below level 2 nobody is sent to again (scope ${scope}).`);
  }
  const task = taskOf(type, body.payload);
  if (task === 'unknown_job_type') return refuse(404, task, `This service knows no job type ${type}.`);
  if (task === 'invalid_payload') return refuse(422, task, `The payload is not one of a ${type} job.`);
  return { task };
}

/** The broadcast that a payload names, for faults that are meant for one broadcast only. */
export function broadcastOf(payload: unknown): string | null {
  if (!Value.Check(BroadcastPayload, payload)) return null;
  return String('broadcast_id' in payload ? payload.broadcast_id : payload.broadcastId);
}

/**
 * Two calls with one key must ask for the same thing. What may differ between repetitions is left out: epoch, attempt
 * and previous_failure, and how fast and how much at a time, which the shared rate limit decides anew for each call.
 */
function fingerprint({ job, payload, step }: Body): string {
  const same = [job.id, job.type, job.dry_run ?? false, payload, step.seq, step.cursor ?? null, step.scope ?? 'all'];
  return createHash('sha256').update(JSON.stringify(same)).digest('hex');
}

function taskOf(type: string, payload: unknown): Task | 'unknown_job_type' | 'invalid_payload' {
  switch (type) {
    case 'send_broadcast': {
      const broadcastId = broadcastOf(payload);
      return broadcastId === null ? 'invalid_payload' : { kind: 'broadcast', broadcastId, segment: null };
    }
    case 'send_segment_broadcast': {
      const broadcastId = broadcastOf(payload);
      if (broadcastId === null || !Value.Check(SegmentPayload, payload)) return 'invalid_payload';
      const segment = String('segment_id' in payload ? payload.segment_id : payload.segmentId);
      return { kind: 'broadcast', broadcastId, segment };
    }
    case 'process_retries':
      if (!Value.Check(RetriesPayload, payload)) return 'invalid_payload';
      return { kind: 'retries', limit: payload.limit ?? 1000 };
    default:
      return 'unknown_job_type';
  }
}
