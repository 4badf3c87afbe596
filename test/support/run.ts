import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { packProgram } from './pack.js';
import { createTemplate, SERVER_VARIABLE } from './postgres.js';
import { PROGRAM_VARIABLE } from './program.js';
import { type PrivateServer, startServer } from './server.js';

declare global {
  // Jest runs setup and teardown in one process; this is how they hand things over.
  var broadcastdTestServer: { close(): Promise<void> } | undefined;
  var broadcastdTestProgram: string | undefined;
}

export async function setup(): Promise<void> {
  const { url, close } = await provide();
  globalThis.broadcastdTestServer = { close };
  process.env[SERVER_VARIABLE] = url;
  await createTemplate(url);
  // `npm run test:all` starts dist/ as it is.
  if (process.env.LONG_TESTS === '1') return;
  globalThis.broadcastdTestProgram = await packProgram();
  process.env[PROGRAM_VARIABLE] = join(globalThis.broadcastdTestProgram, 'dist/main.js');
}

async function provide(): Promise<Pick<PrivateServer, 'url' | 'close'>> {
  const given = process.env.TEST_DATABASE_URL;
  if (given) return { url: given, close: async () => {} };
  if (process.env.TESTCONTAINERS !== '1') return startServer(['-c', 'max_connections=200']);
  const { GenericContainer, Wait } = await import('testcontainers');
  const container = await new GenericContainer('postgres:17')
    .withEnvironment({ POSTGRES_PASSWORD: 'postgres' })
    .withCommand(['postgres', '-c', 'fsync=off', '-c', 'max_connections=200'])
    .withExposedPorts(5432)
    // An open port is not enough: while the server recovers it answers there, but takes nobody in.
    .withHealthCheck({ test: ['CMD', 'pg_isready', '--host=127.0.0.1'], interval: 250, timeout: 5000, retries: 240 })
    .withWaitStrategy(Wait.forHealthCheck())
    .start();
  return {
    url: `postgresql://postgres:postgres@${container.getHost()}:${container.getMappedPort(5432)}/postgres`,
    close: async () => void (await container.stop()),
  };
}

export async function teardown(): Promise<void> {
  await globalThis.broadcastdTestServer?.close();
  const { broadcastdTestProgram: program } = globalThis;
  if (program !== undefined) await rm(program, { recursive: true });
}
