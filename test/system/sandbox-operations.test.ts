/** The sandbox at level 3 runs a broadcast by itself: looked at, cancelled, killed and gone on with, never sent twice. */
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { type Sandbox, type SandboxOptions, startSandbox } from '../../src/sandbox/server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { type CallOptions, call, received, report } from '../support/sandbox-calls.js';
import { spawnSandbox } from '../support/sandbox-spawn.js';
import { until } from '../support/until.js';

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

let database: TestDatabase;
let sandbox: Sandbox;
let url: string;

beforeAll(async () => {
  database = await createDatabase();
  sandbox = await startSandbox({ databaseUrl: database.url, level: 3 });
  url = sandbox.url;
});

/** What a test opened and must not leave behind, also when it fails. */
const opened: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close();
});

afterAll(async () => {
  await sandbox.close();
  await database.drop();
});

test('a broadcast is taken over, shows its progress as it goes, and completes', async () => {
  const { status, headers, body } = await call(url, { ...job('whole'), perSecond: 600 });
  expect(status).toBe(202);
  expect(headers.get('x-broadcast-level')).toBe('3');
  expect(headers.get('retry-after')).toBe('1');
  expect(body).toEqual({ status: 'running' });
  const location = String(headers.get('location'));
  expect(location).toMatch(/^\/operations\/[0-9a-f-]{36}$/);

  const underWay = await until('a part is done', async () => {
    const seen = await look(url, location);
    return Number(seen.body.progress?.processed) > 0 && seen;
  });
  expect(underWay).toMatchObject({ status: 200, body: { status: 'running', progress: { total: 1000 } } });
  expect(underWay.retryAfter).toBe('1');
  expect(Number(underWay.body.progress?.processed)).toBeLessThan(1000);

  const done = await ended(url, location);
  expect(done.body).toEqual({ status: 'completed', progress: EVERYBODY });
  expect(done.retryAfter).toBeNull();
  expect(await reached('whole')).toEqual({ people: 900, deliveries: 900 });
});

test('it keeps the pace that the daemon asks for', async () => {
  const start = performance.now();
  const payload = { broadcast_id: 'paced', segment_id: 'new' };
  const location = await begin(url, { job: 'paced', type: 'send_segment_broadcast', payload, perSecond: 100 });
  const { body } = await ended(url, location);
  const messages = Number(body.progress?.sent) + Number(body.progress?.failed);
  expect(messages).toBeGreaterThan(80);
  expect(performance.now() - start).toBeGreaterThanOrEqual((messages / 100) * 1000 - 20);
});

test('the same key gets the same location, while it runs and after', async () => {
  const options = { ...job('same'), perSecond: 1000 };
  const location = await begin(url, options);
  expect(await begin(url, { ...options, epoch: 2, attempt: 2, previousFailure: 'timeout' })).toBe(location);
  await ended(url, location);
  const after = await call(url, { ...options, epoch: 3 });
  expect(after.headers.get('location')).toBe(location);
  expect(after.body).toEqual({ status: 'completed', progress: EVERYBODY });
  expect(await reached('same')).toEqual({ people: 900, deliveries: 900 });
});

test('a new step gets an operation of its own, but not while the one before it runs', async () => {
  const first = await begin(url, { ...job('steps'), perSecond: 600 });
  const early = await call(url, { ...job('steps'), seq: 1, scope: 'failed' });
  expect(early).toMatchObject({ status: 409, body: { code: 'in_progress' } });
  await ended(url, first);
  const second = await begin(url, { ...job('steps'), seq: 1, scope: 'failed' });
  expect(second).not.toBe(first);
  expect((await ended(url, second)).body).toMatchObject({
    status: 'completed',
    progress: { total: 1000, processed: 1000, sent: 910, failed: 40 },
  });
  expect(await reached('steps')).toEqual({ people: 910, deliveries: 910 });
});

test('an older epoch is refused, and the key with another request too', async () => {
  await ended(url, await begin(url, { ...job('epochs'), epoch: 5 }));
  const stale = await call(url, { ...job('epochs'), seq: 1, epoch: 4 });
  expect(stale).toMatchObject({ status: 409, body: { code: 'stale_epoch', epoch: 5 } });
  const reused = await call(url, { ...job('epochs'), payload: { broadcast_id: 'another' }, epoch: 5 });
  expect(reused).toMatchObject({ status: 422, body: { code: 'key_reused' } });
});

test('DELETE stops it for good, however often, and a later epoch goes on where it was', async () => {
  const options = { ...job('cancelled'), perSecond: 400 };
  const location = await begin(url, options);
  await until('it sends', async () => (await report(url, 'cancelled')).sent > 0);
  expect(await remove(url, location)).toBe(204);
  const after = await report(url, 'cancelled');
  const seen = await look(url, location);
  expect(seen.body.status).toBe('cancelled');
  expect(seen.body.progress?.processed).toBe(after.sent + after.failed + after.skipped);
  expect(seen.body.progress?.processed).toBeLessThan(1000);
  expect(after.sending).toBe(0);
  expect(await remove(url, location)).toBe(204);
  // The same epoch was meant by the DELETE as well.
  expect((await call(url, options)).body.status).toBe('cancelled');
  expect(await report(url, 'cancelled')).toEqual(after);

  expect(await begin(url, { ...options, epoch: 2, perSecond: null })).toBe(location);
  expect((await ended(url, location)).body).toEqual({ status: 'completed', progress: EVERYBODY });
  expect(await reached('cancelled')).toEqual({ people: 900, deliveries: 900 });
  expect(await remove(url, location)).toBe(204);
  expect((await look(url, location)).body.status).toBe('completed');
});

test('an operation that nobody began is not found', async () => {
  for (const method of ['GET', 'DELETE']) {
    const response = await fetch(`${url}/operations/00000000-0000-4000-8000-000000000000`, { method });
    expect(response.status).toBe(404);
    expect(await response.json()).toMatchObject({ code: 'unknown_operation' });
  }
});

test('one that failed says so, and the same key goes on with it', async () => {
  const own = await createDatabase();
  opened.push(() => own.drop());
  const other = await open({ databaseUrl: own.url });
  await own.query(`alter table broadcast_sandbox.deliveries add constraint broken check (user_id <= 600)`);
  const location = await begin(other, job('broken'));
  const failed = await ended(other, location);
  expect(failed.body).toMatchObject({ status: 'failed', error: 'The sandbox failed; its log says why.' });
  await own.query('alter table broadcast_sandbox.deliveries drop constraint broken');
  expect(await begin(other, { ...job('broken'), epoch: 2 })).toBe(location);
  const { body } = await ended(other, location);
  // Those of the batch in which it broke: whether they got it, the ledger cannot tell.
  expect(body).toMatchObject({ status: 'completed', progress: { total: 1000, processed: 1000, unknown: 475 } });
  expect((await report(other, 'broken')).duplicates).toBe(0);
});

test('it ends between two batches when the sandbox is closed, and the next sandbox finishes without an unknown', async () => {
  const own = await createDatabase();
  opened.push(() => own.drop());
  const first = await startSandbox({ databaseUrl: own.url, level: 3 });
  const location = await begin(first.url, { ...job('closed'), perSecond: 400 });
  await until('a batch is sent', async () => (await report(first.url, 'closed')).sent > 0);
  await first.close();
  const next = await open({ databaseUrl: own.url });
  expect((await look(next, location)).body.status).toBe('running');
  expect((await ended(next, location)).body).toEqual({ status: 'completed', progress: EVERYBODY });
  expect((await report(next, 'closed')).duplicates).toBe(0);
});

test('killed in the middle it goes on by itself at the next start: nobody twice, the uncertain listed', async () => {
  const own = await createDatabase();
  opened.push(() => own.drop());
  const child = await spawnSandbox(own.url, { level: 3 });
  opened.push(child.kill);
  const location = await begin(child.url, { ...job('killed'), perSecond: 400 });
  await until('a batch is sent', async () => (await report(child.url, 'killed')).sent > 100);
  await child.kill();
  const left = await report(await open({ databaseUrl: own.url, level: 2 }), 'killed');
  expect(left.sent + left.failed + left.skipped).toBeLessThan(1000);

  const restarted = await open({ databaseUrl: own.url });
  const { body } = await ended(restarted, location);
  expect(body).toMatchObject({ status: 'completed', progress: { total: 1000, processed: 1000 } });
  expect(Number(body.progress?.unknown)).toBeLessThanOrEqual(20); // A batch at this pace.
  const { sent, failed, skipped, unknown, duplicates } = await report(restarted, 'killed');
  expect(body.progress).toMatchObject({ sent, failed, skipped, unknown });
  expect(duplicates).toBe(0);
  expect(await received(restarted)).toHaveLength(1);
});

test('two sandboxes on one database run an operation once, and the second takes over when the first dies', async () => {
  const own = await createDatabase();
  opened.push(() => own.drop());
  const first = await spawnSandbox(own.url, { level: 3 });
  opened.push(first.kill);
  const options = { ...job('shared'), perSecond: 400 };
  const location = await begin(first.url, options);
  const second = await open({ databaseUrl: own.url });
  expect(await begin(second, options)).toBe(location);
  await until('a part is sent', async () => (await report(second, 'shared')).sent > 100);
  await first.kill();
  const { body } = await ended(second, location);
  expect(body).toMatchObject({ status: 'completed', progress: { total: 1000, processed: 1000 } });
  expect((await report(second, 'shared')).duplicates).toBe(0);
});

test('dry runs and process_retries are answered at once, as at level 2', async () => {
  const dry = await call(url, { ...job('dry'), dryRun: true, perSecond: 100 });
  expect(dry.status).toBe(200);
  expect(dry.body).toEqual({ status: 'completed', dry_run: true, audience: 1000, estimated_seconds: 10 });
  await call(url, { job: 'drain', type: 'process_retries', payload: { limit: 100_000 } });
  await ended(url, await begin(url, job('flaky')));
  const slice = await call(url, { job: 'retries', type: 'process_retries', maxItems: 4 });
  expect(slice).toMatchObject({ status: 202, body: { status: 'continue', progress: { sent: 4 } } });
  expect(slice.headers.get('location')).toBeNull();
});

test('an operation is looked at and cancelled with the token only, and needs no signature', async () => {
  const secrets = [`whsec_${Buffer.from('a secret of the tests, 24+').toString('base64')}`];
  const location = await begin(url, job('guarded'));
  await ended(url, location);
  const guarded = await open({ token: 'let-me-in', secrets });
  for (const method of ['GET', 'DELETE']) {
    expect((await fetch(`${guarded}${location}`, { method })).status).toBe(401);
    const headers = { authorization: 'Bearer let-me-in' };
    expect((await fetch(`${guarded}${location}`, { method, headers })).ok).toBe(true);
  }
});

function job(name: string): CallOptions {
  return { job: name, payload: { broadcast_id: name } };
}

/** @returns the operation's location */
async function begin(where: string, options: CallOptions): Promise<string> {
  const { status, headers } = await call(where, options);
  expect(status).toBe(202);
  return String(headers.get('location'));
}

async function look(where: string, location: string) {
  const response = await fetch(`${where}${location}`);
  // The tests say what they expect of it.
  const body = (await response.json()) as { status?: string; progress?: Record<string, unknown>; error?: string };
  return { status: response.status, retryAfter: response.headers.get('retry-after'), body };
}

function ended(where: string, location: string) {
  return until('the operation ends', async () => {
    const seen = await look(where, location);
    return seen.body.status !== 'running' && seen;
  });
}

async function remove(where: string, location: string): Promise<number> {
  return (await fetch(`${where}${location}`, { method: 'DELETE' })).status;
}

/** Another sandbox, closed after the test. @returns its address */
async function open(options: Partial<SandboxOptions>): Promise<string> {
  const other = await startSandbox({ databaseUrl: database.url, level: 3, ...options });
  opened.push(() => other.close());
  return other.url;
}

async function reached(broadcastId: string) {
  const [row] = await database.query<{ people: number; deliveries: number }>(
    `select count(distinct user_id)::integer as people, count(*)::integer as deliveries
     from broadcast_sandbox.deliveries where broadcast_id = $1`,
    [broadcastId],
  );
  return row;
}
