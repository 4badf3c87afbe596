import { readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import Value from 'typebox/value';
import { generated } from '../../scripts/generate.js';
import { type Setting, settings } from '../../src/config/settings.js';
import { type Environment, loadConfig } from '../../src/config.js';
import { ConfigError } from '../../src/errors.js';

const table: readonly Setting[] = settings;

/** The least that makes a configuration without warnings. */
const least = { DATABASE_URL: 'postgres://db/bot', BROADCAST_SERVICE_URL: 'http://localhost:8080' };

/** Stands for a directory of secrets: the contents by path. A path it does not have is like a missing file. */
function files(contents: Record<string, string>): (path: string) => string {
  return (path) => {
    const content = contents[path];
    if (content === undefined) throw Object.assign(new Error(`ENOENT: no such file ${path}`), { code: 'ENOENT' });
    return content;
  };
}

function load(env: Environment, contents: Record<string, string> = {}) {
  return loadConfig(env, files(contents));
}

function config(env: Environment) {
  return load({ ...least, ...env }).config;
}

function warnings(env: Environment): readonly string[] {
  return load({ ...least, ...env }).warnings;
}

/** The faults of the least configuration changed by `env`; none when it loads. */
function faults(env: Environment, contents: Record<string, string> = {}): readonly string[] {
  try {
    load({ ...least, ...env }, contents);
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.faults;
    throw error;
  }
}

/** A signing secret of so many bytes, as it is written. */
function signingSecret(bytes: number, fill = 'k'): string {
  return `whsec_${Buffer.alloc(bytes, fill).toString('base64')}`;
}

describe('a configuration of the two necessary variables', () => {
  test('has the documented defaults and no warning', () => {
    expect(load(least)).toEqual({
      config: {
        database: { url: least.DATABASE_URL, listenUrl: null, migrateUrl: null, autoMigrate: true, schema: 'public' },
        service: {
          url: 'http://localhost:8080',
          secrets: [],
          token: null,
          timeoutMs: 900_000,
          waitSeconds: 25,
          maxItems: 1000,
          level: null,
        },
        jobs: {
          types: [],
          unknown: 'fail',
          maxPayloadBytes: 1_048_576,
          concurrency: { named: { broadcasts: 2, 'segment-broadcasts': 2, retries: 5, cleanup: 1 }, others: 2 },
          retryBaseDelayMs: 60_000,
          retryMaxDelayMs: 3_600_000,
          leaseMs: 30_000,
          pollIntervalMs: 2000,
          ambiguousPolicy: 'retry',
          startPaused: false,
          stuckAfterMs: 600_000,
        },
        schedules: {
          tz: 'UTC',
          retriesCron: '*/5 * * * *',
          cleanupCron: '0 2 * * *',
          retentionDays: 7,
          deadLetterDays: 30,
        },
        api: { host: '127.0.0.1', port: 3000, adminTokens: [], metricsToken: null, redacted: [] },
        shutdownGraceMs: 25_000,
        rateLimits: {},
        logLevel: 'info',
      },
      warnings: [],
    });
  });

  test('is frozen to its depths', () => {
    const loaded = load({ ...least, ADMIN_TOKENS: `alice:admin:${'a'.repeat(24)}` });
    const reach = (value: unknown): unknown[] =>
      typeof value === 'object' && value !== null ? [value, ...Object.values(value).flatMap(reach)] : [];
    const objects = reach(loaded.config);
    expect(objects.length).toBeGreaterThan(10);
    expect(objects.filter((object) => !Object.isFrozen(object))).toEqual([]);
    expect(Object.isFrozen(loaded.warnings)).toBe(true);
  });
});

describe('faults', () => {
  test('every fault is reported at once, each with its variable and what to write instead', () => {
    const found = faults({
      BROADCAST_SERVICE_URL: undefined,
      DATABASE_URL: 'mysql://db/bot',
      LEASE_MS: 'soon',
      PORT: '70000',
      LOG_LEVEL: 'loud',
      SCHEDULE_TZ: 'Mars/Olympus',
      CLEANUP_CRON: '0 2 * *',
      BROADCAST_SERVICE_TOKEN: 'two words',
      RETRY_BASE_DELAY_MS: '7200000',
    });
    expect(found).toEqual([
      expect.stringMatching(
        /^DATABASE_URL: .* Write a postgres:\/\/ or postgresql:\/\/ address, such as DATABASE_URL=/,
      ),
      expect.stringMatching(/^BROADCAST_SERVICE_URL is not set\. Write an http.*, such as BROADCAST_SERVICE_URL=http/),
      expect.stringMatching(/^BROADCAST_SERVICE_TOKEN: .*spaces/),
      expect.stringMatching(/^LEASE_MS: "soon" is not a whole number\. .* such as LEASE_MS=30000$/),
      expect.stringMatching(/^SCHEDULE_TZ: "Mars\/Olympus" is not a known time zone/),
      expect.stringMatching(/^CLEANUP_CRON: "0 2 \* \*" does not have five or six fields/),
      expect.stringMatching(/^PORT: "70000" is too large\. Write a whole number from 0 to 65535/),
      expect.stringMatching(/^LOG_LEVEL: "loud" .* Write one of trace, debug, info, warn, error, fatal, silent/),
      expect.stringMatching(/^RETRY_MAX_DELAY_MS \(3600000\) is shorter than RETRY_BASE_DELAY_MS \(7200000\)/),
    ]);
  });

  test('every fault within one list is reported at once', () => {
    expect(faults({ CONCURRENCY: 'Big=1,broadcasts=1001,broadcasts=1,broadcasts=2,none,,*=x' })).toEqual([
      expect.stringMatching(
        /"Big" is not a valid queue; .*1001" does not .* from 0 to 1000; .*"broadcasts" is given twice; "none" has no =; entry 6 is empty; "\*=x" does not/,
      ),
    ]);
  });

  test('a misspelt variable is named beside the fault that it causes', () => {
    expect(faults({ BROADCAST_SERVICE_URL: undefined, BROADCAST_SERVCIE_URL: 'http://localhost' })).toEqual([
      expect.stringContaining('BROADCAST_SERVICE_URL is not set'),
      'BROADCAST_SERVCIE_URL is set, but the daemon does not know it. Was BROADCAST_SERVICE_URL meant?',
    ]);
  });

  test('a long or many-lined value is shown as one short line', () => {
    const [fault] = faults({ LOG_LEVEL: `loud\n${'!'.repeat(5000)}` });
    expect(fault).toContain('loud\\n!!!');
    expect(fault?.length).toBeLessThan(300);
  });
});

describe('the database', () => {
  test('without a URL its place comes from the PG variables, which the pg library reads itself', () => {
    for (const name of ['PGHOST', 'PGDATABASE', 'PGUSER']) {
      expect(config({ DATABASE_URL: undefined, [name]: 'bot' }).database.url).toBeNull();
    }
  });

  test('without a URL and PG variables there is a fault that says how to set it', () => {
    expect(faults({ DATABASE_URL: '' })).toEqual([
      expect.stringMatching(/^DATABASE_URL is not set, .* Write DATABASE_URL=postgres:.*, or set PGHOST/),
    ]);
  });

  test('a PGSERVICE, which the pg library does not read, is no database', () => {
    expect(faults({ DATABASE_URL: undefined, PGSERVICE: 'bot' })).toEqual([expect.stringMatching(/^PGSERVICE is set/)]);
    expect(warnings({ PGSERVICE: 'bot' })).toEqual([expect.stringMatching(/^PGSERVICE is set/)]);
  });

  test.each([
    'postgres://u:p@db:5432/bot',
    'postgresql://db',
    'postgresql:///bot?host=/var/run/postgresql',
    'postgres://u:p@/bot?host=/var/run/postgresql',
    'postgres://u:p%23%2F@db/bot?sslmode=require',
  ])('the address %s is taken as it is', (url) => {
    expect(config({ DATABASE_URL: url }).database.url).toBe(url);
  });

  test.each([
    ['with another scheme', 'http://db/bot'],
    ['without a scheme', 'db/bot'],
    ['with a space', 'postgres://u:p w@db/bot'],
    ['with a raw # in its password', 'postgres://u:pa#w@db/bot'],
    ['with a raw # after digits in its password', 'postgres://u:12#w@db/bot'],
    ['with a raw / after digits in its password', 'postgres://u:12/w@db/bot'],
  ])('an address %s is a fault', (_what, url) => {
    expect(faults({ DATABASE_URL: url })).toEqual([expect.stringMatching(/^DATABASE_URL: it/)]);
  });

  test('a schema is a plain identifier and not one of Postgres', () => {
    expect(config({ DATABASE_SCHEMA: 'bot_2' }).database.schema).toBe('bot_2');
    for (const schema of ['pg_temp', 'Bot', '2bots', 'a-b', 'a"b', 'a'.repeat(64)]) {
      expect(faults({ DATABASE_SCHEMA: schema })).toEqual([expect.stringMatching(/^DATABASE_SCHEMA: /)]);
    }
  });
});

describe('the broadcast service', () => {
  test('its URL loses the slashes at its end, so that a path can follow', () => {
    expect(config({ BROADCAST_SERVICE_URL: 'HTTPS://Bot.example//' }).service.url).toBe('https://bot.example');
    expect(config({ BROADCAST_SERVICE_URL: 'http://localhost/hooks/' }).service.url).toBe('http://localhost/hooks');
  });

  test.each([
    ['a query', 'http://localhost/?'],
    ['a fragment', 'http://localhost/#x'],
    ['credentials', 'http://me:canary@localhost'],
    ['another scheme', 'ftp://localhost'],
    ['a port that is none', 'http://localhost:99999'],
  ])('a URL with %s is a fault that does not repeat it', (_what, url) => {
    const found = faults({ BROADCAST_SERVICE_URL: url });
    expect(found).toEqual([expect.stringMatching(/^BROADCAST_SERVICE_URL: it /)]);
    expect(found.join()).not.toContain('canary');
  });

  test('one signing secret, or several while rotating', () => {
    const [first, second] = [signingSecret(24), signingSecret(64)];
    expect(config({ BROADCAST_SERVICE_SECRET: first }).service.secrets).toEqual([first]);
    expect(config({ BROADCAST_SERVICE_SECRET: `${first}, ${second}` }).service.secrets).toEqual([first, second]);
  });

  test.each([
    ['without whsec_', signingSecret(32).slice(6), 'entry 1 does not begin with whsec_'],
    ['that is not Base64', 'whsec_!!!', 'entry 1 is not Base64'],
    ['that lost its padding', signingSecret(32).replace('=', ''), 'entry 1 is not Base64'],
    ['that is too short', signingSecret(23), 'entry 1 holds 23 bytes'],
    ['that is too long', signingSecret(65), 'entry 1 holds 65 bytes'],
    ['given twice', `${signingSecret(24)},${signingSecret(24)}`, 'entry 2 repeats'],
  ])('a signing secret %s is a fault', (_what, secret, words) => {
    expect(faults({ BROADCAST_SERVICE_SECRET: secret })).toEqual([expect.stringContaining(words)]);
  });
});

describe('secrets in files', () => {
  const secrets = table.filter((setting) => setting.secret);

  test('each secret can be a file, and loses one line break at its end', () => {
    const { config: loaded } = load(
      { ...least, DATABASE_URL: undefined, DATABASE_URL_FILE: '/run/url', BROADCAST_SERVICE_TOKEN_FILE: '/run/token' },
      { '/run/url': 'postgres://db/other\n', '/run/token': 'abc\r\n' },
    );
    expect(loaded.database.url).toBe('postgres://db/other');
    expect(loaded.service.token).toBe('abc');
    for (const { name } of secrets) {
      const path = '/nowhere';
      expect(faults({ [name]: undefined, [`${name}_FILE`]: path }).join()).toContain(`${name}_FILE names a file that`);
    }
  });

  test('a line break at the end of a secret in the environment is dropped as well', () => {
    expect(config({ BROADCAST_SERVICE_TOKEN: 'abc\n' }).service.token).toBe('abc');
  });

  test('a secret given both ways is a fault', () => {
    for (const { name } of secrets) {
      expect(faults({ [name]: 'x', [`${name}_FILE`]: '/run/x' }, { '/run/x': 'x' })).toContain(
        `${name} and ${name}_FILE are both set. Set only one of them.`,
      );
    }
  });

  test('an unreadable or empty file is a fault', () => {
    expect(faults({ BROADCAST_SERVICE_TOKEN_FILE: '/none' })).toEqual([
      expect.stringContaining('cannot be read (ENOENT)'),
    ]);
    expect(faults({ BROADCAST_SERVICE_TOKEN_FILE: '/void' }, { '/void': '\n' })).toEqual([
      expect.stringContaining('BROADCAST_SERVICE_TOKEN_FILE names an empty file'),
    ]);
  });

  test('what is not a secret is not read from a file', () => {
    expect(load({ ...least, LOG_LEVEL_FILE: '/run/level' }, { '/run/level': 'warn' }).config.logLevel).toBe('info');
  });

  test("no secret's value ever appears in a fault or a warning", () => {
    const canary = 'Qj7canary';
    const shapes = [
      canary,
      `${canary} ${canary}`,
      `alice:${canary}:short,${canary}`,
      `${canary}:admin:${canary}`,
      `whsec_${canary},${canary}`,
      `whsec_${Buffer.from(canary).toString('base64')}`,
      `postgres://u:${canary}#x@db/${canary}`,
      `http://${canary}:${canary}@db`,
      `${canary}\u0000\n`,
    ];
    for (const shape of shapes) {
      for (const { name } of secrets) {
        const told = [
          // Its value in the variable, in the file, both, and in place of the file's path.
          ...faults({ [name]: shape }),
          ...faults({ [name]: undefined, [`${name}_FILE`]: '/run/s' }, { '/run/s': shape }),
          ...faults({ [name]: shape, [`${name}_FILE`]: shape }),
          ...faults({ [name]: undefined, [`${name}_FILE`]: shape }),
        ].join('\n');
        expect(told).not.toBe('');
        expect(told).not.toContain('canary');
        expect(told).not.toContain(Buffer.from(canary).toString('base64'));
      }
    }
    const loaded = load({
      DATABASE_URL: `postgres://u:${canary}@db`,
      LISTEN_DATABASE_URL: `postgres://u:${canary}@db`,
      BROADCAST_SERVICE_URL: 'http://bot',
      BROADCAST_SERVICE_TOKEN: canary,
      ADMIN_TOKENS: `alice:admin:${canary}${'x'.repeat(24)}`,
      METRICS_TOKEN: canary.repeat(3),
      BROADCAST_SERVICE_SECRETT: canary,
      LEASE_MS: '1000',
    });
    expect(loaded.warnings).toHaveLength(2);
    expect(loaded.warnings.join()).not.toContain('canary');
  });
});

describe('lists', () => {
  test('a CONCURRENCY that is given replaces the whole default', () => {
    expect(config({ CONCURRENCY: ' broadcasts = 0 , my-own_1=1000, *=3' }).jobs.concurrency).toEqual({
      named: { broadcasts: 0, 'my-own_1': 1000 },
      others: 3,
    });
  });

  test('a CONCURRENCY without * runs nothing of the queues it does not name, and warns', () => {
    expect(config({ CONCURRENCY: 'broadcasts=2' }).jobs.concurrency.others).toBe(0);
    expect(warnings({ CONCURRENCY: 'broadcasts=2' })).toEqual([expect.stringContaining('CONCURRENCY has no *')]);
    expect(warnings({ CONCURRENCY: 'broadcasts=2,*=0' })).toEqual([]);
    expect(warnings({ CONCURRENCY: 'broadcasts=0,*=0' })).toEqual([expect.stringContaining('no job at all')]);
  });

  test('a queue may have a name that every object knows, and is not found when it was not given', () => {
    const { named } = config({}).jobs.concurrency;
    expect(named.constructor).toBeUndefined();
    expect(config({ CONCURRENCY: 'constructor=4,*=1' }).jobs.concurrency.named.constructor).toBe(4);
    expect(Object.getPrototypeOf(config({}).rateLimits)).toBeNull();
  });

  test('admin tokens have a name, a role and a secret that may hold colons', () => {
    const secret = 'a:b:'.repeat(6);
    expect(config({ ADMIN_TOKENS: `alice:admin:${secret},bob:viewer:${'b'.repeat(24)}` }).api.adminTokens).toEqual([
      { name: 'alice', role: 'admin', secret },
      { name: 'bob', role: 'viewer', secret: 'b'.repeat(24) },
    ]);
  });

  test.each([
    ['an unknown role', `a:root:${'x'.repeat(24)}`, 'the role of entry 1'],
    ['a short secret', `a:admin:${'x'.repeat(23)}`, 'the secret of entry 1'],
    ['a name twice', `a:admin:${'x'.repeat(24)},a:viewer:${'y'.repeat(24)}`, 'the name of entry 2 is taken'],
    ['a secret twice', `a:admin:${'x'.repeat(24)},b:viewer:${'x'.repeat(24)}`, 'the secret of entry 2 is taken'],
    ['no name', `:admin:${'x'.repeat(24)}`, 'the name of entry 1'],
    ['a missing part', `admin:${'x'.repeat(24)}`, 'entry 1 is not name:role:secret'],
    ['a comma in a secret', `a:admin:${'x'.repeat(24)},yz`, 'entry 2 is not name:role:secret'],
  ])('admin tokens with %s are a fault', (_what, tokens, words) => {
    expect(faults({ ADMIN_TOKENS: tokens })).toEqual([expect.stringContaining(words)]);
  });

  test('rate limits name a queue or a bot, and messages a second', () => {
    expect(config({ RATE_LIMITS: 'queue:broadcasts=30, bot:shop=0.5,bot:a:b=1' }).rateLimits).toEqual({
      'queue:broadcasts': 30,
      'bot:shop': 0.5,
      'bot:a:b': 1,
    });
    for (const limits of [
      'broadcasts=30',
      'queue:Big=1',
      'bot:=1',
      'bot:a=0',
      'bot:a=-1',
      'bot:a=1e9',
      'bot:a=1,bot:a=2',
    ]) {
      expect(faults({ RATE_LIMITS: limits })).toEqual([expect.stringMatching(/^RATE_LIMITS: /)]);
    }
  });

  test('further job types are new, and each is given once', () => {
    expect(config({ JOB_TYPES: 'send_digest, ping2' }).jobs.types).toEqual(['send_digest', 'ping2']);
    for (const types of ['send_broadcast', 'cleanup_queue', 'a,a', 'Send', 'a-b', 'a,', 'a'.repeat(51)]) {
      expect(faults({ JOB_TYPES: types })).toEqual([expect.stringMatching(/^JOB_TYPES: /)]);
    }
  });
});

describe('plain values', () => {
  test.each([
    ['true', true],
    ['1', true],
    ['Yes', true],
    ['false', false],
    ['0', false],
    ['no', false],
  ])('AUTO_MIGRATE=%s is %s', (text, value) => {
    expect(config({ AUTO_MIGRATE: text }).database.autoMigrate).toBe(value);
  });

  test('a number is whole and within its bounds', () => {
    expect(config({ LEASE_MS: ' 45000 ' }).jobs.leaseMs).toBe(45_000);
    for (const text of ['0', '-5', '1.5', '30s', '1e4', '0x10', '99', '3600001', '9'.repeat(400)]) {
      expect(faults({ LEASE_MS: text })).toEqual([expect.stringMatching(/^LEASE_MS: /)]);
    }
    expect(faults({ SHUTDOWN_GRACE_MS: '0' })).toEqual([expect.stringContaining('is too small')]);
    expect(faults({ BROADCAST_SERVICE_LEVEL: '4' })).toEqual([expect.stringContaining('is too large')]);
  });

  test('an empty variable is like one that is not set', () => {
    const empty = table.filter(({ name, emptyIsOff }) => !(name in least) && !emptyIsOff).map(({ name }) => [name, '']);
    expect(load({ ...Object.fromEntries(empty), ...least })).toEqual(load(least));
  });

  test('an empty cron expression switches the schedule off', () => {
    expect(config({ RETRIES_CRON: '', CLEANUP_CRON: ' ' }).schedules).toMatchObject({
      retriesCron: null,
      cleanupCron: null,
    });
  });

  test('a cron expression has five or six valid fields', () => {
    for (const cron of ['30 */5 * * * *', '0 0 1 jan mon']) {
      expect(config({ RETRIES_CRON: cron }).schedules.retriesCron).toBe(cron);
    }
    for (const cron of ['@daily', '* * * *', '* * * * * * *', '61 * * * *', 'x * * * *', '0 2 31 2 *', '*/0 * * * *']) {
      expect(faults({ RETRIES_CRON: cron })).toEqual([expect.stringMatching(/^RETRIES_CRON: /)]);
    }
  });

  test('a huge range in a cron expression is a fault and not the end of the process', () => {
    expect(faults({ CLEANUP_CRON: '1-999999999 * * * *' })).toEqual([expect.stringContaining('above 59')]);
  });

  test('a time zone is one of the IANA database, not an offset', () => {
    expect(config({ SCHEDULE_TZ: 'Europe/Berlin' }).schedules.tz).toBe('Europe/Berlin');
    expect(faults({ SCHEDULE_TZ: '+02:00' })).toEqual([expect.stringMatching(/^SCHEDULE_TZ: /)]);
  });

  test('a host is a name or an address', () => {
    for (const host of ['0.0.0.0', '::', 'bot.local']) expect(config({ HOST: host }).api.host).toBe(host);
    for (const host of ['http://x', 'a b']) expect(faults({ HOST: host })).toEqual([expect.stringMatching(/^HOST: /)]);
  });
});

describe('warnings', () => {
  test.each([
    ['a short lease', { LEASE_MS: '1999' }, /^LEASE_MS is shorter than 2000/],
    ['a poll in a rush', { POLL_INTERVAL_MS: '50' }, /^POLL_INTERVAL_MS is shorter than 100/],
    [
      'a deadline within the wait',
      { BROADCAST_SERVICE_TIMEOUT_MS: '25000' },
      /^BROADCAST_SERVICE_TIMEOUT_MS \(25000\) leaves no time/,
    ],
    ['dead letters that go first', { DEAD_LETTER_DAYS: '6' }, /^DEAD_LETTER_DAYS is less than RETENTION_DAYS/],
    ['unsigned calls to another machine', { BROADCAST_SERVICE_URL: 'http://bot:80' }, /^Neither BROADCAST_SERVICE_SEC/],
  ])('%s is accepted with a warning', (_what, env, words) => {
    expect(warnings(env)).toEqual([expect.stringMatching(words)]);
  });

  test('the default policy for ambiguous calls and a signed service elsewhere need none', () => {
    expect(
      warnings({ AMBIGUOUS_POLICY: 'retry', AUTO_MIGRATE: 'no', POLL_INTERVAL_MS: '100', LEASE_MS: '2000' }),
    ).toEqual([]);
    expect(warnings({ BROADCAST_SERVICE_URL: 'http://bot', BROADCAST_SERVICE_SECRET: signingSecret(32) })).toEqual([]);
  });

  test.each([
    ['RATE_LIMITS', 'bot:a=1'],
    ['METRICS_TOKEN', 'x'.repeat(24)],
  ])('%s is checked, and needs no warning', (name, good) => {
    expect(warnings({ [name]: good })).toEqual([]);
    expect(faults({ [name]: '?' })).toEqual([expect.stringContaining(`${name}: `)]);
  });

  test.each([
    ['POLL_INTERVALL_MS', 'POLL_INTERVAL_MS'],
    ['CONCURENCY', 'CONCURRENCY'],
    ['LEASE', 'LEASE_MS'],
    ['BROADCAST_SERVICE_TIMEOUT', 'BROADCAST_SERVICE_TIMEOUT_MS'],
    ['BROADCAST_SERVICE_SERCET', 'BROADCAST_SERVICE_SECRET'],
    ['broadcast_service_token', 'BROADCAST_SERVICE_TOKEN'],
    ['BROADCAST_SERVICE_TOKEN_FIEL', 'BROADCAST_SERVICE_TOKEN_FILE'],
  ])('%s is taken for a misspelt %s', (written, meant) => {
    expect(warnings({ [written]: 'x' })).toEqual([
      `${written} is set, but the daemon does not know it. Was ${meant} meant?`,
    ]);
  });

  test('other variables are left alone, also those that Kubernetes sets for a service called broadcast', () => {
    const others = {
      PATH: '/bin',
      HOSTNAME: 'x',
      POST: 'x',
      BROADCAST_SERVICE_HOST: '10.0.0.1',
      BROADCAST_SERVICE_PORT: '80',
      BROADCAST_PORT_80_TCP: 'tcp://10.0.0.1:80',
      DATABASE_USER: 'x',
      DATABASE_URI: 'x', // near to DATABASE_URL, which is set
      CONCURENCY: '',
    };
    expect(warnings(others)).toEqual([]);
  });
});

describe('the table of settings', () => {
  test('has a default or an example for every variable, and each name once', () => {
    expect(table.filter((setting) => setting.default === undefined && setting.example === undefined)).toEqual([]);
    expect(new Set(table.map(({ name }) => name)).size).toBe(table.length);
  });

  test("every default passes its own format, and yields what that format's schema says", () => {
    for (const { name, format, default: standard } of table) {
      if (standard === undefined) continue;
      const reading = format.read(standard);
      expect({ name, valid: 'value' in reading && Value.Check(format.type, reading.value) }).toEqual({
        name,
        valid: true,
      });
    }
  });

  test.each(generated.map(({ path, render }) => ({ path, render })))('$path is current', ({ path, render }) => {
    const present = readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');
    expect(render(present)).toBe(present);
  });

  test('.env.example loads as it stands, and its commented defaults change nothing', () => {
    const lines = readFileSync(new URL('../../.env.example', import.meta.url), 'utf8').split('\n');
    const assignments = (pattern: RegExp) =>
      Object.fromEntries(lines.flatMap((line) => (pattern.exec(line) ? [line.replace('# ', '').split(/=(.*)/s)] : [])));
    const given = assignments(/^[A-Z_]+=/);
    const shown = assignments(/^(# )?[A-Z_]+=/);
    const defaults = Object.fromEntries(
      table.flatMap(({ name, default: standard }) => (standard ? [[name, shown[name]]] : [])),
    );
    expect(Object.keys(shown)).toEqual(table.map(({ name }) => name));
    expect(load(given).warnings).toEqual([]);
    expect(load({ ...given, ...defaults })).toEqual(load(given));
  });

  test('whatever the variables hold, loading ends with a configuration or a ConfigError', () => {
    const names = table.flatMap(({ name }) => [name, `${name}_FILE`]).concat('PGHOST', 'PGSERVICE', 'BROADCAST_X');
    const shaped = fc.stringMatching(/^[a-z:=,*@/?#%._\-\d ]{0,40}$/);
    const text = fc.option(
      fc.oneof(
        fc.string({ unit: 'binary', maxLength: 200 }),
        shaped,
        shaped.map((rest) => `postgres://${rest}`),
        shaped.map((rest) => `http://${rest}`),
        shaped.map((rest) => `whsec_${rest}`),
        fc.constantFrom('constructor=1,__proto__=2', 'a:admin:__proto__', 'toString', '9'.repeat(400)),
      ),
      { nil: undefined },
    );
    const readable = fc.func(fc.string());
    fc.assert(
      fc.property(fc.record(Object.fromEntries(names.map((name) => [name, text]))), readable, (env, readFile) => {
        try {
          expect(Object.isFrozen(loadConfig(env, readFile).config)).toBe(true);
        } catch (error) {
          if (!(error instanceof ConfigError)) throw error;
          expect(error.faults.length).toBeGreaterThan(0);
        }
      }),
    );
  });

  test('each variable alone survives anything', () => {
    const anything = fc.oneof(fc.string({ unit: 'binary' }), fc.stringMatching(/^[\d*/,\-lw# ]{0,30}$/), fc.string());
    fc.assert(
      fc.property(fc.constantFrom(...table), anything, (setting, text) => {
        expect(Array.isArray(faults({ [setting.name]: text }))).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });
});
