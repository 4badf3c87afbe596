/** A service to which everything happens that metrics speak of, and the jobs that bring it about. */
import { type RecordedRequest, reply, replyJson, type Script } from './http-server.js';
import type { Stage } from './stage.js';
import { until } from './until.js';

/**
 * One success, one broadcast of two slices, a refusal, a retry, a 429 to a bot, a limited segment, and an outage that
 * opens the breaker and ends.
 */
export async function letEverythingHappen({ database, service }: Stage): Promise<void> {
  const calls = new Map<string, number>();
  let isDown = false;
  service.otherwise(({ body }: RecordedRequest): Script => {
    const { payload, step } = JSON.parse(body);
    const call = (calls.get(payload.broadcast_id) ?? 0) + 1;
    calls.set(payload.broadcast_id, call);
    if (isDown) return reply(502);
    switch (payload.broadcast_id) {
      case 'sliced': {
        const isFirst = step.seq === 0;
        const progress = { total: 70, processed: isFirst ? 40 : 70, sent: isFirst ? 40 : 70 };
        return replyJson(200, { status: isFirst ? 'continue' : 'completed', cursor: '40', progress });
      }
      case 'refused':
        return reply(400);
      case 'flaky':
        return reply(call === 1 ? 500 : 200);
      case 'busy':
        return call === 1 ? reply(429, '', { 'retry-after': '1' }) : reply(200);
      default:
        return reply(200);
    }
  });
  const enqueue = (type: string, data: object) =>
    database.query('select broadcast_enqueue($1, $2)', [type, JSON.stringify(data)]);
  const ended = (count: number) =>
    until(`${count} jobs have ended`, async () => {
      const rows = await database.query(
        `select from broadcast_queue_jobs where status in ('completed', 'failed') and job_type like 'send%'`,
      );
      return rows.length === count;
    });

  await database.query(`select broadcast_set_limit('queue:segment-broadcasts', 1000)`);
  for (const name of ['plain', 'sliced', 'refused', 'flaky']) await enqueue('send_broadcast', { broadcast_id: name });
  await enqueue('send_broadcast', { broadcast_id: 'busy', bot_id: 'shop' });
  await enqueue('send_segment_broadcast', { broadcast_id: 'part', segment_id: '7' });
  await ended(6);

  isDown = true;
  for (let n = 1; n <= 4; n++) await enqueue('send_broadcast', { broadcast_id: `outage ${n}` });
  await until('the breaker is open', async () => {
    const rows = await database.query('select from broadcast_queue_services where opened_at is not null');
    return rows.length > 0;
  });
  isDown = false;
  await ended(10);
}
