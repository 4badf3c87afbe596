/**
 * How late a delayed job starts where nothing else happens: jobs due one after the other with irregular pauses, from the
 * moment at which each is due to its call's arrival. Worker, service and database share the machine's clock.
 */
import type { Queue } from '../contestants/contestant.ts';
import { QUEUES } from '../contestants/index.ts';
import { allArrived } from '../setup/paced.ts';
import { percentiles, quantile, rounded, type Sample } from '../setup/results.ts';
import { startNodeService } from '../setup/service.ts';
import { chosen, nameOfQueue, type Stage, turns } from '../setup/stage.ts';
import type { Outcome } from './scenario.ts';
import { onQueue } from './turn.ts';

/** Far enough ahead that all are enqueued before the first is due. */
const FIRST_AFTER_MS = 5000;
/** Clocks of two processes agree to well within this; a job that comes earlier was sent too soon. */
const CLOCKS_AGREE_MS = 2;

/** Pauses of 60 to 240 ms, never twice the same in a row, and the same for everybody. */
const pauseBefore = (id: number) => 60 + ((id * 73) % 181);

export async function measureLateness(stage: Stage): Promise<Outcome> {
  const { asked, say } = stage;
  const samples: Sample[] = [];
  for (const { round, one } of turns(chosen(QUEUES, nameOfQueue, asked), asked.rounds)) {
    const late = await latenesses(stage, one);
    const figures = { p50: rounded(quantile(late, 0.5)), p99: rounded(quantile(late, 0.99)) };
    samples.push({ subject: one.name, round, figures, percentiles: percentiles(late) });
    say(`${round}: ${one.name} ${figures.p50} ms late, 99 of 100 within ${figures.p99} ms`);
  }
  return { samples, options: { jobs: asked.jobs, rounds: asked.rounds, slots: asked.slots } };
}

async function latenesses(stage: Stage, queue: Queue): Promise<number[]> {
  const { jobs } = stage.asked;
  const service = await startNodeService(stage.scratch, 0);
  try {
    return await onQueue(stage, service, queue, async ({ database }) => {
      const producer = await queue.producer(database.client);
      const due = new Map<number, number>();
      let at = Date.now() + FIRST_AFTER_MS;
      for (let id = 1; id <= jobs; id++) {
        at += pauseBefore(id);
        due.set(id, at);
        await producer.enqueueAt(id, at);
      }
      const arrived = await allArrived(service, jobs, at - Date.now() + 60_000);
      await producer.close();
      const late = [...arrived].map(([id, { wall }]) => wall - (due.get(id) ?? 0));
      const early = Math.min(...late);
      if (early < -CLOCKS_AGREE_MS) throw new Error(`${queue.name} called ${-early} ms before a job was due`);
      return late.map((ms) => Math.max(ms, 0));
    });
  } finally {
    await service.close();
  }
}
