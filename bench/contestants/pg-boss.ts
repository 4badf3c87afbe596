/** pg-boss, without a pause while batches are full: with the batches that are quickest, and with as many jobs as slots. */
import type pg from 'pg';
import { startProgram } from '../setup/processes.ts';
import { type Producer, payload, type Queue } from './contestant.ts';

const NAME = 'send_broadcast';

/** @param batches of so many times the slots are taken by each of so many workers */
function pgBossWith(name: string, settings: string, batches: number, workers: number): Queue {
  return {
    name,
    settings: `\`useListenNotify\`, \`burstWhenBatchFull\`, \`notifyPollingIntervalSeconds\` 2 (its 30 would keep delayed jobs waiting), ${settings}`,
    async prepare(databaseUrl) {
      const boss = await open(databaseUrl, true);
      await boss.createQueue(NAME, { notify: true });
      await boss.stop({ graceful: false });
    },
    start: ({ scratch, ...at }) => startProgram('pg-boss', { ...at, batchSize: at.slots * batches, workers }, scratch),
    async unsettled(client) {
      const left = await client.query("select from pgboss.job where name = $1 and state <> 'completed'", [NAME]);
      return left.rowCount ?? 0;
    },
    producer,
  };
}

export const pgBoss = pgBossWith(
  'pg-boss',
  '`localConcurrency` 2, and a `batchSize` of ten times the slots; its handler makes no more calls at a time than there are slots',
  10,
  2,
);

export const pgBossSmall = pgBossWith('pg-boss, small batches', 'a `batchSize` of the slots', 1, 1);

async function producer(client: pg.Client): Promise<Producer> {
  const boss = await open(urlOf(client), false);
  // It shall write through the connection that everybody else's jobs go through.
  const db = { executeSql: (text: string, values?: unknown[]) => client.query(text, values) };
  return {
    async enqueue(id) {
      await boss.send(NAME, payload(id), { db });
    },
    async enqueueAt(id, due) {
      await boss.send(NAME, payload(id), { db, startAfter: new Date(due) });
    },
    async enqueueMany(ids) {
      const jobs = ids.map((id) => ({ data: payload(id) }));
      await boss.insert(NAME, jobs, { db });
    },
    close: () => boss.stop({ graceful: false }),
  };
}

/** To enqueue only, unless it is to make its tables. */
async function open(connectionString: string, migrate: boolean) {
  const { PgBoss } = await import('pg-boss');
  const boss = new PgBoss({
    connectionString,
    max: 2,
    migrate,
    supervise: false,
    schedule: false,
    registerInstance: false,
  });
  boss.on('error', () => {});
  return boss.start();
}

function urlOf({ user, password, host, port, database }: pg.Client): string {
  return `postgresql://${user}:${password}@${host}:${port}/${database}`;
}
