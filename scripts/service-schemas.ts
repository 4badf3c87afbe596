/**
 * The bodies of the service protocol for its OpenAPI document. What the daemon writes and reads by a schema is that very
 * schema, with prose added; what it reads without one is written out here.
 */
import { type TSchema, Type } from 'typebox';
import { Continue, Counters, Envelope, Hold, MAX_CURSOR_BYTES, Problem } from '../src/broadcast/protocol.js';

/** Plain JSON. */
export interface Json {
  readonly [member: string]: unknown;
}

export function schemas(): Json {
  const { job, step } = Envelope.properties;
  return {
    Envelope: described(Envelope, 'What is to be done.', {
      payload: 'The row’s `job_data`, to the last digit: take its numbers for what JSON says, or send ids as texts.',
      job: described(job, 'The job. All but `attempt` and `epoch` is the same for all its calls.', {
        id: 'The name of the job everywhere: `job_id` of its row.',
        dry_run: 'Send nothing; say how many it would be.',
        epoch: 'Rises with every claim and every intervention.',
        attempt: 'Failures of this step in a row, and this call.',
      }),
      step: described(step, 'What to do now.', {
        seq: 'Never goes back. A new step has a new key.',
        cursor: 'As it was answered, or null at the beginning.',
        scope: '`all` and `pending`: who was not sent it yet. `failed`, `unknown`: those again, and nobody else.',
        max_items: 'Handle at most so many people.',
        wait_seconds: 'Answer after so long; 15 s later nobody waits any more.',
        per_second: 'The pace to send at; null for your own.',
        previous_failure: 'What became of the last call of this step, as far as the daemon knows.',
      }),
    }),
    Counters: described(
      Counters,
      'Absolute since the job began, never deltas. processed = sent + skipped + failed + unknown; what is left out is 0.',
      { total: 'Null while nobody knows.', reasons: 'Why people were skipped or failed, counted.' },
    ),
    Continue: described(Continue, 'This slice is durably recorded, and there is more.', {
      cursor: `Comes back as it is; at most ${MAX_CURSOR_BYTES / 1024} KiB. Move it past handled people only.`,
      progress: ref('Counters'),
    }),
    Hold: described(Hold, 'Nothing to do before `resume_at`. No attempt is lost.', {
      reason: 'Shown to the operators.',
      resume_at: 'RFC 3339, with its zone. Without it, in a minute.',
      progress: ref('Counters'),
    }),
    Completed: described(
      Type.Object({ status: Type.Enum(['completed', 'done']), progress: Type.Optional(Type.Unknown()) }),
      'All is done. With `processed` below `total`, or a wrong sum, the job fails with `incomplete` and can be resumed.',
      { progress: ref('Counters') },
    ),
    DryRun: described(
      Type.Object({
        status: Type.Literal('completed'),
        dry_run: Type.Literal(true),
        audience: Type.Integer({ minimum: 0 }),
        estimated_seconds: Type.Optional(Type.Union([Type.Number({ minimum: 0 }), Type.Null()])),
      }),
      'Whom it would go to, and how long it would take.',
    ),
    Operation: described(
      Type.Object({
        status: Type.Enum(['running', 'completed', 'failed', 'cancelled']),
        progress: Type.Optional(Type.Unknown()),
        error: Type.Optional(Type.Union([Type.String(), Type.Null()])),
      }),
      'How an operation stands (level 3).',
      { progress: ref('Counters'), error: 'Why it failed.' },
    ),
    PlainSuccess: {
      ...{ type: 'object', description: 'A plain service (level 0): any JSON without a `status` of this protocol.' },
      properties: {
        status: { not: { enum: ['completed', 'done', 'continue', 'hold', 'running', 'failed', 'cancelled'] } },
      },
    },
    PlainFailure: {
      description: 'A plain service says that it failed.',
      anyOf: ['ok', 'success'].map((name) => ({ required: [name], properties: { [name]: { const: false } } })),
    },
    Problem: described(Problem, 'RFC 9457. Every member may be left out.', {
      code: '`in_progress`, `stale_epoch`, `already_done`, `unknown_job_type`, or one of your own.',
      retriable: 'Wins over what the status means.',
      retry_after: 'Seconds, where there is no header.',
      epoch: 'With `stale_epoch`: the latest seen.',
    }),
  };
}

/** The schema with a description, and its members with theirs, or replaced by a schema that says more. */
function described(schema: TSchema, description: string, members: Readonly<Record<string, string | Json>> = {}): Json {
  // Through JSON, which drops what TypeBox keeps for itself.
  const plain: { properties: Record<string, Json> } = JSON.parse(JSON.stringify(schema));
  for (const [name, more] of Object.entries(members)) {
    const member = plain.properties[name];
    if (member === undefined) throw new Error(`${name} is described, but not in the schema: ${description}`);
    plain.properties[name] = typeof more === 'string' ? { description: more, ...member } : more;
  }
  return { description, ...plain };
}

export function ref(name: string): Json {
  return { $ref: `#/components/schemas/${name}` };
}

export function envelopeExample(seq: number, cursor: string | null, epoch: number): Json {
  const at = '2026-11-20T09:00:00.000Z';
  return {
    protocol: 1,
    job: {
      ...{ id: '9b1c0c1e-54a5-4f6c-9d1e-0c6e8f1f2a3b', type: 'send_broadcast', queue: 'broadcasts' },
      ...{ created_at: at, scheduled_at: at, expires_at: null, dry_run: false, epoch, attempt: 1 },
      max_attempts: 3,
    },
    payload: { broadcast_id: 42 },
    step: { seq, cursor, scope: 'all', max_items: 600, wait_seconds: 25, per_second: 30, previous_failure: null },
  };
}

/** Of a thousand people, after so many. */
export function countersExample(processed: number): Json {
  const failed = processed / 10;
  return {
    total: 1000,
    processed,
    sent: processed - failed,
    skipped: 0,
    failed,
    unknown: 0,
    reasons: { blocked: failed },
  };
}
