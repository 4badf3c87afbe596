/** Secrets as files, as Docker and Kubernetes hand them over, and a signing secret that is being replaced. */
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { Webhook } from 'standardwebhooks';
import { killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { type RecordedRequest, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { until } from '../support/until.js';

let database: TestDatabase;
let service: ScriptedServer;
let directory: string;

beforeAll(async () => {
  database = await createDatabase();
  directory = await mkdtemp(join(tmpdir(), 'broadcastd-secrets-'));
});
beforeEach(async () => {
  service = await startHttpServer();
});
afterEach(async () => {
  await killPrograms();
  await service.close();
});
afterAll(async () => {
  await rm(directory, { recursive: true });
  await database.drop();
});

const newSecret = () => `whsec_${randomBytes(32).toString('base64')}`;

/** @returns the path of a file with this content */
async function fileWith(content: string): Promise<string> {
  const path = join(directory, randomBytes(6).toString('hex'));
  await writeFile(path, content);
  return path;
}

async function sendOne(): Promise<RecordedRequest> {
  await database.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": "ä"}', unique_key => null)`);
  await service.received(1);
  await until('it is completed', async () => {
    const rows = await database.query(`select 1 from broadcast_queue_jobs where status <> 'completed'`);
    return rows.length === 0;
  });
  const [request] = service.requests;
  if (!request) throw new Error('no call came');
  return request;
}

/** Whether a service that knows only this secret takes the call for the daemon's. */
function isAccepted({ headers, body }: RecordedRequest, secret: string): boolean {
  const signed = ['webhook-id', 'webhook-timestamp', 'webhook-signature'].map((name) => [name, String(headers[name])]);
  try {
    new Webhook(secret).verify(body, Object.fromEntries(signed));
    return true;
  } catch {
    return false;
  }
}

test('every secret is read from its file, without the line break that editors add', async () => {
  const secret = newSecret();
  const viewer = 'a-viewer-secret-of-24-characters';
  const daemon = await startProgram({
    DATABASE_URL_FILE: await fileWith(`${database.url}\n`),
    LISTEN_DATABASE_URL_FILE: await fileWith(database.url),
    MIGRATE_DATABASE_URL_FILE: await fileWith(`${database.url}\r\n`),
    BROADCAST_SERVICE_URL: service.url,
    BROADCAST_SERVICE_SECRET_FILE: await fileWith(`${secret}\n`),
    BROADCAST_SERVICE_TOKEN_FILE: await fileWith('a-token-from-a-file\n'),
    ADMIN_TOKENS_FILE: await fileWith(`alice:viewer:${viewer}\n`),
  });
  const request = await sendOne();
  expect(request.headers.authorization).toBe('Bearer a-token-from-a-file');
  expect(isAccepted(request, secret)).toBe(true);
  const health = await fetch(`${daemon.url}/api/admin/queue/health`, {
    headers: { authorization: `Bearer ${viewer}` },
  });
  expect(await health.json()).toMatchObject({ running: true });
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  for (const word of [secret, viewer, 'a-token-from-a-file']) expect(daemon.output()).not.toContain(word);
});

test('files that are missing or empty, or a secret given twice, are told together, and the program exits with 78', async () => {
  const { code, stdout, stderr } = await runProgram(['start'], {
    DATABASE_URL_FILE: join(directory, 'missing'),
    BROADCAST_SERVICE_URL: service.url,
    BROADCAST_SERVICE_SECRET_FILE: await fileWith('\n'),
    BROADCAST_SERVICE_TOKEN: 'CANARY-in-the-environment',
    BROADCAST_SERVICE_TOKEN_FILE: await fileWith('CANARY-in-the-file'),
    ADMIN_TOKENS_FILE: directory,
  });
  expect(code).toBe(78);
  expect(stderr.split('\n')).toEqual([
    'broadcastd cannot start with this configuration:',
    '  - DATABASE_URL_FILE names a file that cannot be read (ENOENT). Write the path of a file that holds the value of DATABASE_URL.',
    '  - BROADCAST_SERVICE_SECRET_FILE names an empty file. Write the value of BROADCAST_SERVICE_SECRET into it.',
    '  - BROADCAST_SERVICE_TOKEN and BROADCAST_SERVICE_TOKEN_FILE are both set. Set only one of them.',
    '  - ADMIN_TOKENS_FILE names a file that cannot be read (EISDIR). Write the path of a file that holds the value of ADMIN_TOKENS.',
    '',
  ]);
  expect(stdout).toBe('');
});

test('while a signing secret is being replaced, a service that knows either of the two accepts the calls', async () => {
  const [older, newer] = [newSecret(), newSecret()];
  await startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    BROADCAST_SERVICE_SECRET: `${newer},${older}`,
  });
  const request = await sendOne();
  expect([older, newer, newSecret()].map((secret) => isAccepted(request, secret))).toEqual([true, true, false]);
});
