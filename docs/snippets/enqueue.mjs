// Enqueueing from Node with plain pg:  npm install pg && node enqueue.mjs
// (A batch of JSON needs JSON.stringify: pg would send an array as a PostgreSQL array.)
import pg from 'pg';

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
// Stands for the bot's own table.
await client.query('CREATE TEMP TABLE broadcasts (id bigint, state text)');

await client.query('BEGIN');
await client.query('UPDATE broadcasts SET state = $2 WHERE id = $1', [42, 'queued']);
await client.query(`SELECT * FROM broadcast_enqueue('send_broadcast', $1)`, [{ broadcast_id: 42 }]);
await client.query('COMMIT'); // from here on it will be sent; before, it never was

await client.query(`SELECT * FROM broadcast_enqueue('send_segment_broadcast', $1, delay => $2, max_attempts => $3)`, [
  { broadcast_id: 42, segment_id: 'premium' },
  '10 minutes',
  5,
]);
await client.query('SELECT * FROM broadcast_enqueue_many($1)', [
  JSON.stringify([43, 44].map((id) => ({ job_type: 'send_broadcast', job_data: { broadcast_id: id } }))),
]);
await client.end();
