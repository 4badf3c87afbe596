/** graphile-worker, at the setting that is quickest and at the one it comes with. */
import { startProgram } from '../setup/processes.ts';
import { payload, type Queue } from './contestant.ts';

const ADD = 'select from graphile_worker.add_job($1, $2)';
const ADD_AT = 'select from graphile_worker.add_job($1, $2, run_at => to_timestamp($3))';
const ADD_MANY = `
  select from graphile_worker.add_jobs(array(
    select ('send_broadcast', payload, null, null, null, null, null, null)::graphile_worker.job_spec
    from json_array_elements($1::json) as each (payload)))`;

function graphileWorker(name: string, settings: string, batching: boolean): Queue {
  return {
    name,
    settings,
    async prepare(connectionString) {
      const { runMigrations } = await import('graphile-worker');
      await runMigrations({ connectionString });
    },
    start: ({ scratch, ...at }) => startProgram('graphile-worker', { ...at, batching }, scratch),
    async unsettled(client) {
      // It deletes what is done.
      const left = await client.query('select from graphile_worker._private_jobs');
      return left.rowCount ?? 0;
    },
    async producer(client) {
      return {
        async enqueue(id) {
          await client.query(ADD, ['send_broadcast', payload(id)]);
        },
        async enqueueAt(id, due) {
          await client.query(ADD_AT, ['send_broadcast', payload(id), due / 1000]);
        },
        async enqueueMany(ids) {
          await client.query(ADD_MANY, [JSON.stringify(ids.map(payload))]);
        },
        close: async () => {},
      };
    },
  };
}

export const graphileBatched = graphileWorker(
  'graphile-worker',
  '`localQueue.size` of ten times the slots, `completeJobBatchDelay` and `failJobBatchDelay` 0, a logger of warnings and errors only',
  true,
);

export const graphilePlain = graphileWorker('graphile-worker, plain', 'as it comes, but for `concurrentJobs`', false);
