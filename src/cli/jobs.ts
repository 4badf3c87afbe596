/** `broadcastd jobs`: finds jobs, and shows one with all that is known of it. What changes them is in job-actions.ts. */
import type { Command } from 'commander';
import type { Reports } from '../db/reports.js';
import { integer } from './arguments.js';
import { jobIdOf, noSuchJob, printJson, type Surroundings, withQueue } from './commands.js';
import { addJobActions } from './job-actions.js';
import { type FilterFlags, filtered, filterOf } from './job-filter.js';
import { countersOf, progressLines } from './progress.js';
import { ago, duration, moment, printFields, printTable, statusColour } from './table.js';
import { plain, type Terminal } from './terminal.js';
import { addWatch } from './watch.js';

export function addJobs(program: Command, surroundings: Surroundings): void {
  const jobs = program.command('jobs').description('find, show and change jobs');
  const { terminal } = surroundings;

  filtered(jobs.command('list'))
    .description('jobs, the newest first')
    .option('--limit <number>', 'at most so many', integer(1, 500), 50)
    .option('--cursor <id>', 'go on where an earlier list ended', integer(1, Number.MAX_SAFE_INTEGER))
    .option('--json', 'print one JSON document')
    .action((options: FilterFlags & { limit: number; cursor?: number; json?: true }) =>
      withQueue(surroundings, async ({ reports }) => {
        const from = options.cursor === undefined ? null : String(options.cursor);
        const page = await reports.page(filterOf(options), from, options.limit);
        if (options.json) return printJson(terminal, { jobs: page.jobs, next_cursor: page.next });
        printJobs(terminal, page.jobs);
        if (page.next !== null) terminal.complain(`There may be more: --cursor ${page.next}`);
      }),
    );

  jobs
    .command('show')
    .description('one job: its row, how far it is, why it waits, what its attempts told')
    .argument('<id>', "the job's id")
    .option('--json', 'print one JSON document')
    .action((id: string, options: { json?: true }) => {
      const jobId = jobIdOf(id);
      return withQueue(surroundings, async ({ reports }) => {
        const job = await reports.job(jobId);
        if (!job) throw noSuchJob(jobId);
        if (options.json) printJson(terminal, job);
        else printJob(terminal, job);
      });
    });

  addJobActions(jobs, surroundings);
  addWatch(jobs, surroundings);
}

type Listed = Awaited<ReturnType<Reports['page']>>['jobs'][number];
type Shown = NonNullable<Awaited<ReturnType<Reports['job']>>>;

function printJobs(terminal: Terminal, jobs: readonly Listed[]): void {
  if (jobs.length === 0) {
    terminal.complain('No job fits.');
    return;
  }
  printTable(
    terminal,
    [
      { title: 'job', text: ({ job_id }) => job_id },
      { title: 'status', text: ({ status }) => status, colour: ({ status }) => statusColour(status) },
      { title: 'queue', text: ({ queue_name }) => queue_name },
      { title: 'type', text: ({ job_type }) => job_type },
      { title: 'attempts', text: ({ attempts, max_attempts }) => `${attempts}/${max_attempts}`, right: true },
      { title: 'created', text: ({ created_at }) => ago(created_at), right: true },
      { title: 'about', text: about },
    ],
    jobs,
  );
}

/** The one thing to know about a job in a list. */
function about({ job_data, progress, hold_reason, error_message, flags }: Listed): string {
  const { total, processed } = countersOf(progress);
  const told = [
    job_data === null ? null : job_data.text,
    processed === null ? null : `${processed} of ${total ?? '?'}`,
    ...flags,
    hold_reason,
    error_message,
  ];
  return told.filter((words) => words !== null).join(' · ');
}

function printJob(terminal: Terminal, job: Shown): void {
  const status = statusColour(job.status);
  terminal.print(`${job.job_type} ${job.job_id}`);
  terminal.print(status === null ? job.status : terminal.paint(status, job.status));
  for (const line of progressLines(job)) terminal.print(line);
  if (job.waiting_because !== null) terminal.print(terminal.paint('yellow', `waits: ${plain(job.waiting_because)}`));
  terminal.print('');
  printFields(terminal, [
    ['id', job.id],
    ['queue', job.queue_name],
    ['attempts', `${job.attempts} of ${job.max_attempts}`],
    ['error', job.error_message === null ? null : `${job.error_code ?? 'error'}: ${job.error_message}`],
    ['flags', job.flags.length === 0 ? null : job.flags.join(', ')],
    ['dry run', job.dry_run ? 'yes' : null],
    ['priority', job.priority === 0 ? null : job.priority],
    ['bot', job.bot_id],
    ['unique key', job.unique_key],
    ['send window', job.send_window?.text ?? null],
    ['step', job.step_seq === 0 ? null : `${job.step_seq}, scope ${job.step_scope}`],
    ['cursor', job.step_cursor],
    ['operation', job.operation_url],
    ['held by', job.worker_id],
    ['lease until', moment(job.lease_expires_at)],
    ['pause asked', moment(job.pause_requested_at)],
    ['created', moment(job.created_at)],
    ['scheduled', moment(job.scheduled_at)],
    ['expires', moment(job.expires_at)],
    ['due', moment(job.due_at)],
    ['started', moment(job.started_at)],
    ['ended', moment(job.completed_at)],
    ['payload', job.job_data?.text ?? null],
    ['result', job.result?.text ?? null],
  ]);
  if (job.history.length === 0) return;
  terminal.print('');
  printTable(
    terminal,
    [
      { title: 'ended', text: ({ finished_at }) => moment(finished_at) },
      { title: 'attempt', text: ({ attempt }) => attempt, right: true },
      { title: 'step', text: ({ step_seq }) => step_seq, right: true },
      { title: 'took', text: took, right: true },
      { title: 'outcome', text: ({ outcome }) => outcome },
      { title: 'code', text: ({ error_code, http_status }) => error_code ?? http_status },
      { title: 'message', text: ({ error_message }) => error_message },
    ],
    job.history,
  );
}

function took({ started_at, finished_at }: Shown['history'][number]): string | null {
  return started_at === null ? null : duration(finished_at.getTime() - started_at.getTime());
}
