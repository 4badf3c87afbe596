/**
 * `broadcastd jobs retry`, `cancel`, `pause`, `resume` and `resend`: one job after the other by their ids, or a whole
 * group that a filter finds, fifty at a stroke.
 */
import { type Command, Option } from 'commander';
import type { BulkAction, JobAction } from '../db/reports/changes.js';
import { integer } from './arguments.js';
import {
  CommandError,
  EXIT,
  isSqlState,
  jobIdOf,
  type OpenQueue,
  printJson,
  type Surroundings,
  withQueue,
} from './commands.js';
import { type FilterFlags, filtered, filterOf } from './job-filter.js';
import { many, printTable } from './table.js';
import { bar } from './terminal.js';

interface GroupFlags extends FilterFlags {
  readonly limit: number;
  readonly dryRun?: true;
  readonly reason?: string;
  readonly json?: true;
}

export function addJobActions(jobs: Command, surroundings: Surroundings): void {
  group(
    'retry',
    'from where they stood: failed, cancelled and waiting jobs. A group is of failed ones, unless --status says otherwise',
    'failed',
  );
  group('cancel', 'for good; a call that is open is abandoned', null);

  function group(action: BulkAction, meaning: string, usual: string | null): void {
    const command = filtered(jobs.command(action))
      .description(`${action} jobs by their ids, or a group by a filter: ${meaning}`)
      .argument('[ids...]', 'the jobs; none: those that the filter finds')
      .option('--limit <number>', 'of a group, change at most so many', integer(1, 1_000_000), 10_000)
      .option('--dry-run', 'of a group, only say how many there are');
    if (action === 'cancel') command.option('--reason <text>', "why, for the job's row");
    command.option('--json', 'print one JSON document').action((ids: string[], flags: GroupFlags) => {
      if (ids.length > 0) {
        if (isFiltered(flags)) throw usage('give ids or a filter, not both');
        if (flags.dryRun) throw usage('--dry-run is for groups: leave it out, or give a filter instead of ids');
        return actOnEach(surroundings, action, ids, flags.reason ?? null, flags.json);
      }
      if (flags.reason !== undefined) throw usage('--reason is for jobs by their ids: a group has none');
      if (!isFiltered(flags)) throw usage(`give the ids of jobs, or a filter such as --status ${usual ?? 'pending'}`);
      return actOnGroup(surroundings, action, { ...flags, ...(usual && !flags.status ? { status: usual } : {}) });
    });
  }

  jobs
    .command('pause')
    .description('pause jobs: no daemon calls for them until they are resumed; what is open goes on to its end')
    .argument('<ids...>', 'the jobs')
    .option('--reason <text>', "why, for the job's row")
    .option('--json', 'print one JSON document')
    .action((ids: string[], flags: { reason?: string; json?: true }) =>
      actOnEach(surroundings, 'pause', ids, flags.reason ?? null, flags.json),
    );
  jobs
    .command('resume')
    .description('resume paused jobs, where they stood')
    .argument('<ids...>', 'the jobs')
    .addOption(scope('go on with a new step, for these people only'))
    .option('--json', 'print one JSON document')
    .action((ids: string[], flags: { scope?: string; json?: true }) =>
      actOnEach(surroundings, 'resume', ids, flags.scope ?? null, flags.json),
    );
  jobs
    .command('resend')
    .description(
      'begin again, also what is completed, for the people of a scope. For services of level 2 and above; one with a ' +
        'ledger sends to nobody who has it already, whatever the scope',
    )
    .argument('<ids...>', 'the jobs')
    .addOption(scope('for whom; all: everybody whom the service has not handled yet').makeOptionMandatory())
    .option('--json', 'print one JSON document')
    .action(async (ids: string[], flags: { scope: string; json?: true }) => {
      await actOnEach(surroundings, 'resend', ids, flags.scope, flags.json);
      if (flags.scope !== 'all') return;
      surroundings.terminal.complain('Mind: a service with a ledger sends to nobody whom it has handled already.');
    });
}

function scope(meaning: string): Option {
  return new Option('--scope <scope>', meaning).choices(['pending', 'failed', 'unknown', 'all']);
}

function isFiltered(flags: FilterFlags): boolean {
  const { status, type, queue, data, error, errorCode, since } = flags;
  return [status, type, queue, data, error, errorCode, since].some((given) => given !== undefined);
}

function usage(message: string): CommandError {
  return new CommandError(EXIT.usage, message);
}

interface Outcome {
  readonly job_id: string;
  readonly status: string | null;
  readonly error: string | null;
  readonly found: boolean;
}

async function actOnEach(
  surroundings: Surroundings,
  action: JobAction,
  ids: readonly string[],
  detail: string | null,
  json = false,
): Promise<void> {
  const jobIds = ids.map(jobIdOf);
  const outcomes = await withQueue(surroundings, async (queue) => {
    const all: Outcome[] = [];
    for (const jobId of jobIds) all.push(await actOnOne(queue, action, jobId, detail));
    return all;
  });
  const { terminal } = surroundings;
  if (json) printJson(terminal, { jobs: outcomes.map(({ found: _, ...outcome }) => outcome) });
  else {
    printTable(
      terminal,
      [
        { title: 'job', text: ({ job_id }) => job_id },
        { title: 'now', text: ({ status }) => status },
        { title: 'refused because', text: ({ error }) => error ?? '', colour: () => 'red' },
      ],
      outcomes,
    );
  }
  const refused = outcomes.filter(({ error }) => error !== null);
  if (refused.length > 0) surroundings.endWith(refused.every(({ found }) => !found) ? EXIT.notFound : EXIT.failed);
}

async function actOnOne(
  { reports, by }: OpenQueue,
  action: JobAction,
  jobId: string,
  detail: string | null,
): Promise<Outcome> {
  try {
    return { job_id: jobId, status: await reports.actOnJob(action, jobId, detail, by), error: null, found: true };
  } catch (error) {
    if (isSqlState(error, 'P0002')) return { job_id: jobId, status: null, error: 'there is no such job', found: false };
    if (isSqlState(error, '55000')) return { job_id: jobId, status: null, error: error.message, found: true };
    if (isSqlState(error instanceof Error ? error.cause : null, '23505')) {
      const taken = 'another live job has its unique key: let that one end, or cancel it';
      return { job_id: jobId, status: null, error: taken, found: true };
    }
    throw error;
  }
}

/** Jobs of one page of the search, and of one stroke. */
const PAGE = 10_000;
const STROKE = 50;

async function actOnGroup(surroundings: Surroundings, action: BulkAction, flags: GroupFlags): Promise<void> {
  const { terminal } = surroundings;
  const stop = surroundings.signal();
  const filter = filterOf(flags);
  const done = { matched: 0, changed: 0, skipped: 0, more: false };
  await withQueue(surroundings, async ({ reports, by }) => {
    // The newest first, and what is changed lies behind: nothing is met twice.
    let from: string | null = null;
    do {
      const room = Math.min(flags.limit - done.matched, PAGE);
      const page: { names: string[]; next: string | null } = await reports.named(filter, from, room);
      from = page.next;
      for (let at = 0; at < page.names.length && !stop.aborted; at += STROKE) {
        const stroke = page.names.slice(at, at + STROKE);
        done.matched += stroke.length;
        if (!flags.dryRun) {
          const { changed, skipped } = await reports.actOnJobs(action, stroke, by);
          done.changed += changed;
          done.skipped += skipped;
        }
        terminal.moving(`${action} ${bar(at + stroke.length, page.names.length)} ${many(done.matched, 'job')}`);
      }
    } while (from !== null && done.matched < flags.limit && !stop.aborted);
    done.more = from !== null;
  }).finally(() => terminal.moving(null));
  if (flags.json) printJson(terminal, { ...done, dry_run: flags.dryRun ?? false, interrupted: stop.aborted });
  else if (flags.dryRun) terminal.print(`${many(done.matched, 'job')} would be meant; nothing was changed.`);
  else terminal.print(`${many(done.matched, 'job')} matched: ${done.changed} changed, ${done.skipped} skipped.`);
  if (stop.aborted) {
    terminal.complain('Interrupted: what was changed stays so, and the same command goes on with the rest.');
    surroundings.endWith(EXIT.failed);
  } else if (done.more) terminal.complain(`There may be more than --limit ${flags.limit}: run it again.`);
}
