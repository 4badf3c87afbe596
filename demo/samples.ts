/** The sample broadcasts: what a bot would insert, and one fault of the service so that a retry can be seen. */
import type pg from 'pg';

/** @param sandboxUrl null when the service is not the sandbox, which then cannot be told to fail */
export async function insertSamples(
  client: pg.Client,
  sandboxUrl: string | null,
  say: (line: string) => void,
): Promise<string[]> {
  if (sandboxUrl !== null) {
    say('The sandbox is told to answer 500 once to broadcast 4: it will be tried again two seconds later.');
    await fetch(`${sandboxUrl}/sandbox/faults`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ fault: 'status', status: 500, broadcast_id: '4', times: 1 }),
    });
  }
  say('Enqueueing by plain SQL:\n');
  const ids: string[] = [];
  for (const [about, sql] of SAMPLES) {
    say(`  -- ${about}\n  ${sql};`);
    const { rows } = await client.query<{ job_id: string }>(`${sql} returning job_id`);
    ids.push(...rows.map(({ job_id }) => job_id));
  }
  say('');
  return ids;
}

const INTO = 'INSERT INTO broadcast_queue_jobs';
const SAMPLES = [
  ['to everybody', `${INTO} (job_type, job_data) VALUES ('send_broadcast', '{"broadcast_id": 1}')`],
  [
    'to one segment',
    `${INTO} (job_type, job_data, queue_name)
     VALUES ('send_segment_broadcast', '{"broadcast_id": 2, "segment_id": "premium"}', 'segment-broadcasts')`,
  ],
  [
    'in three seconds',
    `${INTO} (job_type, job_data, scheduled_at)
     VALUES ('send_broadcast', '{"broadcast_id": 3}', now() + interval '3 seconds')`,
  ],
  ['this one fails at first', `${INTO} (job_type, job_data) VALUES ('send_broadcast', '{"broadcast_id": 4}')`],
  [
    'urgent: before the others that wait',
    `${INTO} (job_type, job_data, priority) VALUES ('send_broadcast', '{"broadcast_id": 5}', 10)`,
  ],
  ['single users that failed', `${INTO} (job_type, job_data, queue_name) VALUES ('process_retries', '{}', 'retries')`],
] as const;
