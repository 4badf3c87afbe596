/**
 * The environment becomes one frozen Config, or one ConfigError with every fault at once: whoever sets the daemon up
 * should not have to start it once per mistake. What each variable is called, means and may hold stands in
 * config/settings.ts; here they are read, compared with each other and sorted into groups.
 */
import { findMisspellings } from './config/misspellings.js';
import { type Setting, settings, type Values } from './config/settings.js';
import { ConfigError } from './errors.js';

export type Environment = Readonly<Record<string, string | undefined>>;

/** Deeply frozen. Durations are in the unit their name ends in. */
export interface Config {
  readonly database: {
    /** Null: the pg library reads PGHOST, PGUSER and the like itself. */
    readonly url: string | null;
    /** Null: the same as `url`. */
    readonly listenUrl: string | null;
    /** Null: the same as `url`. */
    readonly migrateUrl: string | null;
    readonly autoMigrate: boolean;
    readonly schema: string;
  };
  readonly service: {
    /** Without a slash at its end. */
    readonly url: string;
    /** `whsec_…`; several while rotating, none when calls are not signed. */
    readonly secrets: readonly string[];
    readonly token: string | null;
    readonly timeoutMs: number;
    readonly waitSeconds: number;
    readonly maxItems: number;
    /** Null: learned from the service's answers. */
    readonly level: number | null;
  };
  readonly jobs: {
    /** Beside the four built-in ones. */
    readonly types: readonly string[];
    readonly unknown: Values['UNKNOWN_JOB_TYPES'];
    readonly maxPayloadBytes: number;
    /** Slots of this process. `named` has no prototype, so any queue's name may be looked up in it. */
    readonly concurrency: { readonly named: Readonly<Record<string, number>>; readonly others: number };
    readonly retryBaseDelayMs: number;
    readonly retryMaxDelayMs: number;
    readonly leaseMs: number;
    readonly pollIntervalMs: number;
    readonly ambiguousPolicy: Values['AMBIGUOUS_POLICY'];
    readonly startPaused: boolean;
    readonly stuckAfterMs: number;
  };
  readonly schedules: {
    readonly tz: string;
    /** Null: off. */
    readonly retriesCron: string | null;
    /** Null: off. */
    readonly cleanupCron: string | null;
    readonly retentionDays: number;
    readonly deadLetterDays: number;
  };
  readonly api: {
    readonly host: string;
    readonly port: number;
    readonly adminTokens: readonly Readonly<NonNullable<Values['ADMIN_TOKENS']>[number]>[];
    readonly metricsToken: string | null;
    /** Members of job_data that the API shows to nobody. */
    readonly redacted: readonly string[];
  };
  readonly shutdownGraceMs: number;
  /** Messages a second by key, `queue:<name>` or `bot:<id>`; without a prototype. */
  readonly rateLimits: Readonly<Record<string, number>>;
  readonly logLevel: Values['LOG_LEVEL'];
}

/**
 * Reads and checks everything at once. `readFile` is asked for the secrets that are given as files (`NAME_FILE`).
 * Neither faults nor warnings ever contain a secret's value.
 * @throws ConfigError with every fault.
 */
export function loadConfig(
  env: Environment,
  readFile: (path: string) => string,
): { config: Config; warnings: readonly string[] } {
  const { values, faults } = readSettings(env, readFile);
  faults.push(...databaseFaults(env, values), ...contradictions(values));
  const misspellings = findMisspellings(env, names);
  if (faults.length > 0 || !isComplete(values)) {
    // A misspelt variable is often why another one is missing, so it belongs beside that fault.
    throw new ConfigError([...faults, ...misspellings]);
  }
  const warnings = [...misspellings, ...findDoubtful(env, values)];
  return { config: deepFreeze(arrange(values)), warnings: Object.freeze(warnings) };
}

function arrange(values: Values): Config {
  return {
    database: {
      url: values.DATABASE_URL,
      listenUrl: values.LISTEN_DATABASE_URL,
      migrateUrl: values.MIGRATE_DATABASE_URL,
      autoMigrate: values.AUTO_MIGRATE,
      schema: values.DATABASE_SCHEMA,
    },
    service: {
      url: values.BROADCAST_SERVICE_URL,
      secrets: values.BROADCAST_SERVICE_SECRET ?? [],
      token: values.BROADCAST_SERVICE_TOKEN,
      timeoutMs: values.BROADCAST_SERVICE_TIMEOUT_MS,
      waitSeconds: values.BROADCAST_SERVICE_WAIT_SECONDS,
      maxItems: values.BROADCAST_SERVICE_MAX_ITEMS,
      level: values.BROADCAST_SERVICE_LEVEL,
    },
    jobs: {
      types: values.JOB_TYPES ?? [],
      unknown: values.UNKNOWN_JOB_TYPES,
      maxPayloadBytes: values.MAX_PAYLOAD_BYTES,
      concurrency: { named: values.CONCURRENCY.named, others: values.CONCURRENCY.others ?? 0 },
      retryBaseDelayMs: values.RETRY_BASE_DELAY_MS,
      retryMaxDelayMs: values.RETRY_MAX_DELAY_MS,
      leaseMs: values.LEASE_MS,
      pollIntervalMs: values.POLL_INTERVAL_MS,
      ambiguousPolicy: values.AMBIGUOUS_POLICY,
      startPaused: values.START_PAUSED,
      stuckAfterMs: values.STUCK_AFTER_MS,
    },
    schedules: {
      tz: values.SCHEDULE_TZ,
      retriesCron: values.RETRIES_CRON,
      cleanupCron: values.CLEANUP_CRON,
      retentionDays: values.RETENTION_DAYS,
      deadLetterDays: values.DEAD_LETTER_DAYS,
    },
    api: {
      host: values.HOST,
      port: values.PORT,
      adminTokens: values.ADMIN_TOKENS ?? [],
      metricsToken: values.METRICS_TOKEN,
      redacted: values.REDACT_PAYLOAD ?? [],
    },
    shutdownGraceMs: values.SHUTDOWN_GRACE_MS,
    rateLimits: values.RATE_LIMITS ?? Object.create(null),
    logLevel: values.LOG_LEVEL,
  };
}

// ---- reading: each variable by itself

/** `values` lacks the variables that have a fault. */
function readSettings(env: Environment, readFile: (path: string) => string) {
  const values: Record<string, unknown> = {};
  const faults: string[] = [];
  for (const setting of settings as readonly Setting[]) {
    const found = findText(setting, env, readFile);
    if ('fault' in found) {
      faults.push(found.fault);
      continue;
    }
    const text = found.text ?? setting.default;
    if (text === undefined || (setting.emptyIsOff && text === '')) {
      if (setting.required) faults.push(`${setting.name} is not set. ${advice(setting)}`);
      else values[setting.name] = null;
      continue;
    }
    const reading = setting.format.read(text);
    if ('faults' in reading) faults.push(`${setting.name}: ${reading.faults.join('; ')}. ${advice(setting)}`);
    else values[setting.name] = reading.value;
  }
  // The loop puts under each name what that name's own format yields, which is how Values is derived.
  return { values: values as Partial<Values>, faults };
}

/** Of all variables, those for files included. */
const names = (settings as readonly Setting[]).flatMap(({ name, secret }) =>
  secret ? [name, `${name}_FILE`] : [name],
);

function isComplete(values: Partial<Values>): values is Values {
  return settings.every(({ name }) => values[name] !== undefined);
}

/** The text given for a setting, from the variable or its file; undefined when there is none. */
function findText(
  { name, secret, emptyIsOff }: Setting,
  env: Environment,
  readFile: (path: string) => string,
): { text: string | undefined } | { fault: string } {
  // Empty counts as unset: compose files and Kubernetes hand on variables that way. Secrets lose one line break only,
  // the one that editors and `echo` add.
  const given = secret ? env[name]?.replace(/\r?\n$/, '') : env[name]?.trim();
  const text = given === '' && !emptyIsOff ? undefined : given;
  const path = secret ? env[`${name}_FILE`] || undefined : undefined;
  if (path === undefined) return { text };
  if (text !== undefined) return { fault: `${name} and ${name}_FILE are both set. Set only one of them.` };
  try {
    const content = readFile(path).replace(/\r?\n$/, '');
    if (content !== '') return { text: content };
    return { fault: `${name}_FILE names an empty file. Write the value of ${name} into it.` };
  } catch (error) {
    // The path is not repeated: some will have put the secret itself there.
    const code = error instanceof Error && 'code' in error ? /^E[A-Z]{2,20}$/.exec(String(error.code)) : null;
    const why = code === null ? '' : ` (${code})`;
    return {
      fault: `${name}_FILE names a file that cannot be read${why}. Write the path of a file that holds the value of ${name}.`,
    };
  }
}

function advice({ format, name, example, default: standard }: Setting): string {
  return `Write ${format.expects}, such as ${name}=${standard ?? example}`;
}

// ---- comparing: faults and warnings that concern more than one variable

const pgVariables = ['PGHOST', 'PGDATABASE', 'PGUSER'];

function databaseFaults(env: Environment, { DATABASE_URL: url }: Partial<Values>): string[] {
  if (url !== null || pgVariables.some((name) => env[name])) return [];
  const how = 'Write DATABASE_URL=postgres://user:password@localhost:5432/bot, or set PGHOST, PGDATABASE and PGUSER.';
  return [
    env.PGSERVICE
      ? `PGSERVICE is set, but the service file is not read, so there is no database. ${how}`
      : `DATABASE_URL is not set, nor are PGHOST, PGDATABASE and PGUSER, so there is no database. ${how}`,
  ];
}

function contradictions({ RETRY_BASE_DELAY_MS: base, RETRY_MAX_DELAY_MS: longest }: Partial<Values>): string[] {
  if (base === undefined || longest === undefined || base <= longest) return [];
  return [
    `RETRY_MAX_DELAY_MS (${longest}) is shorter than RETRY_BASE_DELAY_MS (${base}). Raise the first or lower the second.`,
  ];
}

function findDoubtful(env: Environment, values: Values): string[] {
  const { named, others } = values.CONCURRENCY;
  const timeoutMs = values.BROADCAST_SERVICE_TIMEOUT_MS;
  const waitSeconds = values.BROADCAST_SERVICE_WAIT_SECONDS;
  const authenticated = values.BROADCAST_SERVICE_SECRET !== null || values.BROADCAST_SERVICE_TOKEN !== null;
  const doubts: [boolean, string][] = [
    [
      values.LEASE_MS < 2000,
      'LEASE_MS is shorter than 2000: a pause of the process or the database may cost running jobs their lease, and they are called again. 30000 is usual.',
    ],
    [
      values.POLL_INTERVAL_MS < 100,
      'POLL_INTERVAL_MS is shorter than 100: each idle process asks the database more than ten times a second. 2000 is usual.',
    ],
    [
      timeoutMs <= waitSeconds * 1000,
      `BROADCAST_SERVICE_TIMEOUT_MS (${timeoutMs}) leaves no time beyond BROADCAST_SERVICE_WAIT_SECONDS (${waitSeconds}): a service that uses its whole wait is cut off. Raise the first or lower the second.`,
    ],
    [
      others === null,
      'CONCURRENCY has no *, so this process runs no job of the queues it does not name. Add *=2 to run them, or *=0 to confirm.',
    ],
    [
      (others ?? 0) === 0 && Object.values(named).every((slots) => slots === 0),
      'CONCURRENCY gives no queue any slot, so this process runs no job at all.',
    ],
    [
      values.DEAD_LETTER_DAYS < values.RETENTION_DAYS,
      'DEAD_LETTER_DAYS is less than RETENTION_DAYS: failed jobs are deleted before completed ones.',
    ],
    [
      !authenticated && !isLoopback(values.BROADCAST_SERVICE_URL),
      "Neither BROADCAST_SERVICE_SECRET nor BROADCAST_SERVICE_TOKEN is set: the broadcast service cannot tell the daemon's calls from anyone else's.",
    ],
    [
      values.DATABASE_URL !== null && Boolean(env.PGSERVICE),
      'PGSERVICE is set, but the service file is not read; DATABASE_URL is used.',
    ],
  ];
  return doubts.filter(([applies]) => applies).map(([, words]) => words);
}

function isLoopback(url: string): boolean {
  return /^(localhost|127\.[\d.]+|\[::1\])$/.test(new URL(url).hostname);
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) Object.values(Object.freeze(value)).forEach(deepFreeze);
  return value;
}
