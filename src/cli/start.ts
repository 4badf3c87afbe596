/** `broadcastd start`: wires the daemon together, runs it until it is told to stop, and takes it down in order. */
import { EventEmitter } from 'node:events';
import cron from 'node-cron';
import type { Logger } from 'pino';
import { buildAdmin, type DaemonState } from '../admin/server.js';
import { createBroadcastClient } from '../broadcast/client.js';
import { tracing } from '../broadcast/tracing.js';
import type { Config } from '../config.js';
import { flowStore, initialLimits, learnServiceLevel, serviceLevel } from '../db/flow.js';
import { jobStore } from '../db/jobs.js';
import { type Listener, listen, Unheard } from '../db/listener.js';
import { queueMeasures } from '../db/measures.js';
import { migrate, pendingMigrations, SchemaError } from '../db/migrate.js';
import { openDatabase } from '../db/pool.js';
import { jobPruner } from '../db/pruner.js';
import { openReports, pausedQueues, pauseQueue } from '../db/reports.js';
import { DatabaseUnavailable } from '../errors.js';
import { registry } from '../handlers/index.js';
import { createMeter, type Meter } from '../metrics/index.js';
import { observe } from '../observe.js';
import { Flow } from '../queue/flow.js';
import { Maintenance, type Schedule } from '../queue/maintenance.js';
import type { Events, QueueEvents, Worker } from '../queue/ports.js';
import { QueueWorker } from '../queue/worker.js';
import { feelPulse } from './pulse.js';

export interface Daemon {
  /** The API's address. */
  readonly url: string;
  /** For tests, which wait for what happened instead of sleeping. */
  readonly events: Events;
  readonly state: DaemonState;
  /** Drains within the configured grace and closes everything. */
  stop(): Promise<void>;
}

/** `worker`: no API but /livez, /readyz and /metrics. `api`: claims nothing, and looks after nothing. */
export type Role = 'worker' | 'api' | 'all';

export interface Surroundings {
  readonly role: Role;
  readonly logger: Logger;
  readonly worker: Worker;
  readonly random: () => number;
  /** Ends the wait for a database that is not there yet. */
  readonly signal: AbortSignal;
  /** Makes secrets unreadable in what is written to the database. */
  readonly masked: (text: string) => string;
}

/**
 * @throws DatabaseUnavailable when the database cannot be reached within ten seconds, SchemaError when its schema does
 * not fit, or the operating system's error when the API's port is taken
 */
export async function startDaemon(config: Config, surroundings: Surroundings): Promise<Daemon> {
  const { role, logger, worker, random, masked, signal } = surroundings;
  const works = role !== 'api';
  await prepareSchema(config, logger, signal);

  const events: Events = new EventEmitter<QueueEvents>();
  observe(events, logger);
  const { jobs, service, schedules } = config;
  const slots = { named: new Map(Object.entries(jobs.concurrency.named)), others: jobs.concurrency.others };
  const ticking = schedulesOf(config);
  const meter = createMeter(events, { version: worker.version, slots, schedules: ticking.map(({ name }) => name) });
  const where = {
    url: config.database.url,
    schema: config.database.schema,
    // A direct connection for LISTEN is given when the other one goes through a transaction pooler.
    pooled: config.database.listenUrl !== null,
    onQuery: meter.query,
  };
  const database = openDatabase({
    ...where,
    applicationName: `broadcastd ${worker.id}`,
    onPooled: (how) =>
      logger.info({ how }, 'the database connection goes through a pooler: statements are planned anew each time'),
    connectionsMax: 5,
    statementTimeoutMs: 15_000,
  });
  // A connection of its own, and little time: a scrape never stands in a claim's way.
  const measured = openDatabase({
    ...where,
    applicationName: `broadcastd metrics ${worker.id}`,
    connectionsMax: 1,
    statementTimeoutMs: 2000,
  });
  // Neither does whoever looks at the queue, or works on many jobs at once.
  const shown = openDatabase({
    ...where,
    applicationName: `broadcastd api ${worker.id}`,
    connectionsMax: 3,
    statementTimeoutMs: 5000,
  });
  const store = jobStore(database, worker, {
    leaseMs: jobs.leaseMs,
    maxPayloadBytes: jobs.maxPayloadBytes,
    ambiguous: jobs.ambiguousPolicy,
    slots: { ...jobs.concurrency.named, '*': jobs.concurrency.others },
    masked,
  });
  const learned = await serviceLevel(database);
  const learn = async (level: number) => {
    try {
      await learnServiceLevel(database, level);
    } catch (error) {
      logger.warn({ level, error: String(error) }, "the service's level could not be kept");
    }
  };
  const client = createBroadcastClient({
    baseUrl: service.url,
    timeoutMs: service.timeoutMs,
    waitSeconds: service.waitSeconds,
    maxItems: service.maxItems,
    secrets: service.secrets,
    token: service.token,
    level: () => service.level ?? learned,
    onLevel: (level) => void learn(level),
    version: worker.version,
    connections: connectionsFor(slots),
  });
  const pruner = jobPruner(database);
  const flow = new Flow(flowStore(database, worker), client, events, {
    maxItems: service.maxItems,
    waitSeconds: service.waitSeconds,
    baseDelayMs: jobs.retryBaseDelayMs,
    random,
  });
  const traced = tracing(worker.version);
  const queue = new QueueWorker(
    store,
    {
      handlers: registry({ completedDays: schedules.retentionDays, deadDays: schedules.deadLetterDays }, jobs.types),
      unknown: jobs.unknown,
      maxPayloadBytes: jobs.maxPayloadBytes,
    },
    (claim) => ({ service: traced(flow.serving(claim)), pruner }),
    events,
    {
      slots,
      leaseMs: jobs.leaseMs,
      pollIntervalMs: jobs.pollIntervalMs,
      stuckAfterMs: jobs.stuckAfterMs,
      random,
      policy: {
        retryBaseDelayMs: jobs.retryBaseDelayMs,
        retryMaxDelayMs: jobs.retryMaxDelayMs,
        ambiguous: jobs.ambiguousPolicy,
      },
    },
  );
  const maintenance = new Maintenance(
    store,
    events,
    { leaseMs: jobs.leaseMs, schedules: ticking, timezone: schedules.tz, random },
    queue,
    client,
  );
  const listener = listen({
    url: config.database.listenUrl ?? config.database.url,
    channels: [WAKE_CHANNEL, RECALL_CHANNEL],
    applicationName: `broadcastd listen ${worker.id}`,
    notify: async (channel) => void (await database.query("select pg_notify($1, '')", [channel])),
    watchEveryMs: 10_000,
    answerWithinMs: 5000,
    random,
  });
  heedNotifications(listener, { queue, flow, maintenance, meter }, logger, config);

  const pulse = works ? null : feelPulse(database);
  let running = false;
  let draining = false;
  const state: DaemonState = {
    get running() {
      return running;
    },
    get draining() {
      return draining;
    },
    get activeJobs() {
      return queue.activeJobs;
    },
    get listening() {
      return listener.listening;
    },
    get databaseDownMs() {
      return pulse?.downMs ?? queue.databaseDownMs;
    },
  };
  const scrape = meter.reading({
    measures: queueMeasures(measured),
    state: () => state,
    activeIn: (name) => queue.activeIn(name),
    connections: () => database.connections(),
    onUnread: (figure, error) => logger.warn({ figure, error: error.message }, 'a figure for /metrics cannot be read'),
  });
  const admin = buildAdmin({
    probesOnly: role === 'worker',
    metrics: { token: config.api.metricsToken, scrape },
    tokens: config.api.adminTokens,
    reports: openReports(shown, config.api.redacted),
    redacted: config.api.redacted,
    maxPayloadBytes: jobs.maxPayloadBytes,
    version: worker.version,
    schedules: ticks(ticking, schedules.tz),
    state: () => state,
    onError: (error, request) => logger.error({ ...request, error: error.message, stack: error.stack }, 'API error'),
  });

  const closeConnections = async () => {
    await pulse?.stop();
    await listener.close();
    await admin.close();
    await client.close();
    await Promise.all([database.close(), measured.close(), shown.close()]);
  };
  let url: string;
  try {
    url = await admin.listen({ host: config.api.host, port: config.api.port });
  } catch (error) {
    await closeConnections();
    throw error;
  }
  if (jobs.startPaused) {
    await pauseQueue(database, '*', 'START_PAUSED is set', worker.id);
    const { schema } = config.database;
    const resume = `SELECT ${schema === 'public' ? '' : `${schema}.`}broadcast_resume_queue()`;
    logger.warn(`all queues are paused, because START_PAUSED is set; ${resume} lets them go`);
  }
  if (jobs.ambiguousPolicy === 'retry' && (service.level ?? learned ?? 0) < 1) {
    logger.warn(
      'the service has not said yet that it remembers Idempotency-Key: where an answer is lost, its repetition may reach people ' +
        'twice. If it does remember, say so with BROADCAST_SERVICE_LEVEL=1; if not, see AMBIGUOUS_POLICY',
    );
  }
  await initialLimits(database, config.rateLimits);
  const paused = await pausedQueues(database);
  if (paused.length > 0) logger.warn({ queues: paused }, 'paused, until somebody resumes them (* is every queue)');
  if (works) {
    queue.start();
    maintenance.start();
  }
  running = true;
  logger.info(
    { role, worker: worker.id, version: worker.version, api: url, service: service.url },
    'broadcastd started',
  );

  return {
    url,
    events,
    state,
    async stop() {
      draining = true;
      // Together: a reaper that waits for a lock must not keep the worker from draining.
      if (works) await Promise.all([maintenance.stop(), queue.stop(config.shutdownGraceMs)]);
      await closeConnections();
    },
  };
}

/** Something is due. */
const WAKE_CHANNEL = 'broadcast_queue';
/** A job that somebody holds was taken back. */
const RECALL_CHANNEL = 'broadcast_queue_recall';

const DATABASE_WAIT_MS = 10_000;

/** Brings the schema up to date, or says why not. A database that is only just starting is waited for. */
async function prepareSchema({ database }: Config, logger: Logger, signal: AbortSignal): Promise<void> {
  const url = database.migrateUrl ?? database.url;
  const deadline = performance.now() + DATABASE_WAIT_MS;
  while (true) {
    try {
      if (database.autoMigrate) {
        for (const name of await migrate(url, database.schema)) logger.info({ migration: name }, 'migration applied');
        return;
      }
      const missing = await pendingMigrations(database.url, database.schema);
      if (missing.length === 0) return;
      throw new SchemaError(
        `the schema lacks ${missing.join(', ')}: run "broadcastd migrate", or set AUTO_MIGRATE=true`,
      );
    } catch (error) {
      if (!(error instanceof DatabaseUnavailable) || performance.now() > deadline || signal.aborted) throw error;
      logger.warn({ error: error.message }, 'the database does not answer yet');
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

/** Enough for every slot to call at once, and a few for queues that are not named. */
function connectionsFor(slots: { named: ReadonlyMap<string, number>; others: number }): number {
  let sum = slots.others * 4;
  for (const count of slots.named.values()) sum += count;
  return Math.min(Math.max(sum, 4), 256);
}

function schedulesOf({ schedules }: Config): Schedule[] {
  const all = [
    { name: 'process_retries', cron: schedules.retriesCron, type: 'process_retries' },
    { name: 'cleanup_queue', cron: schedules.cleanupCron, type: 'cleanup_queue' },
  ];
  return all.flatMap(({ cron, ...rest }) => (cron === null ? [] : [{ ...rest, cron, data: '{}' }]));
}

/** The schedules, and when each ticks next. */
function ticks(schedules: readonly Schedule[], timeZone: string) {
  const tasks = schedules.map(({ name, cron: expression }) => {
    const task = cron.createTask(expression, () => {}, { timezone: timeZone });
    return { name, cron: expression, timeZone, task };
  });
  return () => tasks.map(({ task, ...facts }) => ({ ...facts, nextTick: task.getNextRuns(1)[0] ?? null }));
}

function heedNotifications(
  listener: Listener,
  { queue, flow, maintenance, meter }: { queue: QueueWorker; flow: Flow; maintenance: Maintenance; meter: Meter },
  logger: Logger,
  config: Config,
): void {
  let told: string | null = null;
  listener.events.on('notified', (channel) => {
    meter.notified(channel === RECALL_CHANNEL ? 'recall' : 'wake');
    if (channel === RECALL_CHANNEL) {
      queue.recheck();
      maintenance.recheck();
    } else {
      queue.wake();
      flow.wake();
    }
  });
  listener.events.on('listening', () => {
    told = null;
    logger.info('listening for notifications');
    // What was sent while nobody listened is gone.
    queue.wake();
  });
  listener.events.on('deaf', (error) => {
    const trouble = error instanceof Unheard ? unheardAdvice(config) : 'not listening for notifications';
    if (trouble === told) return;
    told = trouble;
    logger.warn({ error: error.message }, `${trouble}; polling every ${config.jobs.pollIntervalMs} ms meanwhile`);
  });
}

function unheardAdvice({ database }: Config): string {
  return database.listenUrl === null
    ? 'notifications do not arrive, as behind a pooler in transaction mode: set LISTEN_DATABASE_URL to a direct connection'
    : 'notifications do not arrive: LISTEN_DATABASE_URL must be a direct connection, to the database of DATABASE_URL';
}
