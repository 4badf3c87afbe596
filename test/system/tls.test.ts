/** A database that demands TLS, and a broadcast service over https, each with a certificate of a private CA. */
import { once } from 'node:events';
import { chmod, chown, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { CA_FILE, serverCertificate } from '../support/certificates.js';
import { killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { makeDatabase, type TestDatabase } from '../support/postgres.js';
import { type PrivateServer, startServer, systemUser } from '../support/server.js';
import { until } from '../support/until.js';

let directory: string;
let server: PrivateServer;
let database: TestDatabase;
let service: ScriptedServer;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'broadcastd-tls-'));
  const user = await systemUser();
  if (user) await chown(directory, user.uid, user.gid);
  const { key, cert } = await serverCertificate();
  const files = { 'server.key': key, 'server.pem': cert, 'hba.conf': 'hostssl all all all scram-sha-256\n' };
  for (const [name, content] of Object.entries(files)) {
    const path = join(directory, name);
    await writeFile(path, content);
    await chmod(path, 0o600);
    if (user) await chown(path, user.uid, user.gid);
  }
  const settings = [
    'ssl=on',
    `ssl_cert_file=${join(directory, 'server.pem')}`,
    `ssl_key_file=${join(directory, 'server.key')}`,
    `hba_file=${join(directory, 'hba.conf')}`,
  ];
  server = await startServer(settings.flatMap((setting) => ['-c', setting]));
  database = await makeDatabase(`${server.url}?sslmode=verify-full&sslrootcert=${CA_FILE}`, '');
  service = await startHttpServer();
});
afterEach(killPrograms);
afterAll(async () => {
  await service.close();
  await database.drop();
  await server.close();
  await rm(directory, { recursive: true });
});

/** The database's address with other parameters. */
function addressWith(parameters: Record<string, string>, host = '127.0.0.1'): string {
  const url = new URL(database.url);
  url.hostname = host;
  url.search = new URLSearchParams(parameters).toString();
  return url.href;
}

const verified = () => addressWith({ sslmode: 'verify-full', sslrootcert: CA_FILE });

test('migrations, statements and LISTEN go over TLS, with the certificate checked against its CA', async () => {
  const { code, stdout } = await runProgram(['migrate'], { DATABASE_URL: verified() });
  expect([code, stdout]).toEqual([0, expect.stringContaining('001_jobs')]);
  const daemon = await startProgram({
    DATABASE_URL: verified(),
    BROADCAST_SERVICE_URL: service.url,
    POLL_INTERVAL_MS: '600000',
  });
  await daemon.line(({ msg }) => msg.startsWith('listening'));
  await database.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": 1}')`);
  // The next poll is minutes away: it was the notification that came.
  await service.received(1);
  const connections = await database.query(
    `select split_part(application_name, ' ', 2) = 'listen' as listens, bool_and(ssl) as ssl
     from pg_stat_ssl join pg_stat_activity using (pid)
     where datname = current_database() and application_name like 'broadcastd %' group by 1 order by 1`,
  );
  expect(connections).toEqual([
    { listens: false, ssl: true },
    { listens: true, ssl: true },
  ]);
});

test.each([
  [
    'an unknown CA',
    () => addressWith({ sslmode: 'require' }),
    /cannot reach the database: (self-signed certificate|unable to).*certificate is not trusted here: add sslmode=verify-full&sslrootcert=.*or sslmode=no-verify/,
  ],
  [
    'another name in the certificate',
    () => addressWith({ sslmode: 'verify-full', sslrootcert: CA_FILE }, 'localhost'),
    /cannot reach the database: .*does not match.*write the host as the certificate names it/,
  ],
  [
    'no TLS where it is demanded',
    () => addressWith({}),
    /cannot reach the database: no pg_hba.conf entry.*demands TLS, add sslmode=verify-full/,
  ],
  [
    'a CA file that is not there',
    () => addressWith({ sslmode: 'verify-full', sslrootcert: '/nowhere/ca.pem' }),
    /cannot reach the database: the file that sslrootcert names in its address cannot be read: ENOENT.*'\/nowhere\/ca\.pem'/,
  ],
])('%s: the program says what to do about it, and ends with 69', async (_what, address, words) => {
  const { code, stderr } = await runProgram(['migrate'], { DATABASE_URL: address() });
  expect([code, stderr]).toEqual([69, expect.stringMatching(words)]);
  expect(stderr).not.toMatch(/ at .*\.js/);
});

test('so does the daemon, which waits a while for a database that is only just starting', async () => {
  const { code, stdout, stderr } = await runProgram(['start'], {
    DATABASE_URL: addressWith({ sslmode: 'require' }),
    BROADCAST_SERVICE_URL: service.url,
  });
  expect(code).toBe(69);
  for (const text of [stdout, stderr])
    expect(text).toContain('certificate is not trusted here: add sslmode=verify-full');
});

test('sslmode=no-verify encrypts, and trusts whoever answers', async () => {
  const { code } = await runProgram(['migrate'], { DATABASE_URL: addressWith({ sslmode: 'no-verify' }) });
  expect(code).toBe(0);
});

test('a broadcast service behind a private CA is called where NODE_EXTRA_CA_CERTS names it, and only there', async () => {
  const secure = createServer(
    await serverCertificate(),
    (_request, response) => void response.writeHead(200).end('{}'),
  );
  const url = `https://127.0.0.1:${await portOf(secure)}`;
  const env = { DATABASE_URL: verified(), BROADCAST_SERVICE_URL: url, RETRY_BASE_DELAY_MS: '500' };
  const job = async () => (await database.query('select * from broadcast_queue_jobs order by id desc limit 1'))[0];
  try {
    const distrustful = await startProgram(env);
    await database.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": 2}')`);
    await until('the first call failed', async () => (await job())?.status === 'retry');
    expect(await job()).toMatchObject({
      error_code: 'tls',
      error_message: expect.stringContaining('not trusted: name the file of its CA in NODE_EXTRA_CA_CERTS'),
    });
    distrustful.signal('SIGTERM');
    await distrustful.ended;
    await startProgram({ ...env, NODE_EXTRA_CA_CERTS: CA_FILE });
    await until('it is sent', async () => (await job())?.status === 'completed');
  } finally {
    await killPrograms();
    secure.closeAllConnections();
    secure.close();
  }
});

async function portOf(secure: Server): Promise<number> {
  secure.listen(0, '127.0.0.1');
  await once(secure, 'listening');
  // An address of TCP, as it listens on a port.
  return (secure.address() as AddressInfo).port;
}
