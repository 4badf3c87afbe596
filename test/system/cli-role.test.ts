/** `broadcastd start --role`: the worker and the API as processes of their own. */
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { killPrograms, startProgram } from '../support/daemon.js';
import { type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { openQueue, type TestQueue } from '../support/store.js';
import { until } from '../support/until.js';

const TOKEN = 'a-token-of-more-than-24-characters';

let queue: TestQueue;
let service: ScriptedServer;
beforeAll(async () => {
  queue = await openQueue();
  service = await startHttpServer();
});
afterAll(async () => {
  await service.close();
  await queue.close();
});
afterEach(killPrograms);

const start = (role: string) =>
  startProgram(
    { DATABASE_URL: queue.url, BROADCAST_SERVICE_URL: service.url, ADMIN_TOKENS: `alice:admin:${TOKEN}` },
    undefined,
    ['--role', role],
  );

test('an API without a worker answers and leaves the jobs to a worker without an API', async () => {
  const api = await start('api');
  const { job_id } = await queue.insert();
  const ask = async (url: string) => (await fetch(url, { headers: { authorization: `Bearer ${TOKEN}` } })).status;
  const isWaiting = async () => {
    const answer = await fetch(`${api.url}/api/admin/queue/job/${job_id}`, {
      headers: { authorization: `Bearer ${TOKEN}` },
    });
    const job: { waiting_because: string | null } = JSON.parse(await answer.text());
    return job.waiting_because === 'no daemon is running';
  };
  await until('the API says why the job waits', isWaiting);
  expect(await ask(`${api.url}/readyz`)).toBe(200);
  // It has heard of the job, and it has not registered as a worker: it is none.
  expect(await queue.query('select 1 from broadcast_queue_workers')).toEqual([]);
  expect(service.requests).toEqual([]);

  const worker = await start('worker');
  await service.received(1);
  await until('the job is completed', async () => (await queue.jobs())[0]?.status === 'completed');
  expect(await ask(`${worker.url}/livez`)).toBe(200);
  expect(await ask(`${worker.url}/readyz`)).toBe(200);
  expect(await ask(`${worker.url}/api/admin/queue/status`)).toBe(404);
  expect(await ask(`${api.url}/api/admin/queue/status`)).toBe(200);

  for (const program of [api, worker]) {
    program.signal('SIGTERM');
    expect(await program.ended).toBe(0);
  }
}, 30_000);
