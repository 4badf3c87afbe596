/**
 * What a broadcast service offers, as an OpenAPI 3.1 document for the people who write one: docs/service-openapi.json.
 * Here are its routes, headers and answers; service-schemas.ts has what the bodies hold.
 */
import { MAX_BODY_BYTES, MAX_TEXT_BYTES } from '../src/broadcast/protocol.js';
import { countersExample, envelopeExample, type Json, ref, schemas } from './service-schemas.js';

export function serviceOpenapi(): string {
  return `${JSON.stringify(document(), null, 2)}\n`;
}

function document(): Json {
  return {
    openapi: '3.1.1',
    info: {
      title: 'A broadcast service for broadcastd',
      version: '1',
      summary: 'What the bot team’s service offers, and broadcastd calls.',
      description: [
        'One endpoint, four levels. Level 0, plain: do all the work, then answer any 2xx. Level 1, idempotent: also remember',
        '`Idempotency-Key`. Level 2, sliced: do at most `max_items` or `wait_seconds`, then answer `continue` with a cursor.',
        'Level 3, operation: answer 202 with a `Location`, which the daemon asks from then on. An answer may say the level in',
        '`X-Broadcast-Level`. Members that are not listed are allowed everywhere. `service-guide.md` beside this file says how',
        `to build one. Redirects are never followed, and a body may have ${MAX_BODY_BYTES / 1024} KiB.`,
      ].join(' '),
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: 'http://localhost:4000', description: 'BROADCAST_SERVICE_URL; its path is kept.' }],
    security: [{ token: [] }, {}],
    paths: {
      '/jobs/{job_type}': { post: runStep() },
      '/operations/{operation}': {
        description:
          'Level 3. The address is an example: the service chooses it in `Location`, at its own origin. The daemon keeps it, so that any daemon can go on asking.',
        parameters: [{ name: 'operation', in: 'path', required: true, schema: { type: 'string' } }],
        get: askOperation(),
        delete: endOperation(),
      },
    },
    components: {
      schemas: schemas(),
      headers: headers(),
      responses: problems(),
      securitySchemes: {
        token: { type: 'http', scheme: 'bearer', description: 'Only when BROADCAST_SERVICE_TOKEN is set.' },
      },
    },
  };
}

function runStep(): Json {
  return {
    operationId: 'runStep',
    summary: 'Do one step of a job: all of it, or a slice.',
    description:
      'The same `Idempotency-Key` is the same step: answer it again as before, without sending. When `webhook-signature` is there, check it over the raw bytes before reading them.',
    parameters: [
      {
        ...{ name: 'job_type', in: 'path', required: true, schema: { type: 'string' } },
        description: '`send_broadcast`, `send_segment_broadcast`, `process_retries`, or one of JOB_TYPES.',
        example: 'send_broadcast',
      },
      ...stepHeaders(),
    ],
    requestBody: {
      required: true,
      content: {
        'application/json': {
          schema: ref('Envelope'),
          examples: {
            first: { summary: 'The first slice of a broadcast', value: envelopeExample(0, null, 1) },
            next: { summary: 'Its second', value: envelopeExample(1, '0:600', 2) },
          },
        },
      },
    },
    responses: {
      '200': {
        description: [
          'The last slice is done (`completed`), or there is nothing to do yet (`hold`). A plain service may also answer nothing,',
          `a text of at most ${MAX_TEXT_BYTES / 1024} KiB, or any JSON: all is done. \`{"ok": false}\` or \`{"success": false}\`: it failed, and is tried again.`,
        ].join(' '),
        headers: { 'X-Broadcast-Level': headerRef('XBroadcastLevel') },
        content: {
          'application/json': {
            schema: { anyOf: ['Completed', 'DryRun', 'Hold', 'PlainSuccess', 'PlainFailure'].map(ref) },
            examples: {
              completed: { value: { status: 'completed', progress: countersExample(1000) } },
              dryRun: { value: { status: 'completed', dry_run: true, audience: 1000, estimated_seconds: 34 } },
              hold: { value: { status: 'hold', reason: 'quiet_hours', resume_at: '2026-11-20T08:00:00+01:00' } },
              plain: { value: { sent: 900, failed: 100 } },
              plainFailure: { value: { ok: false, message: 'the messenger is away' } },
            },
          },
          'text/plain': { schema: { type: 'string', maxLength: MAX_TEXT_BYTES }, example: 'OK' },
        },
      },
      '202': {
        description:
          'There is more (`continue`), or the service runs it by itself (with a `Location`, level 3). **With neither, the job counts as completed, unwatched, and is never called again.**',
        headers: {
          'X-Broadcast-Level': headerRef('XBroadcastLevel'),
          Location: headerRef('Location'),
          'Retry-After': headerRef('RetryAfter'),
        },
        content: {
          'application/json': {
            schema: { anyOf: [ref('Continue'), ref('Operation')] },
            examples: {
              continue: { value: { status: 'continue', cursor: '0:600', progress: countersExample(600) } },
              operation: { value: { status: 'running', progress: countersExample(0) } },
            },
          },
        },
      },
      ...failures(),
    },
  };
}

/** Those that OpenAPI lets a document list: Accept, Authorization and Content-Type it does not. */
function stepHeaders(): Json[] {
  const ofStep: [name: string, required: boolean, type: string, example: unknown, description: string][] = [
    ['Idempotency-Key', true, 'string', '"9b1c…:7"', 'A quoted text, the same for every repetition of this step.'],
    ['Prefer', true, 'string', 'respond-async, wait=25', 'How long the step may take.'],
    ['X-Job-Id', true, 'string', '9b1c…', 'As `job.id`; what is not printable ASCII is percent-encoded.'],
    [
      'X-Job-Epoch',
      true,
      'integer',
      3,
      'As `job.epoch`: refuse one lower than any seen of the job by 409 `stale_epoch`.',
    ],
    ['X-Job-Attempt', true, 'integer', 1, 'As `job.attempt`.'],
    ['webhook-id', false, 'string', '9b1c…:7', 'Standard Webhooks, when BROADCAST_SERVICE_SECRET is set.'],
    ['webhook-timestamp', false, 'string', '1795000000', 'Seconds since 1970; refuse what is older than five minutes.'],
    [
      'webhook-signature',
      false,
      'string',
      'v1,…',
      'v1, HMAC-SHA256; several, by spaces, while secrets rotate: one must fit.',
    ],
    ['traceparent', false, 'string', undefined, 'W3C Trace Context, when the row carries one.'],
  ];
  return ofStep.map(([name, required, type, example, description]) => ({
    ...{ name, in: 'header', required, description, schema: { type } },
    ...(example !== undefined && { example }),
  }));
}

function askOperation(): Json {
  return {
    operationId: 'askOperation',
    summary: 'How an operation stands.',
    description:
      'Asked again after `Retry-After`, or 5 s. Asking changes nothing. It carries the token, but no signature.',
    responses: {
      '200': {
        description: 'How it stands.',
        headers: { 'Retry-After': headerRef('RetryAfter') },
        content: {
          'application/json': {
            schema: ref('Operation'),
            examples: {
              running: { value: { status: 'running', progress: countersExample(600) } },
              completed: { value: { status: 'completed', progress: countersExample(1000) } },
              failed: {
                value: { status: 'failed', error: 'the messenger refuses our token', progress: countersExample(600) },
              },
            },
          },
        },
      },
      '404': { description: 'The service has forgotten it: the step is called again.', content: problemContent() },
      default: { description: 'Asked again later.', content: problemContent() },
    },
  };
}

function endOperation(): Json {
  return {
    operationId: 'endOperation',
    summary: 'End an operation: its job was cancelled.',
    responses: {
      '204': { description: 'It ends, after the messages in hand.' },
      '404': { description: 'Nothing to end; so are 405, 410 and 501.', content: problemContent() },
      default: { description: 'Tried again.', content: problemContent() },
    },
  };
}

/** The failures of a step: what each makes the daemon do. */
function failures(): Json {
  const one = (description: string, code: string, more: Json = {}) => ({
    description,
    ...('retry_after' in more && { headers: { 'Retry-After': headerRef('RetryAfter') } }),
    content: problemContent({ code, detail: 'What happened, and what to do.', ...more }),
  });
  return {
    '400': one('Not understood. The job fails at once, as for any 4xx that is not listed.', 'bad_key'),
    '401': one(
      'Token or signature are wrong. While other jobs succeed this one fails; else all wait. So is 403.',
      'bad_signature',
    ),
    '404': one(
      'With `unknown_job_type` the job fails at once; a bare 404 is tried again, at most three times.',
      'unknown_job_type',
    ),
    '409': one(
      '`in_progress`: an earlier call of this step still runs, and it is called again with the same key. `stale_epoch`: a later call has come; `epoch` says which. `already_done`: completed.',
      'in_progress',
      { retry_after: 1 },
    ),
    '410': one('Nobody wants it any more: the job is cancelled.', 'withdrawn'),
    '422': one('The data is wrong. The job fails at once, and a person looks.', 'invalid_payload', {
      retriable: false,
    }),
    '429': one(
      'Too fast. Nothing is called until then, of this bot or this service, and no attempt is lost.',
      'throttled',
      { retry_after: 30 },
    ),
    '503': one(
      'Away until then: as 429. Without `Retry-After`: tried again, at the cost of an attempt.',
      'unavailable',
      { retry_after: 5 },
    ),
    default: { $ref: '#/components/responses/Failure' },
  };
}

function problems(): Json {
  return {
    Failure: {
      description:
        'Tried again with the same key after a growing pause, until the attempts are spent. An explicit `retriable` wins over the status.',
      content: problemContent(),
    },
  };
}

function problemContent(example?: Json): Json {
  return { 'application/problem+json': { schema: ref('Problem'), ...(example && { example }) } };
}

function headers(): Json {
  return {
    XBroadcastLevel: {
      description: 'What the service can do. The highest seen is kept; dry runs and test sends need 2.',
      schema: { type: 'integer', enum: [0, 1, 2, 3] },
    },
    Location: {
      description: 'Of the operation, at the service’s own origin.',
      schema: { type: 'string', format: 'uri-reference' },
      example: '/operations/17',
    },
    RetryAfter: {
      description: 'Whole seconds or an HTTP date; at most 24 hours.',
      schema: { anyOf: [{ type: 'integer', minimum: 0 }, { type: 'string' }] },
    },
  };
}

function headerRef(name: string): Json {
  return { $ref: `#/components/headers/${name}` };
}
