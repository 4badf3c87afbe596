/**
 * One drain: a worker is up and listens on an empty queue; all jobs are inserted in one transaction, and from its commit
 * to the moment at which the last job is settled in the database time and CPU are counted. The same for every queue.
 */
import { batches, type Queue, type Worker } from '../contestants/contestant.ts';
import { cpuOf, cpuOfTree, memoryOf } from './cpu.ts';
import type { Database, Server } from './postgres.ts';
import { rounded } from './results.ts';
import type { Service } from './service.ts';
import { sleep, until } from './waiting.ts';

export interface Drained {
  readonly jobsPerSecond: number;
  /** Null: cannot be told here. */
  readonly workerCpuMicros: number | null;
  readonly postgresCpuMicros: number | null;
  readonly peakMib: number | null;
}

export interface Where {
  readonly server: Server;
  readonly database: Database;
  readonly service: Service;
}

/** What must come to an end, however slow: a job in ten milliseconds. */
export const patience = (jobs: number) => 60_000 + jobs * 10;
const STRAY_MS = 100;

/** The same after a twentieth as many jobs, which do not count: a worker that has run for a while has compiled what it runs. */
export async function warmDrain(
  where: Where,
  queue: Queue,
  workers: readonly Worker[],
  jobs: number,
): Promise<Drained> {
  await drain(where, queue, workers, warmUp(jobs));
  return drain(where, queue, workers, jobs);
}

export const warmUp = (jobs: number) => Math.ceil(jobs / 20);

export async function drain(
  { server, database, service }: Where,
  queue: Queue,
  workers: readonly Worker[],
  jobs: number,
): Promise<Drained> {
  const { client } = database;
  const before = (await service.calls()).calls;
  const producer = await queue.producer(client);
  await client.query('begin');
  for (const ids of batches(jobs)) await (producer.fill ?? producer.enqueueMany)(ids);
  const since = meter(server, workers);
  await client.query('commit');
  since.begin();
  // The service is asked, and the database only when all calls have been made: asking must not cost what is measured.
  const arrived = async () => {
    mustRun(workers);
    return (await service.calls()).calls - before >= jobs;
  };
  await until(`${queue.name} makes ${jobs} calls`, arrived, patience(jobs), 10);
  await until(`${queue.name} settles them`, async () => (await queue.unsettled(client)) === 0, patience(jobs));
  const drained = since.end(jobs);
  await producer.close();
  await onceEach(queue.name, service, before, jobs);
  return drained;
}

/** Nobody waits for a worker that has broken off. */
export function mustRun(workers: readonly Worker[]): void {
  const gone = workers.find(({ running }) => !running);
  if (gone) throw new Error(`a worker has ended while it was measured:\n${gone.log().slice(-2000)}`);
}

/** Counts time and CPU; CPU from now on, time from `begin`. */
export function meter(server: Pick<Server, 'postmaster'>, workers: readonly Worker[]) {
  const pids = workers.map(({ pid }) => pid);
  const used = () => ({ workers: cpuOf(pids), postgres: cpuOfTree(server.postmaster) });
  const before = used();
  let begun = performance.now();
  return {
    begin: () => {
      begun = performance.now();
    },
    end(jobs: number): Drained {
      const seconds = (performance.now() - begun) / 1000;
      const after = used();
      const micros = (now: number | null, then: number | null) =>
        now === null || then === null ? null : rounded(((now - then) * 1e6) / jobs);
      const memory = pids.map((pid) => memoryOf(pid)?.peak ?? null);
      return {
        jobsPerSecond: rounded(jobs / seconds),
        workerCpuMicros: micros(after.workers, before.workers),
        postgresCpuMicros: micros(after.postgres, before.postgres),
        peakMib: memory.includes(null) ? null : rounded(Math.max(...memory.map(Number))),
      };
    },
  };
}

/** A contestant that calls twice, or settles what it did not call, has not done what is measured. */
export async function onceEach(name: string, service: Service, before: number, jobs: number): Promise<void> {
  // A second call for a job may still be on its way.
  await sleep(STRAY_MS);
  const { calls, jobs: different } = await service.calls();
  if (calls - before !== jobs) throw new Error(`${name} made ${calls - before} calls for ${jobs} jobs`);
  if (different !== null && different !== calls) throw new Error(`${name} made ${calls} calls for ${different} jobs`);
}
