/** The daemon's metrics: counted as things happen (count.ts), read where somebody asks (scrape.ts), few by their labels. */
import type { Events } from '../queue/ports.js';
import { createMetrics } from './catalogue.js';
import { countEvents, countQuery } from './count.js';
import { createLabels } from './labels.js';
import { createScrape, type Page, type Sources } from './scrape.js';

export interface DaemonShape {
  readonly version: string;
  readonly slots: { readonly named: ReadonlyMap<string, number>; readonly others: number };
  /** Their names. */
  readonly schedules: readonly string[];
}

export interface Meter {
  /** For the pool, which tells of each statement. */
  readonly query: (query: { readonly name: string | null; readonly ms: number; readonly rows: number }) => void;
  notified(channel: 'wake' | 'recall'): void;
  /** @returns what answers a scrape */
  reading(sources: Sources): () => Promise<Page>;
}

export function createMeter(events: Events, { version, slots, schedules }: DaemonShape): Meter {
  const metrics = createMetrics();
  const labels = createLabels();
  metrics.build.set({ version }, 1);
  for (const [queue, count] of slots.named) metrics.slots.set({ queue: labels.queue(queue) }, count);
  metrics.slots.set({ queue: '*' }, slots.others);
  for (const schedule of schedules) metrics.ticks.inc({ schedule: labels.schedule(schedule) }, 0);
  for (const kind of ['away', 'fault']) metrics.databaseErrors.inc({ kind }, 0);
  for (const channel of ['wake', 'recall']) metrics.notifications.inc({ channel }, 0);
  countEvents(events, metrics, labels);
  return {
    query: (query) => countQuery(metrics, query),
    notified: (channel) => metrics.notifications.inc({ channel }),
    reading: (sources) => createScrape(metrics, labels, sources),
  };
}
