/** What the daemon hears from PostgreSQL, and who is told of it. */
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { type Listener, Unheard } from '../db/listener.js';
import type { Meter } from '../metrics/index.js';
import type { Flow } from '../queue/flow.js';
import type { Maintenance } from '../queue/maintenance.js';
import type { QueueWorker } from '../queue/worker.js';

/** Something is due. */
export const WAKE_CHANNEL = 'broadcast_queue';
/** A job that somebody holds was taken back. */
export const RECALL_CHANNEL = 'broadcast_queue_recall';

export function heedNotifications(
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
