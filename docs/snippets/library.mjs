// Enqueueing from Node with the library:  npm install pg broadcastd && node library.mjs
import { BroadcastQueue } from 'broadcastd';
import pg from 'pg';

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
// Stands for the bot's own table.
await client.query('CREATE TEMP TABLE broadcasts (id bigint, state text)');

await client.query('BEGIN');
await client.query('UPDATE broadcasts SET state = $2 WHERE id = $1', [42, 'queued']);
await new BroadcastQueue(client).queueBroadcast(42, { maxAttempts: 5 });
await client.query('COMMIT'); // from here on it will be sent; before, it never was

const queue = new BroadcastQueue(client); // or a Pool
await queue.queueSegmentBroadcast(42, 'premium', { delay: 10 * 60_000 });
await queue.queueBroadcastBatch([{ broadcast_id: 43 }, { broadcast_id: 44 }], { delayPerJob: 60_000 });
await client.end();
