/**
 * Every variable the daemon reads, in one table. loadConfig reads the environment by it, and `scripts/generate.ts` writes
 * .env.example and the README's table from it, so the three cannot disagree.
 */
import type { Static } from 'typebox';
import * as formats from './formats.js';

export interface Setting {
  readonly name: string;
  readonly group: 'Database' | 'Broadcast service' | 'Jobs' | 'Schedules' | 'Admin API' | 'Process';
  readonly format: formats.Format;
  /** As one would write it in the environment. Without it, and not `required`, the value is null when unset. */
  readonly default?: string;
  readonly required?: true;
  /** What .env.example shows when there is no default; also the "such as" of a fault. */
  readonly example?: string;
  /** May be given as a file (`NAME_FILE`) and is never shown. */
  readonly secret?: true;
  /** Given but empty: null, instead of the default. */
  readonly emptyIsOff?: true;
  /** One sentence. */
  readonly meaning: string;
}

const {
  adminTokens,
  choice,
  concurrency,
  cron,
  host,
  httpUrl,
  integer,
  jobTypes,
  memberNames,
  postgresUrl,
  rateLimits,
  schemaName,
  timeZone,
  token,
  webhookSecrets,
  yesOrNo,
} = formats;

const hour = 3_600_000;
const day = 24 * hour;

export const settings = [
  {
    name: 'DATABASE_URL',
    group: 'Database',
    format: postgresUrl,
    example: 'postgres://user:password@localhost:5432/bot',
    secret: true,
    meaning: 'Where the queue lives; without it the usual PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD are read.',
  },
  {
    name: 'LISTEN_DATABASE_URL',
    group: 'Database',
    format: postgresUrl,
    example: 'postgres://user:password@localhost:5432/bot',
    secret: true,
    meaning: 'A direct connection for LISTEN, when DATABASE_URL goes through a pooler in transaction mode.',
  },
  {
    name: 'MIGRATE_DATABASE_URL',
    group: 'Database',
    format: postgresUrl,
    example: 'postgres://owner:password@localhost:5432/bot',
    secret: true,
    meaning: 'The connection of a role that may create tables, when that of DATABASE_URL may not.',
  },
  {
    name: 'AUTO_MIGRATE',
    group: 'Database',
    format: yesOrNo,
    default: 'true',
    meaning: 'Whether the daemon brings the tables up to date when it starts.',
  },
  {
    name: 'DATABASE_SCHEMA',
    group: 'Database',
    format: schemaName,
    default: 'public',
    meaning: "The schema of the queue's tables and functions.",
  },
  {
    name: 'BROADCAST_SERVICE_URL',
    group: 'Broadcast service',
    format: httpUrl,
    required: true,
    example: 'http://localhost:8080/broadcasts',
    meaning: 'Where the broadcast service is; the daemon posts to /jobs/<job type> below it.',
  },
  {
    name: 'BROADCAST_SERVICE_SECRET',
    group: 'Broadcast service',
    format: webhookSecrets,
    example: 'whsec_<what openssl rand -base64 32 prints>',
    secret: true,
    meaning: 'Signs every call after the Standard Webhooks specification.',
  },
  {
    name: 'BROADCAST_SERVICE_TOKEN',
    group: 'Broadcast service',
    format: token(1),
    example: '<token>',
    secret: true,
    meaning: 'Sent with every call as a bearer token.',
  },
  {
    name: 'BROADCAST_SERVICE_TIMEOUT_MS',
    group: 'Broadcast service',
    format: integer('milliseconds', 100, day),
    default: '900000',
    meaning: 'How long a call may take in all.',
  },
  {
    name: 'BROADCAST_SERVICE_WAIT_SECONDS',
    group: 'Broadcast service',
    format: integer('seconds', 1, 600),
    default: '25',
    meaning: 'How long a service that works in slices should work on one.',
  },
  {
    name: 'BROADCAST_SERVICE_MAX_ITEMS',
    group: 'Broadcast service',
    format: integer('recipients', 1, 1_000_000),
    default: '1000',
    meaning: 'How many recipients a service that works in slices should take on at once.',
  },
  {
    name: 'BROADCAST_SERVICE_LEVEL',
    group: 'Broadcast service',
    format: integer('', 0, 3),
    example: '2',
    meaning:
      'What the service can do: 0 plain, 1 idempotent, 2 sliced, 3 operation. Unset, it is learned from its answers. Below 2 dry runs are refused.',
  },
  {
    name: 'CONCURRENCY',
    group: 'Jobs',
    format: concurrency,
    default: 'broadcasts=2,segment-broadcasts=2,retries=5,cleanup=1,*=2',
    meaning: 'How many jobs of each queue one process runs at once; a value replaces the whole default.',
  },
  {
    name: 'JOB_TYPES',
    group: 'Jobs',
    format: jobTypes,
    example: 'send_digest,send_reminder',
    meaning: 'Further job types to pass on to the broadcast service.',
  },
  {
    name: 'UNKNOWN_JOB_TYPES',
    group: 'Jobs',
    format: choice('fail', 'wait'),
    default: 'fail',
    meaning: 'Whether a job of an unknown type fails, or waits for a daemon that knows it.',
  },
  {
    name: 'MAX_PAYLOAD_BYTES',
    group: 'Jobs',
    format: integer('bytes', 64, 104_857_600),
    default: '1048576',
    meaning: 'The largest job_data the daemon passes on; a job with more fails when it is claimed.',
  },
  {
    name: 'RETRY_BASE_DELAY_MS',
    group: 'Jobs',
    format: integer('milliseconds', 1, day),
    default: '60000',
    meaning: 'The wait after the first failure, doubled with each further one.',
  },
  {
    name: 'RETRY_MAX_DELAY_MS',
    group: 'Jobs',
    format: integer('milliseconds', 1, 7 * day),
    default: '3600000',
    meaning: 'The longest wait between two attempts.',
  },
  {
    name: 'AMBIGUOUS_POLICY',
    group: 'Jobs',
    format: choice('retry', 'pause'),
    default: 'retry',
    meaning:
      'What follows a call that may or may not have been carried out: another attempt, or a pause until an operator decides.',
  },
  {
    name: 'LEASE_MS',
    group: 'Jobs',
    format: integer('milliseconds', 100, hour),
    default: '30000',
    meaning: 'How long after its last sign of life the jobs of a dead process are taken over.',
  },
  {
    name: 'POLL_INTERVAL_MS',
    group: 'Jobs',
    format: integer('milliseconds', 10, hour),
    default: '2000',
    meaning: 'How often an idle worker looks for jobs that no notification announced (jittered).',
  },
  {
    name: 'RATE_LIMITS',
    group: 'Jobs',
    format: rateLimits,
    example: 'queue:broadcasts=30,bot:shop=25',
    meaning:
      'The initial limits, in messages a second over all replicas; a limit that the database has already stays as it is.',
  },
  {
    name: 'STUCK_AFTER_MS',
    group: 'Jobs',
    format: integer('milliseconds', 1000, 7 * day),
    default: '600000',
    meaning: 'After how long without progress a processing broadcast is called stuck, in the log.',
  },
  {
    name: 'START_PAUSED',
    group: 'Jobs',
    format: yesOrNo,
    default: 'false',
    meaning: 'Whether every queue starts paused, until broadcast_resume_queue(): for a restored backup or a copy.',
  },
  {
    name: 'SCHEDULE_TZ',
    group: 'Schedules',
    format: timeZone,
    default: 'UTC',
    meaning: 'The time zone of the two cron expressions.',
  },
  {
    name: 'RETRIES_CRON',
    group: 'Schedules',
    format: cron,
    default: '*/5 * * * *',
    emptyIsOff: true,
    meaning: 'When a process_retries job is enqueued.',
  },
  {
    name: 'CLEANUP_CRON',
    group: 'Schedules',
    format: cron,
    default: '0 2 * * *',
    emptyIsOff: true,
    meaning: 'When a cleanup_queue job is enqueued.',
  },
  {
    name: 'RETENTION_DAYS',
    group: 'Schedules',
    format: integer('days', 1, 3650),
    default: '7',
    meaning: 'How long the cleanup keeps completed jobs.',
  },
  {
    name: 'DEAD_LETTER_DAYS',
    group: 'Schedules',
    format: integer('days', 1, 3650),
    default: '30',
    meaning: 'How long the cleanup keeps dead letters (failed jobs).',
  },
  {
    name: 'HOST',
    group: 'Admin API',
    format: host,
    default: '127.0.0.1',
    meaning: 'The address to listen on; 0.0.0.0 makes it reachable from outside, as a container needs.',
  },
  {
    name: 'PORT',
    group: 'Admin API',
    format: integer('', 0, 65_535),
    default: '3000',
    meaning: 'The port to listen on; 0 takes a free one.',
  },
  {
    name: 'ADMIN_TOKENS',
    group: 'Admin API',
    format: adminTokens,
    example: 'alice:admin:<24 characters or more>',
    secret: true,
    meaning: 'Who may use the API, each with a role: viewer, operator or admin.',
  },
  {
    name: 'REDACT_PAYLOAD',
    group: 'Admin API',
    format: memberNames,
    example: 'phone,email',
    meaning: 'Members of job_data and result whose values the API shows to nobody, wherever they stand.',
  },
  {
    name: 'METRICS_TOKEN',
    group: 'Admin API',
    format: token(24),
    example: '<24 characters or more>',
    secret: true,
    meaning: 'The bearer token that /metrics asks for; without it /metrics is open.',
  },
  {
    name: 'SHUTDOWN_GRACE_MS',
    group: 'Process',
    format: integer('milliseconds', 1, hour),
    default: '25000',
    meaning: 'How long running jobs may go on after SIGTERM before they are handed back.',
  },
  {
    name: 'LOG_LEVEL',
    group: 'Process',
    format: choice('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'),
    default: 'info',
    meaning: 'The least important lines to log.',
  },
] as const satisfies readonly Setting[];

type Each = (typeof settings)[number];

/** What the table's variables hold once read, by name. */
export type Values = { [S in Each as S['name']]: Static<S['format']['type']> | WhenUnset<S> | WhenEmpty<S> };
type WhenUnset<S extends Setting> = S extends { default: string } | { required: true } ? never : null;
type WhenEmpty<S extends Setting> = S extends { emptyIsOff: true } ? null : never;
