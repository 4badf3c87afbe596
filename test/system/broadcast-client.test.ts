/** The client against real sockets: what is written, what is waited for, and what is known when no answer comes. */

import { EventEmitter, getEventListeners, once } from 'node:events';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { afterEach, beforeEach, describe, expect, jest, test } from '@jest/globals';
import { Webhook, WebhookVerificationError } from 'standardwebhooks';
import { Compile } from 'typebox/compile';
import {
  type BroadcastClient,
  type BroadcastClientOptions,
  createBroadcastClient,
} from '../../src/broadcast/client.js';
import { Envelope } from '../../src/broadcast/protocol.js';
import { Interrupted, PermanentError } from '../../src/errors.js';
import { aJob, failureOf, never, transientOf } from '../support/broadcast-call.js';
import {
  drip,
  flood,
  hang,
  type RecordedRequest,
  raw,
  reply,
  replyJson,
  reset,
  type ScriptedServer,
  startHttpServer,
} from '../support/http-server.js';

const SECRETS = ['new-', 'old-'].map((word) => `whsec_${Buffer.from(word.repeat(8)).toString('base64')}`);

let server: ScriptedServer;
let opened: { close(): Promise<void> }[];

beforeEach(async () => {
  server = await startHttpServer();
  opened = [];
});

afterEach(async () => {
  for (const one of opened) await one.close();
  await server.close();
});

function connect(options: Partial<BroadcastClientOptions> = {}): BroadcastClient {
  const client = createBroadcastClient({
    baseUrl: server.url,
    timeoutMs: 10_000,
    waitSeconds: 25,
    maxItems: 600,
    secrets: [],
    token: null,
    version: '1.2.3',
    connections: 4,
    level: () => null,
    ...options,
  });
  opened.push(client);
  return client;
}

async function onlyRequest(): Promise<RecordedRequest> {
  await server.received(1);
  const [request] = server.requests;
  if (request === undefined || server.requests.length > 1) throw new Error('not exactly one request');
  return request;
}

/** Runs a TCP or TLS server of the test's own on a free port. */
async function listen(bare: Server): Promise<number> {
  bare.listen(0, '127.0.0.1');
  await once(bare, 'listening');
  const sockets = new Set<{ destroy(): void }>();
  bare.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
  });
  opened.push({
    async close() {
      for (const socket of sockets) socket.destroy();
      if (bare.listening) await once(bare.close(), 'close');
    },
  });
  // A server that listens on a TCP port has an address of this shape.
  return (bare.address() as AddressInfo).port;
}

describe('the request', () => {
  test('carries the headers of the protocol', async () => {
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    await connect({ token: 'sesame' }).call(aJob({ traceparent }), never());
    const { method, url, headers } = await onlyRequest();
    expect([method, url]).toEqual(['POST', '/jobs/send_broadcast']);
    expect(headers).toMatchObject({
      'content-type': 'application/json',
      accept: 'application/json, application/problem+json',
      'user-agent': 'broadcastd/1.2.3',
      prefer: 'respond-async, wait=25',
      'idempotency-key': '"job-7:7"',
      'x-job-id': 'job-7',
      'x-job-epoch': '3',
      'x-job-attempt': '2',
      authorization: 'Bearer sesame',
      traceparent,
    });
  });

  test('leaves out what it has nothing to say in', async () => {
    await connect().call(aJob({ traceparent: 'made up\r\nx-evil: 1' }), never());
    const { headers } = await onlyRequest();
    for (const name of ['authorization', 'traceparent', 'x-evil', 'webhook-id', 'webhook-signature']) {
      expect(headers).not.toHaveProperty(name);
    }
  });

  test('holds the envelope of the protocol', async () => {
    await connect().call(aJob({ expiresAt: new Date('2026-11-24T00:00:00Z') }), never());
    const envelope: unknown = JSON.parse((await onlyRequest()).body);
    expect(Compile(Envelope).Errors(envelope)).toEqual([]);
    expect(envelope).toEqual({
      protocol: 1,
      job: {
        id: 'job-7',
        type: 'send_broadcast',
        queue: 'default',
        created_at: '2026-11-23T10:00:00.000Z',
        scheduled_at: '2026-11-23T11:00:00.000Z',
        expires_at: '2026-11-24T00:00:00.000Z',
        dry_run: false,
        epoch: 3,
        attempt: 2,
        max_attempts: 5,
      },
      payload: { text: 'hello' },
      step: {
        seq: 7,
        cursor: 'c6',
        scope: 'all',
        max_items: 600,
        wait_seconds: 25,
        per_second: null,
        previous_failure: 'timeout',
      },
    });
  });

  test('holds what a shared limit grants, and says the wait in whole seconds', async () => {
    await connect().call(aJob(), never(), { maxItems: 45, perSecond: 30, waitSeconds: 1.5 });
    const { headers, body } = await onlyRequest();
    const envelope: unknown = JSON.parse(body);
    expect(Compile(Envelope).Errors(envelope)).toEqual([]);
    expect(envelope).toMatchObject({ step: { max_items: 45, per_second: 30, wait_seconds: 1.5 } });
    expect(headers.prefer).toBe('respond-async, wait=2');
  });

  test('passes the payload through byte for byte', async () => {
    const payload =
      '{ "id": 90071992547409931234567890, "price": 1.10, "name":"Жуть \\u0416 😀", "a":1, "a":2, "e":1E400 }';
    await connect().call(aJob({ payload }), never());
    expect((await onlyRequest()).body).toContain(`"payload":${payload},"step":`);
  });

  test.each([
    ['http://host/base/', '/base/jobs/a%2Fb%20c%3F'],
    ['http://host/base', '/base/jobs/a%2Fb%20c%3F'],
    ['http://host', '/jobs/a%2Fb%20c%3F'],
    ['http://host/base//?key=secret#part', '/base/jobs/a%2Fb%20c%3F'],
  ])('goes below %s', async (baseUrl, path) => {
    const ours = new URL(baseUrl);
    ours.host = `127.0.0.1:${server.port}`;
    await connect({ baseUrl: ours.href }).call(aJob({ type: 'a/b c?' }), never());
    expect((await onlyRequest()).url).toBe(path);
  });

  test('encodes a job id that a header cannot hold, and never two alike', async () => {
    server.otherwise(reply(200));
    const client = connect({ secrets: SECRETS });
    const ids = ['плач"\r\nx-evil: 1', 'a b', 'a%20b', 'tab\t', 'a\\b', 'plain-id_1.~:/@'];
    for (const jobId of ids) await client.call(aJob({ jobId }), never());
    const keys = server.requests.map(({ headers }) => headers['idempotency-key']);
    expect(new Set(keys).size).toBe(ids.length);
    expect(keys.at(-1)).toBe('"plain-id_1.~:/@:7"');
    expect(keys[0]).toBe('"%D0%BF%D0%BB%D0%B0%D1%87%22%0D%0Ax-evil:%201:7"');
    expect(server.requests[0]?.headers).not.toHaveProperty('x-evil');
    expect(JSON.parse(server.requests[0]?.body ?? '')).toMatchObject({ job: { id: ids[0] } });
  });
});

describe('the signature', () => {
  const verify = (secret: string | undefined, { body, headers }: RecordedRequest): unknown =>
    new Webhook(secret ?? '').verify(body, {
      'webhook-id': String(headers['webhook-id']),
      'webhook-timestamp': String(headers['webhook-timestamp']),
      'webhook-signature': String(headers['webhook-signature']),
    });

  test('is verified with either secret while they rotate', async () => {
    await connect({ secrets: SECRETS }).call(aJob({ payload: '{"text":"Привет 😀"}' }), never());
    const request = await onlyRequest();
    expect(request.headers['webhook-id']).toBe('job-7:7');
    for (const secret of SECRETS) expect(verify(secret, request)).toMatchObject({ payload: { text: 'Привет 😀' } });
  });

  test('is refused with another secret, and for another body', async () => {
    await connect({ secrets: SECRETS.slice(0, 1) }).call(aJob(), never());
    const request = await onlyRequest();
    expect(verify(SECRETS[0], request)).toBeDefined();
    expect(() => verify(SECRETS[1], request)).toThrow(WebhookVerificationError);
    expect(() => verify(SECRETS[0], { ...request, body: `${request.body} ` })).toThrow(WebhookVerificationError);
  });

  test('bears the time of the database', async () => {
    await connect({ secrets: SECRETS }).call(aJob({ databaseNow: () => 1_700_000_000_999 }), never());
    expect((await onlyRequest()).headers['webhook-timestamp']).toBe('1700000000');
  });

  test('a secret that is none is refused at once', () => {
    expect(() => connect({ secrets: ['whsec_not base64!'] })).toThrow();
  });
});

describe('an answer over the wire', () => {
  test('becomes the outcome', async () => {
    const progress = { total: 10, processed: 4, sent: 4 };
    server.next(replyJson(202, { status: 'continue', cursor: 'c7', progress }, { 'retry-after': '2' }));
    const outcome = await connect().call(aJob(), never());
    expect(outcome).toEqual({ kind: 'continue', cursor: 'c7', progress, delayMs: 2000 });
  });

  test('that is a redirect is not followed', async () => {
    const elsewhere = await startHttpServer();
    opened.push(elsewhere);
    for (const status of [301, 302, 303, 307, 308]) {
      server.next(reply(status, '', { location: `${elsewhere.url}/jobs/send_broadcast` }));
      expect(await transientOf(connect().call(aJob(), never()))).toMatchObject({
        code: 'bad_route',
        httpStatus: status,
      });
    }
    expect(elsewhere.connections()).toBe(0);
    expect(server.requests).toHaveLength(5);
  });

  test('of 256 KiB is read', async () => {
    const body = JSON.stringify({ log: 'x'.repeat(256 * 1024 - 10) });
    expect(Buffer.byteLength(body)).toBe(256 * 1024);
    server.next(reply(200, body));
    const outcome = await connect().call(aJob(), never());
    expect(outcome).toMatchObject({ kind: 'done', result: '{"truncated":true}' });
  });

  test('beyond 256 KiB is ambiguous', async () => {
    server.next(reply(200, JSON.stringify({ log: 'x'.repeat(256 * 1024 - 9) })));
    expect(await transientOf(connect().call(aJob(), never()))).toMatchObject({ code: 'bad_response', ambiguous: true });
  });

  test('that never ends is cut off, and its connection closed', async () => {
    server.next(flood());
    expect(await transientOf(connect().call(aJob(), never()))).toMatchObject({ code: 'bad_response', ambiguous: true });
    await server.disconnected(1);
  });

  test('with a failing status keeps its meaning whatever its length', async () => {
    server.next(reply(422, 'x'.repeat(300 * 1024)));
    expect(await failureOf(connect().call(aJob(), never()))).toMatchObject({ code: 'http_422' });
  });

  test('that is not HTTP is ambiguous', async () => {
    server.next(raw('SSH-2.0-OpenSSH_9.2\r\n'));
    expect(await transientOf(connect().call(aJob(), never()))).toMatchObject({ code: 'bad_response', ambiguous: true });
  });

  test('that breaks off is ambiguous', async () => {
    server.next(raw('HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"ok"'));
    const error = await transientOf(connect().call(aJob(), never()));
    expect(error).toMatchObject({ code: 'connection_lost', ambiguous: true });
  });

  test('may be preceded by an interim one', async () => {
    const body = 'OK';
    server.next(raw(`HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n${body}`));
    expect(await connect().call(aJob(), never())).toEqual({ kind: 'done', result: '"OK"', progress: undefined });
  });
});

describe('the deadline', () => {
  const within = async <T>(ms: number, call: Promise<T>): Promise<T> => {
    const start = performance.now();
    const result = await call;
    expect(performance.now() - start).toBeLessThan(ms);
    return result;
  };

  test.each([
    ['a service that never answers', hang('before headers')],
    ['a service that never ends its answer', hang('after headers')],
    ['a service that drips without end', drip('{"a":1}', 5)],
  ])('holds against %s', async (_name, script) => {
    server.next(script);
    const error = await within(3000, transientOf(connect({ timeoutMs: 300 }).call(aJob(), never())));
    expect(error).toMatchObject({ code: 'timeout', ambiguous: true, cost: 'attempt' });
    expect(error.message).toBe(
      'POST /jobs/send_broadcast: no complete answer within 300 ms; the request had been sent',
    );
    await server.disconnected(1);
  });

  test('holds while connecting, and while waiting for a connection, and then nothing was sent', async () => {
    // It accepts the connection and never answers the TLS handshake; the second call waits behind the first.
    const port = await listen(createServer());
    const client = connect({ baseUrl: `https://127.0.0.1:${port}`, connections: 1, timeoutMs: 200 });
    const failures = [client.call(aJob(), never()), client.call(aJob(), never())].map(transientOf);
    for (const error of await within(2000, Promise.all(failures))) {
      expect(error).toMatchObject({ code: 'timeout', ambiguous: false, cost: 'never_last' });
    }
  });

  test('leaves no timer behind', async () => {
    const timers = () => process.getActiveResourcesInfo().filter((resource) => resource === 'Timeout').length;
    const client = connect();
    await client.call(aJob(), never());
    const before = timers();
    for (let i = 0; i < 5; i++) await client.call(aJob(), never());
    expect(timers()).toBe(before);
  });

  test('does not outlive an answer', async () => {
    const { signal } = new AbortController();
    const client = connect({ timeoutMs: 60 });
    await client.call(aJob(), signal);
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
    server.next(drip('OK', 5));
    await failureOf(client.call(aJob(), signal));
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
    expect(await client.call(aJob(), signal)).toMatchObject({ kind: 'done' });
  });
});

describe('the deadline of a service that works in slices', () => {
  afterEach(() => void jest.useRealTimers());

  /** The message of a call that is never answered, once so much time has passed. */
  async function givenUpAfter(
    ms: number,
    call: (client: BroadcastClient) => Promise<unknown>,
    client: BroadcastClient,
  ) {
    // Nothing but the clock of timers stands still: sockets are real, and deadlines are reached at once.
    jest.useFakeTimers({ doNotFake: ['nextTick', 'setImmediate', 'queueMicrotask', 'performance', 'Date'] });
    server.next(hang());
    const error = transientOf(call(client));
    await server.received(1);
    jest.advanceTimersByTime(ms);
    return (await error).message;
  }

  test('is fifteen seconds beyond its wait', async () => {
    const message = await givenUpAfter(
      40_000,
      (client) => client.call(aJob(), never()),
      connect({ level: () => 2, timeoutMs: 900_000 }),
    );
    expect(message).toContain('no complete answer within 40000 ms');
  });

  test('is that beyond the wait that was granted', async () => {
    const message = await givenUpAfter(
      16_000,
      (client) => client.call(aJob(), never(), { maxItems: 30, perSecond: 30, waitSeconds: 1 }),
      connect({ level: () => 3, timeoutMs: 900_000 }),
    );
    expect(message).toContain('no complete answer within 16000 ms');
  });

  test('is never later than that of other services', async () => {
    const message = await givenUpAfter(
      300,
      (client) => client.call(aJob(), never()),
      connect({ level: () => 2, timeoutMs: 300 }),
    );
    expect(message).toContain('no complete answer within 300 ms');
  });

  test.each([null, 0, 1])('does not hold at level %s', async (level) => {
    const message = await givenUpAfter(
      900_000,
      (client) => client.call(aJob(), never()),
      connect({ level: () => level, timeoutMs: 900_000 }),
    );
    expect(message).toContain('no complete answer within 900000 ms');
  });
});

describe('the level of the service', () => {
  const dryRun = () => aJob({ dryRun: true });
  const testSend = () => aJob({ payload: '{"broadcast_id": 7, "test_recipients": [1]}' });

  test.each([
    ['a dry run', null, dryRun, 'dry_run_unsupported', 'has not said its level'],
    ['a dry run', 1, dryRun, 'dry_run_unsupported', 'speaks level 1'],
    ['a test send', null, testSend, 'test_send_unsupported', 'has not said its level'],
    ['a test send', 0, testSend, 'test_send_unsupported', 'speaks level 0'],
    [
      'a test send to nobody',
      1,
      () => aJob({ payload: '{"test_recipients": []}' }),
      'test_send_unsupported',
      'level 1',
    ],
    [
      'a resend to the failed',
      1,
      () => aJob({ step: { seq: 3, cursor: null, scope: 'failed', previousFailure: null, operation: null } }),
      'scope_unsupported',
      'speaks level 1',
    ],
  ])('%s is not even called at level %s', async (_name, level, job, code, text) => {
    const error = await failureOf(connect({ level: () => level }).call(job(), never()));
    expect(error).toBeInstanceOf(PermanentError);
    expect(error).toMatchObject({ code, message: expect.stringContaining(text) });
    expect(server.requests).toHaveLength(0);
  });

  test('a dry run is called at level 2, and says so', async () => {
    await connect({ level: () => 2 }).call(dryRun(), never());
    expect(JSON.parse((await onlyRequest()).body).job.dry_run).toBe(true);
  });

  test('a test send is called at level 2, and says so', async () => {
    await connect({ level: () => 2 }).call(testSend(), never());
    expect(JSON.parse((await onlyRequest()).body).payload.test_recipients).toEqual([1]);
  });

  test.each([
    ['as a text', '{"text": "\\"test_recipients\\"", "note": "test_recipients"}'],
    ['inside a member', '{"options": {"test_recipients": [1]}}'],
    ['in a list', '["test_recipients"]'],
  ])('a payload that has the word only %s is no test send', async (_name, payload) => {
    await connect({ level: () => 0 }).call(aJob({ payload }), never());
    expect(JSON.parse((await onlyRequest()).body).payload).toEqual(JSON.parse(payload));
  });

  test('a payload that cannot be read is left to the service', async () => {
    const payload = '{"test_recipients"';
    await connect({ level: () => 0 }).call(aJob({ payload }), never());
    expect((await onlyRequest()).body).toContain(payload);
  });

  test('is learned from its answers, the failures too, and told when it rises', async () => {
    const told: number[] = [];
    const says = (status: number, level: string | string[]) => reply(status, '', { 'x-broadcast-level': level });
    server.next(
      reply(200),
      ...['', '-1', '4', '1.5', '2x', 'two'].map((nonsense) => says(200, nonsense)),
      says(500, '0'),
      says(200, '2'),
      says(200, '1'),
      says(200, '2'),
      says(404, '3'),
    );
    const client = connect({ onLevel: (level) => told.push(level) });
    for (let i = 0; i < 12; i++) await client.call(aJob(), never()).catch(() => {});
    expect(server.requests).toHaveLength(12);
    expect(told).toEqual([0, 2, 3]);
  });

  test('that an answer said lets dry runs through, whatever the settings say', async () => {
    const client = connect({ level: () => 1 });
    server.next(reply(200, '', { 'x-broadcast-level': '2' }));
    expect(await failureOf(client.call(dryRun(), never()))).toMatchObject({ code: 'dry_run_unsupported' });
    await client.call(aJob(), never());
    expect(await client.call(dryRun(), never())).toMatchObject({ kind: 'done' });
  });

  test('is asked anew for each call', async () => {
    let level: number | null = null;
    const client = connect({ level: () => level });
    expect(await failureOf(client.call(dryRun(), never()))).toMatchObject({ code: 'dry_run_unsupported' });
    level = 2;
    expect(await client.call(dryRun(), never())).toMatchObject({ kind: 'done' });
  });
});

describe('a call that gets no answer', () => {
  const beforeWriting = { ambiguous: false, cost: 'never_last', httpStatus: undefined };
  const afterWriting = { ambiguous: true, cost: 'attempt', code: 'connection_lost', httpStatus: undefined };

  test('because the connection is refused did certainly nothing', async () => {
    const bare = createServer();
    const port = await listen(bare);
    await once(bare.close(), 'close');
    const client = connect({ baseUrl: `http://127.0.0.1:${port}` });
    const error = await transientOf(client.call(aJob(), never()));
    expect(error).toMatchObject({ ...beforeWriting, code: 'connection_refused' });
    expect(error.message).toBe('POST /jobs/send_broadcast: no connection (ECONNREFUSED); nothing was sent');
  });

  test('because the host name is unknown did certainly nothing', async () => {
    const client = connect({ baseUrl: 'http://no-such-host.invalid' });
    expect(await transientOf(client.call(aJob(), never()))).toMatchObject({ ...beforeWriting, code: 'dns' });
  });

  test('because TLS meets plain HTTP did certainly nothing', async () => {
    const client = connect({ baseUrl: `https://127.0.0.1:${server.port}` });
    expect(await transientOf(client.call(aJob(), never()))).toMatchObject({ ...beforeWriting, code: 'tls' });
    expect(server.requests).toHaveLength(0);
  });

  test('because the certificate is not trusted did certainly nothing', async () => {
    const received: Buffer[] = [];
    const bare = createTlsServer({ key: KEY, cert: CERTIFICATE }, (socket) => {
      socket.on('data', (chunk) => received.push(chunk));
      socket.on('error', () => {});
    });
    const port = await listen(bare);
    const client = connect({ baseUrl: `https://127.0.0.1:${port}` });
    const error = await transientOf(client.call(aJob(), never()));
    expect(error).toMatchObject({ ...beforeWriting, code: 'tls' });
    expect(received).toEqual([]);
  });

  test('because the TLS handshake is cut did certainly nothing', async () => {
    const bare = createServer((socket) => socket.once('data', () => socket.resetAndDestroy()));
    const port = await listen(bare);
    const client = connect({ baseUrl: `https://127.0.0.1:${port}` });
    expect(await transientOf(client.call(aJob(), never()))).toMatchObject({ ...beforeWriting, code: 'tls' });
  });

  test('because connecting takes too long did certainly nothing', async () => {
    const port = await listen(createServer());
    const client = connect({ baseUrl: `https://127.0.0.1:${port}`, connectTimeoutMs: 50 });
    const error = await transientOf(client.call(aJob(), never()));
    expect(error).toMatchObject({ ...beforeWriting, code: 'connection_refused' });
  });

  test('because of a reset after the request was written is ambiguous', async () => {
    server.next(reset('after body is read'));
    expect(await transientOf(connect().call(aJob(), never()))).toMatchObject(afterWriting);
  });

  test('because of a reset in the middle of the request is ambiguous', async () => {
    server.next(reset('before body is read'));
    const payload = JSON.stringify({ text: 'x'.repeat(5_000_000) });
    expect(await transientOf(connect().call(aJob({ payload }), never()))).toMatchObject(afterWriting);
  });

  test('because the service closed without a word is ambiguous', async () => {
    server.next(raw(''));
    expect(await transientOf(connect().call(aJob(), never()))).toMatchObject(afterWriting);
  });

  test('is not repeated by the client', async () => {
    server.otherwise(reset('after body is read'));
    await transientOf(connect().call(aJob(), never()));
    expect(server.requests).toHaveLength(1);
  });
});

describe('connections', () => {
  test('are kept alive and used again', async () => {
    const client = connect({ connections: 1 });
    for (let i = 0; i < 5; i++) await client.call(aJob(), never());
    expect(server.connections()).toBe(1);
    expect(server.requests.map(({ connection }) => connection)).toEqual([1, 1, 1, 1, 1]);
  });

  test('are used again after a failing status', async () => {
    const client = connect({ connections: 1 });
    server.next(replyJson(500, { detail: 'oops' }), reply(404, 'x'.repeat(10_000)));
    await transientOf(client.call(aJob(), never()));
    await transientOf(client.call(aJob(), never()));
    await client.call(aJob(), never());
    expect(server.connections()).toBe(1);
  });

  test('that the service closed while idle are replaced without a failure', async () => {
    const client = connect({ connections: 1 });
    await client.call(aJob(), never());
    await server.closeIdle();
    await client.call(aJob(), never());
    expect(server.requests.map(({ connection }) => connection)).toEqual([1, 2]);
  });

  test('are at most as many as were asked for', async () => {
    const client = connect({ connections: 3 });
    await Promise.all(Array.from({ length: 30 }, () => client.call(aJob(), never())));
    expect(server.connections()).toBe(3);
  });

  test('recover after the service was away', async () => {
    const client = connect({ connections: 1 });
    server.next(reset('after body is read'));
    await transientOf(client.call(aJob(), never()));
    expect(await client.call(aJob(), never())).toMatchObject({ kind: 'done' });
  });
});

describe('a call that is interrupted', () => {
  test('before it began makes no request', async () => {
    const signal = AbortSignal.abort('shutdown');
    const error = await failureOf(connect().call(aJob(), signal));
    expect(error).toBeInstanceOf(Interrupted);
    expect(error).toMatchObject({ reason: 'shutdown', requestWritten: false });
    expect(server.connections()).toBe(0);
  });

  test('while it waits for the answer had been written', async () => {
    server.next(hang());
    const abort = new AbortController();
    const failure = failureOf(connect().call(aJob(), abort.signal));
    await server.received(1);
    abort.abort('lease_lost');
    const error = await failure;
    expect(error).toBeInstanceOf(Interrupted);
    expect(error).toMatchObject({ reason: 'lease_lost', requestWritten: true });
    expect(getEventListeners(abort.signal, 'abort')).toHaveLength(0);
    await server.disconnected(1);
  });

  test('while it connects had not been written', async () => {
    const happenings = new EventEmitter();
    const port = await listen(createServer(() => happenings.emit('connected')));
    const abort = new AbortController();
    const connected = once(happenings, 'connected');
    const failure = failureOf(connect({ baseUrl: `https://127.0.0.1:${port}` }).call(aJob(), abort.signal));
    await connected;
    abort.abort('shutdown');
    expect(await failure).toMatchObject({ name: 'Interrupted', reason: 'shutdown', requestWritten: false });
  });

  test('while it waits for a connection is never written later', async () => {
    server.next(hang());
    const client = connect({ connections: 1 });
    const [first, second] = [new AbortController(), new AbortController()];
    const failures = [failureOf(client.call(aJob(), first.signal)), failureOf(client.call(aJob(), second.signal))];
    await server.received(1);
    second.abort('lease_lost');
    expect(await failures[1]).toMatchObject({ reason: 'lease_lost', requestWritten: false });
    first.abort('shutdown');
    expect(await failures[0]).toMatchObject({ reason: 'shutdown', requestWritten: true });
    await client.call(aJob({ jobId: 'the next' }), never());
    expect(server.requests.map(({ headers }) => headers['x-job-id'])).toEqual(['job-7', 'the%20next']);
  });

  test('by closing the client ends like a shutdown', async () => {
    server.next(hang());
    const client = connect();
    const failure = failureOf(client.call(aJob(), never()));
    await server.received(1);
    await client.close();
    expect(await failure).toMatchObject({ name: 'Interrupted', reason: 'shutdown', requestWritten: true });
    const later = await failureOf(client.call(aJob(), never()));
    expect(later).toMatchObject({ name: 'Interrupted', reason: 'shutdown', requestWritten: false });
  });
});

describe('a refusal of our credentials', () => {
  test("is nobody's fault as long as nothing succeeds", async () => {
    server.otherwise(reply(401));
    const client = connect();
    const errors = [await transientOf(client.call(aJob(), never())), await transientOf(client.call(aJob(), never()))];
    for (const error of errors) expect(error).toMatchObject({ code: 'unauthorized', cost: 'free' });
  });

  test("is the job's fault for sixty seconds after another succeeded", async () => {
    let now = 1_000_000;
    server.next(reply(200), reply(403), reply(403));
    const client = connect({ monotonicNow: () => now });
    await client.call(aJob(), never());
    now += 60_000;
    const error = await failureOf(client.call(aJob(), never()));
    expect(error).toBeInstanceOf(PermanentError);
    expect(error).toMatchObject({ code: 'unauthorized', httpStatus: 403 });
    now += 1;
    expect(await transientOf(client.call(aJob(), never()))).toMatchObject({ code: 'unauthorized', cost: 'free' });
  });
});

test('no message holds a token, a secret, a signature or the query of the base URL', async () => {
  const token = 'CANARY-token';
  const baseUrl = `${server.url}/?key=CANARY-query`;
  server.otherwise(({ headers }) => reply(500, JSON.stringify(headers)));
  const echo = await transientOf(connect({ baseUrl, token, secrets: SECRETS }).call(aJob(), never()));
  const { headers } = await onlyRequest();
  expect(echo.message).toContain('x-job-id');
  for (const signature of String(headers['webhook-signature']).split(' ')) {
    expect(echo.message).not.toContain(signature);
  }

  server.next(hang());
  const late = await transientOf(connect({ baseUrl, token, secrets: SECRETS, timeoutMs: 100 }).call(aJob(), never()));
  for (const { message } of [echo, late]) {
    expect(message).not.toContain('CANARY');
    for (const secret of SECRETS) expect(message).not.toContain(secret);
  }
});

/** Made for this test and for nothing else; trusted by nobody. */
const KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgEN51kdSNYBgUvuW6
MqDvKdF0tlpcGGzIWyC634SUYP6hRANCAARVmXVe2vpGt53EDTSFvbJcGdqjbrTH
e/tV+RZ/1r4yW3M66/Fj4E5rfsu+1STO1BLGy2y2yfhPyXrS1dYI0kGh
-----END PRIVATE KEY-----`;
const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUQxd+5vpfZxPpPNYbw6Tnlw4+ym4wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzE1NDcwMFoYDzIxMjYxMDMw
MTU0NzAwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARVmXVe2vpGt53EDTSFvbJcGdqjbrTHe/tV+RZ/1r4yW3M66/Fj4E5r
fsu+1STO1BLGy2y2yfhPyXrS1dYI0kGho28wbTAdBgNVHQ4EFgQUpkDY7e5ziK0B
Dl2PVv9tFwj8OYYwHwYDVR0jBBgwFoAUpkDY7e5ziK0BDl2PVv9tFwj8OYYwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDRwAwRAIgOY7yOW95ma/nEjsDHN/DiRtaZnHKAXVr08tHn9+D3AgCIF4o
toNPuUlna9srkO3iVpCqnnxz6K/Oj2gAGOoBtps/
-----END CERTIFICATE-----`;
