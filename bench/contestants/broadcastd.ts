/** broadcastd itself: the built program, with the environment that a user would give it. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { request } from 'undici';
import { type Child, ROOT, startChild } from '../setup/processes.ts';
import { until } from '../setup/waiting.ts';
import { type Place, payload, type Queue, type Worker } from './contestant.ts';

const PROGRAM = join(ROOT, 'dist/main.js');
const START_WITHIN_MS = 60_000;

/** Of nothing but this benchmark's daemons, which end with it. */
export const TOKEN = 'benchmark-reads-only-0001';

export const broadcastd: Queue = {
  name: 'broadcastd',
  settings:
    '`CONCURRENCY=broadcasts=<slots>,*=0`, the two schedules off, everything else as it comes: one log line for each thing that happens to a job, written to a file',
  prepare: migrate,
  start,
  async unsettled(client) {
    const left = await client.query("select from broadcast_queue_jobs where status <> 'completed'");
    return left.rowCount ?? 0;
  },
  async producer(client) {
    return {
      async enqueue(id) {
        await client.query("insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', $1)", [
          payload(id),
        ]);
      },
      async enqueueAt(id, due) {
        await client.query("select from broadcast_enqueue('send_broadcast', $1, scheduled_at => to_timestamp($2))", [
          payload(id),
          due / 1000,
        ]);
      },
      async enqueueMany(ids) {
        const jobs = ids.map((id) => ({ job_type: 'send_broadcast', job_data: payload(id) }));
        await client.query('select from broadcast_enqueue_many($1)', [JSON.stringify(jobs)]);
      },
      async fill(ids) {
        const into = 'insert into broadcast_queue_jobs (job_type, job_data)';
        await client.query(`${into} select 'send_broadcast', data from jsonb_array_elements($1) data`, [
          JSON.stringify(ids.map(payload)),
        ]);
      },
      close: async () => {},
    };
  },
};

async function migrate(databaseUrl: string): Promise<void> {
  const env = { PATH: process.env.PATH ?? '', DATABASE_URL: databaseUrl };
  await promisify(execFile)(process.execPath, [PROGRAM, 'migrate'], { env });
}

async function start({ databaseUrl, serviceUrl, slots, scratch }: Place): Promise<Worker> {
  const env = {
    DATABASE_URL: databaseUrl,
    BROADCAST_SERVICE_URL: serviceUrl,
    CONCURRENCY: `broadcasts=${slots},*=0`,
    RETRIES_CRON: '',
    CLEANUP_CRON: '',
    PORT: '0',
    ADMIN_TOKENS: `benchmark:viewer:${TOKEN}`,
  };
  const child = startChild({ command: process.execPath, args: [PROGRAM, 'start'], env, scratch });
  try {
    await until('broadcastd listens to notifications', () => listens(child), START_WITHIN_MS, 50);
  } catch (error) {
    await child.stop();
    throw error;
  }
  return child;
}

async function listens(child: Child): Promise<boolean> {
  if (!child.running) throw new Error(`broadcastd ended at its start:\n${child.log().slice(-2000)}`);
  const url = apiOf(child);
  if (url === null) return false;
  const headers = { authorization: `Bearer ${TOKEN}` };
  const { body } = await request(`${url}/api/admin/queue/health`, { headers });
  const health = await body.json();
  return typeof health === 'object' && health !== null && 'listening' in health && health.listening === true;
}

/** Where a daemon's API is; null as long as its log does not say. */
export function apiOf(worker: Worker): string | null {
  return /"api":"([^"]+)"/.exec(worker.log())?.[1] ?? null;
}
