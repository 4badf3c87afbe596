/**
 * `broadcastd enqueue`: one job, as a bot would add it. The payload's text goes to the database as it was given, so large
 * numbers keep their digits.
 */
import type { Command } from 'commander';
import { DataRefused } from '../errors.js';
import { durationOf, instantOf, integer, shortText } from './arguments.js';
import { CommandError, EXIT, isSqlState, printJson, queueNameOf, type Surroundings, withQueue } from './commands.js';
import { moment, printFields } from './table.js';

interface EnqueueFlags {
  readonly queue?: string;
  /** Milliseconds. */
  readonly delay?: number;
  readonly at?: string;
  readonly priority?: number;
  readonly maxAttempts?: number;
  /** False: none. */
  readonly uniqueKey?: string | false;
  readonly expiresAt?: string;
  readonly dryRun?: true;
  readonly window?: string;
  readonly json?: true;
}

export function addEnqueue(program: Command, surroundings: Surroundings): void {
  program
    .command('enqueue')
    .description('add a job, as a bot would')
    .argument('<type>', 'the job type, such as send_broadcast')
    .argument('<json>', 'the payload: JSON, @file, or - for standard input, such as \'{"broadcast_id": 42}\'')
    .option('--queue <name>', "another queue than the job type's usual one", queueNameOf)
    .option('--delay <duration>', 'due so much later: 90s, 10m, 2h, 3d', durationOf)
    .option('--at <time>', 'due then, such as 2027-01-31T09:00:00+01:00', instantOf)
    .option('--priority <number>', 'higher runs first (usually 0)', integer(-32_768, 32_767))
    .option('--max-attempts <number>', 'failures in a row until it is given up (usually 3)', integer(1, 1_000_000))
    .option('--unique-key <text>', 'while a live job has this key in its queue, no other is added', shortText)
    .option('--no-unique-key', 'also where the same broadcast is queued already')
    .option('--expires-at <time>', 'not to be started after this', instantOf)
    .option('--dry-run', 'have the service count the people, and send nothing')
    .option('--window <json>', 'hours to send in: \'{"from": "09:00", "to": "21:00", "time_zone": "Europe/Berlin"}\'')
    .option('--json', 'print one JSON document')
    .action((type: string, payload: string, flags: EnqueueFlags) => enqueue(surroundings, type, payload, flags));
}

async function enqueue(surroundings: Surroundings, type: string, given: string, flags: EnqueueFlags): Promise<void> {
  if (flags.delay !== undefined && flags.at !== undefined) throw usage('give --delay or --at, not both');
  if (!/^[a-z][a-z0-9_]{0,49}$/.test(type)) {
    throw usage(`${JSON.stringify(type.slice(0, 60))} is no job type: those are of a-z, 0-9 and _, a letter first`);
  }
  const window = flags.window === undefined ? null : checkedObject(flags.window, '--window');
  const { terminal } = surroundings;

  await withQueue(surroundings, async ({ reports, by, maxPayloadBytes }) => {
    const payload = checkedObject(await payloadText(surroundings, given, maxPayloadBytes), 'the payload');
    const bytes = Buffer.byteLength(payload);
    if (bytes > maxPayloadBytes) {
      throw usage(`the payload has ${bytes} bytes, and a daemon passes on ${maxPayloadBytes} (MAX_PAYLOAD_BYTES)`);
    }
    const members: Record<string, unknown> = {
      job_type: type,
      queue: flags.queue,
      delay: flags.delay === undefined ? undefined : `${flags.delay} milliseconds`,
      scheduled_at: flags.at,
      priority: flags.priority,
      max_attempts: flags.maxAttempts,
      // Commander has true here where neither of the two options was given.
      unique_key: flags.uniqueKey === false ? null : typeof flags.uniqueKey === 'string' ? flags.uniqueKey : undefined,
      expires_at: flags.expiresAt,
      dry_run: flags.dryRun,
    };
    const rest = JSON.stringify(members).slice(1);
    const hours = window === null ? '' : `"send_window":${window},`;
    const { job: jobId, verdict } = await reports
      .request(by, null, `{"job_data":${payload},${hours}${rest}`)
      .catch(explained);
    const job = jobId === null ? null : await reports.job(jobId);
    if (!job) throw new CommandError(EXIT.failed, 'The job was added, and is gone already.');

    const { history: _, ...row } = job;
    if (flags.json) return printJson(terminal, { inserted: verdict === 'inserted', job: row });
    printFields(terminal, [
      [verdict === 'inserted' ? 'enqueued' : 'was queued already', job.job_id],
      ['queue', job.queue_name],
      ['status', job.status],
      ['scheduled', moment(job.scheduled_at)],
      ['waits', job.waiting_because],
    ]);
  });
}

/** @throws CommandError */
async function payloadText({ terminal, read }: Surroundings, given: string, maxBytes: number): Promise<string> {
  try {
    if (given === '-') return await terminal.readInput(maxBytes);
    return given.startsWith('@') ? read(given.slice(1)) : given;
  } catch (error) {
    throw usage(`the payload cannot be read: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** The text as it is, if it is one JSON object. */
function checkedObject(text: string, what: string): string {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw usage(`${what} is no JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return text;
  throw usage(`${what} must be a JSON object, such as {"broadcast_id": 42}`);
}

function explained(error: unknown): never {
  if (!(error instanceof DataRefused)) throw error;
  const { cause } = error;
  // Of a value: what is wrong with it. (That of a constraint would repeat the whole row.)
  const isOfValue = isSqlState(cause, '22P05', '22P02', '22021') && 'detail' in cause && cause.detail;
  throw usage(
    `the database refuses the job: ${error.message}${isOfValue ? `: ${cause.detail}` : ''}`.replace(/\.$/, ''),
  );
}

function usage(message: string): CommandError {
  return new CommandError(EXIT.usage, `${message}.`);
}
