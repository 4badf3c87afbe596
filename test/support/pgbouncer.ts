/** PgBouncer in transaction mode in front of a test's server, on a free port; it goes away with the test. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { freePort, systemUser } from './server.js';

export interface Pooler {
  /** A database's address through the pooler. */
  through(url: string): string;
  readonly lines: readonly string[];
  close(): Promise<void>;
}

/** @throws Error that says what to install, where there is no PgBouncer */
export async function startPgbouncer(server: string, settings: Readonly<Record<string, string>> = {}): Promise<Pooler> {
  const { hostname, port, username, password } = new URL(server);
  const listenPort = await freePort();
  const directory = await mkdtemp(join(tmpdir(), 'broadcastd-pgbouncer-'));
  await chmod(directory, 0o755);
  const file = join(directory, 'pgbouncer.ini');
  const options = {
    listen_addr: '127.0.0.1',
    listen_port: String(listenPort),
    unix_socket_dir: '',
    auth_type: 'any',
    pool_mode: 'transaction',
    // Few, so that statements of one client really land on several server connections, and those are shared.
    default_pool_size: '4',
    max_client_conn: '200',
    ...settings,
  };
  const login = `user=${quoted(decodeURIComponent(username))} password=${quoted(decodeURIComponent(password))}`;
  const text = [
    '[databases]',
    `* = host=${hostname} port=${port || '5432'} ${login}`,
    '[pgbouncer]',
    ...Object.entries(options).map(([name, value]) => `${name} = ${value}`),
  ];
  await writeFile(file, `${text.join('\n')}\n`);

  const lines: string[] = [];
  const child = spawn('pgbouncer', [file], {
    ...(await systemUser()),
    env: { PATH: `${process.env.PATH ?? ''}:/usr/sbin` },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  await new Promise<void>((resolve, reject) => {
    child.on('error', (error) => {
      reject(
        new Error(`PgBouncer cannot be run (${error.message}). Install it, on Debian by "apt-get install pgbouncer".`),
      );
    });
    child.on('exit', (code) => reject(new Error(`PgBouncer ended with ${code}:\n${lines.join('\n')}`)));
    if (!child.stderr) return;
    createInterface({ input: child.stderr }).on('line', (line) => {
      lines.push(line);
      if (line.includes('process up')) resolve();
    });
  });
  return {
    through(url) {
      const pooled = new URL(url);
      pooled.host = `127.0.0.1:${listenPort}`;
      return pooled.href;
    },
    lines,
    async close() {
      if (child.exitCode === null && child.signalCode === null) {
        const ended = once(child, 'exit');
        child.kill('SIGKILL');
        await ended;
      }
      await rm(directory, { recursive: true, force: true });
    },
  };
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}
