/** What limits, gates and the breaker do to a queue, as commands that move a model and the real tables alike. */
import { expect } from '@jest/globals';
import type fc from 'fast-check';
import { BOT, type Command, command, isHeld, type Model, pick } from './queue-model.js';

const closeGate = command('close gate', async (model, { queue }) => {
  await queue.query('select broadcast_close_gate($1, 3600000)', [`bot:${BOT}`]);
  model.gateClosed = true;
});

const openGate = command('open gate', async (model, { queue }) => {
  const answer = await queue.query('select broadcast_open_gate($1) as was', [`bot:${BOT}`]);
  expect(answer).toEqual([{ was: model.gateClosed }]);
  model.gateClosed = false;
});

const limitBot = command('limit bot', async (model, { queue }) => {
  model.botLimit = model.botLimit === null ? 1 : null;
  if (model.botLimit === null) await queue.query('select broadcast_drop_limit($1)', [`bot:${BOT}`]);
  else await queue.query('select broadcast_set_limit($1, null, $2)', [`bot:${BOT}`, model.botLimit]);
});

const OUTAGE_CALLS_MAX = 20;

/** A call that says that the service is out of order: it opens the breaker, and costs its job nothing. */
const serviceFails = (n: number) =>
  command(
    `service fails(${n})`,
    async (model, { queue, flow }) => {
      const job = pick(model.jobs.filter(isHeld), n);
      const claim = model.claims.find(({ leaseId, job: { id } }) => leaseId === job.lease && id === job.id);
      if (!claim) throw new Error('a lease that was never claimed');
      const failure = { claim, code: 'unauthorized', message: 'who are you?', isLast: false, calls: 1, failures: 1 };
      const refund = job.outageCalls < OUTAGE_CALLS_MAX;
      expect(await flow.serviceFailed(failure)).toMatchObject({ refund, opened: model.breaker === 'closed' });
      if (refund) job.outageCalls += 1;
      model.told = [...model.told, job.id].slice(-20);
      if (model.breaker !== 'closed') return;
      model.breaker = 'open';
      // Time passes in this history only where a command says so.
      await queue.query("update broadcast_queue_services set open_until = now() + interval '1 hour'");
    },
    ({ jobs }) => jobs.some(isHeld),
  );

const probeIsDue = command(
  'probe is due',
  async (model, { queue }) => {
    await queue.query("update broadcast_queue_services set open_until = now() - interval '1 second'");
    model.breaker = 'half open';
  },
  ({ breaker }) => breaker !== 'closed',
);

const serviceAnswers = command('service answers', async (model, { flow }) => {
  expect(await flow.serviceAnswers()).toBe(model.breaker !== 'closed');
  for (const job of model.jobs.filter(({ id }) => model.told.includes(id))) {
    if (job.status === 'retry' && job.outageCalls > 0 && job.errorCode === 'http_503') job.later = false;
  }
  Object.assign(model, { breaker: 'closed', told: [] } satisfies Partial<Model>);
});

export function flowCommands(which: fc.Arbitrary<number>): fc.Arbitrary<Command>[] {
  return [
    which.map((n) => (n % 2 === 0 ? closeGate : openGate)),
    which.map(() => limitBot),
    which.map(serviceFails),
    which.map((n) => (n % 3 === 0 ? serviceAnswers : probeIsDue)),
  ];
}
