/**
 * The benchmark's commands: a scenario each, `all` of them, and `report`, which makes docs/performance.md from what was
 * measured.
 */
import { join } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import { scenarios } from './scenarios/index.ts';
import { thisMachine } from './setup/machine.ts';
import { ROOT } from './setup/processes.ts';
import { writeResult } from './setup/results.ts';
import { type Asked, NOTHING, onStage } from './setup/stage.ts';
import { Interrupted, interrupt } from './setup/waiting.ts';

const RESULTS = join(import.meta.dirname, 'results');

const program = new Command('bench').description('Measures broadcastd beside its peers');

program
  .command('all', { isDefault: true })
  .description('every scenario, then the report')
  .action(async () => {
    for (const name of Object.keys(scenarios)) await runUnless(name);
    await report(RESULTS, join(ROOT, 'docs'));
  });

for (const [name, { description, standard }] of Object.entries(scenarios)) {
  const command = program.command(name).description(description);
  const count = (flag: string, words: string, key: keyof Asked, read = positive) => {
    if (key in standard) command.option(`${flag} <n>`, `${words} (${standard[key]})`, read);
  };
  count('--rounds', 'how often each has its turn', 'rounds');
  count('--jobs', 'how many jobs', 'jobs');
  count('--slots', 'how many at a time', 'slots');
  count('--seconds', 'how long each measurement lasts', 'seconds');
  count('--pending', 'rows that are due', 'pending');
  count('--finished', 'rows that have ended', 'finished');
  count('--hold-minutes', 'how long a transaction is open before it is measured', 'holdMinutes', minutes);
  command
    .option('--contestants <names...>', 'only these; a name that is not known shows which are')
    .addOption(new Option('--service <kind>', 'which answers at once').choices(['nginx', 'node']))
    .option('--results <folder>', 'where the figures are written', RESULTS)
    .action(({ results, ...given }: Partial<Asked> & { results: string }) => run(name, given, results));
}

program
  .command('report')
  .description('docs/performance.md and its plots, from the figures that are there')
  .option('--results <folder>', 'where the figures are', RESULTS)
  .option('--out <folder>', 'where the page is written', join(ROOT, 'docs'))
  .action(({ results, out }: { results: string; out: string }) => report(results, out));

process.on('SIGINT', interrupt);
process.on('SIGTERM', interrupt);
try {
  await program.parseAsync();
} catch (error) {
  complain(error);
}

/** Hours have gone into the others: what fails is said, and they go on. */
async function runUnless(name: string): Promise<void> {
  try {
    await run(name, {}, RESULTS);
  } catch (error) {
    if (error instanceof Interrupted) throw error;
    complain(error);
  }
}

function complain(error: unknown): void {
  const wasInterrupted = error instanceof Interrupted;
  process.stderr.write(`${wasInterrupted ? error.message : error instanceof Error ? error.stack : error}\n`);
  process.exitCode = wasInterrupted ? 130 : 1;
}

async function run(name: string, given: Partial<Asked>, folder: string): Promise<void> {
  const scenario = scenarios[name];
  if (!scenario) throw new Error(`there is no scenario ${name}`);
  const asked = { ...NOTHING, ...scenario.standard, ...given };
  process.stdout.write(`--- ${name}\n`);
  await onStage(asked, scenario.preload ?? '', async (stage) => {
    const { samples, options } = await scenario.measure(stage);
    writeResult(folder, { scenario: name, machine: thisMachine(stage.server), options, samples });
  });
}

async function report(results: string, out: string): Promise<void> {
  const { writeReport } = await import('./report/index.ts');
  await writeReport(results, out);
  process.stdout.write(`${join(out, 'performance.md')} written\n`);
}

function positive(text: string): number {
  if (!/^[1-9]\d*$/.test(text)) throw new InvalidArgumentError('Write a whole number above 0.');
  return Number(text);
}

function minutes(text: string): number {
  if (!/^\d+(\.\d+)?$/.test(text)) throw new InvalidArgumentError('Write a number, such as 5 or 0.5.');
  return Number(text);
}
