/** `broadcastd contract-test`, the program, against services that keep their promises: the sandbox, and a plain one. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import type { ContractDocument } from '../../src/contract/report.js';
import { startSandbox } from '../../src/sandbox/server.js';
import { runProgram } from '../support/daemon.js';
import { hang, reply, replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { PROGRAM } from '../support/program.js';
import { freePort } from '../support/server.js';

const SECRET = `whsec_${Buffer.from('CANARY secret of the contract tests').toString('base64')}`;
const TOKEN = 'CANARY-token-of-the-contract-tests';
const CREDENTIALS = { BROADCAST_SERVICE_SECRET: SECRET, BROADCAST_SERVICE_TOKEN: TOKEN };

describe('the sandbox', () => {
  let database: TestDatabase;
  beforeAll(async () => {
    database = await createDatabase();
  });
  afterAll(() => database.drop());

  test.each([
    [0, ['reachable', 'answer', 'large-numbers', 'bad-token', 'bad-signature']],
    [1, ['unknown-type', 'invalid-data', 'problem-json', 'same-key', 'repetition', 'in-progress', 'old-epoch', 'cut']],
    [
      2,
      [
        ...['level-header', 'progress', 'slices', 'wait', 'pace', 'replayed-cursor', 'cut-slice'],
        ...['dry-run', 'test-send', 'scope'],
      ],
    ],
    [3, ['location', 'poll', 'same-location', 'running-epoch', 'delete']],
  ] as const)(
    'of level %d passes all that it claims',
    async (level, ofThisLevel) => {
      await withSandbox(level, async (url) => {
        const { code, document } = await contractTest([url], CREDENTIALS);
        const { checks, ...figures } = document;
        expect(checks.filter(({ outcome }) => outcome === 'failed')).toEqual([]);
        expect(code).toBe(0);
        const count = (outcome: string) => checks.filter((check) => check.outcome === outcome).length;
        expect(figures).toEqual({
          ...{ url, level_claimed: level, level_tested: level },
          ...{ passed: count('passed'), failed: 0, inconclusive: 0, skipped: count('skipped') },
        });
        const passed = checks.filter(({ outcome }) => outcome === 'passed').map(({ id }) => id);
        expect(passed).toEqual(expect.arrayContaining([...ofThisLevel]));
        expect(checks.filter((check) => check.outcome === 'passed' && check.level > level)).toEqual([]);
        for (const check of checks) {
          const { id, title, ms } = check;
          expect({ id, title, ms }).toEqual({
            id: expect.any(String),
            title: expect.any(String),
            ms: expect.any(Number),
          });
          if (check.outcome === 'skipped')
            expect(check.reason).toMatch(/^(level \d is not claimed|no --restart-cmd|the service works in op)/);
        }
      });
    },
    30_000,
  );

  test('is told where it refuses the credentials, and everything else is left out', async () => {
    await withSandbox(2, async (url) => {
      const { code, document } = await contractTest([url], {});
      expect(code).toBe(1);
      expect(document.failed).toBe(1);
      expect(document.checks[0]).toMatchObject({
        ...{ id: 'reachable', outcome: 'failed' },
        seen: expect.stringMatching(/came back: 401 .*no credentials were given/),
        ...{ reason: null, why: expect.stringContaining('breaker'), mend: expect.stringContaining('--token') },
      });
      expect(document.checks[1]).toMatchObject({ id: 'answer', seen: null, reason: 'reachable fails', why: null });
    });
  });

  test('with one broadcast for all: what needs a fresh one is skipped and says so', async () => {
    await withSandbox(2, async (url) => {
      const { code, document } = await contractTest([url, '--broadcast', 'summer sale', '--level', '2'], CREDENTIALS);
      expect(document.checks.filter(({ outcome }) => outcome === 'failed')).toEqual([]);
      expect(code).toBe(0);
      for (const id of ['slices', 'replayed-cursor', 'cut-slice', 'dry-run']) {
        const check = document.checks.find((one) => one.id === id);
        expect(check).toMatchObject({ outcome: 'skipped', reason: expect.stringContaining('needs a fresh broadcast') });
      }
    });
  });

  async function withSandbox(level: 0 | 1 | 2 | 3, work: (url: string) => Promise<void>): Promise<void> {
    const sandbox = await startSandbox({
      ...{ databaseUrl: database.url, recipients: 100, dailyLimit: 1_000_000 },
      ...{ secrets: [SECRET], token: TOKEN, level },
    });
    try {
      await work(sandbox.url);
    } finally {
      await sandbox.close();
    }
  }
});

describe('a plain service', () => {
  let service: ScriptedServer;
  beforeEach(async () => {
    service = await startHttpServer();
  });
  afterEach(() => service.close());

  test('that answers OK to everything passes level 0, and is told how to be tested further', async () => {
    service.otherwise(reply(200, 'OK'));
    const { code, stdout, stderr } = await runProgram(['contract-test', service.url], {});
    expect(code).toBe(0);
    expect(stdout).toMatch(/^ {2}ok {3}answer /m);
    expect(stdout).toMatch(/skipped: no --secret was given/);
    expect(stdout).toMatch(/The service says no level/);
    expect(stderr).toMatch(/made to send for real, send_broadcast of fresh broadcast ids/);
  });

  test('is called just as by the daemon, each check with a job of its own', async () => {
    const args = [
      'contract-test',
      `${service.url}/bot/`,
      '--segment',
      'new',
      '--broadcast',
      '7',
      '--only',
      'large-numbers',
    ];
    expect((await runProgram(args, CREDENTIALS)).code).toBe(0);
    expect(service.requests).toHaveLength(3);
    const jobs = service.requests.map(({ method, url, headers, body }) => {
      expect([method, url]).toEqual(['POST', '/bot/jobs/send_segment_broadcast']);
      const { job, payload, step } = JSON.parse(body);
      expect(headers).toMatchObject({
        'idempotency-key': `"${job.id}:0"`,
        prefer: 'respond-async, wait=25',
        authorization: `Bearer ${TOKEN}`,
        'user-agent': expect.stringMatching(/^broadcastd\/\d/),
        ...{ 'x-job-id': job.id, 'x-job-epoch': '1', 'x-job-attempt': '1' },
        ...{ 'webhook-id': `${job.id}:0`, 'webhook-signature': expect.stringMatching(/^v1,/) },
      });
      expect(payload).toMatchObject({ broadcast_id: '7', segment_id: 'new' });
      expect(step).toMatchObject({ seq: 0, cursor: null, scope: 'all', max_items: 1000, per_second: null });
      return job.id;
    });
    expect(new Set(jobs).size).toBe(3);
    expect(service.requests[2]?.body).toContain('9007199254740993123');
  });

  test.each([
    ['a page', reply(200, '<html>Please log in</html>'), 'markup'],
    ['broken JSON', reply(200, '{"status":'), 'begins as JSON'],
    ['a long text', reply(200, 'x'.repeat(1025)), 'beyond 1 KiB'],
    ['a body beyond its bound', reply(200, `{"a":"${'x'.repeat(256 * 1024)}"}`), 'beyond 256 KiB'],
    ['a failure dressed as success', replyJson(200, { ok: false, error: 'no' }), 'says that it failed'],
    ['a 202 that says nothing', reply(202, 'Accepted'), '202 with neither'],
    ['an error', replyJson(500, { detail: `boom ${TOKEN}` }), '500 instead of 2xx'],
  ])(
    'that answers with %s fails by the check answer, told what was sent, what came and how to mend it',
    async (_what, script, wrong) => {
      service.otherwise(script);
      const { code, stdout, stderr } = await runProgram(['contract-test', service.url], CREDENTIALS);
      expect(code).toBe(1);
      expect(stdout).toMatch(/^ {2}FAIL answer/m);
      expect(stdout).toMatch(new RegExp(`wrong: .*${wrong}`));
      for (const line of [
        / sent: +POST \/jobs\/send_broadcast "[0-9a-f-]{36}:0"/,
        / came: +\d{3} /,
        / why: /,
        / mend: /,
      ]) {
        expect(stdout).toMatch(line);
      }
      expect(stdout + stderr).not.toContain('CANARY');
    },
  );

  test('that never answers is given up after --timeout', async () => {
    service.otherwise(hang());
    const { code, document } = await contractTest([service.url, '--timeout', '1'], {});
    expect(code).toBe(1);
    expect(document.checks[0]).toMatchObject({
      id: 'reachable',
      seen: expect.stringContaining('within 1 s (--timeout)'),
    });
  });

  test('is left in peace at Ctrl-C: the program ends at once and says that this is not all', async () => {
    service.otherwise(hang());
    const child = spawn(process.execPath, [PROGRAM, 'contract-test', service.url], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const out: string[] = [];
    child.stdout.on('data', (chunk) => out.push(String(chunk)));
    await service.received(1);
    child.kill('SIGINT');
    expect(await once(child, 'close')).toEqual([1, null]);
    expect(out.join('')).toContain('It was ended early');
  });
});

test('a service that is not there is named so, and all that follows from it takes one line', async () => {
  const { code, stdout } = await runProgram(['contract-test', `http://127.0.0.1:${await freePort()}`], {});
  expect(code).toBe(1);
  expect(stdout).toMatch(/FAIL reachable/);
  expect(stdout).toMatch(/wrong: nothing listens there: is it started, is the port right\?/);
  expect(stdout).toMatch(/came: +ECONNREFUSED/);
  expect(stdout.match(/skipped/g)).toHaveLength(2);
  expect(stdout).toMatch(/skipped, since reachable fails: all the others \(28\)\n\n0 hold, 1 fail, 28 skipped\.\n$/);
  expect(stdout).not.toMatch(/redirect is never|says no level/);
});

test('a service that speaks no TLS is told from one that is not there', async () => {
  const service = await startHttpServer();
  const { stdout } = await runProgram(['contract-test', service.url.replace('http:', 'https:')], {});
  await service.close();
  expect(stdout).toMatch(/wrong: it speaks no TLS: is it http instead of https\?/);
});

test.each([
  [['localhost:4000'], 'is not an http or https URL'],
  [['http://user:CANARY@127.0.0.1:4000'], 'no user or password'],
  [['http://127.0.0.1:4000', '--only', 'answer,everything'], 'there is no check everything'],
  [['http://127.0.0.1:4000', '--secret', 'CANARY-no-secret'], 'not of the form whsec_'],
  [['http://127.0.0.1:4000', '--level', '4'], 'from 0 to 3'],
])('usage that makes no sense exits with 2: %s', async (args, why) => {
  const { code, stderr } = await runProgram(['contract-test', ...args], {});
  expect(code).toBe(2);
  expect(stderr).toContain(why);
  expect(stderr).not.toContain('CANARY');
});

test('the help says that it sends for real, and names the checks', async () => {
  const { stdout } = await runProgram(['contract-test', '--help'], {});
  expect(stdout).toMatch(/send for real/);
  expect(stdout).toMatch(/Checks: reachable, answer, .*delete\./);
});

async function contractTest(args: string[], env: Record<string, string>) {
  const { code, stdout } = await runProgram(['contract-test', ...args, '--json'], env);
  // The program's own word for it.
  return { code, document: JSON.parse(stdout) as ContractDocument };
}
