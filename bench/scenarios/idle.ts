/** What a worker costs that has nothing to do: statements, CPU and memory, with an empty queue and with a full one paused. */
import { broadcastd } from '../contestants/broadcastd.ts';
import type { Queue } from '../contestants/contestant.ts';
import { QUEUES } from '../contestants/index.ts';
import { cpuOf, cpuOfTree, memoryOf } from '../setup/cpu.ts';
import type { Database } from '../setup/postgres.ts';
import { rounded, type Sample } from '../setup/results.ts';
import { startInstantService } from '../setup/service.ts';
import { chosen, nameOfQueue, type Stage, turns } from '../setup/stage.ts';
import { addPending } from '../setup/table.ts';
import { sleep } from '../setup/waiting.ts';
import type { Outcome } from './scenario.ts';
import { withWorkers } from './turn.ts';

/** What comes with a start is over by then. */
const CALM_AFTER_MS = 10_000;

interface Variant {
  readonly name: string;
  readonly queue: Queue;
  readonly isFull: boolean;
}

export async function measureIdle(stage: Stage): Promise<Outcome> {
  const { asked, server, scratch, say } = stage;
  const empty = chosen(QUEUES, nameOfQueue, asked).map((queue) => ({ name: queue.name, queue, isFull: false }));
  const full = empty
    .filter(({ queue }) => queue === broadcastd)
    .map((variant) => ({ ...variant, name: 'broadcastd, rows pending', isFull: true }));
  const samples: Sample[] = [];
  const service = await startInstantService(scratch, asked.service);
  try {
    for (const { round, one } of turns([...empty, ...full], asked.rounds)) {
      const database = await server.create();
      try {
        const figures = await measure(stage, service.url, database, one);
        samples.push({ subject: one.name, round, figures });
        say(
          `${round}: ${one.name} ${figures.queriesPerSecond ?? '?'} queries a second, ${figures.workerCpuPercent} % CPU`,
        );
      } finally {
        await database.drop();
      }
    }
  } finally {
    await service.close();
  }
  return {
    samples,
    options: { seconds: asked.seconds, pending: asked.pending, rounds: asked.rounds, slots: asked.slots },
  };
}

async function measure(
  { server, asked, scratch }: Stage,
  serviceUrl: string,
  database: Database,
  { queue, isFull }: Variant,
) {
  const { client } = database;
  await queue.prepare(database.url);
  if (isFull) {
    await client.query("select broadcast_pause_queue('broadcasts')");
    await addPending(client, asked.pending, 1);
    // So that it is not autovacuum that is measured.
    await client.query('vacuum (analyze)');
  }
  await server.checkpoint();
  const place = { databaseUrl: database.url, serviceUrl, slots: asked.slots, scratch };
  return withWorkers(queue, place, 1, async ([worker]) => {
    const pids = worker ? [worker.pid] : [];
    await sleep(CALM_AFTER_MS);
    const queries = await countQueries(database);
    const used = () => ({ worker: cpuOf(pids), postgres: cpuOfTree(server.postmaster) });
    const before = used();
    await sleep(asked.seconds * 1000);
    const after = used();
    const percent = (now: number | null, then: number | null) =>
      now === null || then === null ? null : rounded(((now - then) * 100) / asked.seconds);
    return {
      queriesPerSecond: queries === null ? null : rounded((await queries()) / asked.seconds),
      workerCpuPercent: percent(after.worker, before.worker),
      postgresCpuPercent: percent(after.postgres, before.postgres),
      memoryMib: rounded(memoryOf(pids[0] ?? 0)?.now ?? Number.NaN),
    };
  });
}

/** From now on; BEGIN and COMMIT count as well. Null: this server does not count them. */
async function countQueries({ client }: Database): Promise<(() => Promise<number>) | null> {
  const { rows } = await client.query<{ loaded: boolean }>(
    "select current_setting('shared_preload_libraries') ~ 'pg_stat_statements' as loaded",
  );
  if (!rows[0]?.loaded) return null;
  await client.query('create extension if not exists pg_stat_statements');
  await client.query('select pg_stat_statements_reset()');
  return async () => {
    const counted = await client.query<{ calls: number }>(
      `select coalesce(sum(calls), 0)::int as calls from pg_stat_statements s join pg_database d on d.oid = s.dbid
       where datname = current_database() and query !~ 'pg_stat_statements'`,
    );
    return counted.rows[0]?.calls ?? 0;
  };
}
