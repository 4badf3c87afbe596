/**
 * What a scrape reads: the state of this process, and figures of the queue from the database. The latter come at most so
 * often, one statement after the other, however many ask at once; a scrape waits for them only so long, and one that
 * cannot be read is missing from the answer, rather than wrong.
 */
import { collectDefaultMetrics, type Gauge } from 'prom-client';
import type { Measures } from '../db/measures.js';
import { DatabaseUnavailable } from '../errors.js';
import type { Metrics } from './catalogue.js';
import type { Labels } from './labels.js';

export interface Sources {
  readonly measures: Measures;
  /** Of this process. */
  state(): { readonly listening: boolean; readonly databaseDownMs: number; readonly activeJobs: number };
  activeIn(queue: string): number;
  connections(): { readonly total: number; readonly idle: number; readonly waiting: number };
  /** A figure cannot be read; told once until it can be again. */
  onUnread(figure: string, error: Error): void;
}

export interface Page {
  readonly contentType: string;
  readonly body: string;
}

const QUEUE_EVERY_MS = 5_000;
/** What concerns the whole server changes slowly, and costs a little more. */
const SERVER_EVERY_MS = 15_000;
/** Prometheus itself waits ten seconds by default. */
const PATIENCE_MS = 4_000;

export function createScrape(metrics: Metrics, labels: Labels, sources: Sources): () => Promise<Page> {
  const figures = figuresOf(metrics, labels, sources.measures);
  let reading: Promise<void> | null = null;
  let collectsDefaults = false;
  for (const { name, clear } of figures) {
    metrics.unread.inc({ figure: name }, 0);
    clear();
  }

  return async () => {
    if (!collectsDefaults) {
      // The event loop is not watched before somebody wants to know.
      collectsDefaults = true;
      collectDefaultMetrics({ register: metrics.registry });
    }
    reading ??= readDue(figures, metrics, sources).finally(() => {
      reading = null;
    });
    await withinPatience(reading);
    tellProcess(metrics, labels, sources);
    return { contentType: metrics.registry.contentType, body: await metrics.registry.metrics() };
  };
}

function tellProcess(metrics: Metrics, labels: Labels, sources: Sources): void {
  const { listening, databaseDownMs, activeJobs } = sources.state();
  metrics.listening.set(listening ? 1 : 0);
  metrics.databaseDown.set(databaseDownMs / 1000);
  let others = activeJobs;
  for (const queue of labels.queues()) {
    metrics.active.set({ queue }, sources.activeIn(queue));
    others -= sources.activeIn(queue);
  }
  if (others > 0) metrics.active.set({ queue: 'other' }, others);
  else metrics.active.remove({ queue: 'other' });
  const { total, idle, waiting } = sources.connections();
  metrics.connections.set({ state: 'in_use' }, total - idle);
  metrics.connections.set({ state: 'idle' }, idle);
  metrics.connections.set({ state: 'waiting' }, waiting);
}

interface Figure {
  readonly name: string;
  readonly everyMs: number;
  /** Reads it, and sets its gauges. */
  read(): Promise<void>;
  clear(): void;
  readAt: number;
  isUnread: boolean;
}

async function readDue(figures: readonly Figure[], metrics: Metrics, sources: Sources): Promise<void> {
  // They count from the round's beginning, so that what was read together is read together again.
  const now = performance.now();
  let inVain = 0;
  for (const figure of figures) {
    if (now - figure.readAt < figure.everyMs) continue;
    figure.readAt = now;
    try {
      await figure.read();
      figure.isUnread = false;
    } catch (error) {
      figure.clear();
      metrics.unread.inc({ figure: figure.name });
      if (!figure.isUnread) sources.onUnread(figure.name, error instanceof Error ? error : new Error(String(error)));
      figure.isUnread = true;
      if (error instanceof DatabaseUnavailable && ++inVain === 2) {
        // One that is slow may be an exception; now the others will not come either, and none is shown as it was.
        for (const other of figures) {
          other.clear();
          other.readAt = now;
        }
        break;
      }
    }
  }
}

function figuresOf(metrics: Metrics, labels: Labels, measures: Measures): Figure[] {
  const figures: Figure[] = [];

  function figure<R>(
    name: string,
    everyMs: number,
    gauges: readonly Gauge[],
    read: () => Promise<R[]>,
    show: (rows: R[]) => void,
  ): void {
    const clear = () => {
      for (const gauge of gauges) {
        gauge.reset();
        // A gauge without labels would start over at 0; it is to be gone. One with labels has no such series.
        gauge.remove({});
      }
    };
    const readAndShow = async () => {
      const rows = await read();
      clear();
      show(rows);
    };
    figures.push({
      name,
      everyMs,
      read: readAndShow,
      clear,
      readAt: Number.NEGATIVE_INFINITY,
      isUnread: false,
    });
  }

  figure('totals', QUEUE_EVERY_MS, [metrics.jobs], measures.totals, (rows) => {
    for (const { queue, status, jobs } of rows) metrics.jobs.inc({ queue: labels.queue(queue), status }, jobs);
    for (const queue of labels.queues()) for (const status of STATUSES) metrics.jobs.inc({ queue, status }, 0);
  });
  figure('ready', QUEUE_EVERY_MS, [metrics.ready, metrics.oldestReady], measures.ready, (rows) => {
    const oldest = new Map<string, number>();
    for (const { queue: name, jobs, oldest_s } of rows) {
      const queue = labels.queue(name);
      metrics.ready.inc({ queue }, jobs);
      oldest.set(queue, Math.max(oldest.get(queue) ?? 0, oldest_s));
    }
    for (const queue of labels.queues()) metrics.ready.inc({ queue }, 0);
    for (const queue of [...labels.queues(), ...oldest.keys()]) {
      metrics.oldestReady.set({ queue }, oldest.get(queue) ?? 0);
    }
  });
  figure('paused', QUEUE_EVERY_MS, [metrics.paused], measures.paused, (rows) => {
    const paused = new Set(rows.map(({ queue }) => (queue === '*' ? queue : labels.queue(queue))));
    for (const queue of labels.queues()) {
      metrics.paused.set({ queue }, paused.has(queue) || paused.has('*') ? 1 : 0);
    }
  });
  figure('gates', QUEUE_EVERY_MS, [metrics.gateClosed], measures.gates, (rows) => {
    metrics.gateClosed.set({ gate: 'service' }, 0);
    for (const { gate, closed } of rows) metrics.gateClosed.set({ gate }, closed ? 1 : 0);
  });
  figure('breaker', QUEUE_EVERY_MS, [metrics.breakerOpen, metrics.breakerOpenFor], measures.breaker, ([row]) => {
    metrics.breakerOpen.set(typeof row?.open_s === 'number' ? 1 : 0);
    metrics.breakerOpenFor.set(Math.max(row?.open_s ?? 0, 0));
  });
  figure('limits', QUEUE_EVERY_MS, [metrics.limit, metrics.limitTaken], measures.limits, (rows) => {
    for (const { key, per_second, taken_s } of rows) {
      metrics.limit.set({ key }, per_second);
      metrics.limitTaken.set({ key }, taken_s);
    }
  });
  figure('daemons', QUEUE_EVERY_MS, [metrics.daemons], measures.daemons, ([row]) => {
    if (row) metrics.daemons.set(row.daemons);
  });

  let oldest: { xmin: string; since: number } | null = null;
  figure('xmin', SERVER_EVERY_MS, [metrics.xminHeld, metrics.xminAge], measures.xmin, ([row]) => {
    if (row && row.xmin !== oldest?.xmin) oldest = { xmin: row.xmin, since: performance.now() };
    if (!row) oldest = null;
    metrics.xminHeld.set(oldest === null ? 0 : (performance.now() - oldest.since) / 1000);
    metrics.xminAge.set(row?.age ?? 0);
  });
  figure('rows', SERVER_EVERY_MS, [metrics.rows], measures.rows, ([row]) => {
    if (!row) return;
    metrics.rows.set({ state: 'live' }, row.live);
    metrics.rows.set({ state: 'dead' }, row.dead);
  });
  figure('notification_queue', SERVER_EVERY_MS, [metrics.notificationQueue], measures.notificationQueue, ([row]) => {
    if (row) metrics.notificationQueue.set(row.usage);
  });
  return figures;
}

const STATUSES = ['pending', 'processing', 'retry', 'paused', 'completed', 'failed', 'cancelled'];

/** Resolves when the figures are read, or when it takes too long; then the next scrape has them. */
async function withinPatience(reading: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const outOfPatience = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, PATIENCE_MS);
  });
  await Promise.race([reading, outOfPatience]);
  clearTimeout(timer);
}
