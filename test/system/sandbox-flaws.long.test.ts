/**
 * Each flaw of the sandbox breaks the one rule that it names and no other. The rules are asked for as an outsider would,
 * over HTTP, with the database as the witness of who was sent what.
 */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { FLAWS, type Flaw, isFlaw } from '../../src/sandbox/flaws.js';
import { type SandboxOptions, startSandbox } from '../../src/sandbox/server.js';
import { runProgram } from '../support/daemon.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';
import { type CallOptions, received, report, request } from '../support/sandbox-calls.js';
import { until } from '../support/until.js';

interface Rule {
  /** Of the sandbox; without a level: 2. */
  options?: Partial<SandboxOptions>;
  /** @param name of a job and a broadcast that nobody has used before */
  isKept(url: string, name: string): Promise<boolean>;
}

const RULES: Record<Flaw, Rule> = {
  'bare-404': {
    async isKept(url, name) {
      const { status, text } = await post(url, { ...job(name), type: 'paint_the_fence' });
      return status === 404 && text.includes('"unknown_job_type"');
    },
  },
  'bad-data-500': {
    isKept: async (url, name) => (await post(url, { job: name, payload: {} })).status === 422,
  },
  'plain-errors': {
    async isKept(url, name) {
      const { headers } = await post(url, { job: name, payload: {} });
      return String(headers.get('content-type')).startsWith('application/problem+json');
    },
  },
  'any-signature': {
    options: { secrets: [`whsec_${Buffer.from('a secret of the tests, 24+').toString('base64')}`] },
    isKept: async (url, name) => (await post(url, job(name))).status === 401,
  },
  'any-token': {
    options: { token: 'let-me-in' },
    async isKept(url, name) {
      return (await post(url, { ...job(name), headers: { authorization: 'Bearer let-me-out' } })).status === 401;
    },
  },
  redirects: {
    async isKept(url, name) {
      const init = { method: 'POST', redirect: 'manual', headers: { 'content-type': 'application/json' } } as const;
      const { status } = await fetch(`${url}/jobs/send_broadcast`, { ...init, body: JSON.stringify(job(name)) });
      return status === 400; // What it makes of a body that is none of the protocol.
    },
  },
  'empty-202': {
    isKept: async (url, name) => (await post(url, job(name))).body.status === 'completed',
  },
  'says-no-level': {
    isKept: async (url, name) => (await post(url, job(name))).headers.get('x-broadcast-level') === '2',
  },
  'forgets-keys': {
    async isKept(url, name) {
      const first = await post(url, { ...job(name), maxItems: 10 });
      return (await post(url, { ...job(name), maxItems: 10 })).text === first.text;
    },
  },
  'fingerprints-attempt': {
    async isKept(url, name) {
      await post(url, job(name));
      return (await post(url, { ...job(name), epoch: 2, attempt: 2, previousFailure: 'timeout' })).status < 300;
    },
  },
  'runs-beside': {
    options: { perSecond: 100 },
    async isKept(url, name) {
      const first = post(url, { ...job(name), maxItems: 100 });
      await until('it sends', async () => (await report(url, name)).sent > 0);
      const second = await post(url, { ...job(name), maxItems: 100 });
      await first;
      return second.status === 409 && second.body.code === 'in_progress';
    },
  },
  'ignores-epoch': {
    async isKept(url, name) {
      await post(url, { ...job(name), epoch: 2 });
      return (await post(url, { ...job(name), seq: 1, epoch: 1 })).body.code === 'stale_epoch';
    },
  },
  'too-many-items': {
    isKept: async (url, name) => progressOf(await post(url, { ...job(name), maxItems: 10 })).processed === 10,
  },
  overstays: {
    options: { perSecond: 100 },
    async isKept(url, name) {
      return progressOf(await post(url, { ...job(name), maxItems: 60, waitSeconds: 0.1 })).processed < 60;
    },
  },
  'ignores-pace': {
    async isKept(url, name) {
      await post(url, { ...job(name), maxItems: 10, perSecond: 20 });
      return (await deliveriesOf(name)).seconds > 0.25;
    },
  },
  'delta-progress': {
    async isKept(url, name) {
      const first = await post(url, { ...job(name), maxItems: 10 });
      const second = await post(url, { ...job(name), seq: 1, cursor: String(first.body.cursor), maxItems: 10 });
      return progressOf(second).processed >= 20;
    },
  },
  'wrong-sum': {
    async isKept(url, name) {
      const progress = progressOf(await post(url, { ...job(name), maxItems: 10 }));
      return progress.processed === progress.sum;
    },
  },
  'no-ledger': {
    async isKept(url, name) {
      await post(url, { ...job(name), maxItems: 20 });
      await post(url, { ...job(name), seq: 1, maxItems: 20 });
      const { people, deliveries } = await deliveriesOf(name);
      return deliveries === people;
    },
  },
  'forgets-cut-slice': {
    options: { perSecond: 100 },
    async isKept(url, name) {
      const impatient = new AbortController();
      const lost = expect(post(url, { ...job(name), maxItems: 50, signal: impatient.signal })).rejects.toThrow();
      await until('it sends', async () => (await report(url, name)).sent > 0);
      impatient.abort();
      await lost;
      await until('the slice ends', async () =>
        (await received(url)).some(({ job_id, answered_status }) => job_id === name && answered_status !== null),
      );
      await post(url, { ...job(name), maxItems: 50 });
      return (await report(url, name)).duplicates === 0;
    },
  },
  'dry-run-sends': {
    async isKept(url, name) {
      await post(url, { ...job(name), dryRun: true });
      return (await report(url, name)).sent === 0;
    },
  },
  'test-sends-all': {
    async isKept(url, name) {
      await post(url, { job: name, payload: { broadcast_id: name, test_recipients: [11, 13] } });
      return (await deliveriesOf(name)).people === 2;
    },
  },
  'ignores-scope': {
    async isKept(url, name) {
      await post(url, { ...job(name), maxItems: 30 });
      const before = await deliveriesOf(name);
      await post(url, { ...job(name), seq: 1, scope: 'unknown' });
      return (await deliveriesOf(name)).deliveries === before.deliveries;
    },
  },
  'location-elsewhere': {
    options: { level: 3 },
    async isKept(url, name) {
      return new URL(String((await post(url, job(name))).headers.get('location')), url).origin === url;
    },
  },
  'delete-ignored': {
    options: { level: 3, perSecond: 100 },
    async isKept(url, name) {
      const { headers } = await post(url, job(name));
      const { pathname } = new URL(String(headers.get('location')), url);
      expect((await fetch(`${url}${pathname}`, { method: 'DELETE' })).status).toBe(204);
      return (await post(url, job(name))).body.status === 'cancelled';
    },
  },
  'forgets-operation': {
    options: { level: 3 },
    async isKept(url, name) {
      const { pathname } = new URL(String((await post(url, job(name))).headers.get('location')), url);
      return (await fetch(`${url}${pathname}`)).status === 200;
    },
  },
  'resends-unknown': {
    async isKept(url, name) {
      await post(url, { ...job(name), maxItems: 20 });
      // As a crash leaves them: claimed, perhaps delivered, never settled.
      await database.query(
        `update broadcast_sandbox.ledger set state = 'sending' where broadcast_id = $1 and state = 'sent' and user_id <= 10`,
        [name],
      );
      await post(url, { ...job(name), seq: 1, maxItems: 20 });
      const uncertain = await database.query(
        'select from broadcast_sandbox.deliveries where broadcast_id = $1 and user_id <= 10',
        [name],
      );
      return uncertain.length <= 10;
    },
  },
};

let database: TestDatabase;

beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database.drop());

const flaws = Object.keys(FLAWS).filter(isFlaw);

test('a sound sandbox keeps every rule', async () => {
  expect(await brokenBy([], flaws)).toEqual([]);
}, 30_000);

test.each(flaws)(
  process.env.LONG_TESTS ? '%s breaks its rule and no other' : '%s breaks its rule',
  async (flaw) => {
    const others = flaws.filter((other) => RULES[other].options?.level === RULES[flaw].options?.level);
    expect(await brokenBy([flaw], process.env.LONG_TESTS ? others : [flaw])).toEqual([flaw]);
  },
  30_000,
);

test.each<Flaw>(['no-ledger', 'ignores-scope'])(
  '%s shows in the counters, which rise beyond the total',
  async (flaw) => {
    const sandbox = await startSandbox({ databaseUrl: database.url, dailyLimit: 10_000, flaws: [flaw] });
    const name = `counters of ${flaw}`;
    const options = { job: name, payload: { broadcast_id: name, test_recipients: [11, 13] } };
    expect((await post(sandbox.url, options)).body.progress).toMatchObject({ total: 2, processed: 2, sent: 2 });
    const again = await post(sandbox.url, { ...options, seq: 1, scope: flaw === 'ignores-scope' ? 'failed' : 'all' });
    expect(again.body.progress).toMatchObject({ total: 2, processed: 4, sent: 4 });
    await sandbox.close();
  },
);

test('the command takes every flaw, and of an unknown one says which there are', async () => {
  const all = await runProgram(['sandbox', ...flaws.flatMap((flaw) => ['--flaw', flaw])], {});
  expect(all.code).toBe(78); // It has read them all, and misses its database.
  const wrong = await runProgram(['sandbox', '--flaw', 'forgets-everything'], {});
  expect(wrong.code).toBe(2);
  expect(wrong.stderr).toContain('forgets-everything');
  const help = await runProgram(['sandbox', '--help'], {});
  for (const flaw of flaws) {
    expect(wrong.stderr).toContain(`${flaw} `);
    expect(help.stdout).toContain(FLAWS[flaw]);
  }
});

/** Which of these rules a sandbox with these flaws breaks. */
async function brokenBy(having: readonly Flaw[], rules: readonly Flaw[]): Promise<Flaw[]> {
  const broken: Flaw[] = [];
  for (const rule of rules) {
    const { options, isKept } = RULES[rule];
    // Every rule is a broadcast or more, to the same people.
    const settings = { databaseUrl: database.url, dailyLimit: 10_000 };
    const sandbox = await startSandbox({ ...settings, ...options, flaws: having });
    try {
      if (!(await isKept(sandbox.url, `${rule} of ${having.join() || 'a sound one'}`))) broken.push(rule);
    } finally {
      await sandbox.close();
    }
  }
  return broken;
}

function job(name: string): CallOptions {
  return { job: name, payload: { broadcast_id: name } };
}

async function post(url: string, options: CallOptions) {
  const response = await request(url, options);
  const text = await response.text();
  // The rules say what they expect of it; nothing else depends on its shape.
  const body: { status?: unknown; code?: unknown; cursor?: unknown; progress?: Record<string, unknown> } =
    text.startsWith('{') ? JSON.parse(text) : {};
  return { status: response.status, headers: response.headers, text, body };
}

function progressOf({ body: { progress } }: Awaited<ReturnType<typeof post>>) {
  const part = (name: string) => Number(progress?.[name] ?? Number.NaN);
  return {
    processed: part('processed'),
    sum: part('sent') + part('skipped') + part('failed') + part('unknown'),
  };
}

async function deliveriesOf(jobId: string): Promise<{ people: number; deliveries: number; seconds: number }> {
  const [row] = await database.query<{ people: number; deliveries: number; seconds: number }>(
    `select count(distinct user_id)::integer as people, count(*)::integer as deliveries,
            coalesce(extract(epoch from max(delivered_at) - min(delivered_at)), 0)::float8 as seconds
     from broadcast_sandbox.deliveries where job_id = $1`,
    [jobId],
  );
  return row ?? { people: 0, deliveries: 0, seconds: 0 };
}
