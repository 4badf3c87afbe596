/**
 * The two example services, as their readers would run them: real processes on a real PostgreSQL or SQLite file, called
 * by the real daemon, killed in the middle. What they print is the evidence of who got a message.
 */
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { Webhook } from 'standardwebhooks';
import { killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { bodyOf, call, callThrough, request } from '../support/sandbox-calls.js';
import { freePort } from '../support/server.js';
import { until } from '../support/until.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const SECRET = `whsec_${Buffer.from('a secret of the examples').toString('base64')}`;

const python = spawnSync('python3', [
  '-c',
  'import sqlite3, sys; sys.exit(sys.version_info < (3, 10) or sqlite3.sqlite_version_info < (3, 35))',
]);

const curl = spawnSync('curl', ['--version']);

const examples = [
  {
    name: 'the TypeScript example',
    command: [process.execPath, '--import', 'tsx', 'examples/typescript/service.ts'],
    isHere: true,
  },
  { name: 'the Python example', command: ['python3', 'examples/python/service.py'], isHere: python.status === 0 },
];

/** Of the 400 sample users every 20th has opted out, and every 25th of the others blocks the bot. */
const EVERYBODY = {
  ...{ total: 400, processed: 400, sent: 368, skipped: 20, failed: 12, unknown: 0 },
  reasons: { opted_out: 20, blocked: 12 },
};

interface Example {
  /** How often each user was sent each broadcast, by `user broadcast`. */
  readonly sends: Map<string, number>;
  readonly process: ChildProcess;
  readonly ended: Promise<unknown>;
}

let database: TestDatabase;
let folder: string;
let port: number;
let url: string;
let running: Example[];

beforeEach(async () => {
  database = await createDatabase();
  folder = await mkdtemp(join(tmpdir(), 'broadcastd-examples-'));
  port = await freePort();
  url = `http://127.0.0.1:${port}`;
  running = [];
});
afterEach(async () => {
  await killPrograms();
  for (const example of running) await kill(example);
  await rm(folder, { recursive: true });
  await database.drop();
});

for (const { name, command, isHere } of examples) {
  const start = (env: Record<string, string> = {}) => startExample(command, env);

  // Where there is no Python 3.10 with SQLite 3.35, its tests are listed as skipped.
  (isHere ? describe : describe.skip)(name, () => {
    test('sends a broadcast exactly once to everybody, though a daemon is killed in its midst', async () => {
      const { sends } = await start();
      const daemon = await startDaemon();
      const jobId = await enqueue();
      await until('three slices are done', async () => (await row(jobId)).progress.processed >= 150);
      const before = sends.size;
      await until('the next slice sends', async () => sends.size > before + 10);
      daemon.signal('SIGKILL');
      expect(await daemon.ended).toBe('SIGKILL');
      expect((await row(jobId)).status).toBe('processing');
      await startDaemon();

      await until('it is completed', async () => (await row(jobId)).status === 'completed', 30_000);
      expect((await row(jobId)).progress).toEqual(EVERYBODY);
      expect([sends.size, moreThanOnce(sends)]).toEqual([368, []]);
    }, 60_000);

    if (process.env.LONG_TESTS === '1') {
      test('killed in mid-batch and started again, sends to nobody twice and lists the uncertain', async () => {
        const first = await start();
        await startDaemon();
        const jobId = await enqueue();
        await until('it sends', async () => first.sends.size > 60);
        await kill(first);
        const second = await start();

        await until('it is completed', async () => (await row(jobId)).status === 'completed', 30_000);
        const { progress } = await row(jobId);
        expect(progress).toMatchObject({ total: 400, processed: 400, skipped: 20 });
        expect(progress.unknown).toBeGreaterThan(0);
        expect(progress.unknown).toBeLessThanOrEqual(50);
        expect(progress.sent + progress.failed + progress.unknown).toBe(380);
        const all = [...first.sends.keys(), ...second.sends.keys()];
        expect(new Set(all).size).toBe(all.length);
        expect(moreThanOnce(first.sends).concat(moreThanOnce(second.sends))).toEqual([]);
        // Everybody but the uncertain was reached, and some of those as well.
        expect(all.length).toBeGreaterThanOrEqual(progress.sent);

        // Asked for, the uncertain are sent to once more, and only they.
        const next = { job: jobId, epoch: 100, seq: 100, payload: { broadcast_id: 7 }, scope: 'unknown' };
        const resent = await callThrough(url, { ...next, maxItems: 20 });
        const after = Object(resent.at(-1)?.body.progress);
        expect(after).toMatchObject({ total: 400, processed: 400, skipped: 20, unknown: 0 });
        await until(
          'all is printed',
          async () => second.sends.size === all.length - first.sends.size + after.sent - progress.sent,
        );
      }, 60_000);

      test('answers a key once, and again what it answered', async () => {
        const { sends } = await start();
        const first = await call(url, { payload: { broadcast_id: 'a' }, maxItems: 30 });
        expect(first).toMatchObject({
          status: 202,
          body: { status: 'continue', progress: { total: 400, processed: 30 } },
        });
        expect(first.headers.get('x-broadcast-level')).toBe('2');
        const count = sends.size;
        const again = {
          payload: { broadcast_id: 'a' },
          maxItems: 10,
          epoch: 2,
          attempt: 2,
          previousFailure: 'timeout',
        };
        expect(await call(url, again)).toMatchObject({ status: 202, body: first.body });
        expect(sends.size).toBe(count);

        expect(await call(url, { payload: { broadcast_id: 'b' }, epoch: 2 })).toMatchObject(refused(422, 'key_reused'));
        expect(await call(url, { payload: { broadcast_id: 'a' }, seq: 1, epoch: 1 })).toMatchObject({
          ...refused(409, 'stale_epoch'),
          body: { epoch: 2 },
        });
        expect(await call(url, { seq: 1, epoch: 2, cursor: 'x', payload: { broadcast_id: 'a' } })).toMatchObject(
          refused(422, 'bad_cursor'),
        );
      });

      test('refuses a second call while one runs, and keeps to the pace and the time it is given', async () => {
        const { sends } = await start();
        const slow = { payload: { broadcast_id: 'slow' }, perSecond: 20, waitSeconds: 1.5 };
        const began = performance.now();
        const first = call(url, slow);
        await until('it sends', async () => sends.size > 0);
        const second = await call(url, { ...slow, epoch: 2 });
        expect(second).toMatchObject(refused(409, 'in_progress'));
        expect(Number(second.headers.get('retry-after'))).toBeGreaterThan(0);

        expect((await first).body).toMatchObject({ status: 'continue' });
        const tookMs = performance.now() - began;
        expect(tookMs).toBeLessThan(4000);
        expect(sends.size).toBeLessThanOrEqual((tookMs / 1000) * 20);
        expect(sends.size).toBeGreaterThan(20);
      });

      test('says what a broadcast would be, and sends it to its testers, without touching the broadcast', async () => {
        const { sends } = await start();
        const payload = { broadcast_id: 8, segment_id: 'premium' };
        const segment = { type: 'send_segment_broadcast', payload };
        const dry = await call(url, { job: 'dry', ...segment, dryRun: true, perSecond: 10 });
        expect(dry.body).toEqual({ status: 'completed', dry_run: true, audience: 80, estimated_seconds: 8 });
        expect(sends.size).toBe(0);

        const test = await call(url, { job: 'test', payload: { broadcast_id: 8, test_recipients: [5, '9'] } });
        expect(test.body).toMatchObject({ status: 'completed', progress: { total: 2, processed: 2, sent: 2 } });
        const real = await callThrough(url, { job: 'real', ...segment, maxItems: 70 });
        expect(real.map(({ status }) => status)).toEqual([202, 200]);
        expect(real.at(-1)?.body).toMatchObject({ progress: { total: 80, sent: 48, skipped: 20, failed: 12 } });
        expect(sends.size).toBe(49);
        // Number 5 got the test and the broadcast.
        expect(moreThanOnce(sends)).toEqual(['5 8']);

        const another = await call(url, { job: 'another', ...segment });
        expect(another.body).toMatchObject({ status: 'completed', progress: { processed: 80, skipped: 80, sent: 0 } });
        expect(moreThanOnce(sends)).toEqual(['5 8']);
      });

      test('asked to send again to those who failed, it reaches nobody who has got it', async () => {
        const { sends } = await start();
        const payload = { broadcast_id: 'again' };
        await callThrough(url, { payload });
        const [again] = await callThrough(url, { payload, seq: 9, scope: 'failed' });
        expect(again?.body).toEqual({ status: 'completed', progress: EVERYBODY });
        expect([sends.size, moreThanOnce(sends)]).toEqual([368, []]);
      });

      test('has nobody to try again every five minutes, and says so', async () => {
        await start();
        const answer = await call(url, { job: 'retries', type: 'process_retries', payload: {} });
        const nobody = { total: 0, processed: 0, sent: 0, skipped: 0, failed: 0, unknown: 0 };
        expect(answer).toMatchObject({ status: 200, body: { status: 'completed', progress: nobody } });
      });

      test.each([
        ['a job type it does not know', 404, 'unknown_job_type', { type: 'water_the_plants' }],
        ['no broadcast', 422, 'invalid_payload', { payload: {} }],
        ['a broadcast without a sound name', 422, 'invalid_payload', { payload: { broadcast_id: [1] } }],
        [
          'a list of testers that is none',
          422,
          'invalid_payload',
          { payload: { broadcast_id: 1, test_recipients: '4' } },
        ],
        ['nothing at a time', 422, 'invalid_envelope', { maxItems: 0 }],
      ])('refuses %s', async (_what, status, code, options) => {
        const { sends } = await start();
        expect(await call(url, { payload: { broadcast_id: 1 }, ...options })).toMatchObject(refused(status, code));
        expect(sends.size).toBe(0);
      });

      test('believes only what is signed and carries the token, and the daemon signs so', async () => {
        const auth = { BROADCAST_SERVICE_SECRET: SECRET, BROADCAST_SERVICE_TOKEN: 'an-example-token' };
        const { sends } = await start(auth);
        const body = { payload: { broadcast_id: 3 } };
        const signed = (at: Date, text = bodyOf(body)) => ({
          authorization: 'Bearer an-example-token',
          'webhook-id': 'one',
          'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
          'webhook-signature': `v1,bm90IG91cnM= ${new Webhook(SECRET).sign('one', at, text)}`,
        });
        const status = async (headers: Record<string, string>) => (await request(url, { ...body, headers })).status;
        const now = new Date();
        expect(await status({})).toBe(401);
        expect(await status({ ...signed(now), authorization: 'Bearer another' })).toBe(401);
        expect(await status({ authorization: 'Bearer an-example-token' })).toBe(401);
        expect(await status(signed(now, 'another body'))).toBe(401);
        expect(await status(signed(new Date(now.getTime() - 600_000)))).toBe(401);
        expect(sends.size).toBe(0);
        expect(await status(signed(now))).toBeLessThan(300);

        await startDaemon(auth);
        const jobId = await enqueue();
        await until('it is completed', async () => (await row(jobId)).status === 'completed');
        expect((await row(jobId)).progress).toEqual(EVERYBODY);
      });

      test('ends in order when it is told to, and answers the slice in hand', async () => {
        const example = await start();
        const slice = call(url, { payload: { broadcast_id: 'stop' }, perSecond: 10 });
        await until('it sends', async () => example.sends.size > 0);
        example.process.kill('SIGTERM');
        expect((await slice).body).toMatchObject({ status: 'continue' });
        expect(await example.ended).toEqual([0, null]);
      });

      (curl.status === 0 ? test : test.skip)(
        'answers the commands of the guide as it says',
        async () => {
          // With the defaults, as a reader would start it.
          await start({ SAMPLE_USERS: '300', MESSENGER_PER_SECOND: '30' });
          const guide = await readFile(join(ROOT, 'docs/service-guide.md'), 'utf8');
          const steps = [...guide.matchAll(/```sh\n(curl .*?)```\n```json\n(.*?)```/gs)];
          expect(steps.length).toBeGreaterThanOrEqual(5);
          for (const [, command = '', answer = ''] of steps) {
            const { stdout } = await promisify(execFile)('sh', ['-c', command.replace('localhost:4000', url)]);
            expect(JSON.parse(stdout)).toEqual(JSON.parse(answer));
          }
        },
        60_000,
      );
    }

    test('passes the contract test, which kills it too', async () => {
      const auth = { BROADCAST_SERVICE_SECRET: SECRET, BROADCAST_SERVICE_TOKEN: 'an-example-token' };
      const { process: child } = await start(auth);
      const pidFile = join(folder, 'pid');
      await writeFile(pidFile, String(child.pid));
      const again = `kill -9 $(cat ${pidFile}); ${command.join(' ')} >/dev/null 2>&1 & echo $! > ${pidFile}`;
      try {
        const args = ['contract-test', url, '--level', '2', '--restart-cmd', `cd ${ROOT}; ${again}`];
        const { code, stdout, stderr } = await runProgram(args, { ...environment(), ...auth });
        expect({ code, stdout, stderr }).toMatchObject({ code: 0 });
        // Nothing of the levels 0 to 2 was left out.
        expect(stdout.split('Level 3')[0]).not.toMatch(/skipped|shows nothing/);
      } finally {
        process.kill(Number(await readFile(pidFile, 'utf8')), 'SIGKILL');
      }
    }, 180_000);
  });
}

async function startExample([program = '', ...args]: string[], env: Record<string, string>): Promise<Example> {
  const child = spawn(program, args, {
    cwd: ROOT,
    env: { ...environment(), ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const example: Example = { sends: new Map(), process: child, ended: once(child, 'close') };
  running.push(example);
  const listening = new Promise<void>((resolve) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.startsWith('listening on')) resolve();
      const [, user, broadcast] = /^to (\d+): .* (\S+)$/.exec(line) ?? [];
      if (user === undefined) return;
      const send = `${user} ${broadcast}`;
      example.sends.set(send, (example.sends.get(send) ?? 0) + 1);
    });
  });
  const tooEarly = example.ended.then((how) => {
    throw new Error(`the example ended before it listened: ${how}`);
  });
  await Promise.race([listening, tooEarly]);
  tooEarly.catch(() => {}); // From here on it may end.
  return example;
}

const environment = () => ({
  ...{ PATH: process.env.PATH ?? '', PORT: String(port), SAMPLE_USERS: '400', MESSENGER_PER_SECOND: '250' },
  ...{ DATABASE_URL: database.url, DATABASE: join(folder, 'ledger.sqlite') },
});

/** By SIGKILL; resolves when all it printed is read. */
async function kill({ process: child, ended }: Example): Promise<void> {
  child.kill('SIGKILL');
  await ended;
}

const startDaemon = (env: Record<string, string> = {}) =>
  startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: url,
    BROADCAST_SERVICE_LEVEL: '2',
    BROADCAST_SERVICE_MAX_ITEMS: '50',
    LEASE_MS: '2000',
    POLL_INTERVAL_MS: '500',
    RETRY_BASE_DELAY_MS: '200',
    ...env,
  });

async function enqueue(): Promise<string> {
  const [job] = await database.query<{ job_id: string }>(
    `insert into broadcast_queue_jobs (job_type, job_data, max_attempts) values ('send_broadcast', $1, 10)
     returning job_id`,
    [{ broadcast_id: 7 }],
  );
  return job?.job_id ?? '';
}

async function row(jobId: string) {
  const [job] = await database.query<{ status: string; progress: object | null }>(
    'select status, progress from broadcast_queue_jobs where job_id = $1',
    [jobId],
  );
  const none = { processed: 0, sent: 0, failed: 0, unknown: 0 };
  return { status: job?.status, progress: { ...none, ...job?.progress } };
}

function moreThanOnce(sends: Map<string, number>): string[] {
  return [...sends].filter(([, times]) => times > 1).map(([send]) => send);
}

const refused = (status: number, code: string) => ({ status, body: { status, code } });
