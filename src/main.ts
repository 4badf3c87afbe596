#!/usr/bin/env node
/**
 * The composition root: the only file that reads process.*, listens to signals and knows exit codes.
 * 0 done, 1 failed, 2 usage, 3 not found, 69 database unreachable, 78 configuration (sysexits.h).
 */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { hostname, userInfo } from 'node:os';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { integer } from './cli/arguments.js';
import { CommandError, EXIT, type Surroundings } from './cli/commands.js';
import { addCompletion } from './cli/completion.js';
import { CONTRACT_TEST_HELP, type ContractTestOptions, contractTest, UsageError } from './cli/contract-test.js';
import { addDoctor } from './cli/doctor.js';
import { addEnqueue } from './cli/enqueue.js';
import { addJobs } from './cli/jobs.js';
import { migrateCommand } from './cli/migrate.js';
import { addGates, addLimits, addQueues } from './cli/queues.js';
import type { Role } from './cli/start.js';
import { addStatus } from './cli/status.js';
import { openTerminal } from './cli/terminal.js';
import { addWindows } from './cli/windows.js';
import { loadConfig } from './config.js';
import { SchemaError } from './db/migrate.js';
import { ConfigError, DatabaseUnavailable, DataRefused } from './errors.js';
import { describeFlaws, type Flaw, isFlaw } from './sandbox/flaws.js';

/** By SQLSTATE: what an administrator has to change when the database refuses. */
const REFUSALS: Record<string, string> = {
  '28P01': 'Check the user and the password in DATABASE_URL.',
  '28000': 'Check the user in DATABASE_URL, and whether pg_hba.conf lets it in from here.',
  '3D000': 'Check the name of the database in DATABASE_URL, or create it.',
  '42501':
    'Migrations need the owner of the tables (MIGRATE_DATABASE_URL) and, since PostgreSQL 15, GRANT CREATE ON SCHEMA; ' +
    'all else the worker of deploy/roles.sql, which is to be run again after an upgrade.',
};

const version: string = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version;
const read = (path: string) => readFileSync(path, 'utf8');
const terminal = openTerminal(process, process.env);
const { print, complain } = terminal;
// Whoever reads us may have enough, as `| head` does.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) =>
    process.exit(error.code === 'EPIPE' ? (process.exitCode ?? 0) : EXIT.failed),
  );
}

const program = new Command('broadcastd')
  .description('A broadcast queue for bots: a row inserted into Postgres becomes a broadcast sent.')
  .version(version)
  .exitOverride()
  .configureOutput({ writeErr: (text) => process.stderr.write(text) });

program
  .command('version')
  .description('print the version')
  .action(() => void print(version));

program
  .command('start')
  .description('run the worker and the API until SIGTERM or SIGINT')
  .addOption(
    new Option(
      '--role <role>',
      'worker: claims jobs, and has no API but /livez, /readyz and /metrics; api: the reverse',
    )
      .choices(['worker', 'api', 'all'])
      .default('all'),
  )
  .action(({ role }: { role: Role }) => start(role));

program
  .command('migrate')
  .description('bring the database schema up to date, and an older table over to it')
  .option('--plan', 'say what would be done, and change nothing')
  .option('--legacy-timezone <zone>', 'the zone that the times of an older table were meant in, such as Europe/Berlin')
  .option('--json', 'print one JSON document')
  .action(async (options: { plan?: true; legacyTimezone?: string; json?: true }) => {
    const { config, warnings } = loadConfig({ BROADCAST_SERVICE_URL: 'http://127.0.0.1', ...process.env }, read);
    for (const warning of warnings) complain(`warning: ${warning}`);
    const { migrateUrl, url, schema } = config.database;
    await migrateCommand(migrateUrl ?? url, schema, { ...options, print, complain });
  });

program
  .command('sandbox')
  .description('run the reference broadcast service, for trying things out')
  .option('--port <number>', 'port to listen on', integer(0, 65_535), 4000)
  .option('--host <address>', 'address to listen on', '127.0.0.1')
  .option('--recipients <number>', 'sample users to make when there are none', integer(0, 10_000_000), 1000)
  .option('--level <level>', 'level of the service protocol to speak: 0, 1, 2 or 3', integer(0, 3), 2)
  .option('--per-second <number>', 'messages a second of each call (default: as fast as it can)', integer(1, 1_000_000))
  .option(
    '--daily-limit <number>',
    'broadcasts that a person may get on one day; more are skipped as frequency_limit',
    integer(1, 1_000_000),
    100,
  )
  .option('--flaw <name>', 'a rule of the contract to break, see below; may be given several times', flaw)
  .addHelpText('after', () => `\nFlaws, for trying out a check of the contract:\n${describeFlaws()}`)
  .action(async (options: SandboxFlags) => {
    const { flaw: flaws, ...rest } = options;
    const { sandbox } = await import('./cli/sandbox.js');
    return sandbox(process.env, { ...rest, flaws, signal: stopSignal(), print });
  });

interface SandboxFlags {
  port: number;
  host: string;
  recipients: number;
  level: 0 | 1 | 2 | 3;
  perSecond?: number;
  dailyLimit: number;
  flaw?: Flaw[];
}

program
  .command('contract-test')
  .description('try whether a broadcast service keeps the service protocol; it is made to send for real')
  .argument('<url>', 'the base URL of the service, as in BROADCAST_SERVICE_URL')
  .option('--level <level>', 'test up to this level (default: the one that the service claims)', integer(0, 3))
  .option('--secret <whsec>', 'the signing secret (better as BROADCAST_SERVICE_SECRET, which ps does not show)')
  .option('--token <token>', 'the bearer token (better as BROADCAST_SERVICE_TOKEN)')
  .option('--broadcast <id>', 'an existing broadcast, where the service knows no others')
  .option('--segment <id>', 'a segment; the job type is then send_segment_broadcast')
  .option('--job-type <type>', 'the job type to call (default: send_broadcast)')
  .option('--test-recipients <ids>', 'whom a test send may go to, with commas (default: 1)')
  .option('--restart-cmd <command>', 'kills the service hard and starts it again')
  .option('--slow-messenger', 'each message takes 50 ms or more here, see below')
  .option('--only <checks>', 'only these checks, with commas, and those that they build upon')
  .option('--timeout <seconds>', 'for each check', integer(1, 3600), 120)
  .option('--json', 'print one JSON document')
  .addHelpText('after', CONTRACT_TEST_HELP)
  .action(async (url: string, options: ContractTestOptions, command: Command) => {
    const surroundings = { env: process.env, version, signal: stopSignal(), print, complain };
    try {
      if (!(await contractTest(url, options, surroundings))) process.exitCode = EXIT.failed;
    } catch (error) {
      if (error instanceof UsageError) command.error(`error: ${error.message}`);
      throw error;
    }
  });

const surroundings: Surroundings = {
  env: process.env,
  read,
  terminal,
  version,
  nodeVersion: process.version,
  user: nameOfUser(),
  signal: stopSignal,
  endWith(code) {
    process.exitCode = code;
  },
};
addEnqueue(program, surroundings);
addStatus(program, surroundings);
addJobs(program, surroundings);
addQueues(program, surroundings);
addLimits(program, surroundings);
addGates(program, surroundings);
addWindows(program, surroundings);
addDoctor(program, surroundings);
addCompletion(program, print);

await run();

async function run(): Promise<void> {
  try {
    await program.parseAsync(process.argv);
  } catch (error) {
    process.exitCode = explain(error);
  }
}

async function start(role: Role): Promise<void> {
  // Only here, as the sandbox above: no other command waits until all of the daemon is read.
  const [{ startDaemon }, { createLogger, maskOf }] = await Promise.all([
    import('./cli/start.js'),
    import('./logger.js'),
  ]);
  const { config, warnings } = loadConfig(process.env, read);
  const masked = maskOf(config);
  const { logger, flush } = createLogger({ level: config.logLevel, pretty: process.stdout.isTTY === true, masked });
  for (const warning of warnings) logger.warn(warning);
  process.on('uncaughtException', (error) => {
    // A bug; the jobs at hand are left to their leases, and whoever runs us starts us again.
    logger.fatal({ error: error.message, stack: error.stack }, 'uncaught error: ending');
    flush();
    process.exit(EXIT.failed);
  });
  const signal = stopSignal();
  try {
    const daemon = await startDaemon(config, {
      role,
      logger,
      masked,
      signal,
      random: Math.random,
      worker: {
        id: `${hostname().slice(0, 40)}-${process.pid}-${randomBytes(3).toString('hex')}`,
        version,
        host: hostname(),
        pid: process.pid,
      },
    });
    await aborted(signal);
    await daemon.stop();
  } finally {
    flush();
  }
}

/** Fires at the first SIGTERM or SIGINT; the second ends the process at once. */
function stopSignal(): AbortSignal {
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) {
    process.on(name, () => {
      if (stop.signal.aborted) process.exit(EXIT.failed);
      stop.abort();
    });
  }
  return stop.signal;
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}

/** Says what happened and what to do about it. @returns the exit code */
function explain(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT.usage;
  if (error instanceof CommandError) {
    complain(error.exit === EXIT.usage ? `error: ${error.message}` : error.message);
    return error.exit;
  }
  if (error instanceof ConfigError) {
    complain('broadcastd cannot start with this configuration:');
    for (const fault of error.faults) complain(`  - ${fault}`);
    return EXIT.configuration;
  }
  if (error instanceof DatabaseUnavailable) {
    complain(`broadcastd cannot reach the database: ${error.message}`);
    complain('  Check DATABASE_URL (or PGHOST, PGUSER, …) and that PostgreSQL accepts connections from here.');
    return EXIT.database;
  }
  if (error instanceof DataRefused) {
    complain(`The database refuses a value: ${error.message}.`);
    return EXIT.failed;
  }
  if (error instanceof SchemaError) {
    complain(`broadcastd does not fit this database: ${error.message}`);
    return EXIT.failed;
  }
  if (isNoAddress(error)) {
    const why = error.code === 'EADDRINUSE' ? 'it is taken' : error.code;
    complain(`broadcastd cannot listen on ${error.address}:${error.port}: ${why}.`);
    complain('  Set HOST and PORT (of the sandbox: --host and --port) to an address of this machine that is free.');
    return EXIT.failed;
  }
  const refusal = databaseRefusal(error);
  if (refusal) {
    complain(`broadcastd is refused by the database: ${refusal.message}`);
    complain(`  ${refusal.advice}`);
    return refusal.exit;
  }
  complain(`broadcastd failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  return EXIT.failed;
}

function isNoAddress(error: unknown): error is Error & { code: string; address: string; port: number } {
  return error instanceof Error && 'syscall' in error && error.syscall === 'listen';
}

/** Null: it is something else. */
function databaseRefusal(error: unknown): { message: string; advice: string; exit: number } | null {
  if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'string') return null;
  const advice = REFUSALS[error.code];
  if (advice === undefined) return null;
  return { message: error.message, advice, exit: error.code === '42501' ? EXIT.failed : EXIT.database };
}

/** There may be none: a container may run as a number. */
function nameOfUser(): string {
  try {
    return userInfo().username;
  } catch {
    return String(process.getuid?.() ?? 'unknown');
  }
}

function flaw(name: string, before: Flaw[] = []): Flaw[] {
  if (isFlaw(name)) return [...before, name];
  throw new InvalidArgumentError(`it must be one of these\n${describeFlaws()}`);
}
