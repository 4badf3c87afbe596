/** `broadcastd doctor`, on a queue that is well, and on one where everything that can be broken here is. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { loadConfig } from '../../src/config.js';
import { maskOf } from '../../src/logger.js';
import { type Environment, killPrograms, runProgram, startProgram } from '../support/daemon.js';
import { reply, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createOldTable, pollEvery } from '../support/old-bot.js';
import { startPgbouncer } from '../support/pgbouncer.js';
import { createDatabase, createEmptyDatabase, serverUrl, type TestDatabase } from '../support/postgres.js';
import { createRoles, type TestRoles } from '../support/roles.js';
import { openQueue, type TestQueue } from '../support/store.js';
import { until } from '../support/until.js';

const SECRET = `whsec_${Buffer.from('CANARY_signing_secret_of_32_bytes').toString('base64')}`;

interface Finding {
  readonly check: string;
  readonly outcome: 'ok' | 'warning' | 'failed' | 'skipped';
  readonly found: string;
  readonly mend: string | null;
}

let queue: TestQueue;
let database: TestDatabase;
let roles: TestRoles;
let service: ScriptedServer;
let idle: Awaited<ReturnType<TestQueue['session']>>;

beforeAll(async () => {
  queue = await openQueue();
  database = await createDatabase();
  roles = await createRoles(database);
  service = await startHttpServer();
  // Ten seconds old when it is looked for, below.
  idle = await queue.session();
  await idle.query('begin; select 1');
});
afterAll(async () => {
  await service.close();
  await roles.drop();
  await database.drop();
  await queue.close();
});
afterEach(killPrograms);

async function doctor(env: Environment) {
  const { code, stdout, stderr } = await runProgram(['doctor', '--json'], env);
  expect(stderr).toBe('');
  const { ok, checks }: { ok: boolean; checks: Finding[] } = JSON.parse(stdout);
  expect(ok).toBe(code === 0);
  return {
    code,
    checks,
    /** Outcome and words of the findings of one check. */
    of: (name: string) =>
      checks.filter(({ check }) => check === name).map(({ outcome, found, mend }) => `${outcome} ${found} → ${mend}`),
  };
}

test('where all is well, every check says so, the exit code is 0, and docs/cli.md tells of each', async () => {
  const wanted = { BROADCAST_SERVICE_URL: service.url, BROADCAST_SERVICE_SECRET: SECRET, BROADCAST_SERVICE_LEVEL: '1' };
  await startProgram({ ...wanted, DATABASE_URL: roles.urls.worker, AUTO_MIGRATE: 'false' });
  service.next(reply(404, 'nothing here'));
  const { code, checks } = await doctor({ ...wanted, DATABASE_URL: roles.urls.worker });
  expect(checks.filter(({ outcome }) => outcome !== 'ok')).toEqual([]);
  expect(code).toBe(0);
  expect(checks.map(({ check }) => check)).toEqual([
    ...['configuration', 'node', 'signing', 'service', 'database', 'schema', 'postgresql version', 'encryption'],
    ...['clock', 'connections', 'notifications', 'privileges', 'triggers', 'indexes', 'sequence', 'transactions'],
    ...['dead rows', 'notification queue', 'old poller', 'daemons', 'due jobs', 'leases', 'pauses', 'gates'],
    ...['failed jobs', 'stuck jobs', 'service level'],
  ]);
  const guide = await readFile(new URL('../../docs/cli.md', import.meta.url), 'utf8');
  expect(checks.filter(({ check }) => !guide.includes(`| ${check} |`))).toEqual([]);
  const asked = service.requests.at(-1);
  expect(asked).toMatchObject({ method: 'GET', body: '' });
  expect(JSON.stringify(asked?.headers)).not.toMatch(/CANARY|authorization|webhook/);
}, 30_000);

test('without a daemon, due jobs are a failure, with a closed gate only a warning', async () => {
  await database.query(
    `select broadcast_close_gate('bot:shop', 60000, 'HTTP 429'), broadcast_enqueue('send_broadcast', '{"bot_id": "shop"}')`,
  );
  await database.query(`update broadcast_queue_workers set last_seen_at = now() - interval '1 hour'`);
  const { of } = await doctor({
    DATABASE_URL: database.url,
    BROADCAST_SERVICE_URL: service.url,
    AMBIGUOUS_POLICY: 'pause',
  });
  expect(of('daemons')).toEqual([expect.stringMatching(/^warning no daemon is running → Start one/)]);
  expect(of('due jobs')).toEqual([
    expect.stringMatching(/^failed 1 due job in the queue broadcasts,.*no daemon is running/),
  ]);
  expect(of('gates')).toEqual([
    expect.stringMatching(/^warning the gate bot:shop is closed until .*HTTP 429 .*gates open bot:shop/),
  ]);
  expect(of('service level')).toEqual([expect.stringMatching(/^ok /)]);
}, 30_000);

test('a role that may too little is told what it lacks', async () => {
  const [viewer, outsider] = await Promise.all([
    doctor({ DATABASE_URL: roles.urls.viewer }),
    doctor({ DATABASE_URL: roles.urls.outsider }),
  ]);
  expect(viewer.of('privileges')).toEqual([
    expect.stringMatching(/^failed the role viewer_\w+ lacks .*deploy\/roles\.sql/),
  ]);
  expect(outsider.of('schema')).toEqual([
    expect.stringMatching(/^failed this role may not even look: permission denied/),
  ]);
  expect(outsider.of('gates')).toEqual([expect.stringMatching(/^skipped /)]);
}, 30_000);

test('a schema that is missing, of an older shape, or too new is told apart, and the checks of its tables are skipped', async () => {
  const empty = await createEmptyDatabase();
  try {
    const schemaOf = async (env: Environment = {}) => {
      const { checks, of } = await doctor({ DATABASE_URL: empty.url, ...env });
      expect(checks.filter(({ outcome }) => outcome === 'skipped').length).toBeGreaterThan(10);
      return of('schema');
    };
    expect(await schemaOf()).toEqual([
      expect.stringMatching(/^warning the schema "public" lacks 001_jobs.*broadcastd migrate/),
    ]);
    expect(await schemaOf({ AUTO_MIGRATE: 'false' })).toEqual([expect.stringMatching(/^failed .*AUTO_MIGRATE is off/)]);
    await createOldTable(empty);
    expect(await schemaOf()).toEqual([
      expect.stringMatching(/^failed .* of an older shape.* → .*broadcastd migrate --plan/),
    ]);
    await empty.query('drop table broadcast_queue_jobs');
    await runProgram(['migrate'], { DATABASE_URL: empty.url });
    await empty.query(`insert into broadcast_queue_migrations (version, name, serves) values (999, '999_later', 999)`);
    expect(await schemaOf()).toEqual([expect.stringMatching(/^failed .*is at version 999.*run a newer broadcastd/)]);
  } finally {
    await empty.drop();
  }
}, 40_000);

test('faults of the configuration and a database that is away are told with their mends, and without the secrets', async () => {
  const { code, stdout } = await runProgram(['doctor'], {
    DATABASE_URL: 'postgres://bot:CANARY_password@127.0.0.1:1/none',
    BROADCAST_SERVICE_URL: service.url,
    BROADCAST_SERVICE_SECRET: 'whsec_CANARY',
    LEASE_MS: 'soon',
  });
  expect(code).toBe(1);
  expect(stdout).toMatch(/^failed {3}configuration: LEASE_MS: .*\n +→ Until then "broadcastd start" ends with 78\.$/m);
  expect(stdout).toMatch(/^failed {3}configuration: BROADCAST_SERVICE_SECRET: entry 1 is not Base64/m);
  expect(stdout).toMatch(/^failed {3}database: it cannot be reached: .*ECONNREFUSED.*\n +→ Check DATABASE_URL/m);
  expect(stdout).toMatch(/\n1 ok, 0 to look at, 3 failed, 2 skipped\n$/);
  expect(stdout).not.toContain('CANARY');
});

test('a password that is the name of the role as well is hidden in its place only', async () => {
  const address = new URL(queue.url);
  address.username = address.password = 'broadcaster';
  const env = { DATABASE_URL: address.href, BROADCAST_SERVICE_URL: service.url };
  const { of } = await doctor(env);
  expect(of('database')).toEqual([expect.stringMatching(/^failed it cannot be reached: .*"broadcaster"/)]);
  const { config } = loadConfig(env, () => '');
  expect(maskOf(config)(`role broadcaster at ${address.href}`)).toBe(
    `role broadcaster at ${address.href.replace(':broadcaster@', ':[secret]@')}`,
  );
});

test('a service that redirects is a warning: nobody follows it', async () => {
  service.next(reply(308, '', { location: 'https://elsewhere.example/' }));
  const { of } = await doctor({ DATABASE_URL: 'postgres://x@127.0.0.1:1/none', BROADCAST_SERVICE_URL: service.url });
  expect(of('service')).toEqual([
    expect.stringMatching(/^warning the service answers \(308 in \d+ ms\), but with a redirect/),
  ]);
});

const pooler = existsSync('/usr/sbin/pgbouncer') ? test : test.skip;
pooler(
  'behind a pooler in transaction mode notifications do not arrive, and the mend is named',
  async () => {
    const bouncer = await startPgbouncer(serverUrl());
    try {
      const through = bouncer.through(database.url);
      const [bare, direct] = await Promise.all([
        doctor({ DATABASE_URL: through }),
        doctor({ DATABASE_URL: through, LISTEN_DATABASE_URL: database.url }),
      ]);
      expect(bare.of('database')).toEqual([expect.stringMatching(/^ok it answers, through a pooler/)]);
      expect(bare.of('notifications')).toEqual([
        expect.stringMatching(/^failed .*set LISTEN_DATABASE_URL to a direct/),
      ]);
      expect(direct.of('notifications')).toEqual([expect.stringMatching(/^ok a notification arrives/)]);
    } finally {
      await bouncer.close();
    }
  },
  30_000,
);

test('where everything is broken, each check says what, and how to mend it', async () => {
  const poller = await pollEvery(queue.url, 100);
  await queue.query(`
    alter table broadcast_queue_jobs disable trigger broadcast_queue_notify;
    drop trigger broadcast_queue_count_truncate on broadcast_queue_jobs;
    drop index broadcast_queue_attempts_job;
    alter table broadcast_queue_jobs set (autovacuum_enabled = false);
    alter sequence broadcast_queue_attempts_id_seq restart with 9000000000000000000;
    select nextval('broadcast_queue_attempts_id_seq');
    select broadcast_pause_queue('retries', 'legal is looking', 'alice'), broadcast_close_gate('bot:shop', 60000, 'HTTP 429');
    update broadcast_queue_services set opened_at = now(), open_until = now(), last_error = 'connection refused';
    insert into broadcast_queue_workers (worker_id, version, host, pid, slots) values ('w', '0.0.1', 'h', 1, '{"retries": 1}');
    insert into broadcast_queue_jobs (job_type, job_data, status, error_code, error_message, completed_at)
      select 'send_broadcast', '{}', 'failed', 'http_500', 'job ' || i || ' broke', now() from generate_series(1, 7) i;
    insert into broadcast_queue_jobs (job_type, job_data, status) values ('send_broadcast', '{}', 'paused');
    insert into broadcast_queue_jobs (job_type, job_data, queue_name) values ('send_digest', '{}', 'digests');
    with held as (insert into broadcast_queue_jobs (job_type, job_data, status, lease_id, stalled_since)
      values ('send_broadcast', '{}', 'processing', gen_random_uuid(), now() - interval '1 hour') returning id, lease_id)
    insert into broadcast_queue_leases (lease_id, worker_id, job_ids, expires_at)
      select lease_id, 'gone', array[id], now() - interval '1 minute' from held`);
  await until(
    'the open transaction is old enough',
    async () => {
      const old = `state = 'idle in transaction' and clock_timestamp() - xact_start > interval '10 seconds'`;
      return (await queue.query(`select 1 from pg_stat_activity where datname = current_database() and ${old}`)).length;
    },
    15_000,
  );
  const { code, of } = await doctor({
    DATABASE_URL: queue.url,
    // Of the same server, and yet no notification gets there.
    LISTEN_DATABASE_URL: serverUrl(),
    BROADCAST_SERVICE_URL: 'http://127.0.0.1:1',
  });
  await poller.stop();
  await idle.query('rollback');

  expect(code).toBe(1);
  expect(of('signing')).toEqual([expect.stringMatching(/^warning calls are neither signed .*openssl rand/)]);
  expect(of('service')).toEqual([
    expect.stringMatching(/^failed the service cannot be reached: .*ECONNREFUSED.* → Start/),
  ]);
  expect(of('service level')).toEqual([expect.stringMatching(/^warning .*not known yet.*X-Broadcast-Level: 1/)]);
  expect(of('notifications')).toEqual([
    expect.stringMatching(/^failed notifications do not arrive.*LISTEN_DATABASE_URL/),
  ]);
  expect(of('privileges')).toEqual([expect.stringMatching(/^warning the role .* is a superuser/)]);
  expect(of('triggers')).toEqual([
    expect.stringMatching(/^failed the trigger broadcast_queue_count_truncate is missing/),
    expect.stringMatching(
      /^failed the trigger broadcast_queue_notify is disabled → ALTER TABLE public\.broadcast_queue_jobs/,
    ),
  ]);
  expect(of('indexes')).toEqual([expect.stringMatching(/^failed the index broadcast_queue_attempts_job is missing/)]);
  expect(of('sequence')).toEqual([expect.stringMatching(/^failed the ids are at 9000000000000000000, 97\.6 %/)]);
  expect(of('transactions')).toEqual([
    expect.stringMatching(/^warning session \d+ .* is idle in transaction for \d+ s/),
  ]);
  expect(of('dead rows')).toEqual([expect.stringMatching(/^failed autovacuum is off for a table/)]);
  expect(of('old poller')).toEqual([expect.stringMatching(/^failed session \d+ \(.*, old worker, .* polls the table/)]);
  expect(of('daemons')).toEqual([expect.stringMatching(/^warning 1 running, version 0\.0\.1; this is/)]);
  expect(of('due jobs')).toEqual([
    expect.stringMatching(/^failed 1 due job in the queue digests,.* no running daemon has a slot.*digests=2/),
  ]);
  expect(of('leases')).toEqual([expect.stringMatching(/^failed 1 expired lease, the oldest since \d+ s,/)]);
  expect(of('pauses')).toEqual([
    expect.stringMatching(/^warning the queue retries is paused by alice .*legal is looking .*queues resume retries/),
  ]);
  expect(of('gates')).toEqual([expect.stringMatching(/^failed the breaker is open since .*: connection refused/)]);
  expect(of('failed jobs')).toEqual([
    expect.stringMatching(/^warning 7 send_broadcast failed, .*: job <n> broke .*--error-code http_500/),
    expect.stringMatching(/^warning 1 paused job:/),
  ]);
  expect(of('stuck jobs')).toEqual([expect.stringMatching(/^warning 1 running job without progress for 10 min/)]);
}, 60_000);
