/**
 * The service that all contestants call. Where only the number of calls matters it is nginx, which answers at once and
 * costs little; a Node process of its own where nginx is not installed, where the service takes its time, or where
 * arrivals are noted.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { request } from 'undici';
import { freePort, systemUser } from '../../test/support/server.ts';
import { startChild, startProgram } from './processes.ts';
import { until } from './waiting.ts';

export interface Service {
  readonly url: string;
  /** For the report. */
  readonly kind: string;
  /** How many calls have arrived, and how many different jobs they were for where that is counted. */
  calls(): Promise<{ readonly calls: number; readonly jobs: number | null }>;
  close(): Promise<void>;
}

export interface NotingService extends Service {
  /** Of each call since last asked: its broadcast, and when it arrived by the two clocks, in milliseconds. */
  arrivals(): Promise<readonly Arrival[]>;
}

export interface Arrival {
  readonly id: number;
  /** The machine's monotonic clock, the same for all its processes. */
  readonly monotonic: number;
  /** Since 1970. */
  readonly wall: number;
}

const ANSWER = '{"status":"completed"}';

export type ServiceKind = 'nginx' | 'node';

function nginxIsThere(): boolean {
  try {
    execFileSync('nginx', ['-v'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** One that answers at once. */
export function startInstantService(scratch: string, kind?: ServiceKind): Promise<Service> {
  const wanted = kind ?? (nginxIsThere() ? 'nginx' : 'node');
  return wanted === 'nginx' ? startNginx(scratch) : startNodeService(scratch, 0);
}

export async function startNodeService(scratch: string, delayMs: number): Promise<NotingService> {
  const port = await freePort();
  const child = await startProgram('service', { port, delayMs, answer: ANSWER }, scratch);
  const url = `http://127.0.0.1:${port}`;
  // Only our own program answers here.
  const ask = async <T>(path: string) => (await (await request(url + path)).body.json()) as T;
  return {
    url,
    kind: `a Node process that answers ${delayMs === 0 ? 'at once' : `after ${delayMs} ms`}`,
    calls: () => ask('/calls'),
    arrivals: async () => {
      const noted = await ask<[number, number, number][]>('/arrivals');
      return noted.map(([id, monotonic, wall]) => ({ id, monotonic, wall }));
    },
    close: () => child.stop(),
  };
}

async function startNginx(scratch: string): Promise<Service> {
  const port = await freePort();
  const folder = join(scratch, `nginx-${port}`);
  mkdirSync(folder);
  writeFileSync(join(folder, 'nginx.conf'), nginxConfiguration(port, folder, (await systemUser()) !== undefined));
  const child = startChild({ command: 'nginx', args: ['-p', folder, '-c', join(folder, 'nginx.conf')], scratch });
  const url = `http://127.0.0.1:${port}`;
  let asked = 0;
  const calls = async () => {
    asked += 1;
    const { body } = await request(`${url}/nginx-status`);
    const [, handled] = /^ \d+ \d+ (\d+)/m.exec(await body.text()) ?? [];
    // It counts our own questions as well.
    return { calls: Number(handled) - asked, jobs: null };
  };
  const answers = () =>
    calls().then(
      () => true,
      () => false,
    );
  try {
    await until('nginx answers', answers, 10_000, 50);
  } catch (error) {
    const log = child.log().slice(-500);
    await child.stop();
    throw new Error(`nginx did not start: ${log}`, { cause: error });
  }
  // What was asked before it listened never arrived.
  asked = 0;
  asked = (await calls()).calls + 1;
  return { url, kind: `nginx, one worker process, which answers at once`, calls, close: () => child.stop() };
}

function nginxConfiguration(port: number, folder: string, isRoot: boolean): string {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
  return `daemon off;
${isRoot ? 'user nobody nogroup;' : ''}
worker_processes 1;
pid ${folder}/pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
  default_type application/json;
${temporary.map((name) => `  ${name}_temp_path ${folder}/${name};`).join('\n')}
  server {
    listen 127.0.0.1:${port};
    location = /nginx-status { stub_status; }
    location / { return 200 '${ANSWER}'; }
  }
}
`;
}
