/** What a request may hold. Whatever is not named here is refused. */
import { Type } from 'typebox';
import { RESERVED_QUEUE_NAMES } from '../../job.js';
import { strict } from '../route.js';

export const QueueName = Type.String({
  pattern: `^(?!(?:${RESERVED_QUEUE_NAMES.join('|')})$)[a-z][a-z0-9_-]{0,49}$`,
  description: `A queue’s name: a-z, 0-9, _ and -, a letter first, 50 at most, and no word that the routes use: ${RESERVED_QUEUE_NAMES.join(', ')}.`,
});
export const JobId = Type.String({
  pattern: '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$',
  description: 'A job’s job_id.',
});
export const JobType = Type.String({ pattern: '^[A-Za-z][A-Za-z0-9_.:-]{0,49}$', description: 'A job type’s name.' });
export const Status = Type.Unsafe<'pending' | 'processing' | 'completed' | 'failed' | 'retry' | 'paused' | 'cancelled'>(
  { type: 'string', enum: ['pending', 'processing', 'completed', 'failed', 'retry', 'paused', 'cancelled'] },
);
export const Scope = Type.Unsafe<'all' | 'pending' | 'failed' | 'unknown'>({
  type: 'string',
  enum: ['all', 'pending', 'failed', 'unknown'],
  description:
    'To whom: those still pending, failed or unknown in the service’s ledger; or all, which a service with a ledger ' +
    'takes as: everybody it has not handled yet.',
});
export const Reason = Type.String({ minLength: 1, maxLength: 500, description: 'Shown to whoever looks at it.' });
export const Limit = Type.Integer({ minimum: 1, maximum: 500, description: 'Rows at most; 50 if left out.' });
export const LIMIT = 50;
export const Cursor = Type.String({ maxLength: 400, description: 'The `nextCursor` of the page before.' });
export const Instant = Type.String({
  pattern: '^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}(:\\d{2}(\\.\\d{1,6})?)?(Z|[+-]\\d{2}:\\d{2})$',
  description: 'An instant such as 2026-11-01T09:00:00Z. In a query a + is written %2B.',
});
export const LimitKey = Type.String({
  pattern: '^(queue:[a-z][a-z0-9_-]{0,49}|bot:.{1,100})$',
  description: '`queue:<name>`, or `bot:<job_data.bot_id>`.',
});
export const Window = Type.Object(
  {
    from: Type.String({ pattern: '^([01][0-9]|2[0-3]):[0-5][0-9]$' }),
    to: Type.String({ pattern: '^([01][0-9]|2[0-3]):[0-5][0-9]$' }),
    time_zone: Type.String({ maxLength: 100, description: 'Such as Europe/Berlin.' }),
    days: Type.Optional(Type.Array(Type.Integer({ minimum: 1, maximum: 7 }), { minItems: 1, maxItems: 7 })),
    missed: Type.Optional(Type.Unsafe<'wait' | 'fail'>({ type: 'string', enum: ['wait', 'fail'] })),
  },
  { additionalProperties: false, description: 'Hours in which jobs may be sent; `days` are 1 (Monday) to 7.' },
);

const filters = {
  status: Type.Optional(Status),
  job_type: Type.Optional(JobType),
  created_from: Type.Optional(Instant),
  created_to: Type.Optional(Instant),
  finished_from: Type.Optional(Instant),
  finished_to: Type.Optional(Instant),
  error: Type.Optional(
    Type.String({ minLength: 1, maxLength: 200, description: 'Contained in error_message, in capitals or not.' }),
  ),
  error_code: Type.Optional(
    Type.String({ minLength: 1, maxLength: 200, description: 'Of the last attempt, such as http_500 or timeout.' }),
  ),
};

/** `data.<name>=value` finds members of job_data. */
const DATA_MEMBER = '^data\\.[A-Za-z_][A-Za-z0-9_]{0,49}$';
const dataMembers = { patternProperties: { [DATA_MEMBER]: Type.String({ maxLength: 200 }) } };
const page = { limit: Type.Optional(Limit), cursor: Type.Optional(Cursor) };

export const QueueJobsQuery = Type.Object({ ...filters, ...page }, { additionalProperties: false, ...dataMembers });
export const JobsQuery = Type.Object(
  { ...filters, queue: Type.Optional(QueueName), ...page },
  { additionalProperties: false, ...dataMembers },
);
export const PageQuery = strict(page);

export const Filter = Type.Object(
  {
    ...filters,
    queue: Type.Optional(QueueName),
    data: Type.Optional(
      Type.Record(Type.String({ pattern: '^[A-Za-z_][A-Za-z0-9_]{0,49}$' }), Type.String({ maxLength: 200 }), {
        additionalProperties: false,
        maxProperties: 10,
        description: 'Members of job_data by name, compared as text.',
      }),
    ),
  },
  { additionalProperties: false, minProperties: 1, description: 'All of it must fit.' },
);

export const NewJob = strict({
  job_type: JobType,
  job_data: Type.Unsafe<object>({ type: 'object', description: 'The payload, handed on as it is.' }),
  queue: Type.Optional(QueueName),
  queue_name: Type.Optional(QueueName),
  delay: Type.Optional(
    Type.Union(
      [Type.Number({ minimum: 0, maximum: 315_360_000 }), Type.String({ maxLength: 50, pattern: '^[0-9A-Za-z :.]+$' })],
      { description: 'From now: seconds, or an interval such as "10 minutes".' },
    ),
  ),
  scheduled_at: Type.Optional(Instant),
  priority: Type.Optional(Type.Integer({ minimum: -32_768, maximum: 32_767 })),
  max_attempts: Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000_000 })),
  unique_key: Type.Optional(
    Type.Union([Type.String({ minLength: 1, maxLength: 500 }), Type.Null()], {
      description: 'At most one live job of the queue has it. Left out: the broadcast’s own; null: none.',
    }),
  ),
  expires_at: Type.Optional(Instant),
  dry_run: Type.Optional(Type.Boolean()),
  traceparent: Type.Optional(Type.String({ pattern: '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' })),
  send_window: Type.Optional(Window),
});
