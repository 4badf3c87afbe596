/** How fast a backlog is worked off where the service answers at once: what a queue itself can do, and what it costs. */
import { BARE, startBare } from '../contestants/bare.ts';
import type { Queue } from '../contestants/contestant.ts';
import { ALL_QUEUES } from '../contestants/index.ts';
import { meter, onceEach, patience, warmDrain, warmUp } from '../setup/drain.ts';
import type { Sample } from '../setup/results.ts';
import { type Service, startInstantService } from '../setup/service.ts';
import { chosen, type Stage, turns } from '../setup/stage.ts';
import type { Outcome } from './scenario.ts';
import { onQueue } from './turn.ts';

export async function measureDrain(stage: Stage): Promise<Outcome> {
  const { asked, scratch, say } = stage;
  const names = chosen([BARE, ...ALL_QUEUES.map(({ name }) => name)], (name) => name, asked);
  const samples: Sample[] = [];
  let kind = '';
  for (const { round, one } of turns(names, asked.rounds)) {
    const service = await startInstantService(scratch, asked.service);
    kind = service.kind;
    try {
      const queue = ALL_QUEUES.find(({ name }) => name === one);
      const figures = queue ? await drainQueue(stage, service, queue) : await drainBare(stage, service);
      samples.push({ subject: one, round, figures: { ...figures } });
      say(`${round}: ${one} ${figures.jobsPerSecond} a second`);
    } finally {
      await service.close();
    }
  }
  return { samples, options: { service: kind, jobs: asked.jobs, rounds: asked.rounds, slots: asked.slots } };
}

function drainQueue(stage: Stage, service: Service, queue: Queue) {
  return onQueue(stage, service, queue, ({ database, workers }) =>
    warmDrain({ server: stage.server, database, service }, queue, workers, stage.asked.jobs),
  );
}

async function drainBare({ server, scratch, asked }: Stage, service: Service) {
  const client = await startBare({ serviceUrl: service.url, slots: asked.slots, scratch });
  try {
    await server.checkpoint();
    await client.call(warmUp(asked.jobs), patience(asked.jobs));
    const { calls: before } = await service.calls();
    const since = meter(server, [client]);
    await client.call(asked.jobs, patience(asked.jobs));
    const drained = since.end(asked.jobs);
    await onceEach(BARE, service, before, asked.jobs);
    // There is no database in it.
    return { ...drained, postgresCpuMicros: null };
  } finally {
    await client.stop();
  }
}
