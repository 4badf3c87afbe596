/**
 * What enqueueing costs, while a daemon listens whose queue is paused: rows one by one from one client and from sixteen
 * at once, with broadcastd's triggers and without, since every one of them is paid by the application; and batches, ours
 * and the peers'.
 */
import type pg from 'pg';
import { broadcastd } from '../contestants/broadcastd.ts';
import { batches, payload } from '../contestants/contestant.ts';
import { graphileBatched } from '../contestants/graphile-worker.ts';
import { pgBoss } from '../contestants/pg-boss.ts';
import { rounded, type Sample } from '../setup/results.ts';
import { type Service, startInstantService } from '../setup/service.ts';
import { chosen, type Stage, turns } from '../setup/stage.ts';
import type { Outcome } from './scenario.ts';
import { onQueue } from './turn.ts';

const CLIENTS = 16;
const TABLE = 'broadcast_queue_jobs';
const INSERT = `insert into ${TABLE} (job_type, job_data) values ('send_broadcast', $1)`;

interface Variant {
  readonly name: string;
  readonly clients: number;
  /** Triggers that are off meanwhile. */
  readonly off: readonly string[];
}

const NOTIFY = ['broadcast_queue_notify'];

const VARIANTS: readonly Variant[] = [
  { name: 'one client', clients: 1, off: [] },
  { name: '16 clients', clients: CLIENTS, off: [] },
  { name: '16 clients, no notification', clients: CLIENTS, off: NOTIFY },
  { name: '16 clients, no trigger for statements', clients: CLIENTS, off: ['after'] },
];

const BATCHED = [
  { queue: broadcastd, size: 1000 },
  { queue: broadcastd, size: 10_000 },
  { queue: graphileBatched, size: 1000 },
  { queue: pgBoss, size: 1000 },
];

export async function measureEnqueue(stage: Stage): Promise<Outcome> {
  const { asked, scratch } = stage;
  // Nobody calls it: the queue is paused.
  const service = await startInstantService(scratch, asked.service);
  try {
    const samples = [...(await singly(stage, service)), ...(await inBatches(stage))];
    return { samples, options: { jobs: asked.jobs, seconds: asked.seconds, rounds: asked.rounds } };
  } finally {
    await service.close();
  }
}

/** All variants on one table, by turns. */
function singly(stage: Stage, service: Service): Promise<Sample[]> {
  const { asked, say } = stage;
  return onQueue(stage, service, broadcastd, async ({ database }) => {
    const { client } = database;
    await client.query("select broadcast_pause_queue('broadcasts')");
    const clients = await Promise.all(Array.from({ length: CLIENTS }, () => database.connect()));
    const triggers = await statementTriggers(client);
    const samples: Sample[] = [];
    for (const { round, one } of turns(VARIANTS, asked.rounds)) {
      const off = one.off.includes('after') ? triggers : one.off;
      await switchTriggers(client, off, 'disable');
      const rows = await insertFor(asked.seconds * 1000, clients.slice(0, one.clients));
      await switchTriggers(client, off, 'enable');
      const rowsPerSecond = rounded(rows / asked.seconds);
      samples.push({ subject: one.name, round, figures: { rowsPerSecond } });
      say(`${round}: ${one.name} ${rowsPerSecond} rows a second`);
    }
    return samples;
  });
}

/** Those that run once after each INSERT, whatever they are called. */
async function statementTriggers(client: pg.Client): Promise<string[]> {
  // pg_trigger.tgtype: bit 0 row, bit 1 before, bit 2 insert.
  const { rows } = await client.query<{ tgname: string }>(
    'select tgname from pg_trigger where tgrelid = $1::regclass and not tgisinternal and tgtype::int & 7 = 4',
    [TABLE],
  );
  return rows.map(({ tgname }) => tgname);
}

async function switchTriggers(client: pg.Client, names: readonly string[], how: 'enable' | 'disable'): Promise<void> {
  for (const name of names) await client.query(`alter table ${TABLE} ${how} trigger ${name}`);
}

/** Each client inserts one row after the other; how many in all. */
async function insertFor(ms: number, clients: readonly pg.Client[]): Promise<number> {
  const end = performance.now() + ms;
  let rows = 0;
  const insert = async (client: pg.Client) => {
    while (performance.now() < end) {
      await client.query(INSERT, [payload(rows)]);
      rows += 1;
    }
  };
  await Promise.all(clients.map(insert));
  return rows;
}

/** A transaction for each batch, as a producer would that does not want to lose what it has. */
async function inBatches({ server, asked, say }: Stage): Promise<Sample[]> {
  const samples: Sample[] = [];
  for (const { round, one } of turns(
    chosen(BATCHED, ({ queue }) => queue.name, asked),
    asked.rounds,
  )) {
    const { queue, size } = one;
    const database = await server.create();
    try {
      await queue.prepare(database.url);
      await server.checkpoint();
      const producer = await queue.producer(database.client);
      const begun = performance.now();
      for (const ids of batches(asked.jobs, size)) await producer.enqueueMany(ids);
      const rowsPerSecond = rounded((asked.jobs * 1000) / (performance.now() - begun));
      await producer.close();
      const subject = `${queue.name}, batches of ${size}`;
      samples.push({ subject, round, figures: { rowsPerSecond } });
      say(`${round}: ${subject}: ${rowsPerSecond} rows a second`);
    } finally {
      await database.drop();
    }
  }
  return samples;
}
