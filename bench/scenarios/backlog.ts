/**
 * What a large table costs: 20 thousand jobs worked off from a table with nothing else in it, and from one with a million
 * jobs due and five million finished, whose statistics are from when it was small; and that again while somebody holds a
 * transaction open, so that no dead row can be removed.
 */
import { broadcastd } from '../contestants/broadcastd.ts';
import { meter, mustRun, patience } from '../setup/drain.ts';
import type { Database } from '../setup/postgres.ts';
import { rounded, type Sample } from '../setup/results.ts';
import { type Service, startInstantService } from '../setup/service.ts';
import { chosen, type Stage, turns } from '../setup/stage.ts';
import { addFinished, addPending } from '../setup/table.ts';
import { sleep, until } from '../setup/waiting.ts';
import type { Outcome } from './scenario.ts';
import { withWorkers } from './turn.ts';

const SMALL = 'small table';
const LARGE = 'large table';
const HELD = 'large table, transaction held';

/** Rows that were there when the statistics were taken. */
const KNOWN_ROWS = 1000;
const FEED_EVERY_MS = 250;
/** Calls whose settlement may still be on its way. */
const UNSETTLED = 500;

export async function measureBacklog(stage: Stage): Promise<Outcome> {
  const { asked, server, scratch, say } = stage;
  const variants = chosen([SMALL, LARGE, HELD], (name) => name, asked);
  const template = variants.some((name) => name !== SMALL) ? await largeTable(stage) : undefined;
  const samples: Sample[] = [];
  for (const { round, one } of turns(variants, asked.rounds)) {
    const service = await startInstantService(scratch, asked.service);
    const database = await server.create(one === SMALL ? undefined : template);
    try {
      if (one === SMALL) await smallTable(database, goBefore(asked.jobs) + asked.jobs + UNSETTLED);
      const figures = await measure(stage, service, database, one);
      samples.push({ subject: one, round, figures });
      say(`${round}: ${one} ${figures.jobsPerSecond} a second`);
    } finally {
      await database.drop();
      await service.close();
    }
  }
  const { jobs, pending, finished, holdMinutes, rounds, slots } = asked;
  return { samples, options: { jobs, pending, finished, holdMinutes, rounds, slots } };
}

/** Worked off first, unmeasured, wherever the measurement does not come after minutes of work. */
const goBefore = (jobs: number) => Math.ceil(jobs / 10);

async function smallTable(database: Database, rows: number): Promise<void> {
  await broadcastd.prepare(database.url);
  await addPending(database.client, rows, 1);
}

async function largeTable({ server, asked, say }: Stage): Promise<string> {
  const begun = performance.now();
  const database = await server.create();
  const { client } = database;
  await broadcastd.prepare(database.url);
  await client.query('alter table broadcast_queue_jobs set (autovacuum_enabled = false)');
  await addFinished(client, Math.min(KNOWN_ROWS, asked.finished));
  await client.query('analyze');
  await addFinished(client, Math.max(asked.finished - KNOWN_ROWS, 0), KNOWN_ROWS + 1);
  await addPending(client, asked.pending, asked.finished + 1);
  await server.checkpoint();
  say(`a table of ${asked.finished + asked.pending} rows was written in ${seconds(begun)} s`);
  return server.keep(database);
}

async function measure(stage: Stage, service: Service, database: Database, variant: string) {
  const { server, asked, scratch } = stage;
  const place = { databaseUrl: database.url, serviceUrl: service.url, slots: asked.slots, scratch };
  await server.checkpoint();
  if (variant === HELD) await holdTransaction(database);
  return withWorkers(broadcastd, place, 1, async (workers) => {
    const calls = async () => {
      mustRun(workers);
      return (await service.calls()).calls;
    };
    if (variant === HELD) await churn(stage, database, calls);
    const skipped = variant === HELD ? 0 : goBefore(asked.jobs);
    const first = await calls();
    const { rows } = await database.client.query<{ now: string }>('select clock_timestamp()::text as now');
    await until('it warms up', async () => (await calls()) - first >= skipped, patience(skipped));
    const since = meter(server, workers);
    since.begin();
    const enough = skipped + asked.jobs;
    await until(`${asked.jobs} jobs are done`, async () => (await calls()) - first >= enough, patience(enough), 10);
    const { workerCpuMicros, postgresCpuMicros } = since.end(asked.jobs);
    await until('the last is settled', async () => (await calls()) - first >= enough + UNSETTLED / 2, 60_000);
    await Promise.all(workers.map((worker) => worker.stop()));
    const jobsPerSecond = await settledPerSecond(database, asked, rows[0]?.now ?? '', skipped, variant === SMALL);
    return { jobsPerSecond, workerCpuMicros, postgresCpuMicros };
  });
}

/** From the first to the last of so many settlements, by the database's clock. */
async function settledPerSecond(
  { client }: Database,
  { jobs, finished }: Stage['asked'],
  since: string,
  skipped: number,
  isSmall: boolean,
): Promise<number> {
  const { rows } = await client.query<{ settled: number; seconds: number }>(
    `select count(*)::int as settled, extract(epoch from max(completed_at) - min(completed_at))::float8 as seconds
     from (select completed_at from broadcast_queue_jobs
           where id > $1 and status = 'completed' and completed_at > $2
           order by completed_at offset $3 limit $4) settled`,
    [isSmall ? 0 : finished, since, skipped, jobs],
  );
  const { settled = 0, seconds = 0 } = rows[0] ?? {};
  if (settled < jobs) throw new Error(`${settled} of ${jobs} jobs are settled in the table`);
  return rounded((settled - 1) / seconds);
}

/** Open, and with a snapshot: rows that die from now on stay. It ends with its connection. */
async function holdTransaction(database: Database): Promise<void> {
  const holder = await database.connect();
  await holder.query('begin isolation level repeatable read');
  await holder.query('select count(*) from broadcast_queue_leases');
}

/** As many rows come in as are worked off, for as long as was asked. */
async function churn({ asked, say }: Stage, { client }: Database, calls: () => Promise<number>): Promise<void> {
  const end = performance.now() + asked.holdMinutes * 60_000;
  const first = await calls();
  let fed = 0;
  while (performance.now() < end) {
    const gone = (await calls()) - first - fed;
    if (gone > 0) await addPending(client, gone, asked.finished + asked.pending + fed + 1);
    fed += gone;
    await sleep(FEED_EVERY_MS);
  }
  say(`${fed} jobs went through while the transaction was open`);
}

function seconds(since: number): number {
  return Math.round((performance.now() - since) / 1000);
}
