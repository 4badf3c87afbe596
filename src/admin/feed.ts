/**
 * The live view: server-sent events for any number of clients up to a bound, out of one look at the database a second
 * while somebody listens. An event holds the jobs that changed and how many jobs each queue has, and its id is the
 * position it was read at, so a client that comes back with `Last-Event-ID` is told what changed meanwhile. A client that
 * does not read fast enough is let go; it comes back the same way.
 */
import { once } from 'node:events';
import { PassThrough, type Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ChangedJob, LiveState, QueueCounts, Reports } from '../db/reports.js';
import { stringify } from './json.js';
import { Refusal } from './problems.js';

export class EventFeed {
  readonly #clients = new Set<PassThrough>();
  readonly #stop = new AbortController();
  /** What was last told of a job, for the looks overlap. */
  readonly #told = new Map<string, number>();
  #looking = false;

  constructor(private readonly reports: Reports) {}

  /**
   * @param lastEventId where the client left off; without it, or where that is too long ago, it begins with a snapshot
   * @throws Refusal when there are too many clients
   */
  async open(lastEventId: string | undefined): Promise<Readable> {
    if (this.#clients.size >= CLIENTS_MAX) {
      throw new Refusal('too_many_listeners', `${CLIENTS_MAX} clients listen already`, { 'retry-after': '10' });
    }
    const client = new PassThrough({ highWaterMark: BUFFER_MAX_BYTES });
    // Its place is taken before the first wait.
    this.#clients.add(client);
    client.on('close', () => this.#clients.delete(client));
    try {
      const now = await this.reports.livePosition();
      const since = positionOf(lastEventId, now);
      // Without a position to go on from, what runs now is all that matters.
      const jobs = await (since === null
        ? this.reports.running(now, JOBS_MAX)
        : this.reports.changedSince(since, now, JOBS_MAX));
      const queues = await this.#counts();
      client.write(`retry: ${RETRY_MS}\n`);
      client.write(event(since === null ? 'snapshot' : 'change', now, { timestamp: new Date(), jobs, queues }));
      if (this.#stop.signal.aborted) client.end();
      void this.#look(now);
      return client;
    } catch (error) {
      client.destroy();
      throw error;
    }
  }

  /** Ends every client's stream, and waits a moment for those that still read. */
  async close(): Promise<void> {
    this.#stop.abort();
    const ended = [...this.#clients].map((client) => once(client, 'close').catch(() => {}));
    for (const client of this.#clients) client.end();
    await Promise.race([Promise.all(ended), sleep(FAREWELL_MS, undefined, { ref: false })]);
  }

  async #look(from: LiveState): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    const { signal } = this.#stop;
    let since = from;
    let lastCounts = '';
    let quietSince = performance.now();
    while (this.#clients.size > 0 && !signal.aborted) {
      await sleep(EVERY_MS, undefined, { signal, ref: false }).catch(() => {});
      if (signal.aborted) break;
      let message = '';
      try {
        const now = await this.reports.livePosition();
        const jobs = this.#news(await this.reports.changedSince(since, now, JOBS_MAX));
        const queues = await this.#counts();
        const counts = stringify(queues);
        if (jobs.length > 0 || counts !== lastCounts) {
          message = event('change', now, { timestamp: new Date(), jobs, queues });
        }
        since = now;
        lastCounts = counts;
      } catch {
        // The database is away: the next look tells what this one would have.
      }
      if (message === '' && performance.now() - quietSince > HEARTBEAT_MS) message = ': still here\n\n';
      if (message === '') continue;
      quietSince = performance.now();
      for (const client of this.#clients) {
        if (client.writableLength + client.readableLength > BUFFER_MAX_BYTES) client.destroy();
        else client.write(message);
      }
    }
    this.#looking = false;
    this.#told.clear();
  }

  #news(jobs: ChangedJob[]): ChangedJob[] {
    const news = jobs.filter(({ job_id, updated_at }) => this.#told.get(job_id) !== updated_at.getTime());
    for (const { job_id, updated_at } of news) {
      this.#told.delete(job_id);
      this.#told.set(job_id, updated_at.getTime());
    }
    for (const oldest of this.#told.keys()) {
      if (this.#told.size <= TOLD_MAX) break;
      this.#told.delete(oldest);
    }
    return news;
  }

  async #counts(): Promise<Record<string, QueueCounts>> {
    const { queues } = await this.reports.standing();
    return Object.fromEntries([...queues].map(([name, { counts }]) => [name, counts]));
  }
}

const CLIENTS_MAX = 50;
const BUFFER_MAX_BYTES = 512 * 1024;
const EVERY_MS = 1000;
const HEARTBEAT_MS = 15_000;
/** After how long a client that lost its connection should come back. */
const RETRY_MS = 2000;
const JOBS_MAX = 500;
const FAREWELL_MS = 300;
const TOLD_MAX = 5000;
/** Whoever was away for longer begins anew. */
const AWAY_MAX_MICROSECONDS = 600_000_000;

function event(name: 'snapshot' | 'change', { at, attempt }: LiveState, data: object): string {
  return `event: ${name}\nid: ${at}-${attempt}\ndata: ${stringify(data)}\n\n`;
}

function positionOf(lastEventId: string | undefined, now: LiveState): LiveState | null {
  const [, at, attempt] = /^(\d{1,17})-(\d{1,18})$/.exec(lastEventId ?? '') ?? [];
  if (at === undefined || attempt === undefined) return null;
  const away = Number(now.at) - Number(at);
  return away >= 0 && away <= AWAY_MAX_MICROSECONDS ? { at, attempt, held: [] } : null;
}
