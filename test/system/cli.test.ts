/** The commands, as somebody types them: the real program, on a real queue. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals';
import { runProgram } from '../support/daemon.js';
import { createEmptyDatabase } from '../support/postgres.js';
import { PROGRAM } from '../support/program.js';
import { claimOne, openQueue, type TestQueue } from '../support/store.js';
import { until } from '../support/until.js';

const NOBODY = '018f6b2e-7d1c-4c11-9d6b-2f4f5a6b7c8d';

let queue: TestQueue;
beforeAll(async () => {
  queue = await openQueue();
});
afterAll(() => queue.close());
beforeEach(() => queue.clear());

/** With a database and nothing else. */
const broadcastd = (...args: string[]) => runProgram(args, { DATABASE_URL: queue.url });

/** The answer of `--json`; the command must have ended with 0. */
async function json(...args: string[]) {
  const { code, stdout, stderr } = await broadcastd(...args, '--json');
  expect({ code, stderr }).toEqual({ code: 0, stderr: expect.not.stringMatching(/error|cannot|fail/i) });
  return JSON.parse(stdout);
}

/** What a shell makes of it; `$broadcastd` is the program. */
async function shell(script: string, env: Record<string, string> = {}) {
  const child = spawn('bash', ['-c', script], {
    env: {
      PATH: process.env.PATH ?? '',
      DATABASE_URL: queue.url,
      broadcastd: `${process.execPath} ${PROGRAM}`,
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const out: string[] = [];
  const err: string[] = [];
  child.stdout.on('data', (chunk) => out.push(String(chunk)));
  child.stderr.on('data', (chunk) => err.push(String(chunk)));
  const [code] = await once(child, 'close');
  return { code, stdout: out.join(''), stderr: err.join('') };
}

const fail = (error_code: string, n: number) =>
  queue.query(
    `insert into broadcast_queue_jobs (job_type, job_data, status, attempts, error_code, error_message, completed_at)
     select 'send_broadcast', jsonb_build_object('broadcast_id', i), 'failed', 3, $1, 'the service said no', now()
     from generate_series(1, $2::integer) i`,
    [error_code, n],
  );

test('enqueue adds a job with its options, and large numbers keep their digits', async () => {
  const payload = '{"broadcast_id": 12345678901234567890123, "price": 1.10}';
  const options = ['--delay', '10m', '--priority', '-3', '--max-attempts', '7', '--unique-key', 'mine', '--dry-run'];
  const window = '{"from": "09:00", "to": "21:00", "time_zone": "Europe/Berlin"}';
  const { inserted, job } = await json('enqueue', 'send_broadcast', payload, ...options, '--window', window);
  expect({ inserted, ...job }).toMatchObject({ inserted: true, queue_name: 'broadcasts', status: 'pending' });
  const [row] = await queue.query(
    `select job_id, job_data::text, priority, max_attempts, unique_key, dry_run, send_window ->> 'from' as opens,
            extract(epoch from scheduled_at - created_at)::integer as delay_s from broadcast_queue_jobs`,
  );
  expect(row).toEqual({
    ...{ job_id: job.job_id, priority: -3, max_attempts: 7, unique_key: 'mine', dry_run: true, opens: '09:00' },
    ...{ delay_s: 600, job_data: '{"price": 1.10, "broadcast_id": 12345678901234567890123}' },
  });
});

test('enqueue reads the payload from a file and from standard input, and finds what is queued already', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'broadcastd-cli-'));
  try {
    await writeFile(join(directory, 'payload.json'), '{"broadcast_id": 42}');
    const first = await json('enqueue', 'send_broadcast', `@${join(directory, 'payload.json')}`);
    const piped = await shell(`echo '{"broadcast_id": 42}' | $broadcastd enqueue send_broadcast - --json`);
    expect(JSON.parse(piped.stdout)).toMatchObject({ inserted: false, job: { job_id: first.job.job_id } });
    const again = await json('enqueue', 'send_broadcast', '{"broadcast_id": 42}', '--no-unique-key');
    expect(again.inserted).toBe(true);
    expect(await queue.jobs()).toHaveLength(2);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test('status has the queues, who works and what holds things up, as a table and as JSON', async () => {
  await fail('http_500', 2);
  await queue.insert();
  await queue.query(
    `insert into broadcast_queue_workers (worker_id, version, host, pid, slots) values ('here-1', '9.8.7', 'here', 1, '{"*": 2}')`,
  );
  await queue.query(`select broadcast_pause_queue('retries', 'legal is looking', 'alice')`);
  await queue.query(`select broadcast_close_gate('bot:shop', 60000, E'it said \\x1b[31mno')`);
  const standing = await json('status');
  expect(standing.queues.find(({ name }: { name: string }) => name === 'broadcasts')).toMatchObject({
    ...{ pending: 1, failed: 2, completed: 0, active: 0, due: 1, oldest_due_seconds: expect.any(Number) },
  });
  expect(standing).toMatchObject({ total: { pending: 1, failed: 2 }, workers: [{ id: 'here-1', version: '9.8.7' }] });
  const { code, stdout } = await broadcastd('status');
  expect(code).toBe(0);
  expect(stdout).toMatch(/^queue +pending +processing +retry/);
  expect(stdout).toMatch(/\nbroadcasts +1 +0 +0 +0 +0 +2 +0 +0 +\d+ s\n/);
  expect(stdout).toMatch(/\nhere-1 +9\.8\.7 +0 /);
  expect(stdout).toContain('The queue retries is paused by alice since');
  expect(stdout).toMatch(/The gate bot:shop is closed until .* \(it said +\[31mno\)/);
  // Nothing that a terminal would obey, whoever wrote it.
  expect(stdout).not.toContain('\x1b');
});

test('jobs list filters, and goes on at its cursor', async () => {
  await fail('http_500', 3);
  await queue.insert({ job_type: 'send_digest', job_data: { broadcast_id: 'x', bot_id: 'shop' } });
  const first = await json('jobs', 'list', '--status', 'failed', '--limit', '2', '--since', '1h');
  expect(first.jobs.map((job: { job_data: { broadcast_id: number } }) => job.job_data.broadcast_id)).toEqual([3, 2]);
  const { jobs, next_cursor } = await json('jobs', 'list', '--status', 'failed', '--cursor', first.next_cursor);
  expect({ found: jobs.length, next_cursor }).toEqual({ found: 1, next_cursor: null });
  const mine = await broadcastd('jobs', 'list', '--data', 'broadcast_id=x', '--data', 'bot_id=shop');
  expect(mine.stdout.trim().split('\n')).toEqual([
    expect.stringMatching(/^job +status/),
    expect.stringMatching(/pending +broadcasts +send_digest +0\/3 +\d+ s ago +\{"bot_id": "shop"/),
  ]);
  expect(await broadcastd('jobs', 'list', '--error', 'SAID NO', '--error-code', 'http_404')).toEqual({
    ...{ code: 0, stdout: '', stderr: 'No job fits.\n' },
  });
});

test('jobs show has the row, how far it is, why it waits and what its attempts told', async () => {
  const { id, job_id } = await queue.insert({
    status: 'retry',
    attempts: 1,
    progress: { total: 200, processed: 50, sent: 48, skipped: 0, failed: 2, unknown: 0 },
    progress_rate: 10,
    error_message: 'HTTP 500',
  });
  await queue.query(`update broadcast_queue_jobs set next_retry_at = now() + interval '1 hour' where id = $1`, [id]);
  await queue.query(
    `insert into broadcast_queue_attempts (job, epoch, attempt, outcome, error_code, error_message, http_status, started_at)
     values ($1, 1, 1, 'retry', 'http_500', 'HTTP 500', 500, now() - interval '3 seconds')`,
    [id],
  );
  const { stdout } = await broadcastd('jobs', 'show', job_id.toUpperCase());
  expect(stdout).toMatch(
    /█+░+ 25\.0 % {2}50 of 200: sent 48, skipped 0, failed 2, unknown 0, 10\.0 a second, 15 s left/,
  );
  expect(stdout).toMatch(/waits: retry 2 of 3 at .*HTTP 500/);
  expect(stdout).toMatch(/ 1 +0 +3 s +retry +http_500 +HTTP 500/);
  expect(await json('jobs', 'show', job_id)).toMatchObject({
    job_id,
    status: 'retry',
    history: [{ http_status: 500 }],
  });
});

test('a pause that was asked for while a call is open is shown, and followed', async () => {
  const { job_id } = await queue.insert();
  await claimOne(queue.store());
  await broadcastd('jobs', 'pause', job_id, '--reason', 'legal is looking');
  const asked = /a call is open; it pauses when that ends, as asked at \d{4}-.* UTC: legal is looking/;
  const { stdout } = await broadcastd('jobs', 'show', job_id);
  expect(stdout).toMatch(asked);
  expect(stdout).toMatch(/\npause asked +\d{4}-/);
  const watched = broadcastd('jobs', 'watch', job_id, '--json', '--every', '100');
  await until(
    'it is watched',
    async () =>
      (await queue.query(`select 1 from pg_stat_activity where application_name = 'broadcastd command'`)).length > 0,
  );
  await broadcastd('jobs', 'cancel', job_id);
  const [first] = (await watched).stdout.split('\n').map((line) => (line === '' ? null : JSON.parse(line)));
  expect(first).toMatchObject({
    waiting_because: expect.stringMatching(asked),
    pause_requested_at: expect.any(String),
  });
});

test('times beyond all calendars can be shown', async () => {
  const { job_id } = await queue.insert({ status: 'paused' });
  await queue.query(
    `update broadcast_queue_jobs set expires_at = 'infinity', scheduled_at = '280000-01-01' where job_id = $1`,
    [job_id],
  );
  const { code, stdout } = await broadcastd('jobs', 'show', job_id);
  expect({ code, stdout }).toEqual({
    code: 0,
    stdout: expect.stringMatching(/\nexpires +never\n/),
  });
  expect(stdout).toMatch(/\nscheduled +in more than 200,000 years\n/);
});

test('jobs are paused, resumed, cancelled, retried and sent again by their ids, and the log says who did it', async () => {
  const { job_id } = await queue.insert();
  const act = async (...args: string[]) => (await json('jobs', ...args, job_id)).jobs[0].status;
  expect(await act('pause', '--reason', 'legal is looking')).toBe('paused');
  expect((await queue.jobs())[0]?.hold_reason).toBe('legal is looking');
  expect(await act('resume')).toBe('pending');
  expect(await act('cancel')).toBe('cancelled');
  expect(await act('retry')).toBe('pending');
  await queue.query(`update broadcast_queue_jobs set status = 'completed'`);
  expect(await act('resend', '--scope', 'failed')).toBe('pending');
  expect((await broadcastd('jobs', 'resend', NOBODY, '--scope', 'all')).stderr).toContain(
    'whom it has handled already',
  );
  const log = await queue.query<{ action: string; actor: string }>(
    'select action, actor from broadcast_queue_audit where target = $1 order by id',
    [job_id],
  );
  expect(log.map(({ action }) => action)).toEqual(
    ['pause', 'resume', 'cancel', 'retry', 'resend'].map((a) => `job.${a}`),
  );
  expect(log.every(({ actor }) => /^command:\w+/.test(actor))).toBe(true);
});

test('of several jobs each says what became of it: 3 where all that is wrong is that one is not there, else 1', async () => {
  const { job_id } = await queue.insert();
  const some = await broadcastd('jobs', 'pause', job_id, NOBODY);
  expect(some.code).toBe(3);
  expect(some.stdout).toMatch(new RegExp(`${job_id} +paused\\n`));
  expect(some.stdout).toMatch(new RegExp(`${NOBODY} +- +there is no such job\\n`));
  const refused = await broadcastd('jobs', 'retry', job_id, NOBODY);
  expect(refused.code).toBe(1);
  expect(refused.stdout).toContain('only a failed, cancelled or retry job can be retried');
});

test('a group of failures is counted first and then retried, as many as allowed', async () => {
  await fail('http_500', 130);
  await fail('http_422', 5);
  const group = ['jobs', 'retry', '--status', 'failed', '--error-code', 'http_500'];
  const counted = await json(...group, '--dry-run');
  expect(counted).toMatchObject({ matched: 130, changed: 0, dry_run: true });
  expect(await json(...group, '--limit', '60')).toMatchObject({ matched: 60, changed: 60, skipped: 0, more: true });
  expect((await broadcastd(...group)).stdout).toBe('70 jobs matched: 70 changed, 0 skipped.\n');
  const left = await queue.query(
    'select status, count(*)::integer as jobs from broadcast_queue_jobs group by 1 order by 1',
  );
  expect(left).toEqual([
    { status: 'failed', jobs: 5 },
    { status: 'pending', jobs: 130 },
  ]);
});

test('what a group cannot change is skipped: here the same broadcast is live already', async () => {
  await queue.insert({ status: 'failed', unique_key: 'one' });
  await queue.insert({ unique_key: 'one' });
  expect(await json('jobs', 'retry', '--status', 'failed')).toMatchObject({ matched: 1, changed: 0, skipped: 1 });
});

test('jobs watch tells each change, and ends with the job', async () => {
  const { id, job_id } = await queue.insert();
  const watched = broadcastd('jobs', 'watch', job_id, '--json', '--every', '100');
  const seen = (query: string) =>
    until(query, async () => (await queue.query(`select 1 from pg_stat_activity where ${query}`)).length > 0);
  await seen(`application_name = 'broadcastd command'`);
  await queue.query(
    `update broadcast_queue_jobs set status = 'completed', progress = '{"total": 2, "processed": 2}' where id = $1`,
    [id],
  );
  const { code, stdout } = await watched;
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect({ code, last: lines.at(-1) }).toMatchObject({
    code: 0,
    last: { status: 'completed', progress: { processed: 2 } },
  });
  await queue.query(`update broadcast_queue_jobs set status = 'failed' where id = $1`, [id]);
  expect((await broadcastd('jobs', 'watch', job_id)).code).toBe(1);
});

test('queues are paused and resumed, by name or all', async () => {
  expect((await broadcastd('queues', 'pause', 'retries', '--reason', 'quiet')).stdout).toBe(
    'The queue retries is paused.\n',
  );
  expect(await json('queues', 'pause')).toEqual({ queue: '*', action: 'pause', changed: true, known: true });
  const { queues, all_paused } = await json('queues', 'list');
  expect(all_paused).toMatchObject({ paused_by: expect.stringMatching(/^command:/) });
  expect(queues).toContainEqual(
    expect.objectContaining({ name: 'retries', paused: expect.objectContaining({ reason: 'quiet' }) }),
  );
  expect((await broadcastd('queues', 'list')).stdout).toMatch(/\nretries +0 +0 +\d+ s ago +command:.* +quiet\n/);
  expect((await broadcastd('queues', 'resume')).stdout).toBe('All queues are resumed.\n');
  expect((await broadcastd('queues', 'resume')).stdout).toBe('All queues were not paused.\n');
});

test('a queue that no job has ever named is paused all the same, and asked about', async () => {
  const paused = await broadcastd('queues', 'pause', 'brodcasts');
  expect(paused).toMatchObject({ code: 0, stdout: 'The queue brodcasts is paused.\n' });
  expect(paused.stderr).toMatch(/^No job has ever named the queue brodcasts: is that its name\?/);
  expect(await json('queues', 'resume', 'brodcasts')).toMatchObject({ changed: true, known: false });
  const { id } = await queue.insert({ queue_name: 'digests' });
  expect(await broadcastd('queues', 'pause', 'digests')).toMatchObject({ code: 0, stderr: '' });
  await queue.query('delete from broadcast_queue_jobs where id = $1', [id]);
  expect(await json('queues', 'resume', 'digests')).toMatchObject({ changed: true, known: true });
});

test('windows are set, listed and removed, and the log says by whom', async () => {
  const send_window = { from: '22:00', to: '06:00', time_zone: 'Europe/Berlin', days: [1, 5], missed: 'fail' };
  const at = ['--from', '22:00', '--to', '06:00', '--time-zone', 'Europe/Berlin'];
  const set = await json('windows', 'set', 'broadcasts', ...at, '--days', '1,5', '--missed', 'fail');
  expect(set).toEqual({ queue: 'broadcasts', send_window });
  expect(await json('windows', 'list')).toEqual({ windows: [{ queue: 'broadcasts', send_window }] });
  expect((await broadcastd('windows', 'list')).stdout).toMatch(/\nbroadcasts +\{.*"Europe\/Berlin".*\}\n/);
  expect((await broadcastd('windows', 'remove', 'broadcasts')).stdout).toBe(
    'The queue broadcasts sends at any hour.\n',
  );
  expect((await broadcastd('windows', 'list')).stderr).toBe('No queue has a send window.\n');
  const [gone] = await queue.query(
    'select actor, action, before, after from broadcast_queue_audit order by id desc limit 1',
  );
  const actor = expect.stringMatching(/^command:/);
  expect(gone).toEqual({ actor, action: 'window.set', before: send_window, after: null });
});

test('limits are set, listed and dropped; gates are listed and opened', async () => {
  const set = await json('limits', 'set', 'queue:broadcasts', '--per-second', '2.5', '--max-concurrent', '3');
  expect(set).toMatchObject({ key: 'queue:broadcasts', per_second: 2.5, max_concurrent: 3 });
  expect((await broadcastd('limits', 'list')).stdout).toMatch(/\nqueue:broadcasts +2\.5 +3 +\d+ s ago +command:/);
  expect((await broadcastd('limits', 'drop', 'queue:broadcasts')).code).toBe(0);
  const gone = await broadcastd('limits', 'drop', 'queue:broadcasts');
  expect(gone).toMatchObject({ code: 3, stderr: expect.stringContaining('There is no limit queue:broadcasts') });
  await queue.query(`select broadcast_close_gate('service', 60000, 'maintenance')`);
  expect((await broadcastd('gates', 'list')).stdout).toMatch(/\nservice .* maintenance\n/);
  expect((await broadcastd('gates', 'open', 'service')).stdout).toBe('The gate service is open.\n');
  expect(await json('gates', 'list')).toMatchObject({ gates: [], breaker: { state: 'closed' } });
});

const BERLIN = '{"from": "09:00", "to": "21:00", "time_zone": "Berlin"}';
const SET_WINDOW = ['windows', 'set', 'broadcasts', '--from', '09:00', '--to', '21:00', '--time-zone'];

const REFUSED: [number, string, string[]][] = [
  [2, 'is no JSON', ['enqueue', 'send_broadcast', '{bad']],
  [
    2,
    'give --delay or --at, not both',
    ['enqueue', 'send_broadcast', '{}', '--delay', '1s', '--at', '2027-01-31T09:00:00Z'],
  ],
  [2, 'with a time zone', ['enqueue', 'send_broadcast', '{}', '--at', '2027-01-31T09:00:00']],
  [2, 'cannot be read', ['enqueue', 'send_broadcast', '@/nowhere/payload.json']],
  [2, 'is no job type', ['enqueue', "send'; drop table x", '{}']],
  [2, 'No queue can be called "status"', ['enqueue', 'send_broadcast', '{}', '--queue', 'status']],
  [2, 'No queue can be called "jobs"', ['queues', 'pause', 'jobs']],
  [2, 'cannot be converted to text', ['enqueue', 'send_broadcast', '{"broadcast_id": "a\\u0000"}']],
  [2, '"time_zone" is no name such as', ['enqueue', 'send_broadcast', '{}', '--window', BERLIN]],
  [2, 'of ten years at most', ['enqueue', 'send_broadcast', '{}', '--delay', '99999999d']],
  [2, '1 to 500 characters', ['enqueue', 'send_broadcast', '{}', '--unique-key', 'k'.repeat(3000)]],
  [2, 'is no job id', ['jobs', 'show', '42']],
  [3, 'There is no job', ['jobs', 'show', NOBODY]],
  [2, 'Allowed choices are pending', ['jobs', 'list', '--status', 'lost']],
  [2, 'give the ids of jobs, or a filter', ['jobs', 'cancel']],
  [2, 'is for jobs by their ids', ['jobs', 'cancel', '--status', 'failed', '--reason', 'why']],
  [2, '--scope', ['jobs', 'resend', NOBODY]],
  [2, 'Give --per-second', ['limits', 'set', 'queue:broadcasts']],
  [2, 'is no name of a queue', ['queues', 'pause', 'No Queue']],
  [3, 'The queue broadcasts has no send window', ['windows', 'remove', 'broadcasts']],
  [2, "'--time-zone <zone>' not specified", ['windows', 'set', 'broadcasts', '--from', '09:00', '--to', '21:00']],
  [2, 'such as 1,2,3,4,5', [...SET_WINDOW, 'UTC', '--days', '1,8']],
  [2, '"time_zone" is no name such as', [...SET_WINDOW, 'Berlin']],
];

test('what makes no sense, or is not there, ends with its exit code and with words for it', async () => {
  const answers = await Promise.all(REFUSED.map(([, , args]) => broadcastd(...args)));
  expect(answers).toEqual(
    REFUSED.map(([code, words]) => ({ code, stdout: '', stderr: expect.stringContaining(words) })),
  );
  for (const { stderr } of answers) expect(stderr).not.toMatch(/\n {4}at /);
}, 30_000);

test('without a database, without its address and without its tables the commands say so', async () => {
  const nowhere = await runProgram(['status'], { DATABASE_URL: 'postgres://bot:topsecret1@127.0.0.1:1/none' });
  expect(nowhere).toMatchObject({ code: 69, stderr: expect.stringContaining('ECONNREFUSED') });
  expect(nowhere.stderr).not.toContain('topsecret1');
  const unset = await runProgram(['jobs', 'list'], { DATABSE_URL: 'postgres://x' });
  expect(unset).toMatchObject({ code: 78, stderr: expect.stringContaining('DATABASE_URL is not set') });
  expect(unset.stderr).toContain('DATABSE_URL');
  const empty = await createEmptyDatabase();
  try {
    const bare = await runProgram(['status'], { DATABASE_URL: empty.url });
    expect(bare).toMatchObject({ code: 1, stderr: expect.stringContaining('run "broadcastd migrate"') });
  } finally {
    await empty.drop();
  }
});

test('faults in settings of the daemon do not keep a command from its work', async () => {
  const { code } = await runProgram(['queues', 'list'], { DATABASE_URL: queue.url, LEASE_MS: 'soon', PORT: 'x' });
  expect(code).toBe(0);
});

test('a reader that has enough is no reason to complain', async () => {
  await fail('http_500', 500);
  const { stdout, stderr } = await shell(
    `$broadcastd jobs list --limit 500 | head -n 1; echo "codes \${PIPESTATUS[*]}"`,
  );
  expect(stdout).toMatch(/^job +status.*\ncodes 0 0\n$/);
  expect(stderr).toBe('');
});

test('Ctrl-C ends a watch at once and without noise', async () => {
  const { job_id } = await queue.insert({ status: 'paused' });
  const child = spawn(process.execPath, [PROGRAM, 'jobs', 'watch', job_id], {
    env: { DATABASE_URL: queue.url },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const err: string[] = [];
  child.stderr.on('data', (chunk) => err.push(String(chunk)));
  const [first] = await once(child.stdout, 'data');
  expect(String(first)).toMatch(/^paused /);
  child.kill('SIGINT');
  expect(await once(child, 'close')).toEqual([1, null]);
  expect(err.join('')).toBe('');
});

test('the completion for bash knows commands, options and their words', async () => {
  const ask = (line: string) => `
    COMP_WORDS=(broadcastd ${line}); COMP_CWORD=$(( \${#COMP_WORDS[@]} - 1 )); COMPREPLY=(); _broadcastd
    echo "\${COMPREPLY[*]}"`;
  const asked = [
    'd',
    'jobs re',
    'jobs list --status p',
    'jobs retry --err',
    'queues ""',
    'completion b',
    'nothing xyz',
  ];
  const { stdout, stderr } = await shell(
    `source <($broadcastd completion bash); complete -p broadcastd; ${asked.map(ask).join('\n')}`,
  );
  expect(stderr).toBe('');
  expect(stdout.split('\n')).toEqual([
    ...['complete -o default -F _broadcastd broadcastd', 'doctor', 'retry resume resend', 'pending processing paused'],
    ...['--error --error-code', 'list pause resume --help', 'bash', '', ''],
  ]);
});

test('on a terminal there are colours and cut lines, unless NO_COLOR is set', async () => {
  await fail('http_500', 1);
  await queue.query(`update broadcast_queue_jobs set error_message = repeat('long ', 100)`);
  // Without the program that gives us a terminal there is nothing to look at.
  if ((await shell('command -v script')).code !== 0) return;
  const seen = await shell(`script -qec "stty cols 160; $broadcastd jobs list" /dev/null`, {
    TERM: 'xterm',
  });
  expect(seen.stdout).toContain('\x1b[31mfailed\x1b[39m');
  expect(seen.stdout).toMatch(/long ?(l|lo|lon|long)?…\r?\n/);
  const plain = await shell(`script -qec "stty cols 160; $broadcastd jobs list" /dev/null`, {
    TERM: 'xterm',
    NO_COLOR: '1',
  });
  expect(plain.stdout).toContain('failed');
  expect(plain.stdout).not.toContain('\x1b[3');
});
