/** What the daemon sends, as far as this service reads it. Members it does not know are nobody's fault. */
import { createHash } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import type { Answer } from './answer.js';
import { readCursor } from './cursor.js';
import { type Flaws, refusal } from './flaws.js';

/** How much of the service protocol is spoken: plain, idempotent, sliced, operation. */
export type Level = 0 | 1 | 2 | 3;

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
    max_items: Type.Optional(Type.Integer({ minimum: 1 })),
    wait_seconds: Type.Optional(Type.Number({ minimum: 0 })),
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

/** Decimal text or a number: as the payload's author has them. */
const UserId = Type.Union([
  Type.String({ pattern: '^[0-9]{1,18}$' }),
  Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }),
]);
const Extras = Type.Object({
  test_recipients: Type.Optional(Type.Array(UserId, { minItems: 1, maxItems: 1000 })),
  variants: Type.Optional(Type.Array(Name, { minItems: 1, maxItems: 20 })),
});

export interface BroadcastTask {
  readonly kind: 'broadcast';
  readonly broadcastId: string;
  /** What the ledger knows it by: a test send has an entry of its own, or the real one would leave its readers out. */
  readonly ledgerId: string;
  /** Null means everybody. */
  readonly segment: string | null;
  /** The only people a test send goes to; null for a real one. */
  readonly only: readonly string[] | null;
  /** Texts of an A/B test. */
  readonly variants: readonly string[] | null;
}

/** What a job asks for. `limit` is the most people of one call, of the whole job where it is sliced. */
export type Task = BroadcastTask | { readonly kind: 'retries'; readonly limit: number };

/** A call that was understood. */
export interface Call {
  readonly type: string;
  readonly key: string | null;
  readonly jobId: string;
  readonly epoch: number;
  readonly attempt: number;
  readonly previousFailure: string | null;
  readonly step: number;
  readonly scope: 'all' | 'pending' | 'failed' | 'unknown';
  readonly cursor: string | null;
  /** The most people of one slice. */
  readonly maxItems: number;
  /** How long a slice may take. */
  readonly waitSeconds: number;
  readonly dryRun: boolean;
  /** Messages a second that the daemon asks for; null for no limit. */
  readonly perSecond: number | null;
  readonly fingerprint: string;
  readonly body: Body;
}

export function readCall(type: string, headers: IncomingHttpHeaders, body: Body, flaws: Flaws): Call {
  const header = headers['idempotency-key'];
  return {
    type,
    // A quoted string by the IETF's draft; by hand, the quotes are easily forgotten.
    key: typeof header === 'string' && header !== '' ? header.replace(/^"(.*)"$/, '$1') : null,
    jobId: body.job.id,
    epoch: body.job.epoch,
    attempt: body.job.attempt,
    previousFailure: body.step.previous_failure ?? null,
    step: body.step.seq,
    scope: body.step.scope ?? 'all',
    cursor: body.step.cursor ?? null,
    maxItems: body.step.max_items ?? Number.POSITIVE_INFINITY,
    waitSeconds: body.step.wait_seconds ?? Number.POSITIVE_INFINITY,
    dryRun: body.job.dry_run ?? false,
    perSecond: body.step.per_second ?? null,
    fingerprint: fingerprint(body, flaws),
    body,
  };
}

/** What the job wants done, or the refusal. Nothing that this level cannot do is done half: it would send for real. */
export function readTask(call: Call, level: Level, flaws: Flaws): { task: Task } | { refusal: Answer } {
  const { body, type, scope } = call;
  const refuse = (status: number, code: string, detail: string) => ({ refusal: refusal(flaws, status, code, detail) });
  if (body.job.type !== type) return refuse(422, 'type_mismatch', `The path says ${type}, the body ${body.job.type}.`);
  const task = taskOf(call, flaws);
  if (task === 'unknown_job_type') return refuse(404, task, `This service knows no job type ${type}.`);
  if (level >= 2) {
    if (task === 'invalid_payload') return refuse(422, task, `The payload is not one of a ${type} job.`);
    if (call.cursor !== null && readCursor(call.cursor) === null) {
      return refuse(422, 'bad_cursor', 'This service has not written that cursor.');
    }
    return { task };
  }
  if (call.dryRun) return refuse(422, 'dry_run_unsupported', 'Below level 2 a dry run would send for real.');
  if (scope === 'failed' || scope === 'unknown') {
    return refuse(422, 'scope_unsupported', `Below level 2 nobody is sent to again (scope ${scope}).`);
  }
  if (task === 'invalid_payload') return refuse(422, task, `The payload is not one of a ${type} job.`);
  if (task.kind === 'broadcast' && task.only !== null) {
    return refuse(422, 'test_unsupported', 'Below level 2 a test would go to everybody.');
  }
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
function fingerprint({ job, payload, step }: Body, flaws: Flaws): string {
  const same = [job.id, job.type, job.dry_run ?? false, payload, step.seq, step.cursor ?? null, step.scope ?? 'all'];
  if (flaws.has('fingerprints-attempt')) same.push(job.epoch, job.attempt, step.previous_failure ?? null);
  return createHash('sha256').update(JSON.stringify(same)).digest('hex');
}

function taskOf(call: Call, flaws: Flaws): Task | 'unknown_job_type' | 'invalid_payload' {
  const { payload } = call.body;
  switch (call.type) {
    case 'send_broadcast':
      return broadcastTask(call, null, flaws);
    case 'send_segment_broadcast':
      if (!Value.Check(SegmentPayload, payload)) return 'invalid_payload';
      return broadcastTask(call, String('segment_id' in payload ? payload.segment_id : payload.segmentId), flaws);
    case 'process_retries':
      if (!Value.Check(RetriesPayload, payload)) return 'invalid_payload';
      return { kind: 'retries', limit: payload.limit ?? 1000 };
    default:
      return 'unknown_job_type';
  }
}

function broadcastTask(
  { jobId, body: { payload } }: Call,
  segment: string | null,
  flaws: Flaws,
): BroadcastTask | 'invalid_payload' {
  const broadcastId = broadcastOf(payload);
  if (broadcastId === null || !Value.Check(Extras, payload)) return 'invalid_payload';
  const isTest = payload.test_recipients !== undefined;
  const ledgerId = isTest ? `${broadcastId} tested by ${jobId}` : broadcastId;
  const only = flaws.has('test-sends-all') ? null : (payload.test_recipients?.map(String) ?? null);
  return { kind: 'broadcast', broadcastId, ledgerId, segment, only, variants: payload.variants ?? null };
}
