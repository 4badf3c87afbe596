/** Who may do what, and what the API makes of those who try more: tokens, roles, hostile input, hidden payloads. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { ROLES, type Role } from '../../src/admin/auth.js';
import { allRoutes } from '../../src/admin/routes.js';
import { openApi, secretOf, type TestApi, TOKENS } from '../support/api.js';

const NOBODY = '00000000-0000-4000-8000-000000000000';

let api: TestApi;

beforeAll(async () => {
  api = await openApi();
});
afterAll(() => api.close());

/** The golden list: every route below /api, and the least role that may use it. */
const golden: Readonly<Record<string, Role | 'anybody'>> = {
  'GET /health': 'anybody',
  'GET /status': 'viewer',
  'GET /statistics': 'viewer',
  'GET /queues': 'viewer',
  'GET /jobs': 'viewer',
  'GET /failures': 'viewer',
  'GET /workers': 'viewer',
  'GET /limits': 'viewer',
  'GET /gates': 'viewer',
  'GET /breaker': 'viewer',
  'GET /schedules': 'viewer',
  'GET /audit': 'viewer',
  'GET /events': 'viewer',
  'GET /job/:jobId': 'viewer',
  'GET /:queueName/status': 'viewer',
  'GET /:queueName/jobs': 'viewer',
  'GET /:queueName/failed': 'viewer',
  'GET /:queueName/window': 'viewer',
  'POST /jobs': 'operator',
  'POST /jobs/retry': 'operator',
  'POST /jobs/cancel': 'operator',
  'POST /failures/retry': 'operator',
  'POST /job/:jobId/retry': 'operator',
  'POST /broadcast/:jobId/retry': 'operator',
  'POST /job/:jobId/cancel': 'operator',
  'POST /job/:jobId/pause': 'operator',
  'POST /job/:jobId/resume': 'operator',
  'POST /job/:jobId/resend': 'operator',
  'POST /:queueName/pause': 'operator',
  'POST /:queueName/resume': 'operator',
  'POST /gates/:key/open': 'operator',
  'POST /jobs/delete': 'admin',
  'POST /failures/discard': 'admin',
  'POST /pause': 'admin',
  'POST /resume': 'admin',
  'POST /:queueName/cleanup': 'admin',
  'PUT /:queueName/window': 'admin',
  'DELETE /:queueName/window': 'admin',
  'PUT /limits/:key': 'admin',
  'DELETE /limits/:key': 'admin',
};

/** A request that the route takes, so that only the role stands in its way; and what it is then answered. */
const wellFormed: Readonly<Record<string, { body?: unknown; status?: number }>> = {
  'GET /job/:jobId': { status: 404 },
  'POST /jobs': { body: { job_type: 'send_broadcast', job_data: {}, unique_key: null }, status: 201 },
  'POST /jobs/retry': { body: { ids: [NOBODY] } },
  'POST /jobs/cancel': { body: { ids: [NOBODY] } },
  'POST /jobs/delete': { body: { ids: [NOBODY] } },
  'POST /failures/retry': { body: { job_type: 'x', error_code: null, message: 'x' } },
  'POST /failures/discard': { body: { job_type: 'x', error_code: null, message: 'x' } },
  'POST /job/:jobId/retry': { status: 404 },
  'POST /broadcast/:jobId/retry': { status: 404 },
  'POST /job/:jobId/cancel': { status: 404 },
  'POST /job/:jobId/pause': { status: 404 },
  'POST /job/:jobId/resume': { status: 404 },
  'POST /job/:jobId/resend': { body: { scope: 'failed' }, status: 404 },
  'POST /:queueName/cleanup': { body: { daysOld: 7 } },
  'PUT /:queueName/window': { body: { from: '09:00', to: '21:00', time_zone: 'UTC' } },
  'PUT /limits/:key': { body: { per_second: 5 } },
};

const pathOf = (route: string) =>
  route
    .replace(/^\w+ /, '')
    .replace(':jobId', NOBODY)
    .replace(':queueName', 'mine')
    .replace('limits/:key', 'limits/queue:mine')
    .replace(':key', 'service');

test('the golden list is that of all routes', () => {
  const routes = allRoutes('0').filter(({ url }) => url.startsWith('/api'));
  const listed = routes.map(({ method, url, role }) => [
    `${method} ${url.replace('/api/admin/queue', '')}`,
    role ?? 'anybody',
  ]);
  expect(Object.fromEntries(listed)).toEqual(golden);
});

describe('each route lets in those of its role or a higher one', () => {
  const cases = Object.entries(golden).filter(([route]) => route !== 'GET /health' && route !== 'GET /events');

  test.each(cases)('%s: %s', async (route, least) => {
    const [method = ''] = route.split(' ');
    const { body, status = 200 } = wellFormed[route] ?? {};
    const seen: Record<string, number> = {};
    for (const as of [null, ...ROLES]) {
      seen[as ?? 'nobody'] = (await api.ask(method, pathOf(route), { as, body })).status;
    }
    const allowed = (role: Role) => (ROLES.indexOf(role) >= ROLES.indexOf(least as Role) ? status : 403); // no 'anybody' here
    expect(seen).toEqual({
      nobody: 401,
      viewer: allowed('viewer'),
      operator: allowed('operator'),
      admin: allowed('admin'),
    });
  });
});

test('a refusal says which role is needed, and a missing token how to send one', async () => {
  const low = await api.ask('POST', '/pause', { as: 'viewer' });
  expect(low.body).toMatchObject({ code: 'role_too_low', detail: 'the-viewer is a viewer; this needs an admin' });
  const middle = await api.ask('POST', '/pause', { as: 'operator' });
  expect(middle.body.detail).toBe('the-operator is an operator; this needs an admin');
  const none = await api.ask('GET', '/status', { as: null });
  expect(none.body).toMatchObject({
    code: 'not_authenticated',
    detail: expect.stringContaining('Authorization: Bearer'),
  });
  expect(none.headers['www-authenticate']).toContain('Bearer');
});

test('whoever has no token is not told which routes there are', async () => {
  expect((await api.ask('GET', '/nowhere', { as: null })).status).toBe(401);
  expect((await api.ask('GET', '/nowhere')).body.code).toBe('no_such_route');
  expect((await api.ask('PATCH', '/status')).body.code).toBe('no_such_route');
});

test('health needs no token and then says healthy or not, and no more', async () => {
  expect((await api.ask('GET', '/health', { as: null })).body).toEqual({ status: 'healthy' });
  expect((await api.ask('GET', '/health', { as: 'viewer' })).body).toMatchObject({ running: true, activeJobs: 0 });
  const state = api.state;
  api.state = { ...state, running: false };
  const { status, body } = await api.ask('GET', '/health', { as: null });
  api.state = state;
  expect([status, body]).toEqual([503, { status: 'unhealthy' }]);
});

test('without any token configured all but health is closed, and says how to open it', async () => {
  const closed = await openApi({ tokens: [] });
  try {
    for (const path of ['/status', '/nowhere']) {
      const { status, body } = await closed.ask('GET', path);
      expect([status, body.code, body.detail]).toEqual([503, 'no_tokens', expect.stringContaining('ADMIN_TOKENS=')]);
    }
    expect((await closed.ask('GET', '/health', { as: null })).status).toBe(200);
    expect((await closed.ask('GET', '//livez', { as: null })).status).toBe(200);
  } finally {
    await closed.close();
  }
});

describe('wrong tokens', () => {
  const signIn = (secret: string, remoteAddress: string, url = '/api/admin/queue/breaker') =>
    api.app.inject({ url, remoteAddress, headers: { authorization: `Bearer ${secret}` } });
  const right = secretOf('viewer');

  test('are refused from the eleventh in a minute on, by address, while right ones are let in', async () => {
    const statuses = [];
    for (let n = 0; n < 12; n++) statuses.push((await signIn(`wrong ${n}`.replace(' ', '-'), '192.0.2.1')).statusCode);
    expect(statuses).toEqual([...Array(10).fill(401), 429, 429]);
    const last = await signIn('wrong-again', '192.0.2.1');
    expect(Number(last.headers['retry-after'])).toBeGreaterThan(50);
    expect(last.json().code).toBe('too_many_failed_sign_ins');
    expect((await signIn(right, '192.0.2.1')).statusCode).toBe(200);
    expect((await signIn('wrong', '192.0.2.2')).statusCode).toBe(401);
  });

  test('from one network of IPv6 addresses count together', async () => {
    for (let n = 0; n < 10; n++) await signIn('wrong', `2001:db8:1:2:${n}::1`);
    expect((await signIn('wrong', '2001:db8:1:2:ffff::1')).statusCode).toBe(429);
    expect((await signIn('wrong', '2001:db8:1:3::1')).statusCode).toBe(401);
  });

  test('in the query or as a password are no tokens', async () => {
    expect((await api.app.inject({ url: `/api/admin/queue/status?token=${right}` })).statusCode).toBe(401);
    const basic = `Basic ${Buffer.from(`the-viewer:${right}`).toString('base64')}`;
    expect(
      (await api.app.inject({ url: '/api/admin/queue/status', headers: { authorization: basic } })).statusCode,
    ).toBe(401);
  });
});

describe('hostile input', () => {
  const HOSTILE = [
    `'; drop table broadcast_queue_jobs; --`,
    '<script>alert(1)</script>',
    '../../etc/passwd',
    '\u0000',
    '%',
    '_',
  ];

  test('in any text is data: nothing is executed, and answers stay JSON', async () => {
    for (const text of HOSTILE) {
      const q = encodeURIComponent(text);
      for (const path of [`/jobs?error=${q}`, `/jobs?data.x=${q}`, `/audit?actor=${q}`, `/audit?target=${q}`]) {
        const { status, headers } = await api.ask('GET', path);
        expect([path, [200, 400].includes(status), headers['content-type']]).toEqual([
          path,
          true,
          expect.stringContaining('json'),
        ]);
        expect(headers['x-content-type-options']).toBe('nosniff');
      }
      expect([200, 400]).toContain((await api.ask('POST', '/mine/pause', { body: { reason: text } })).status);
      await api.ask('POST', '/mine/resume');
    }
    expect(await api.queue.query("select to_regclass('broadcast_queue_jobs') is not null as there")).toEqual([
      { there: true },
    ]);
  });

  test.each<[string, string, number, string]>([
    ['a queue called status', '/status/status', 400, 'invalid_request'],
    ['a queue called jobs', '/jobs/jobs', 400, 'invalid_request'],
    ['a queue in capitals', '/Broadcasts/status', 400, 'invalid_request'],
    ['a limit of 1e9', '/jobs?limit=1e9', 400, 'invalid_request'],
    ['a limit of 1000000000', '/jobs?limit=1000000000', 400, 'invalid_request'],
    ['a limit of 0', '/broadcasts/jobs?limit=0', 400, 'invalid_request'],
    ['an unknown member', '/jobs?limt=5', 400, 'invalid_request'],
    ['a member given twice', '/jobs?limit=5&limit=6', 400, 'invalid_request'],
    ['an unknown status', '/jobs?status=done', 400, 'invalid_request'],
    ['a job id that is none', '/job/7', 400, 'invalid_request'],
    ['a day that is none', '/jobs?created_from=2026-13-01T00:00:00Z', 400, 'invalid_value'],
    ['a cursor that is none', '/jobs?cursor=abc', 400, 'invalid_cursor'],
    ['a cursor of another list', `/audit?cursor=${Buffer.from('jobs 5').toString('base64url')}`, 400, 'invalid_cursor'],
    [
      'a cursor with SQL in it',
      `/jobs?cursor=${Buffer.from('jobs 1 or 1=1').toString('base64url')}`,
      400,
      'invalid_cursor',
    ],
    ['an address that cannot be decoded', '/%zz/status', 400, 'invalid_request'],
  ])('%s is a clear 4xx', async (_what, path, status, code) => {
    const answer = await api.ask('GET', path);
    expect([answer.status, answer.body.code]).toEqual([status, code]);
    expect(answer.body.detail.length).toBeGreaterThan(10);
  });

  test('an unknown member of a body is named, with those that are known', async () => {
    const { body } = await api.ask('POST', '/mine/pause', { body: { reson: 'x' } });
    expect(body.detail).toBe('the body has an unknown member: "reson"; known are reason');
    const { detail } = (await api.ask('GET', '/jobs?broadcast_id=42')).body;
    expect(detail).toMatch(/^the query has an unknown member: "broadcast_id"; known are .*, data\.<name>$/);
    const word = (await api.ask('GET', '/jobs?queue=status')).body.detail;
    expect(word).toMatch(/^the query \/ queue does not fit \(A queue’s name: .*: status, statistics, /);
  });

  test.each<[string, string, Record<string, string>, number, string]>([
    ['ten megabytes', `{"a": "${'x'.repeat(10 * 1024 * 1024)}"}`, {}, 413, 'body_too_large'],
    ['no JSON', '{"job_type": ', {}, 400, 'invalid_json'],
    ['a prototype', '{"__proto__": {"admin": true}}', {}, 400, 'invalid_json'],
    ['another content type', '{}', { 'content-type': 'text/plain' }, 415, 'unsupported_media_type'],
    ['a list', '[]', {}, 400, 'invalid_request'],
    ['nothing', '', {}, 400, 'invalid_request'],
    [
      'depth',
      `{"job_type": "x", "job_data": {"a": ${'['.repeat(20_000)}${']'.repeat(20_000)}}}`,
      {},
      400,
      'invalid_value',
    ],
    ['a NUL', '{"job_type": "x", "job_data": {"a": "\\u0000"}}', {}, 400, 'invalid_value'],
    ['a huge number', '{"job_type": "x", "job_data": {"a": 1e200000}}', {}, 400, 'invalid_value'],
  ])('a body of %s is a clear 4xx', async (_what, body, headers, status, code) => {
    const answer = await api.ask('POST', '/jobs', { body, headers });
    expect([answer.status, answer.body.code]).toEqual([status, code]);
    if (code === 'body_too_large') expect(answer.body.detail).toMatch(/ the \d+ bytes that this route takes$/);
  });

  test('none of it was a fault of ours', () => {
    expect(api.faults).toEqual([]);
  });
});

test('pages get a strict policy, no other origin is let in, and no answer is kept', async () => {
  const page = await api.ask('GET', '//docs', { as: null });
  expect(page.text).toContain('/api/admin/queue/job/:jobId');
  expect(page.text).not.toMatch(/https?:|<script|style=/);
  const answer = await api.ask('GET', '/status', { headers: { origin: 'https://evil.example' } });
  for (const { headers } of [page, answer]) {
    expect(headers).toMatchObject({
      'content-security-policy': expect.stringContaining("default-src 'none'"),
      'x-frame-options': 'DENY',
      'cache-control': 'no-store',
    });
    expect(
      Object.keys(headers).filter((name) => name.startsWith('access-control') || name === 'strict-transport-security'),
    ).toEqual([]);
  }
});

test('HEAD answers as GET does, without a body, and asks for the same token', async () => {
  const head = async (url: string, secret = '') => {
    const answer = await api.app.inject({ method: 'HEAD', url, headers: { authorization: `Bearer ${secret}` } });
    return [answer.statusCode, answer.body];
  };
  expect(await head('/livez')).toEqual([200, '']);
  expect(await head('/docs')).toEqual([200, '']);
  expect((await head('/api/admin/queue/status'))[0]).toBe(401);
  expect(await head('/api/admin/queue/status', secretOf('viewer'))).toEqual([200, '']);
  expect((await head('/api/admin/queue/events', secretOf('viewer')))[0]).toBe(404);
});

test('the served document is the committed one', async () => {
  const { body } = await api.ask('GET', '//openapi.json', { as: null });
  expect(Object.keys(body.paths)).toContain('/api/admin/queue/job/{jobId}');
});

describe('REDACT_PAYLOAD', () => {
  let hiding: TestApi;
  beforeAll(async () => {
    hiding = await openApi({ redacted: ['phone', 'broadcast_id'] });
  });
  afterAll(() => hiding.close());

  test('hides members wherever they stand, in every answer, and cannot be asked around', async () => {
    const secret = 'canary-4711';
    const body = {
      job_type: 'send_broadcast',
      job_data: { broadcast_id: secret, to: [{ phone: secret, name: 'Ada' }], phone: { inner: secret } },
    };
    const enqueued = await hiding.ask('POST', '/jobs', { body });
    expect(enqueued.body.job_data).toEqual({
      broadcast_id: '[redacted]',
      phone: '[redacted]',
      to: [{ phone: '[redacted]', name: 'Ada' }],
    });
    expect(enqueued.body.unique_key).toBe('[redacted]');
    const { job_id } = enqueued.body;
    await hiding.queue.query(`update broadcast_queue_jobs set result = jsonb_build_object('phone', $1::text)`, [
      secret,
    ]);
    const paths = [`/job/${job_id}`, '/jobs', '/broadcasts/jobs', '/audit', '/status', '/failures'];
    for (const path of paths) {
      expect((await hiding.ask('GET', path)).text).not.toContain(secret);
    }
    const around = await hiding.ask('GET', `/jobs?data.phone=${secret}`);
    expect([around.status, around.body.code]).toEqual([400, 'hidden_member']);
    const bulk = await hiding.ask('POST', '/jobs/cancel', {
      body: { filter: { data: { phone: secret } }, dryRun: true },
    });
    expect(bulk.body.code).toBe('hidden_member');
    // The service still gets it.
    const [row] = await hiding.queue.query<{ job_data: unknown }>('select job_data from broadcast_queue_jobs');
    expect(row?.job_data).toMatchObject({ broadcast_id: secret });
  });

  test('hides whole what is nested deeper than anybody means it to be', async () => {
    const deep = `{"job_type": "x", "job_data": {"a": ${'['.repeat(40)}{"phone": "canary-deep"}${']'.repeat(40)}}}`;
    expect((await hiding.ask('POST', '/jobs', { body: deep })).text).not.toContain('canary-deep');
  });
});

test('no answer and no audit row holds a token', async () => {
  const rows = await api.queue.query('select * from broadcast_queue_audit');
  expect(rows.length).toBeGreaterThan(5);
  for (const { secret } of TOKENS) expect(JSON.stringify(rows)).not.toContain(secret);
});
