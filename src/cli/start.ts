/** `broadcastd start`: wires the daemon together, runs it until it is told to stop, and takes it down in order. */
import { EventEmitter } from 'node:events';
import type { Logger } from 'pino';
import { buildAdmin, type DaemonState } from '../admin/server.js';
import { createBroadcastClient } from '../broadcast/client.js';
import { tracing } from '../broadcast/tracing.js';
import type { Config } from '../config.js';
import { flowStore, initialLimits, learnServiceLevel, serviceLevel } from '../db/flow.js';
import { jobStore } from '../db/jobs.js';
import { listen } from '../db/listener.js';
import { queueMeasures } from '../db/measures.js';
import { jobPruner } from '../db/pruner.js';
import { openReports, pausedQueues, pauseQueue } from '../db/reports.js';
import { registry } from '../handlers/index.js';
import { createMeter } from '../metrics/index.js';
import { observe } from '../observe.js';
import { Flow } from '../queue/flow.js';
import { Maintenance } from '../queue/maintenance.js';
import type { Events, QueueEvents, Worker } from '../queue/ports.js';
import { QueueWorker } from '../queue/worker.js';
import { openDatabases } from './databases.js';
import { heedNotifications, RECALL_CHANNEL, WAKE_CHANNEL } from './notifications.js';
import { feelPulse } from './pulse.js';
import { schedulesOf, ticks } from './schedules.js';
import { prepareSchema } from './schema.js';

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
  const databases = openDatabases(config, worker, meter, logger);
  const { database } = databases;
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
    measures: queueMeasures(databases.measured),
    state: () => state,
    activeIn: (name) => queue.activeIn(name),
    connections: () => database.connections(),
    onUnread: (figure, error) => logger.warn({ figure, error: error.message }, 'a figure for /metrics cannot be read'),
  });
  const admin = buildAdmin({
    probesOnly: role === 'worker',
    metrics: { token: config.api.metricsToken, scrape },
    tokens: config.api.adminTokens,
    reports: openReports(databases.shown, config.api.redacted),
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
    await databases.close();
  };
  let url: string;
  try {
    url = await admin.listen({ host: config.api.host, port: config.api.port });
  } catch (error) {
    await closeConnections();
    throw error;
  }
  if (jobs.startPaused) await pauseQueue(database, '*', 'START_PAUSED is set', worker.id);
  await initialLimits(database, config.rateLimits);
  for (const warning of warnings(config, learned, await pausedQueues(database))) logger.warn(warning);
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

/** Enough for every slot to call at once, and a few for queues that are not named. */
function connectionsFor(slots: { named: ReadonlyMap<string, number>; others: number }): number {
  let sum = slots.others * 4;
  for (const count of slots.named.values()) sum += count;
  return Math.min(Math.max(sum, 4), 256);
}

/** What whoever starts it should know. */
function warnings({ jobs, database, service }: Config, learned: number | null, paused: readonly string[]): string[] {
  const resume = `SELECT ${database.schema === 'public' ? '' : `${database.schema}.`}broadcast_resume_queue()`;
  return [
    ...(jobs.startPaused ? [`all queues are paused, because START_PAUSED is set; ${resume} lets them go`] : []),
    ...(jobs.ambiguousPolicy === 'retry' && (service.level ?? learned ?? 0) < 1 ? [MAY_SEND_TWICE] : []),
    ...(paused.length > 0 ? [`paused, until somebody resumes them (* is every queue): ${paused.join(', ')}`] : []),
  ];
}

const MAY_SEND_TWICE =
  'the service has not said yet that it remembers Idempotency-Key: where an answer is lost, its repetition may reach ' +
  'people twice. If it does remember, say so with BROADCAST_SERVICE_LEVEL=1; if not, see AMBIGUOUS_POLICY';
