/** Rows of broadcastd by the million, written as the database would have them after weeks of work. */
import type pg from 'pg';
import { sleep } from './waiting.ts';

/** A statement's rows: each leaves one row of differences for the counts, and its memory stays small. */
const AT_ONCE = 200_000;
const DATA = `jsonb_build_object('broadcast_id', n, 'segment', 'everybody',
  'text', 'a message of middling length, as they are usually sent')`;

/** Completed over the last week. */
export async function addFinished(client: pg.Client, rows: number, from = 1): Promise<void> {
  await inPortions(rows, from, (first, last) =>
    client.query(
      `insert into broadcast_queue_jobs
         (job_type, job_data, status, attempts, epoch, result, created_at, scheduled_at, updated_at, started_at, completed_at)
       select 'send_broadcast', ${DATA}, 'completed', 1, 1, '{"status": "completed"}', t, t, t, t, t + interval '20 ms'
       from (select n, now() - interval '7 days' * (1 - n / $3::float8) as t from generate_series($1::int, $2::int) n) rows`,
      [first, last, from + rows],
    ),
  );
}

/** Due since a while, one after the other. */
export async function addPending(client: pg.Client, rows: number, from: number): Promise<void> {
  await inPortions(rows, from, (first, last) =>
    client.query(
      `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at)
       select 'send_broadcast', ${DATA}, now() - interval '1 hour' + n * interval '1 ms' / 1000
       from generate_series($1::int, $2::int) n`,
      [first, last],
    ),
  );
}

async function inPortions(
  rows: number,
  from: number,
  write: (first: number, last: number) => Promise<unknown>,
): Promise<void> {
  for (let done = 0; done < rows; done += AT_ONCE) {
    await write(from + done, from + Math.min(done + AT_ONCE, rows) - 1);
    // So that Ctrl-C is heard in between.
    await sleep(0);
  }
}
