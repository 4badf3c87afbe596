/** How quickly an operator is answered while the daemon has its hands full: reads one after the other during a drain. */
import { request } from 'undici';
import { apiOf, broadcastd, TOKEN } from '../contestants/broadcastd.ts';
import { drain } from '../setup/drain.ts';
import { percentiles, quantile, rounded, type Sample } from '../setup/results.ts';
import { startInstantService } from '../setup/service.ts';
import type { Stage } from '../setup/stage.ts';
import type { Outcome } from './scenario.ts';
import { onQueue } from './turn.ts';

const READS = ['/status', '/jobs', '/statistics'];

export async function measureAdmin(stage: Stage): Promise<Outcome> {
  const { asked, say } = stage;
  const samples: Sample[] = [];
  for (let round = 1; round <= asked.rounds; round++) {
    for (const [path, times] of await readWhileDraining(stage)) {
      const figures = { p50: rounded(quantile(times, 0.5)), p99: rounded(quantile(times, 0.99)), reads: times.length };
      samples.push({ subject: path, round, figures, percentiles: percentiles(times) });
      say(`${round}: ${path} ${figures.p50} ms, 99 of 100 within ${figures.p99} ms`);
    }
  }
  return { samples, options: { jobs: asked.jobs, rounds: asked.rounds, slots: asked.slots } };
}

/** Milliseconds of each read, by its path. */
async function readWhileDraining(stage: Stage): Promise<Map<string, number[]>> {
  const { server, asked, scratch } = stage;
  const service = await startInstantService(scratch, asked.service);
  try {
    return await onQueue(stage, service, broadcastd, async ({ database, workers }) => {
      const api = workers[0] && apiOf(workers[0]);
      if (!api) throw new Error('the daemon does not say where its API is');
      const times = new Map<string, number[]>(READS.map((path) => [path, []]));
      let isDraining = true;
      const drained = drain({ server, database, service }, broadcastd, workers, asked.jobs).finally(() => {
        isDraining = false;
      });
      const read = async () => {
        while (isDraining)
          for (const path of READS) times.get(path)?.push(await timed(`${api}/api/admin/queue${path}`));
      };
      await Promise.all([drained, read()]);
      return times;
    });
  } finally {
    await service.close();
  }
}

async function timed(url: string): Promise<number> {
  const begun = performance.now();
  const { statusCode, body } = await request(url, { headers: { authorization: `Bearer ${TOKEN}` } });
  await body.text();
  if (statusCode !== 200) throw new Error(`${url} answered ${statusCode}`);
  return performance.now() - begun;
}
