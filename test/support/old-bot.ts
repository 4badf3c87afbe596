/**
 * A bot of before broadcastd: its table, and its statements as its code has them, which go on while the table is brought
 * over. The old worker's polling is one of them; it only looks here, so that what the daemon sends can be told apart.
 */
import pg from 'pg';
import type { TestDatabase } from './postgres.js';
import { until } from './until.js';

export async function createOldTable(database: TestDatabase): Promise<void> {
  await database.query(`
    create extension if not exists "uuid-ossp";
    create table broadcast_queue_jobs (
      id SERIAL PRIMARY KEY,
      job_id UUID UNIQUE DEFAULT uuid_generate_v4(),
      queue_name VARCHAR(50) NOT NULL,
      job_type VARCHAR(50) NOT NULL,
      job_data JSONB NOT NULL,
      status VARCHAR(50) DEFAULT 'pending',
      attempts INTEGER DEFAULT 0,
      max_attempts INTEGER DEFAULT 3,
      error_message TEXT,
      result JSONB,
      scheduled_at TIMESTAMP DEFAULT NOW(),
      started_at TIMESTAMP,
      completed_at TIMESTAMP,
      next_retry_at TIMESTAMP,
      created_at TIMESTAMP DEFAULT NOW(),
      updated_at TIMESTAMP DEFAULT NOW()
    );
    create index idx_broadcast_queue_status on broadcast_queue_jobs (queue_name, status);
    create index broadcast_queue_jobs_due on broadcast_queue_jobs (scheduled_at) where status = 'pending';
    create function touch_updated_at() returns trigger language plpgsql as
      'begin new.updated_at = now(); return new; end';
    create trigger broadcast_queue_touch before update on broadcast_queue_jobs
      for each row execute function touch_updated_at();
  `);
}

export const OLD_INSERT = `
  INSERT INTO broadcast_queue_jobs (queue_name, job_type, job_data, max_attempts, scheduled_at)
  VALUES ($1, $2, $3, $4, NOW()) RETURNING id, job_id`;
const OLD_UPDATE = `UPDATE broadcast_queue_jobs SET status = $1, updated_at = NOW() WHERE id = $2`;
const OLD_POLL = `
  SELECT * FROM broadcast_queue_jobs
  WHERE status = 'pending' AND scheduled_at <= NOW() ORDER BY scheduled_at LIMIT 10`;

export interface Loop {
  /** Statements that succeeded so far, rows they changed, and the errors of the others. */
  readonly done: number;
  readonly rows: number;
  readonly errors: readonly string[];
  /** No further statement; resolves when those under way have ended. */
  stop(): Promise<void>;
}

/** Inserts a job as the bot does, every so often, whether or not the last one has come back. */
export const insertEvery = (url: string, everyMs: number, broadcastId: (n: number) => number): Promise<Loop> =>
  loop(url, 'old bot', everyMs, OLD_INSERT, (n) => [
    'broadcasts',
    'send_broadcast',
    { broadcast_id: broadcastId(n) },
    3,
  ]);

export const updateEvery = (url: string, everyMs: number, id: (n: number) => number, status: string): Promise<Loop> =>
  loop(url, 'old bot', everyMs, OLD_UPDATE, (n) => [status, id(n)]);

export const pollEvery = (url: string, everyMs: number): Promise<Loop> =>
  loop(url, 'old worker', everyMs, OLD_POLL, () => []);

async function loop(
  url: string,
  name: string,
  everyMs: number,
  text: string,
  values: (n: number) => unknown[],
): Promise<Loop> {
  const pool = new pg.Pool({ connectionString: url, application_name: name, max: name === 'old worker' ? 1 : 5 });
  pool.on('error', () => {});
  const state = { done: 0, rows: 0, errors: [] as string[] };
  let started = 0;
  const timer = setInterval(() => {
    pool.query(text, values(++started)).then(
      ({ rowCount }) => {
        state.done++;
        state.rows += rowCount ?? 0;
      },
      (error: Error) => state.errors.push(error.message),
    );
  }, everyMs);
  await until(`the ${name} is at work`, async () => state.done > 0 || state.errors.length > 0);
  let stopped: Promise<void> | undefined;
  return Object.assign(state, {
    stop() {
      clearInterval(timer);
      stopped ??= pool.end();
      return stopped;
    },
  });
}
