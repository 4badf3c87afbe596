/** One turn of one queue: a fresh database with its tables, a checkpoint, its worker up; and all of it gone afterwards. */
import type { Place, Queue, Worker } from '../contestants/contestant.ts';
import type { Database } from '../setup/postgres.ts';
import type { Service } from '../setup/service.ts';
import type { Stage } from '../setup/stage.ts';

export interface Turn {
  readonly database: Database;
  readonly workers: readonly Worker[];
}

export async function onQueue<T>(
  { server, scratch, asked }: Stage,
  service: Service,
  queue: Queue,
  work: (turn: Turn) => Promise<T>,
  count = 1,
): Promise<T> {
  const database = await server.create();
  try {
    await queue.prepare(database.url);
    await server.checkpoint();
    const place = { databaseUrl: database.url, serviceUrl: service.url, slots: asked.slots, scratch };
    return await withWorkers(queue, place, count, (workers) => work({ database, workers }));
  } finally {
    await database.drop();
  }
}

export async function withWorkers<T>(
  queue: Queue,
  place: Place,
  count: number,
  work: (workers: readonly Worker[]) => Promise<T>,
): Promise<T> {
  const workers: Worker[] = [];
  try {
    for (let i = 0; i < count; i++) workers.push(await queue.start(place));
    return await work(workers);
  } finally {
    await Promise.all(workers.map((worker) => worker.stop()));
  }
}
