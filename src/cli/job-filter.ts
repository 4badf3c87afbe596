/** Which jobs are meant, as options of a command. */
import { type Command, Option } from 'commander';
import { anyJob } from '../db/reports/jobs.js';
import type { JobFilter } from '../db/reports.js';
import { pair, sinceOf } from './arguments.js';
import { queueNameOf } from './commands.js';

const STATUSES = ['pending', 'processing', 'retry', 'paused', 'completed', 'failed', 'cancelled'];

export interface FilterFlags {
  readonly status?: string;
  readonly type?: string;
  readonly queue?: string;
  readonly data?: Readonly<Record<string, string>>;
  readonly error?: string;
  readonly errorCode?: string;
  readonly since?: string;
}

/** With the options that say which jobs are meant. */
export function filtered(command: Command): Command {
  return command
    .addOption(new Option('--status <status>', 'in this status').choices(STATUSES))
    .option('--type <type>', 'of this job type')
    .option('--queue <name>', 'in this queue', queueNameOf)
    .option('--data <name=value>', 'with this member in the payload, such as broadcast_id=42 (several times)', pair)
    .option('--error <text>', 'whose error message contains this')
    .option('--error-code <code>', 'whose last attempt ended with this code, such as http_500')
    .option('--since <time>', 'created since then: 2h, 3d, or 2027-01-31T09:00:00Z', sinceOf);
}

export function filterOf(flags: FilterFlags): JobFilter {
  return {
    ...anyJob,
    status: flags.status ?? null,
    job_type: flags.type ?? null,
    queue_name: flags.queue ?? null,
    data: flags.data ?? {},
    error: flags.error ?? null,
    error_code: flags.errorCode ?? null,
    created_from: flags.since ?? null,
  };
}
