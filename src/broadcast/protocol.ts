/**
 * The protocol between the daemon and the broadcast service, as schemas: what is sent, and what an answer may hold.
 * The types follow from the schemas. Members that are not listed are allowed everywhere, so that either side may be
 * deployed first.
 */
import { type Static, type TSchema, Type } from 'typebox';

/** Bounds on what a service may answer, in bytes of UTF-8. */
export const MAX_BODY_BYTES = 256 * 1024;
export const MAX_TEXT_BYTES = 1024;
export const MAX_CURSOR_BYTES = 4 * 1024;
export const MAX_LOCATION_BYTES = 2 * 1024;
/** Bound on what is kept of an answer as the job's result, in bytes of JSON text. */
export const MAX_RESULT_BYTES = 16 * 1024;

const Count = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Instant = Type.String({ format: 'date-time' });
const Nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);

/** The body of POST {base}/jobs/{job_type}. */
export const Envelope = Type.Object({
  protocol: Type.Literal(1),
  job: Type.Object({
    /** The producer's `job_id`, not the row's number. */
    id: Type.String(),
    type: Type.String(),
    queue: Type.String(),
    created_at: Instant,
    scheduled_at: Instant,
    expires_at: Nullable(Instant),
    dry_run: Type.Boolean(),
    epoch: Count,
    attempt: Count,
    max_attempts: Count,
  }),
  /** The row's `job_data`, verbatim. */
  payload: Type.Unknown(),
  step: Type.Object({
    seq: Count,
    cursor: Nullable(Type.String()),
    scope: Type.Enum(['all', 'pending', 'failed', 'unknown']),
    max_items: Count,
    wait_seconds: Type.Number({ minimum: 0 }),
    /** Messages a second. */
    per_second: Nullable(Type.Number({ minimum: 0 })),
    previous_failure: Nullable(Type.String()),
  }),
});
export type Envelope = Static<typeof Envelope>;

/**
 * Absolute counters since the job began: as `progress`, or plainly at the top of a body. Read leniently: `processed`
 * may be left out where its parts are given, and null is the same as absent.
 */
export const Counters = Type.Object({
  total: Type.Optional(Nullable(Count)),
  processed: Type.Optional(Nullable(Count)),
  sent: Type.Optional(Nullable(Count)),
  skipped: Type.Optional(Nullable(Count)),
  failed: Type.Optional(Nullable(Count)),
  unknown: Type.Optional(Nullable(Count)),
  reasons: Type.Optional(Nullable(Type.Record(Type.String(), Count))),
});
export type Counters = Static<typeof Counters>;

/**
 * This slice is durably recorded; there is more. `progress` should be Counters, but a slip in it must not stop a
 * broadcast whose cursor is sound: unusable counters are left out.
 */
export const Continue = Type.Object({
  status: Type.Literal('continue'),
  cursor: Type.String({ minLength: 1 }),
  progress: Type.Optional(Type.Unknown()),
});

/** Nothing to do before `resume_at`, an RFC 3339 instant with its zone. */
export const Hold = Type.Object({
  status: Type.Literal('hold'),
  cursor: Type.Optional(Nullable(Type.String({ minLength: 1 }))),
  reason: Type.Optional(Nullable(Type.String())),
  resume_at: Type.Optional(Nullable(Type.String())),
  progress: Type.Optional(Type.Unknown()),
});

/**
 * application/problem+json (RFC 9457) with the members this protocol adds. Each member is read on its own, so that one
 * of the wrong type does not hide the others.
 */
export const Problem = Type.Object({
  title: Type.Optional(Type.String()),
  detail: Type.Optional(Type.String()),
  /** Such as `in_progress`, `stale_epoch`, `already_done`, `unknown_job_type`. */
  code: Type.Optional(Type.String()),
  /** Wins over what the status alone would mean. */
  retriable: Type.Optional(Type.Boolean()),
  /** Seconds. */
  retry_after: Type.Optional(Type.Number()),
  /** With `stale_epoch`: the latest epoch that the service has seen. */
  epoch: Type.Optional(Type.Integer()),
});
export type Problem = Static<typeof Problem>;
