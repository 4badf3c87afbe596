/** The sandbox as a service that its team can kill and start again by a shell command, as `--restart-cmd` wants it. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { PROGRAM } from './program.js';
import { freePort } from './server.js';
import { until } from './until.js';

export interface RestartableService {
  readonly url: string;
  /** Kills it with SIGKILL and starts it again at the same address; returns at once. */
  readonly restartCommand: string;
  /** By SIGKILL, for good. */
  close(): Promise<void>;
}

/** The built program's `sandbox`, with a hundred people and these further options. */
export async function startRestartable(
  databaseUrl: string,
  options: readonly string[],
  secrets: { readonly secret: string; readonly token: string },
): Promise<RestartableService> {
  const folder = await mkdtemp(join(tmpdir(), 'broadcastd-contract-'));
  const port = await freePort();
  const args = ['sandbox', '--port', String(port), '--recipients', '100', ...options];
  const kill = `kill -9 $(cat '${folder}/pid')`;
  const start = `'${process.execPath}' '${PROGRAM}' ${args.join(' ')} > '${folder}/log' 2>&1 & echo $! > '${folder}/pid'`;
  const environment = {
    DATABASE_URL: databaseUrl,
    BROADCAST_SERVICE_SECRET: secrets.secret,
    BROADCAST_SERVICE_TOKEN: secrets.token,
  };
  const exports = Object.entries(environment).map(([name, value]) => `export ${name}='${value}'`);
  await writeFile(join(folder, 'start'), [...exports, start, ''].join('\n'));
  await writeFile(join(folder, 'restart'), [kill, `. '${folder}/start'`, ''].join('\n'));

  const shell = (command: string) => promisify(execFile)('sh', ['-c', command]);
  await shell(`. '${folder}/start'`);
  const url = `http://127.0.0.1:${port}`;
  await until('the sandbox answers', () =>
    fetch(`${url}/sandbox/health`).then(
      ({ ok }) => ok,
      () => false,
    ),
  );
  return {
    url,
    restartCommand: `. '${folder}/restart'`,
    async close() {
      await shell(kill);
      await rm(folder, { recursive: true });
    },
  };
}
