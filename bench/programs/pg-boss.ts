/** pg-boss, as its documentation says to set it up: batches, burst while they are full, and notifications. */
import { PgBoss } from 'pg-boss';
import { caller } from './call.ts';

const { databaseUrl, serviceUrl, slots, batchSize, workers } = JSON.parse(process.argv[2] ?? '{}');
const call = caller(serviceUrl, slots);

const boss = new PgBoss({ connectionString: databaseUrl, useListenNotify: true });
boss.on('error', (error) => process.stdout.write(`${error.stack}\n`));
boss.on('warning', ({ message }) => process.stdout.write(`${message}\n`));
await boss.start();
await boss.work(
  'send_broadcast',
  { batchSize, localConcurrency: workers, burstWhenBatchFull: true, notifyPollingIntervalSeconds: 2 },
  async (jobs) => void (await Promise.all(jobs.map(({ id, data }) => call(id, data)))),
);
process.on('SIGTERM', () => void boss.stop({ graceful: true, timeout: 5000 }).finally(() => process.exit()));
process.on('disconnect', () => process.exit());
process.send?.({ kind: 'ready' });
