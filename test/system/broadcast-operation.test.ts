/** Operations against real sockets: taken over by the service, asked until they are over, and ended. */

import { once } from 'node:events';
import { createServer } from 'node:net';
import { afterEach, beforeEach, describe, expect, jest, test } from '@jest/globals';
import {
  type BroadcastClient,
  type BroadcastClientOptions,
  createBroadcastClient,
} from '../../src/broadcast/client.js';
import { Interrupted, PermanentError } from '../../src/errors.js';
import { aJob, failureOf, never, transientOf } from '../support/broadcast-call.js';
import { hang, raw, reply, replyJson, reset, type ScriptedServer, startHttpServer } from '../support/http-server.js';

const SECRET = `whsec_${Buffer.from('secret-'.repeat(6)).toString('base64')}`;

let server: ScriptedServer;
let opened: BroadcastClient[];

beforeEach(async () => {
  server = await startHttpServer();
  opened = [];
});

afterEach(async () => {
  for (const client of opened) await client.close();
  await server.close();
});

function connect(options: Partial<BroadcastClientOptions> = {}): BroadcastClient {
  const client = createBroadcastClient({
    baseUrl: `${server.url}/api`,
    timeoutMs: 10_000,
    waitSeconds: 25,
    maxItems: 600,
    secrets: [SECRET],
    token: 'sesame',
    version: '1.2.3',
    connections: 4,
    level: () => 3,
    ...options,
  });
  opened.push(client);
  return client;
}

const asked = (location = '/ops/1?a=b') => aJob({ step: { operation: location } });

/** An address where nobody listens. */
async function nowhere(): Promise<string> {
  const bare = createServer();
  bare.listen(0, '127.0.0.1');
  await once(bare, 'listening');
  const address = bare.address();
  await once(bare.close(), 'close');
  return typeof address === 'object' ? `http://127.0.0.1:${address?.port}` : '';
}

test('an operation is called once, asked until it is completed, and its result kept', async () => {
  const client = connect();
  const progress = { total: 2, processed: 1 };
  server.next(
    reply(202, '', { location: '../ops/1', 'retry-after': '2' }),
    replyJson(200, { status: 'running', progress }),
    replyJson(200, { status: 'completed', progress: { total: 2, processed: 2 } }),
  );
  const first = await client.call(aJob(), never());
  expect(first).toEqual({ kind: 'operation', location: '/api/ops/1', progress: undefined, delayMs: 2000 });

  const second = await client.call(asked('/api/ops/1'), never());
  expect(second).toEqual({ kind: 'operation', location: '/api/ops/1', progress, delayMs: 5000 });

  const last = await client.call(asked('/api/ops/1'), never());
  expect(last).toMatchObject({ kind: 'done', progress: { total: 2, processed: 2 } });
  expect(server.requests.map(({ method, url }) => `${method} ${url}`)).toEqual([
    'POST /api/jobs/send_broadcast',
    'GET /api/ops/1',
    'GET /api/ops/1',
  ]);
});

describe('the question', () => {
  test('says who asks for which job, and nothing else', async () => {
    server.next(replyJson(200, { status: 'running' }));
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    const grant = { maxItems: 30, perSecond: 30, waitSeconds: 1 };
    await connect().call({ ...asked(), traceparent }, never(), grant);
    const [request] = server.requests;
    expect(request).toMatchObject({ method: 'GET', url: '/ops/1?a=b', body: '' });
    const { host, connection, ...headers } = request?.headers ?? {};
    expect(headers).toEqual({
      accept: 'application/json, application/problem+json',
      'user-agent': 'broadcastd/1.2.3',
      authorization: 'Bearer sesame',
      'x-job-id': 'job-7',
      'x-job-epoch': '3',
      traceparent,
    });
  });

  test('is put for a dry run and a test send as well, whatever the level', async () => {
    server.otherwise(replyJson(200, { status: 'running' }));
    const client = connect({ level: () => null });
    const job = { ...asked(), dryRun: true, payload: '{"test_recipients":[1]}' };
    expect(await client.call(job, never())).toMatchObject({ kind: 'operation' });
  });

  test('does not follow a redirect', async () => {
    server.next(reply(303, '', { location: '/ops/2' }));
    const error = await transientOf(connect().call(asked(), never()));
    expect(error).toMatchObject({ code: 'bad_route', cost: 'free', httpStatus: 303 });
    expect(server.requests).toHaveLength(1);
  });

  test('learns the level of the service', async () => {
    const told: number[] = [];
    server.next(replyJson(200, { status: 'running' }, { 'x-broadcast-level': '3' }));
    await connect({ onLevel: (level) => told.push(level) }).call(asked(), never());
    expect(told).toEqual([3]);
  });

  test('that succeeds vouches for our credentials, as a call does', async () => {
    const client = connect();
    server.next(replyJson(200, { status: 'running' }), reply(401));
    await client.call(asked(), never());
    expect(await failureOf(client.call(aJob(), never()))).toBeInstanceOf(PermanentError);
  });
});

describe('a question put in vain costs nothing and doubts nothing', () => {
  const free = { cost: 'free', ambiguous: false };

  test.each([
    ['a reset', reset('after body is read'), 'connection_lost'],
    ['an end without a word', raw(''), 'connection_lost'],
    ['what is not HTTP', raw('SSH-2.0-OpenSSH_9.2\r\n'), 'bad_response'],
    ['a page of markup', reply(200, '<html>'), 'bad_response'],
    ['a refusal of our credentials', reply(401), 'unauthorized'],
    ['an outage', reply(502), 'http_502'],
  ])('%s', async (_name, script, code) => {
    server.next(script);
    expect(await transientOf(connect().call(asked(), never()))).toMatchObject({ ...free, code });
  });

  test('a refused connection', async () => {
    const client = connect({ baseUrl: await nowhere() });
    const error = await transientOf(client.call(asked(), never()));
    expect(error).toMatchObject({ ...free, code: 'connection_refused' });
    // The query is the service's affair, and may be a secret.
    expect(error.message).toBe('GET /ops/1: no connection (ECONNREFUSED); nothing was sent');
  });

  test('silence until the timeout', async () => {
    server.next(hang());
    const error = await transientOf(connect({ timeoutMs: 100 }).call(asked(), never()));
    expect(error).toMatchObject({ ...free, code: 'timeout' });
    expect(error.message).toContain('within 100 ms');
  });

  test('silence for thirty seconds, where a call may take longer', async () => {
    // Nothing but the clock of timers stands still: sockets are real, and the deadline is reached at once.
    jest.useFakeTimers({ doNotFake: ['nextTick', 'setImmediate', 'queueMicrotask', 'performance', 'Date'] });
    try {
      server.next(hang());
      const error = transientOf(connect({ timeoutMs: 900_000 }).call(asked(), never()));
      await server.received(1);
      jest.advanceTimersByTime(30_000);
      expect((await error).message).toContain('within 30000 ms');
    } finally {
      jest.useRealTimers();
    }
  });

  test('a shutdown, which cuts no work short', async () => {
    server.next(hang());
    const abort = new AbortController();
    const failure = failureOf(connect().call(asked(), abort.signal));
    await server.received(1);
    abort.abort('shutdown');
    const error = await failure;
    expect(error).toBeInstanceOf(Interrupted);
    expect(error).toMatchObject({ reason: 'shutdown', requestWritten: false });
  });
});

test('an operation that is lost is told apart, and may have done its work', async () => {
  server.next(reply(404));
  const error = await transientOf(connect().call(asked(), never()));
  expect(error).toMatchObject({ code: 'operation_lost', ambiguous: true, cost: 'attempt' });
});

test('a message about an operation shows its path only in part, however long it is', async () => {
  server.next(reply(500));
  const { message } = await transientOf(connect().call(asked(`/${'x'.repeat(2000)}?key=secret`), never()));
  expect(message).toBe(`GET /${'x'.repeat(199)} answered 500`);
});

describe('an operation that is no longer wanted', () => {
  test('is deleted, with the token and the job it was for', async () => {
    server.next(reply(204));
    await connect().abandon('/ops/1?a=b', 'плач', never());
    expect(server.requests).toMatchObject([
      {
        method: 'DELETE',
        url: '/ops/1?a=b',
        body: '',
        headers: { authorization: 'Bearer sesame', 'x-job-id': '%D0%BF%D0%BB%D0%B0%D1%87' },
      },
    ]);
  });

  test.each([
    ['200 with a page of markup', reply(200, '<html>')],
    ['202', reply(202)],
    ['404: it is gone', reply(404)],
    ['410: it is gone', reply(410)],
    ['405: it cannot be ended', reply(405)],
    ['501: it cannot be ended', reply(501)],
    ['409 already_done', replyJson(409, { code: 'already_done' })],
  ])('needs no more after %s', async (_name, script) => {
    server.next(script);
    await expect(connect().abandon('/ops/1', 'job-7', never())).resolves.toBeUndefined();
    expect(server.requests).toHaveLength(1);
  });

  test.each([
    ['a redirect', reply(307, '', { location: '/ops/2' }), 'bad_route'],
    ['401', reply(401), 'unauthorized'],
    ['422', reply(422), 'http_422'],
    ['500', reply(500), 'http_500'],
    ['a reset', reset('after body is read'), 'connection_lost'],
  ])('is still there after %s', async (_name, script, code) => {
    server.next(script);
    const error = await transientOf(connect().abandon('/ops/1', 'job-7', never()));
    expect(error).toMatchObject({ code, cost: 'free', ambiguous: false });
    expect(error.message).toMatch(/^DELETE \/ops\/1/);
  });

  test('is still there after silence, a refused connection, and an interruption', async () => {
    server.next(hang());
    const late = await transientOf(connect({ timeoutMs: 100 }).abandon('/ops/1', 'job-7', never()));
    expect(late).toMatchObject({ code: 'timeout', ambiguous: false });

    const refused = await transientOf(connect({ baseUrl: await nowhere() }).abandon('/ops/1', 'job-7', never()));
    expect(refused).toMatchObject({ code: 'connection_refused' });

    const signal = AbortSignal.abort('shutdown');
    const interrupted = await failureOf(connect().abandon('/ops/1', 'job-7', signal));
    expect(interrupted).toBeInstanceOf(Interrupted);
    expect(server.requests).toHaveLength(1);
  });
});
