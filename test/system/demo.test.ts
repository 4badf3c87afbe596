/** `npm run demo` with a database and a service that are not its own: it says so, uses them, and gives no secret away. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

let database: TestDatabase;
let service: ScriptedServer;
beforeEach(async () => {
  database = await createDatabase();
  service = await startHttpServer();
});
afterEach(async () => {
  await service.close();
  await database.drop();
});

test('the demo says aloud which database and service it uses, without their secrets, and uses them', async () => {
  service.otherwise(replyJson(200, { sent: 5 }));
  const child = spawn(process.execPath, ['--import', 'tsx', 'demo/main.ts', '--once'], {
    cwd: ROOT,
    env: { PATH: process.env.PATH ?? '', DATABASE_URL: database.url, BROADCAST_SERVICE_URL: service.url },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const out: string[] = [];
  child.stdout.on('data', (chunk) => out.push(String(chunk)));
  expect(await once(child, 'close')).toEqual([0, null]);

  const [first = '', second = '', third = ''] = out.join('').split('\n');
  const { hostname, port, pathname, username, password } = new URL(database.url);
  expect(first).toContain(`NOT PRIVATE, from DATABASE_URL: ${pathname.slice(1)} at ${hostname}:${port} as ${username}`);
  expect(second).toContain('works on whatever else waits there');
  expect(third).toContain(`NOT PRIVATE, from BROADCAST_SERVICE_URL: ${service.url}`);
  // The tests' servers are entered with the password "postgres", which is their user's name as well.
  expect(out.join('')).not.toContain(`:${password}@`);
  const jobs = await database.query('select status from broadcast_queue_jobs');
  expect(jobs).toEqual(Array(6).fill({ status: 'completed' }));
  expect(service.requests).toHaveLength(6);
}, 60_000);
