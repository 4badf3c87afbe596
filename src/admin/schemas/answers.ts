/** What an answer holds. */
import { type TSchema, Type } from 'typebox';
import type { JsonText } from '../../db/reports.js';

/** A Date in the program, a text in the answer. */
export const Time = Type.Unsafe<Date>({ type: 'string', format: 'date-time' });
/** JSON of the database's, passed on as it is. */
const Json = Type.Unsafe<JsonText | null>({});
const Id = Type.String({ pattern: '^[0-9]+$' });
const Uuid = Type.String({ format: 'uuid' });
const Text = Type.String();
const Count = Type.Integer();
export const nullable = <T extends TSchema>(type: T) => Type.Union([type, Type.Null()]);

/** RFC 9457. `code` is one word for machines, `type` leads to its explanation. */
export const Problem = Type.Object({
  type: Text,
  title: Text,
  status: Count,
  code: Text,
  detail: Text,
  request_id: Text,
});

export const Alive = Type.Object({ status: Type.Literal('alive') });

export const Readiness = Type.Object({
  status: Type.Unsafe<'ready' | 'not_ready'>({ type: 'string', enum: ['ready', 'not_ready'] }),
  missing: Type.Array(Text, { description: 'In words.' }),
});

/** Everything but `status` only for those who have a token. */
export const Health = Type.Object({
  status: Type.Unsafe<'healthy' | 'unhealthy'>({ type: 'string', enum: ['healthy', 'unhealthy'] }),
  running: Type.Optional(Type.Boolean()),
  activeJobs: Type.Optional(Count),
  listening: Type.Optional(Type.Boolean()),
  databaseDownMs: Type.Optional(Count),
  timestamp: Type.Optional(Time),
});

const counts = {
  pending: Count,
  processing: Count,
  completed: Count,
  failed: Count,
  retry: Count,
  paused: Count,
  cancelled: Count,
  active: Count,
};
export const Counts = Type.Object(counts);
export const Pause = Type.Object({ paused_at: Time, paused_by: Text, reason: nullable(Text) });

export const Statistics = Type.Object({
  total_jobs: Count,
  pending_jobs: Count,
  processing_jobs: Count,
  completed_jobs: Count,
  failed_jobs: Count,
  retry_jobs: Count,
  paused_jobs: Count,
  cancelled_jobs: Count,
  avg_processing_time_sec: nullable(Type.Number()),
  oldest_job: nullable(Time),
  newest_job: nullable(Time),
});

export const Breaker = Type.Object({
  state: Type.Unsafe<'closed' | 'open' | 'half_open'>({ type: 'string', enum: ['closed', 'open', 'half_open'] }),
  opened_at: nullable(Time),
  open_until: nullable(Time),
  probes: Count,
  failures_in_a_row: Count,
  last_error: nullable(Text),
  service_level: nullable(Count),
});

export const StatusAnswer = Type.Object({
  running: Type.Boolean(),
  queues: Type.Record(Text, Counts),
  statistics: Statistics,
  activeJobs: Count,
  allPaused: nullable(Pause),
  breaker: Breaker,
  timestamp: Time,
});

export const QueueStatus = Type.Object({
  queueName: Text,
  ...counts,
  isPaused: Type.Boolean(),
  pause: nullable(Pause),
  timestamp: Time,
});

export const Queues = Type.Object({
  count: Count,
  allPaused: nullable(Pause),
  queues: Type.Array(
    Type.Object({ queueName: Text, ...counts, isPaused: Type.Boolean(), pause: nullable(Pause), send_window: Json }),
  ),
  timestamp: Time,
});

const job = {
  id: Id,
  job_id: Uuid,
  queue_name: Text,
  job_type: Text,
  job_data: Json,
  status: Text,
  attempts: Count,
  max_attempts: Count,
  error_message: nullable(Text),
  error_code: nullable(Text),
  result: Json,
  scheduled_at: Time,
  started_at: nullable(Time),
  completed_at: nullable(Time),
  next_retry_at: nullable(Time),
  created_at: Time,
  updated_at: Time,
  priority: Count,
  unique_key: nullable(Text),
  expires_at: nullable(Time),
  due_at: nullable(Time),
  epoch: Count,
  step_seq: Count,
  step_scope: Text,
  progress: Json,
  progress_rate: nullable(Type.Number()),
  progress_at: nullable(Time),
  hold_reason: nullable(Text),
  paused_from: nullable(Text),
  pause_requested_at: nullable(Time),
  previous_failure: nullable(Text),
  stalled_calls: Count,
  outage_calls: Count,
  operation_url: nullable(Text),
  send_window: Json,
  flags: Type.Array(Text),
  dry_run: Type.Boolean(),
  traceparent: nullable(Text),
  bot_id: nullable(Text),
  omitted: Type.Array(Text, { description: 'Members too long for a list: null here, whole at GET /job/:jobId.' }),
};
export const Job = Type.Object(job);

const Attempt = Type.Object({
  epoch: Count,
  attempt: Count,
  step_seq: Count,
  worker_id: nullable(Text),
  outcome: Text,
  error_code: nullable(Text),
  error_message: nullable(Text),
  http_status: nullable(Count),
  started_at: nullable(Time),
  finished_at: Time,
});

const shown = {
  ...job,
  step_cursor: nullable(Text),
  worker_id: nullable(Text),
  lease_expires_at: nullable(Time),
  waiting_because: nullable(Text),
  history: Type.Array(Attempt, { description: 'The last hundred attempts that told something, oldest first.' }),
};
export const ShownJob = Type.Object(shown);
export const EnqueuedJob = Type.Object({
  ...shown,
  inserted: Type.Boolean({ description: 'false: this job was there already.' }),
});

const listed = { count: Count, nextCursor: nullable(Text) };
export const JobsPage = Type.Object({ limit: Count, ...listed, jobs: Type.Array(Job) });
export const QueueJobsPage = Type.Object({
  ...{ queueName: Text, status: nullable(Text), limit: Count },
  ...listed,
  jobs: Type.Array(Job),
});
export const FailedPage = Type.Object({ queueName: Text, limit: Count, ...listed, failedJobs: Type.Array(Job) });

export const Done = Type.Object({ success: Type.Literal(true), message: Text });
export const JobDone = Type.Object({ success: Type.Literal(true), message: Text, job_id: Uuid, status: Text });

export const Bulk = Type.Object({
  matched: Count,
  changed: Count,
  skipped: Count,
  dryRun: Type.Boolean(),
  complete: Type.Boolean({ description: 'false: there may be more that fit; ask again.' }),
});

export const FailureGroup = Type.Object({
  job_type: Text,
  error_code: nullable(Text),
  message: Text,
  count: Count,
  first_seen: Time,
  last_seen: Time,
  sample: Type.Object({ job_id: Uuid, error_message: nullable(Text) }),
});
export const Failures = Type.Object({
  count: Count,
  groups: Type.Array(FailureGroup),
  complete: Type.Boolean({ description: 'false: older failures, or smaller groups, were left out.' }),
});

export const Limited = Type.Object({
  key: Text,
  per_second: nullable(Type.Number()),
  max_concurrent: nullable(Count),
  updated_at: Time,
  updated_by: Text,
});
export const Limits = Type.Object({ ...listed, limits: Type.Array(Limited) });
export const LimitSet = Type.Object({ success: Type.Literal(true), message: Text, limit: Limited });

export const Gates = Type.Object({
  ...listed,
  gates: Type.Array(
    Type.Object({
      ...{ key: Text, closed: Type.Boolean(), closed_until: Time, closed_at: Time },
      reason: nullable(Text),
    }),
  ),
});

export const QueueWindow = Type.Object({ queueName: Text, send_window: Json });
export const Cleaned = Type.Object({
  queueName: Text,
  jobsCleared: Count,
  daysOld: Type.Number(),
  complete: Type.Boolean({ description: 'false: the time was up; ask again for the rest.' }),
});

export const Workers = Type.Object({
  count: Count,
  workers: Type.Array(
    Type.Object({
      ...{ id: Text, version: Text, host: Text, pid: Count, slots: Type.Unknown(), alive: Type.Boolean() },
      ...{ started_at: Time, last_seen_at: Time, active_jobs: Count, jobs: Type.Array(Uuid) },
    }),
  ),
});

export const Schedules = Type.Object({
  count: Count,
  schedules: Type.Array(
    Type.Object({
      ...{ name: Text, cron: nullable(Text), time_zone: nullable(Text) },
      ...{ last_tick: nullable(Time), next_tick: nullable(Time) },
    }),
  ),
});

export const Audit = Type.Object({
  ...listed,
  entries: Type.Array(
    Type.Object({
      ...{ id: Id, at: Time, actor: Text, role: Text, action: Text, target: Text },
      ...{ before: Type.Unknown(), after: Type.Unknown(), request_id: Text },
    }),
  ),
});
