/**
 * What further daemons add: a backlog in proportion to their number, ten slots each, and a service that takes 20 ms, so
 * that one daemon's slots and not this machine's cores are what limits it.
 */
import type { Queue } from '../contestants/contestant.ts';
import { QUEUES } from '../contestants/index.ts';
import { warmDrain } from '../setup/drain.ts';
import type { Sample } from '../setup/results.ts';
import { startNodeService } from '../setup/service.ts';
import { chosen, type Stage, turns } from '../setup/stage.ts';
import type { Outcome } from './scenario.ts';
import { onQueue } from './turn.ts';

const SERVICE_MS = 20;
const DAEMONS = [1, 2, 4];

export async function measureScaling(stage: Stage): Promise<Outcome> {
  const { asked, say } = stage;
  const queues = chosen(QUEUES, ({ name }) => name, asked);
  const samples: Sample[] = [];
  const kinds = queues.flatMap((queue) => DAEMONS.map((daemons) => ({ queue, daemons })));
  for (const { round, one } of turns(kinds, asked.rounds)) {
    const jobsPerSecond = await rate(stage, one.queue, one.daemons);
    samples.push({ subject: `${one.queue.name} × ${one.daemons}`, round, figures: { jobsPerSecond } });
    say(`${round}: ${one.queue.name} × ${one.daemons} ${jobsPerSecond} a second`);
  }
  const options = { jobs: asked.jobs, rounds: asked.rounds, slots: asked.slots, serviceMs: SERVICE_MS };
  return { samples, options };
}

async function rate(stage: Stage, queue: Queue, daemons: number): Promise<number> {
  const { server, asked, scratch } = stage;
  const service = await startNodeService(scratch, SERVICE_MS);
  try {
    const { jobsPerSecond } = await onQueue(
      stage,
      service,
      queue,
      ({ database, workers }) => warmDrain({ server, database, service }, queue, workers, asked.jobs * daemons),
      daemons,
    );
    return jobsPerSecond;
  } finally {
    await service.close();
  }
}
