/** `broadcastd jobs watch`: one job as it goes on, until it ends. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Command } from 'commander';
import { integer } from './arguments.js';
import { EXIT, jobIdOf, noSuchJob, printJson, type Surroundings, withQueue } from './commands.js';
import { progressLines } from './progress.js';
import { plain } from './terminal.js';

export function addWatch(jobs: Command, surroundings: Surroundings): void {
  jobs
    .command('watch')
    .description('follow one job until it ends; exit code 0 if it is completed then')
    .argument('<id>', "the job's id")
    .option('--every <ms>', 'how often to look', integer(100, 60_000), 500)
    .option('--json', 'print a JSON document for each change, one a line')
    .action((id: string, options: { every: number; json?: true }) => watch(surroundings, jobIdOf(id), options));
}

async function watch(
  surroundings: Surroundings,
  jobId: string,
  { every, json = false }: { every: number; json?: boolean | undefined },
): Promise<void> {
  const { terminal } = surroundings;
  const stop = surroundings.signal();
  const status = await withQueue(surroundings, async ({ reports }) => {
    let told = '';
    while (!stop.aborted) {
      const job = await reports.job(jobId);
      if (!job) throw noSuchJob(jobId);
      const { job_id, status, attempts, max_attempts, progress, progress_rate, error_message, waiting_because } = job;
      const { pause_requested_at } = job;
      const [progressed] = progressLines(job);
      const trouble = status === 'completed' ? null : (waiting_because ?? error_message);
      const words = plain([status, progressed, trouble].filter((each) => each).join('  '));
      if (words !== told) {
        told = words;
        const document = {
          ...{ job_id, status, attempts, max_attempts, progress, progress_rate, error_message, waiting_because },
          pause_requested_at,
          timestamp: new Date(),
        };
        if (json) printJson(terminal, document);
        else if (!terminal.moving(words)) terminal.print(words);
      }
      if (ENDED.includes(status)) {
        if (!json && terminal.moving(null)) terminal.print(words);
        return status;
      }
      await pause(every, undefined, { signal: stop }).catch(() => {});
    }
    terminal.moving(null);
    return 'interrupted';
  });
  if (status !== 'completed') surroundings.endWith(EXIT.failed);
}

const ENDED = ['completed', 'failed', 'cancelled'];
