/** The sandbox keeps the promises of the service protocol's levels 0 and 1: real server, real Postgres, real SIGKILL. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import pg from 'pg';
import { Webhook } from 'standardwebhooks';
import { type Sandbox, type SandboxOptions, startSandbox } from '../../src/sandbox/server.js';
import { createDatabase } from '../support/postgres.js';
import { bodyOf, type CallOptions, call, eventually, received, report } from '../support/sandbox-calls.js';
import { spawnSandbox } from '../support/sandbox-spawn.js';

/** What a broadcast to the thousand sample users comes to. */
const EVERYBODY = {
  total: 1000,
  processed: 1000,
  sent: 900,
  skipped: 50,
  failed: 50,
  unknown: 0,
  reasons: { opted_out: 50, blocked: 30, deactivated: 10, temporarily_unreachable: 10 },
};

let database: Awaited<ReturnType<typeof createDatabase>>;
let db: pg.Pool;
let sandbox: Sandbox;
let url: string;

beforeAll(async () => {
  database = await createDatabase();
  db = new pg.Pool({ connectionString: database.url, max: 3 });
  sandbox = await startSandbox({ databaseUrl: database.url, level: 1 });
  url = sandbox.url;
});

/** What a test opened and must not leave behind, also when it fails. */
const opened: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close();
});

afterAll(async () => {
  await sandbox.close();
  await db.end();
  await database.drop();
});

describe('the sample users', () => {
  test('add up to the same numbers every time', async () => {
    const health = await (await fetch(`${url}/sandbox/health`)).json();
    expect(health).toEqual({
      status: 'healthy',
      users: 1000,
      opted_out: 50,
      blocked: 30,
      deactivated: 10,
      temporarily_unreachable: 10,
    });
    const { rows } = await db.query(
      `select unnest(segments) as segment, count(*)::integer as people
       from broadcast_sandbox.users group by 1 order by 1`,
    );
    expect(rows).toEqual([
      { segment: 'inactive', people: 150 },
      { segment: 'new', people: 100 },
      { segment: 'premium', people: 200 },
    ]);
  });

  test('are made once when several sandboxes start at the same time on an empty database', async () => {
    const empty = await createDatabase();
    opened.push(() => empty.drop());
    const options = { databaseUrl: empty.url, recipients: 300 };
    const sandboxes = await Promise.all(Array.from({ length: 4 }, () => startSandbox(options)));
    const health = await (await fetch(`${sandboxes[3]?.url}/sandbox/health`)).json();
    expect(health).toMatchObject({ users: 300 });
    await Promise.all(sandboxes.map((one) => one.close()));
  });
});

describe('a broadcast', () => {
  test('to everybody reaches each eligible user once and counts the others by their reasons', async () => {
    const { status, headers, body } = await call(url, { job: 'all', payload: { broadcast_id: 'all' } });
    expect(status).toBe(200);
    expect(headers.get('x-broadcast-level')).toBe('1');
    expect(body).toEqual({ status: 'completed', progress: EVERYBODY });
    expect(await reached('all')).toEqual({ people: 900, deliveries: 900, ineligible: 0 });
    expect(await report(url, 'all')).toMatchObject({ sent: 900, failed: 50, skipped: 50, unknown: 0, duplicates: 0 });
  });

  test('to a segment reaches its members only, under either spelling of the payload', async () => {
    const payload = { broadcastId: 'segment', segmentId: 'premium' };
    const { body } = await call(url, { job: 'segment', type: 'send_segment_broadcast', payload });
    const { rows } = await db.query(
      `select count(*)::integer as eligible from broadcast_sandbox.users
       where 'premium' = any (segments) and opted_out_at is null and not (blocked_bot or deactivated or flaky)`,
    );
    expect(body.progress).toMatchObject({ total: 200, processed: 200, sent: rows[0].eligible });
    const { rows: outsiders } = await db.query(
      `select from broadcast_sandbox.deliveries join broadcast_sandbox.users using (user_id)
       where broadcast_id = 'segment' and not 'premium' = any (segments)`,
    );
    expect(outsiders).toEqual([]);
  });

  test('reaches nobody twice when two jobs send it, also at the same time', async () => {
    const payload = { broadcast_id: 'twice' };
    const answers = await Promise.all([
      call(url, { job: 'twice-1', payload }),
      call(url, { job: 'twice-2', payload }),
      call(url, { job: 'twice-3', payload: { ...payload, segment_id: 'new' }, type: 'send_segment_broadcast' }),
    ]);
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200]);
    expect(await reached('twice')).toEqual({ people: 900, deliveries: 900, ineligible: 0 });
    expect(await report(url, 'twice')).toMatchObject({ sent: 900, failed: 50, skipped: 50, duplicates: 0 });
  });

  test('that was declared unknown is refused for good and sent to nobody', async () => {
    await fetch(`${url}/sandbox/broadcasts/withdrawn`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ unknown: true }),
    });
    const { status, headers, body } = await call(url, { job: 'withdrawn', payload: { broadcast_id: 'withdrawn' } });
    expect(status).toBe(404);
    expect(headers.get('content-type')).toMatch('application/problem+json');
    expect(body).toMatchObject({ code: 'unknown_broadcast', retriable: false });
    expect(await reached('withdrawn')).toMatchObject({ deliveries: 0 });
  });

  test('goes to nobody who had as many as the frequency limit allows today', async () => {
    await call(url, { job: 'before', payload: { broadcast_id: 'before' } });
    await withSandbox({ dailyLimit: 1 }, async (strict) => {
      const { body } = await call(strict, { job: 'limited', payload: { broadcast_id: 'limited' } });
      expect(body.progress).toMatchObject({ sent: 0, skipped: 1000, reasons: { opted_out: 50, frequency_limit: 950 } });
    });
    expect(await reached('limited')).toMatchObject({ deliveries: 0 });
  });

  test('cannot take the last place of somebody’s day together with another one', async () => {
    const own = await createDatabase();
    opened.push(() => own.drop());
    await withSandbox({ databaseUrl: own.url, dailyLimit: 1 }, async (strict) => {
      const jobs = ['one', 'two', 'three', 'four', 'five', 'six'];
      const answers = await Promise.all(jobs.map((job) => call(strict, { job, payload: { broadcast_id: job } })));
      expect(answers.map(({ body }) => body.progress?.processed)).toEqual(jobs.map(() => 1000));
    });
    const people = await own.query(
      `select count(*)::integer as people, max(times)::integer as most
       from (select count(*) as times from broadcast_sandbox.deliveries group by user_id) as person`,
    );
    expect(people).toEqual([{ people: 900, most: 1 }]);
  });

  test('is sent no faster than the daemon asks', async () => {
    const start = performance.now();
    const payload = { broadcast_id: 'paced', segment_id: 'new' };
    const { body } = await call(url, { job: 'paced', type: 'send_segment_broadcast', payload, perSecond: 200 });
    const messages = Number(body.progress?.sent) + Number(body.progress?.failed);
    expect(performance.now() - start).toBeGreaterThanOrEqual((messages / 200) * 1000 - 5);
  });
});

test('process_retries sends to those whose first send failed for a passing reason, up to its limit', async () => {
  await call(url, { job: 'drain', type: 'process_retries', payload: { limit: 100_000 } });
  await call(url, { job: 'flaky', payload: { broadcast_id: 'flaky' } });
  const some = await call(url, { job: 'retries-1', type: 'process_retries', payload: { limit: 4 } });
  expect(some.body.progress).toMatchObject({ total: 4, processed: 4, sent: 4 });
  const rest = await call(url, { job: 'retries-2', type: 'process_retries' });
  expect(rest.body.progress).toMatchObject({ total: 6, processed: 6, sent: 6 });
  const none = await call(url, { job: 'retries-3', type: 'process_retries' });
  expect(none.body.progress).toMatchObject({ total: 0, processed: 0 });
  expect(await report(url, 'flaky')).toMatchObject({ sent: 910, failed: 40, skipped: 50, duplicates: 0 });
});

describe('level 1', () => {
  test('answers a key again with the stored answer, from any sandbox, and delivers nothing', async () => {
    const payload = { broadcast_id: 'again' };
    const first = await call(url, { job: 'again', payload });
    const again: CallOptions = {
      job: 'again',
      payload,
      epoch: 2,
      attempt: 2,
      previousFailure: 'timeout',
      perSecond: 9,
    };
    await withSandbox({}, async (other) => {
      const second = await call(other, again);
      expect(second.status).toBe(200);
      expect(second.headers.get('idempotent-replayed')).toBe('true');
      expect(second.body).toEqual(first.body);
    });
    expect(await reached('again')).toEqual({ people: 900, deliveries: 900, ineligible: 0 });
  });

  test('refuses a key that comes with another request', async () => {
    await call(url, { job: 'reuse', payload: { broadcast_id: 'reuse' } });
    const { status, body } = await call(url, { job: 'reuse', payload: { broadcast_id: 'other' } });
    expect(status).toBe(422);
    expect(body).toMatchObject({ code: 'key_reused', retriable: false });
    expect(await reached('other')).toMatchObject({ deliveries: 0 });
  });

  test('answers a second call with in_progress while the first one runs, then with its answer', async () => {
    const gate = await closeMessenger();
    const options = { job: 'busy', payload: { broadcast_id: 'busy' } };
    const first = call(url, options);
    await eventually('the first call sends', async () => (await report(url, 'busy')).sending > 0);
    const second = await call(url, { ...options, epoch: 2 });
    expect(second.status).toBe(409);
    expect(second.body.code).toBe('in_progress');
    expect(second.headers.get('retry-after')).toMatch(/^\d+$/);
    await gate.open();
    expect((await first).body.progress).toEqual(EVERYBODY);
    const third = await call(url, { ...options, epoch: 3 });
    expect(third.headers.get('idempotent-replayed')).toBe('true');
    expect((await report(url, 'busy')).duplicates).toBe(0);
  });

  test('refuses an epoch older than one it has seen, and says which that was', async () => {
    const options = { job: 'epochs', payload: { broadcast_id: 'epochs' } };
    await call(url, { ...options, epoch: 5 });
    const { status, body } = await call(url, { ...options, seq: 1, epoch: 4 });
    expect(status).toBe(409);
    expect(body).toMatchObject({ code: 'stale_epoch', epoch: 5 });
    expect((await call(url, { ...options, seq: 1, epoch: 5 })).status).toBe(200);
  });

  test('does not store a failure under the key', async () => {
    const options = { job: 'recovers', payload: { broadcast_id: 'recovers' } };
    const declare = (unknown: boolean) =>
      fetch(`${url}/sandbox/broadcasts/recovers`, {
        method: 'PUT',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ unknown }),
      });
    await declare(true);
    expect((await call(url, options)).status).toBe(404);
    await declare(false);
    expect((await call(url, options)).body.progress).toEqual(EVERYBODY);
  });

  test('finishes the rest after a SIGKILL in mid-broadcast: nobody twice, the uncertain listed', async () => {
    const own = await createDatabase();
    opened.push(() => own.drop());
    const child = await spawnSandbox(own.url, { level: 1, perSecond: 400 });
    opened.push(child.kill);
    const observer = new pg.Client({ connectionString: own.url });
    await observer.connect();
    opened.push(() => observer.end());
    const options = { job: 'killed', payload: { broadcast_id: 'killed' } };
    const lost = expect(call(child.url, options)).rejects.toThrow();
    await eventually('a batch is sent', async () => (await report(child.url, 'killed')).sent > 0);

    // Holding rows in `sending` keeps the child from settling them before it dies.
    await observer.query('begin');
    const sending = await eventually('a batch is under way', async () => {
      const { rowCount } = await observer.query(
        `select from broadcast_sandbox.ledger where broadcast_id = 'killed' and state = 'sending' for update`,
      );
      return rowCount || null;
    });
    await child.kill();
    await lost;
    // A statement that the child has sent would still be carried out: its connections die with it.
    await observer.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where datname = current_database() and application_name like 'broadcastd-sandbox%'`,
    );
    await observer.query('commit');

    await withSandbox({ databaseUrl: own.url }, async (restarted) => {
      expect(await report(restarted, 'killed')).toMatchObject({ unknown: sending, sending: 0 });
      const second = await eventually('the dead call lost its lock', async () => {
        const answer = await call(restarted, { ...options, epoch: 2, attempt: 2, previousFailure: 'connection_lost' });
        return answer.status !== 409 && answer;
      });
      expect(second.headers.get('idempotent-replayed')).toBeNull();
      const { unknown, reasons, ...counts } = second.body.progress ?? {};
      expect({ unknown, reasons }).toMatchObject({ unknown: sending, reasons: { interrupted: sending } });
      expect(counts).toMatchObject({ total: 1000, processed: 1000 });
      expect(await report(restarted, 'killed')).toMatchObject({ unknown: sending, sending: 0, duplicates: 0 });
    });
  });

  test('stops between two batches when it is closed, and the next sandbox finishes without an unknown', async () => {
    const closed = await startSandbox({ databaseUrl: database.url, level: 1, perSecond: 400 });
    const options = { job: 'closed', payload: { broadcast_id: 'closed' } };
    const first = call(closed.url, options);
    await eventually('a batch is sent', async () => (await report(url, 'closed')).sent > 0);
    await closed.close();
    expect((await first).body).toMatchObject({ status: 503, code: 'shutting_down' });
    const second = await call(url, { ...options, epoch: 2 });
    expect(second.body.progress).toEqual(EVERYBODY);
    expect((await report(url, 'closed')).duplicates).toBe(0);
  });

  test('refuses what it would have to do for real or cannot do at all', async () => {
    const payload = { broadcast_id: 'refused' };
    const codeOf = async (options: CallOptions) => (await call(url, { job: 'refused', payload, ...options })).body.code;
    expect(await codeOf({ dryRun: true })).toBe('dry_run_unsupported');
    expect(await codeOf({ scope: 'failed' })).toBe('scope_unsupported');
    expect(await codeOf({ payload: { ...payload, test_recipients: [1] } })).toBe('test_unsupported');
    expect(await codeOf({ payload: {} })).toBe('invalid_payload');
    expect(await codeOf({ payload: { broadcast_id: 2 ** 60 } })).toBe('invalid_payload');
    expect(await codeOf({ type: 'paint_the_fence' })).toBe('unknown_job_type');
    expect(await codeOf({ headers: { 'idempotency-key': '' } })).toBe('bad_idempotency_key');
    expect(await codeOf({ payload: { ...payload, padding: 'x'.repeat(2 ** 21) } })).toBe('payload_too_large');
    expect(await reached('refused')).toMatchObject({ deliveries: 0 });
  });
});

test('level 0 remembers nothing: a repetition reaches everybody again', async () => {
  await withSandbox({ level: 0 }, async (plain) => {
    const options = { job: 'plain', payload: { broadcast_id: 'plain' } };
    const first = await call(plain, options);
    expect(first.headers.get('x-broadcast-level')).toBe('0');
    expect(first.body).toEqual({ status: 'completed', progress: EVERYBODY });
    expect((await call(plain, options)).body).toEqual(first.body);
    expect(await report(plain, 'plain')).toMatchObject({ sent: 900, duplicates: 900 });
  });
});

describe('who may call', () => {
  const secret = `whsec_${Buffer.from('a secret of the tests, 24+').toString('base64')}`;
  const older = `whsec_${Buffer.from('the secret before that one').toString('base64')}`;
  const options = { job: 'signed', payload: { broadcast_id: 'signed' } };

  test('a call needs a signature of its body by one of the secrets', async () => {
    await withSandbox({ secrets: [secret, older] }, async (guarded) => {
      const sign = (by: string, body: string, at = new Date()) => ({
        'webhook-id': 'signed:0',
        'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
        'webhook-signature': new Webhook(by).sign('signed:0', at, body),
      });
      const body = bodyOf(options);
      const stranger = `whsec_${Buffer.from('a secret of somebody else').toString('base64')}`;
      const wrong = [{}, sign(stranger, body), sign(secret, `${body} `), sign(secret, body, new Date(0))];
      for (const headers of wrong) {
        const answer = await call(guarded, { ...options, headers });
        expect(answer.status).toBe(401);
        expect(answer.body.code).toBe('bad_signature');
      }
      expect(await reached('signed')).toMatchObject({ deliveries: 0 });
      expect((await call(guarded, { ...options, headers: sign(secret, body) })).status).toBe(200);
      expect((await call(guarded, { ...options, headers: sign(older, body) })).status).toBe(200);
    });
  });

  test('a call needs the bearer token when there is one', async () => {
    await withSandbox({ token: 'let-me-in' }, async (guarded) => {
      expect((await call(guarded, options)).body).toMatchObject({ status: 401, code: 'bad_token' });
      const headers = { authorization: 'Bearer let-me-in' };
      expect((await call(guarded, { ...options, headers })).status).toBe(200);
    });
  });

  test('a malformed secret is a fault of the configuration that does not print the secret', async () => {
    const start = startSandbox({ databaseUrl: database.url, secrets: ['whsec_not base64!'] });
    await expect(start).rejects.toMatchObject({ name: 'ConfigError', message: expect.not.stringContaining('base64!') });
  });
});

test('every call is recorded with its key, epoch, attempt and the status it got', async () => {
  await call(url, { job: 'seen', payload: { broadcast_id: 'seen' }, attempt: 2, previousFailure: 'timeout' });
  await call(url, { job: 'seen', type: 'paint_the_fence', seq: 1 });
  const [latest, before] = await received(url);
  expect(latest).toMatchObject({ idempotency_key: 'seen:1', job_type: 'paint_the_fence', answered_status: 404 });
  expect(before).toMatchObject({
    idempotency_key: 'seen:0',
    job_id: 'seen',
    epoch: 1,
    attempt: 2,
    previous_failure: 'timeout',
    answered_status: 200,
  });
});

test('a call is answered 503 when its database connections die, and the sandbox lives on', async () => {
  const gate = await closeMessenger();
  const first = call(url, { job: 'cut', payload: { broadcast_id: 'cut' } });
  await eventually('the call sends', async () => (await report(url, 'cut')).sending > 0);
  await db.query(
    `select pg_terminate_backend(pid) from pg_stat_activity
     where datname = current_database() and application_name like 'broadcastd-sandbox%'`,
  );
  expect((await first).body).toMatchObject({ status: 503, code: 'database_unavailable' });
  await gate.open();
  const second = await call(url, { job: 'cut', payload: { broadcast_id: 'cut' }, epoch: 2 });
  expect(second.body.progress).toMatchObject({ processed: 1000, unknown: 475 });
  expect((await report(url, 'cut')).duplicates).toBe(0);
});

test('a call more than the sandbox can run at once is throttled, and the others are not disturbed', async () => {
  const gate = await closeMessenger();
  const jobs = Array.from({ length: 16 }, (_, index) => `crowd-${index}`);
  const running = jobs.map((job) => call(url, { job, payload: { broadcast_id: job } }));
  await eventually('all of them send', async () => {
    const reports = await Promise.all(jobs.map((job) => report(url, job)));
    return reports.every(({ sending }) => sending > 0);
  });
  const refused = await call(url, { job: 'one-more', type: 'process_retries' });
  expect(refused.body).toMatchObject({ status: 503, code: 'busy' });
  expect(refused.headers.get('retry-after')).toBe('1');
  await gate.open();
  expect((await Promise.all(running)).map(({ body }) => body.progress)).toEqual(jobs.map(() => EVERYBODY));
});

/** What the messenger delivered; `ineligible`: to people who must not or cannot be reached. */
async function reached(broadcastId: string) {
  const { rows } = await db.query<{ people: number; deliveries: number; ineligible: number }>(
    `select count(distinct user_id)::integer as people, count(*)::integer as deliveries,
            count(*) filter (where opted_out_at is not null or blocked_bot or deactivated)::integer as ineligible
     from broadcast_sandbox.deliveries join broadcast_sandbox.users using (user_id) where broadcast_id = $1`,
    [broadcastId],
  );
  return rows[0];
}

/** Keeps the messenger from delivering until it is opened: calls stay at work. */
async function closeMessenger(): Promise<{ open(): Promise<void> }> {
  const client = await db.connect();
  await client.query('begin');
  await client.query('lock table broadcast_sandbox.deliveries in exclusive mode');
  return {
    async open() {
      await client.query('commit');
      client.release();
    },
  };
}

async function withSandbox(options: Partial<SandboxOptions>, use: (url: string) => Promise<void>): Promise<void> {
  const other = await startSandbox({ databaseUrl: database.url, level: 1, ...options });
  try {
    await use(other.url);
  } finally {
    await other.close();
  }
}
