/** graphile-worker, as its documentation says to set it up. */
import { EventEmitter } from 'node:events';
import { Logger, run } from 'graphile-worker';
import { caller } from './call.ts';

const { databaseUrl, serviceUrl, slots, batching } = JSON.parse(process.argv[2] ?? '{}');
const call = caller(serviceUrl, slots);

// What one would write who cares for speed: no line per job, jobs fetched and settled many at a time.
const tuned = {
  localQueue: { size: slots * 10 },
  completeJobBatchDelay: 0,
  failJobBatchDelay: 0,
  logger: new Logger(() => (level, message) => {
    if (level === 'error' || level === 'warning') process.stdout.write(`${level} ${message}\n`);
  }),
};

const events = new EventEmitter();
events.once('pool:listen:success', () => process.send?.({ kind: 'ready' }));
process.on('disconnect', () => process.exit());
await run({
  preset: { worker: { connectionString: databaseUrl, concurrentJobs: slots, events, ...(batching ? tuned : {}) } },
  taskList: { send_broadcast: (payload, { job }) => call(job.id, payload) },
});
