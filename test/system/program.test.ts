import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createDatabase, createEmptyDatabase, type TestDatabase } from '../support/postgres.js';
import { until } from '../support/until.js';

let database: TestDatabase;
let service: ScriptedServer;

beforeAll(async () => {
  database = await createDatabase();
  service = await startHttpServer();
});
afterAll(async () => {
  await service.close();
  await database.drop();
});
afterEach(killPrograms);

test('a wrong configuration prints every fault at once and exits with 78', async () => {
  const { code, stderr } = await runProgram(['start'], { LEASE_MS: 'soon', PORT: '99999', CONCURRENCY: 'x' });
  expect(code).toBe(78);
  for (const name of ['DATABASE_URL', 'BROADCAST_SERVICE_URL', 'LEASE_MS', 'PORT', 'CONCURRENCY']) {
    expect(stderr).toContain(name);
  }
});

test('without a database it says so and exits with 69', async () => {
  const { code, stderr } = await runProgram(['start'], {
    DATABASE_URL: 'postgresql://nobody:topsecret1@127.0.0.1:1/none',
    BROADCAST_SERVICE_URL: service.url,
  });
  expect(code).toBe(69);
  expect(stderr).toMatch(/cannot reach the database: .*ECONNREFUSED/);
  expect(stderr).not.toContain('topsecret1');
}, 30_000);

test.each([[['fly']], [['start', '--wings']], [['sandbox', '--port', 'high']]])(
  'usage that makes no sense exits with 2: %s',
  async (args) => {
    const { code, stderr } = await runProgram(args, {});
    expect(code).toBe(2);
    expect(stderr).toMatch(/^error: /);
  },
);

test('the version is printed, and help ends with 0', async () => {
  expect((await runProgram(['version'], {})).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  expect((await runProgram(['--help'], {})).code).toBe(0);
});

test('migrate brings an empty database up to date and says what it did; start does so by itself', async () => {
  const empty = await createEmptyDatabase();
  try {
    expect((await runProgram(['migrate'], { DATABASE_URL: empty.url })).stdout).toMatch(/^Applied: 001_jobs/);
    expect((await runProgram(['migrate'], { DATABASE_URL: empty.url })).stdout).toBe('The schema is up to date.\n');
  } finally {
    await empty.drop();
  }
});

test('a port that is taken is said in one line', async () => {
  const { code, stderr } = await runProgram(['start'], {
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    PORT: String(service.port),
  });
  expect(code).toBe(1);
  expect(stderr).toContain(`:${service.port}: it is taken.`);
});

test('secrets appear in no log line and in no row, even where the service echoes them', async () => {
  const canaries = {
    BROADCAST_SERVICE_TOKEN: 'CANARY_token_0123456789abcdef',
    BROADCAST_SERVICE_SECRET: `whsec_${Buffer.from('CANARY_secret_0123456789abcdef').toString('base64')}`,
    ADMIN_TOKENS: 'alice:admin:CANARY_admin_0123456789abcdef',
  };
  const daemon = await startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    RETRY_BASE_DELAY_MS: '1000',
    ...canaries,
  });
  const echo = `leaked: ${canaries.BROADCAST_SERVICE_TOKEN} ${canaries.BROADCAST_SERVICE_SECRET}`;
  service.next(replyJson(400, { detail: echo }), replyJson(200, { sent: 1, echo }));
  await database.query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n) from generate_series(1, 2) n`,
  );
  await until('both ended', async () => {
    const rows = await database.query(`select 1 from broadcast_queue_jobs where status in ('completed', 'failed')`);
    return rows.length === 2;
  });
  daemon.signal('SIGTERM');
  expect(await daemon.ended).toBe(0);
  const rows = JSON.stringify(await database.query('select * from broadcast_queue_jobs'));
  const history = JSON.stringify(await database.query('select * from broadcast_queue_attempts'));
  expect(rows).toContain('leaked: ');
  for (const place of [daemon.output(), rows, history]) {
    expect(place).not.toMatch(/CANARY/);
    expect(place).not.toContain(canaries.BROADCAST_SERVICE_SECRET.slice(6));
  }
});

test('each thing that happens to a job is one line: what goes well at info, failures and retries at warn', async () => {
  const daemon = await startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    RETRY_BASE_DELAY_MS: '10',
    CONCURRENCY: '*=1',
  });
  service.next(replyJson(500, {}), replyJson(200, { sent: 1 }), replyJson(422, { detail: 'no' }));
  const told = async (id: number) => {
    await database.query('insert into broadcast_queue_jobs (job_type, job_data) values ($1, $2)', [
      'send_broadcast',
      { broadcast_id: id },
    ]);
    const lines = () => daemon.lines.filter(({ broadcast_id }) => broadcast_id === String(id));
    await until('it has ended', async () => lines().some(({ msg }) => ['job completed', 'job failed'].includes(msg)));
    return lines().map(({ level, msg }) => `${level} ${msg}`);
  };
  expect(await told(901)).toEqual([
    'info job added',
    'info job started',
    'warn job scheduled for retry',
    'info job started',
    'info job completed',
  ]);
  expect(await told(902)).toEqual(['info job added', 'info job started', 'warn job failed']);
});

test('a job due since ever and one that never expires are sent like others', async () => {
  const daemon = await startProgram({ DATABASE_URL: database.url, BROADCAST_SERVICE_URL: service.url });
  service.otherwise(replyJson(200, { sent: 1 }));
  await database.query(
    `insert into broadcast_queue_jobs (job_type, job_data, scheduled_at, expires_at)
     values ('send_broadcast', '{"broadcast_id": 801}', '-infinity', null),
            ('send_broadcast', '{"broadcast_id": 802}', now(), 'infinity')`,
  );
  for (const id of ['801', '802']) {
    await daemon.line(({ msg, broadcast_id }) => msg === 'job completed' && broadcast_id === id);
  }
});

test('a flood of equal failures is counted instead of repeated', async () => {
  const daemon = await startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    CONCURRENCY: '*=20',
  });
  service.otherwise(replyJson(422, { detail: 'no' }));
  await database.query(
    `insert into broadcast_queue_jobs (job_type, job_data)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n) from generate_series(1, 500) n`,
  );
  const summary = await daemon.line(({ suppressed }) => typeof suppressed === 'number', 20_000);
  const told = daemon.lines.filter(({ msg }) => msg === 'job failed').length;
  expect(told).toBeLessThanOrEqual(10);
  expect(told + Number(summary.suppressed)).toBe(500);
}, 40_000);

test.each([
  [{}, 1],
  [{ BROADCAST_SERVICE_LEVEL: '0' }, 1],
  [{ BROADCAST_SERVICE_LEVEL: '1' }, 0],
  [{ AMBIGUOUS_POLICY: 'pause' }, 0],
])('a service that may not remember keys is warned of at the start: %j', async (env, warnings) => {
  const daemon = await startProgram({ DATABASE_URL: database.url, BROADCAST_SERVICE_URL: service.url, ...env });
  expect(daemon.lines.filter(({ msg }) => msg.includes('has not said yet that it remembers'))).toHaveLength(warnings);
});

test('health: without a token one word, with one the figures', async () => {
  const secret = 'a-token-of-more-than-24-characters';
  const daemon = await startProgram({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    ADMIN_TOKENS: `alice:viewer:${secret}`,
  });
  const health = (headers: Record<string, string>) =>
    fetch(`${daemon.url}/api/admin/queue/health`, { headers }).then(async (answer) => [
      answer.status,
      await answer.json(),
    ]);
  expect(await health({})).toEqual([200, { status: 'healthy' }]);
  expect(await health({ authorization: 'Bearer wrong-token-of-more-than-24-chars' })).toEqual([
    200,
    { status: 'healthy' },
  ]);
  expect(await health({ authorization: `Bearer ${secret}` })).toEqual([
    200,
    expect.objectContaining({ status: 'healthy', running: true, activeJobs: 0, timestamp: expect.any(String) }),
  ]);
  const missing = await fetch(`${daemon.url}/nowhere?token=x`);
  expect(missing.status).toBe(404);
  expect(missing.headers.get('content-type')).toMatch(/^application\/problem\+json/);
  expect(await missing.json()).toMatchObject({ status: 404, code: 'no_such_route' });
});
