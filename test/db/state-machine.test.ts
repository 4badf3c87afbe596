/** Random histories of the queue, against a model of it. A failure prints its seed; STATE_MACHINE_SEED repeats it. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { flowStore } from '../../src/db/flow.js';
import { commands } from '../support/queue-commands.js';
import { emptyModel, type Real } from '../support/queue-model.js';
import { openQueue, type TestQueue, worker } from '../support/store.js';

const RUNS = 200;
const COMMANDS_MAX = 60;
const given = Number(process.env.STATE_MACHINE_SEED);
const seed = given || Math.floor(Math.random() * 2 ** 31);

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterAll(() => queue.close());

test(`whatever happens in whatever order, the tables are as the model says (seed ${seed})`, async () => {
  const flow = flowStore(queue.database, worker('worker'));
  const real: Real = { queue, store: queue.store(), reaper: queue.reaper(), flow, refused: 0, probes: 0 };
  await fc.assert(
    fc.asyncProperty(commands(COMMANDS_MAX), async (history) => {
      await queue.clear();
      await flow.serviceAnswers();
      await fc.asyncModelRun(() => ({ model: emptyModel(), real }), history);
    }),
    { numRuns: RUNS, seed },
  );
  // Without late words it would have shown nothing about the fence, and without probes nothing about the breaker.
  expect(real.refused).toBeGreaterThan(RUNS / 4);
  expect(real.probes).toBeGreaterThan(0);
}, 120_000);
