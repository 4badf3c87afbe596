/**
 * npm run demo: a private PostgreSQL, the sandbox broadcast service and the daemon, each a real process; sample
 * broadcasts enqueued by plain INSERTs; their progress until they are done. Stays up until Ctrl-C (with --once it ends
 * by itself, 0 only if every job completed) and leaves nothing behind. DATABASE_URL and BROADCAST_SERVICE_URL replace
 * the private parts when set, which is said aloud: somebody may have them set for something else.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { freePort, startServer } from '../test/support/server.js';
import { insertSamples } from './samples.js';
import { type JobRow, Screen } from './screen.js';

const GIVE_UP_AFTER_MS = 120_000;
const LOOK_EVERY_MS = 200;
/** Time for a Ctrl-C before a database or service is used that was not made for the demo. */
const THINK_TWICE_MS = 5_000;
const JOBS = `
  select job_id, job_type, queue_name, job_data, status, attempts, error_message, progress, result,
         extract(epoch from started_at - greatest(created_at, scheduled_at))::float8 * 1000 as waited_ms,
         extract(epoch from completed_at - started_at)::float8 * 1000 as took_ms
  from broadcast_queue_jobs`;
const program = fileURLToPath(new URL('../dist/main.js', import.meta.url));
const untilDone = process.argv.includes('--once');
const say = (line: string) => void process.stdout.write(`${line}\n`);
/** What to take down again, last first. */
const cleanup: (() => Promise<unknown>)[] = [];
const stop = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => stop.abort());

try {
  process.exitCode = await demo();
} catch (error) {
  if (!stop.signal.aborted) {
    say(`The demo failed: ${error instanceof Error ? error.message : String(error)}`);
    process.exitCode = 1;
  }
} finally {
  for (const step of cleanup.reverse()) await step().catch(() => {});
}

async function demo(): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), 'broadcastd-demo-'));
  cleanup.push(() => rm(folder, { recursive: true, force: true }));

  const { DATABASE_URL: givenDatabase, BROADCAST_SERVICE_URL: givenService } = process.env;
  await announce(givenDatabase, givenService);
  const databaseUrl = givenDatabase || (await privateDatabase());
  const serviceUrl = givenService || (await sandboxService(databaseUrl));
  const port = await freePort();
  const log = join(folder, 'daemon.log');
  await run(['start'], /broadcastd started/, log, {
    DATABASE_URL: databaseUrl,
    BROADCAST_SERVICE_URL: serviceUrl,
    PORT: String(port),
    // A minute between attempts is right for a broadcast and long for a demo.
    RETRY_BASE_DELAY_MS: process.env.RETRY_BASE_DELAY_MS ?? '2000',
    // Small slices, so that progress can be seen.
    BROADCAST_SERVICE_MAX_ITEMS: process.env.BROADCAST_SERVICE_MAX_ITEMS ?? '400',
  });
  say(`The daemon runs; its API is at http://127.0.0.1:${port}${untilDone ? '' : ` and its log in ${log}`}`);

  const client = new pg.Client({ connectionString: databaseUrl });
  await client.connect();
  cleanup.push(() => client.end());
  const ids = await insertSamples(client, givenService ? null : serviceUrl, say);
  const allCompleted = await watch(client, ids);

  if (!untilDone && !stop.signal.aborted) {
    say('\nStill up. Try it from another terminal:');
    say(
      `  psql ${givenDatabase ? '"$DATABASE_URL"' : `'${databaseUrl}'`} -c "INSERT INTO broadcast_queue_jobs (job_type, job_data)`,
    );
    say(`    VALUES ('send_broadcast', '{\\"broadcast_id\\": 99}')"`);
    say(`  curl http://127.0.0.1:${port}/api/admin/queue/health`);
    say(givenDatabase ? 'Ctrl-C ends it; the jobs stay in your queue.' : 'Ctrl-C ends it and leaves nothing behind.');
    await follow(client, ids);
    say('Stopping …');
  }
  return allCompleted ? 0 : 1;
}

/** Which database and service it will be. On a terminal there is time to think twice where they are not its own. */
async function announce(database: string | undefined, service: string | undefined): Promise<void> {
  if (database) {
    const { user, host, port, database: name } = new pg.Client({ connectionString: database });
    say(
      `Database: NOT PRIVATE, from DATABASE_URL: ${name} at ${host}:${port} as ${user}. Its queue gets the samples, and`,
    );
    say('  the daemon works on whatever else waits there.');
  } else say('Database: a private PostgreSQL, gone when the demo ends.');
  if (service) {
    say(
      `Service:  NOT PRIVATE, from BROADCAST_SERVICE_URL: ${withoutSecrets(service)}. It is called to send for real.`,
    );
  } else if (database)
    say('Service:  the sandbox. It sends to nobody, and keeps its tables in the schema broadcast_sandbox there.');
  else say('Service:  the sandbox. It sends to nobody.');
  if ((database || service) && process.stdout.isTTY) {
    say(`Going on in ${THINK_TWICE_MS / 1000} seconds; Ctrl-C ends it before anything is touched.`);
    await wait(THINK_TWICE_MS, undefined, { signal: stop.signal });
  }
}

function withoutSecrets(url: string): string {
  if (!URL.canParse(url)) return 'no URL';
  const { origin, pathname } = new URL(url);
  return origin + pathname;
}

async function privateDatabase(): Promise<string> {
  say('Starting a private PostgreSQL …');
  const server = await startServer();
  cleanup.push(() => server.close());
  return server.url;
}

async function sandboxService(databaseUrl: string): Promise<string> {
  say('Starting the sandbox broadcast service with 2,000 users …');
  const args = ['sandbox', '--port', '0', '--recipients', '2000', '--per-second', '1500'];
  const line = await run(args, /listens on (http:\S+)/, null, { DATABASE_URL: databaseUrl });
  return line[1] ?? '';
}

/** Starts the program and resolves with what it printed when that fits `ready`. Its output goes on into `log`. */
async function run(
  args: string[],
  ready: RegExp,
  log: string | null,
  env: Record<string, string>,
): Promise<RegExpMatchArray> {
  const child = spawn(process.execPath, [program, ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    // Ctrl-C reaches the whole group; these end in their own order.
    detached: true,
  });
  const file = log === null ? null : createWriteStream(log, { flags: 'a' });
  // Taken down last first: the process, then the log it writes.
  if (file) cleanup.push(() => new Promise((resolve) => file.end(resolve)));
  cleanup.push(() => end(child));
  const last: string[] = [];
  return new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        file?.write(`${line}\n`);
        last.push(line);
        if (last.length > 10) last.shift();
        const match = ready.exec(line);
        if (match) resolve(match);
      });
    }
    child.on('exit', (code) => reject(new Error(`broadcastd ${args[0]} ended with ${code}:\n${last.join('\n')}`)));
  });
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  await exited;
}

/** Shows what is enqueued later on, one line per change, until the demo is stopped. */
async function follow(client: pg.Client, shown: readonly string[]): Promise<void> {
  const screen = new Screen(process.stdout, false);
  while (!stop.signal.aborted) {
    const { rows } = await client.query<JobRow>(`${JOBS} where job_id <> all($1::uuid[]) order by id limit 500`, [
      shown,
    ]);
    screen.show(rows);
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
}

/** Shows the jobs until all have ended. @returns whether all completed */
async function watch(client: pg.Client, ids: readonly string[]): Promise<boolean> {
  const screen = new Screen(process.stdout, process.stdout.isTTY === true);
  const deadline = performance.now() + GIVE_UP_AFTER_MS;
  while (true) {
    const { rows } = await client.query<JobRow>(`${JOBS} where job_id = any($1::uuid[]) order by id`, [ids]);
    screen.show(rows);
    if (stop.signal.aborted) return false;
    const ended = rows.every(({ status }) => ['completed', 'failed', 'cancelled'].includes(status));
    if (ended || performance.now() > deadline) {
      screen.summary(rows);
      return ended && rows.every(({ status }) => status === 'completed');
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
}
