/**
 * How long a lone job waits: one row every 30 ms on a quiet queue, from before its INSERT to its call's arrival at the
 * service. Producer and service are two processes, and both read the machine's monotonic clock.
 */
import type { Queue } from '../contestants/contestant.ts';
import { QUEUES } from '../contestants/index.ts';
import { allArrived } from '../setup/paced.ts';
import { percentiles, quantile, rounded, type Sample } from '../setup/results.ts';
import { startNodeService } from '../setup/service.ts';
import { chosen, nameOfQueue, type Stage, turns } from '../setup/stage.ts';
import { sleep } from '../setup/waiting.ts';
import type { Outcome } from './scenario.ts';
import { onQueue } from './turn.ts';

const EVERY_MS = 30;
/** The first ones find nothing compiled and nothing in any cache, and do not count. */
const WARM_UP = 30;

export async function measureLatency(stage: Stage): Promise<Outcome> {
  const { asked, say } = stage;
  const samples: Sample[] = [];
  for (const { round, one } of turns(chosen(QUEUES, nameOfQueue, asked), asked.rounds)) {
    const waits = await latencies(stage, one);
    const figures = { p50: rounded(quantile(waits, 0.5)), p99: rounded(quantile(waits, 0.99)) };
    samples.push({ subject: one.name, round, figures, percentiles: percentiles(waits) });
    say(`${round}: ${one.name} ${figures.p50} ms, 99 of 100 within ${figures.p99} ms`);
  }
  return { samples, options: { jobs: asked.jobs, rounds: asked.rounds, slots: asked.slots } };
}

async function latencies(stage: Stage, queue: Queue): Promise<number[]> {
  const service = await startNodeService(stage.scratch, 0);
  try {
    return await onQueue(stage, service, queue, async ({ database }) => {
      const producer = await queue.producer(database.client);
      const sent = new Map<number, number>();
      const total = WARM_UP + stage.asked.jobs;
      const begun = performance.now();
      for (let id = 1; id <= total; id++) {
        await sleep(Math.max(begun + id * EVERY_MS - performance.now(), 0));
        sent.set(id, Number(process.hrtime.bigint()) / 1e6);
        await producer.enqueue(id);
      }
      const arrived = await allArrived(service, total, 60_000);
      await producer.close();
      return [...arrived].filter(([id]) => id > WARM_UP).map(([id, { monotonic }]) => monotonic - (sent.get(id) ?? 0));
    });
  } finally {
    await service.close();
  }
}
