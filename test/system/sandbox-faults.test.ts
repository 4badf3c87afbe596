/** The sandbox misbehaves as it is told, exactly so often, and keeps its promises while it does. */
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { sandbox as sandboxCommand } from '../../src/cli/sandbox.js';
import { type Sandbox, startSandbox } from '../../src/sandbox/server.js';
import { createDatabase } from '../support/postgres.js';
import { type CallOptions, call, eventually, received, report, request } from '../support/sandbox-calls.js';

let database: Awaited<ReturnType<typeof createDatabase>>;
let sandbox: Sandbox;
let url: string;

beforeAll(async () => {
  database = await createDatabase();
  sandbox = await startSandbox({ databaseUrl: database.url, recipients: 100, level: 1 });
  url = sandbox.url;
});

afterEach(async () => {
  await fetch(`${url}/sandbox/faults`, { method: 'DELETE' });
});

afterAll(async () => {
  await sandbox.close();
  await database.drop();
});

test('slow: the answer comes after the delay, and the call counts as running until then', async () => {
  await arm({ fault: 'slow', delay_ms: 1000, times: 1 });
  const start = performance.now();
  const first = call(url, job('slow'));
  await eventually('everybody is handled', async () => (await report(url, 'slow')).sent === 90);
  expect((await call(url, job('slow'))).body.code).toBe('in_progress');
  expect((await first).status).toBe(200);
  expect(performance.now() - start).toBeGreaterThanOrEqual(995);
});

test('status: the answer is that status as a problem, nobody is sent to, and after its times it is over', async () => {
  await arm({ fault: 'status', status: 429, retry_after: 7, times: 2 });
  for (const _ of [1, 2]) {
    const { status, headers, body } = await call(url, job('status'));
    expect(status).toBe(429);
    expect(headers.get('retry-after')).toBe('7');
    expect(headers.get('content-type')).toMatch('application/problem+json');
    expect(headers.get('x-broadcast-level')).toBe('1');
    expect(body).toMatchObject({ status: 429, code: 'fault', retry_after: 7 });
  }
  expect((await report(url, 'status')).sent).toBe(0);
  expect((await call(url, job('status'))).status).toBe(200);
});

test('status: the code and whether to retry can be given too', async () => {
  await arm({ fault: 'status', status: 500, code: 'no_such_template', retriable: false, times: 1 });
  expect((await call(url, job('template'))).body).toMatchObject({ code: 'no_such_template', retriable: false });
});

test('hang: the request is read and recorded, and no answer comes', async () => {
  await arm({ fault: 'hang', times: 1 });
  const impatient = new AbortController();
  const hanging = request(url, { ...job('hang'), signal: impatient.signal });
  const seen = await eventually('the call is recorded', async () => {
    const [latest] = await received(url);
    return latest?.job_id === 'hang' && latest;
  });
  expect(seen.answered_status).toBeNull();
  impatient.abort();
  await expect(hanging).rejects.toMatchObject({ name: 'AbortError' });
  expect((await report(url, 'hang')).sent).toBe(0);
});

test('reset_before: the connection is reset and nothing is done', async () => {
  await arm({ fault: 'reset_before', times: 1 });
  await expect(request(url, job('before'))).rejects.toMatchObject({ cause: { code: 'ECONNRESET' } });
  expect(await report(url, 'before')).toMatchObject({ sent: 0, failed: 0, skipped: 0 });
  expect((await call(url, job('before'))).status).toBe(200);
});

test('reset_after: the connection is reset when all is done, and the key still gets its answer', async () => {
  await arm({ fault: 'reset_after', times: 1 });
  await expect(request(url, job('after'))).rejects.toMatchObject({ cause: { code: 'ECONNRESET' } });
  expect((await received(url))[0]).toMatchObject({ job_id: 'after', answered_status: null });
  expect((await report(url, 'after')).sent).toBe(90);
  const again = await call(url, { ...job('after'), epoch: 2, previousFailure: 'connection_lost' });
  expect(again.headers.get('idempotent-replayed')).toBe('true');
  expect(again.body.progress).toMatchObject({ sent: 90 });
  expect((await report(url, 'after')).duplicates).toBe(0);
});

test('drip: the work is done and the body comes byte by byte', async () => {
  await arm({ fault: 'drip', times: 1 });
  const response = await request(url, job('drip'));
  expect(response.status).toBe(200);
  const reader = response.body?.getReader();
  const start = performance.now();
  expect((await reader?.read())?.value?.length).toBe(1);
  expect((await reader?.read())?.value?.length).toBe(1);
  expect(performance.now() - start).toBeGreaterThan(500);
  await reader?.cancel();
  expect((await report(url, 'drip')).sent).toBe(90);
});

test('a fault waits for the job type and the broadcast it is meant for', async () => {
  await arm({ fault: 'status', status: 500, broadcast_id: 'chosen' });
  await arm({ fault: 'status', status: 502, job_type: 'process_retries' });
  expect((await call(url, job('bystander'))).status).toBe(200);
  expect((await call(url, job('chosen'))).status).toBe(500);
  expect((await call(url, job('chosen'))).status).toBe(500);
  expect((await call(url, { job: 'retries', type: 'process_retries' })).status).toBe(502);
});

test('faults are listed and cleared, and one that makes no sense is refused', async () => {
  await arm({ fault: 'hang', times: 3 });
  expect(await (await fetch(`${url}/sandbox/faults`)).json()).toEqual({ faults: [{ fault: 'hang', times: 3 }] });
  expect((await fetch(`${url}/sandbox/faults`, { method: 'DELETE' })).status).toBe(204);
  expect(await (await fetch(`${url}/sandbox/faults`)).json()).toEqual({ faults: [] });
  expect(await arm({ fault: 'slow' })).toBe(400);
  expect(await arm({ fault: 'hang', time: 3 })).toBe(400);
  expect((await call(url, job('cleared'))).status).toBe(200);
});

test.each([
  [{ fault: 'slowly' }, /^there is no fault "slowly"\./],
  [{}, /^"fault" must say which\./],
  [{ fault: 'slow' }, /^must have required properties delay_ms\./],
  [{ fault: 'status', status: 200, time: 3 }, /^it knows no time; status must be >= 300\./],
])('a fault that makes no sense is told what there is: %j', async (fault, wrong) => {
  const response = await fetch(`${url}/sandbox/faults`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(fault),
  });
  expect(response.status).toBe(400);
  const { detail } = Object(await response.json());
  expect(detail).toMatch(wrong);
  expect(detail).toMatch(/There are slow \(delay_ms\), status \(status, retry_after\?, .*drip; each with .*times\?\.$/);
});

test('without its times a fault lasts, and a later one waits behind it until it is deleted', async () => {
  await arm({ fault: 'status', status: 500, broadcast_id: 'lasting' });
  await arm({ fault: 'status', status: 502, broadcast_id: 'lasting' });
  for (const _ of [1, 2, 3]) expect((await call(url, job('lasting'))).status).toBe(500);
  await fetch(`${url}/sandbox/faults`, { method: 'DELETE' });
  expect((await call(url, job('lasting'))).status).toBe(200);
});

test('closing cuts the calls that hang and drip', async () => {
  const other = await startSandbox({ databaseUrl: database.url });
  await arm({ fault: 'hang', times: 1 }, other.url);
  const hanging = request(other.url, job('cut-hang'));
  await eventually('the call hangs', async () => (await received(url))[0]?.job_id === 'cut-hang');
  await arm({ fault: 'drip', times: 1 }, other.url);
  const dripping = (await request(other.url, job('cut-drip'))).text();
  const lost = expect(hanging).rejects.toThrow();
  await other.close();
  await lost;
  expect(JSON.parse(await dripping)).toMatchObject({ status: 'completed' });
});

test('the command prints where it listens, and ends in order when its signal fires', async () => {
  const stop = new AbortController();
  const lines: string[] = [];
  const env = { DATABASE_URL: database.url, BROADCAST_SERVICE_TOKEN: 'secret' };
  const running = sandboxCommand(env, { port: 0, signal: stop.signal, print: (line) => lines.push(line) });
  const line = await eventually('it listens', async () => lines[0] ?? null);
  const address = /http:\S+$/.exec(line)?.[0];
  expect((await fetch(`${address}/sandbox/health`)).status).toBe(200);
  expect((await call(String(address), job('command'))).status).toBe(401);
  stop.abort();
  await running;
  expect(lines).toHaveLength(1);
  await expect(fetch(`${address}/sandbox/health`)).rejects.toThrow();
});

test('the command says what is missing from its environment', async () => {
  const options = { signal: AbortSignal.abort(), print: () => {} };
  await expect(sandboxCommand({}, options)).rejects.toMatchObject({ name: 'ConfigError' });
  const nowhere = { DATABASE_URL: 'postgres://nobody@127.0.0.1:1/nothing' };
  await expect(sandboxCommand(nowhere, options)).rejects.toMatchObject({ name: 'DatabaseUnavailable' });
});

/** A job of its own for a broadcast of its own, both of this name. */
function job(name: string): CallOptions {
  return { job: name, payload: { broadcast_id: name } };
}

async function arm(fault: object, at = url): Promise<number> {
  const response = await fetch(`${at}/sandbox/faults`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(fault),
  });
  return response.status;
}
