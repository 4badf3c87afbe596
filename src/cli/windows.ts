/** `broadcastd windows`: the hours in which a queue's jobs may be sent. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { JsonText } from '../db/reports.js';
import { DataRefused } from '../errors.js';
import { CommandError, doubt, EXIT, printJson, queueNameOf, type Surroundings, withQueue } from './commands.js';
import { printTable } from './table.js';

interface WindowFlags {
  readonly from: string;
  readonly to: string;
  readonly timeZone: string;
  readonly days?: number[];
  readonly missed?: 'wait' | 'fail';
  readonly json?: true;
}

export function addWindows(program: Command, surroundings: Surroundings): void {
  const { terminal } = surroundings;
  const windows = program
    .command('windows')
    .description('list, set and remove send windows: the hours in which the jobs of a queue may be sent');

  windows
    .command('list')
    .description('the queues that have one; a job may have one of its own besides, which goes before it')
    .option('--json', 'print one JSON document')
    .action((options: { json?: true }) =>
      withQueue(surroundings, async ({ reports }) => {
        const rows = [...(await reports.windows())].map(([queue, send_window]) => ({ queue, send_window }));
        if (options.json) return printJson(terminal, { windows: rows });
        if (rows.length === 0) return terminal.complain('No queue has a send window.');
        printTable(
          terminal,
          [
            { title: 'queue', text: ({ queue }) => queue },
            { title: 'send window', text: ({ send_window }) => send_window?.text ?? '' },
          ],
          rows,
        );
      }),
    );

  windows
    .command('set')
    .description("set a queue's window: it is looked at before every slice")
    .argument('<queue>', 'the queue', queueNameOf)
    .requiredOption('--from <time>', 'such as 09:00', timeOf)
    .requiredOption('--to <time>', 'such as 21:00; at or before --from, it is of the next day', timeOf)
    .requiredOption('--time-zone <zone>', 'such as Europe/Berlin')
    .option('--days <list>', 'on which it begins, such as 1,2,3,4,5; 1 is Monday (all if left out)', daysOf)
    .addOption(
      new Option('--missed <what>', 'what becomes of a job that could not begin in its first window').choices([
        'wait',
        'fail',
      ]),
    )
    .option('--json', 'print one JSON document')
    .action((queue: string, flags: WindowFlags) => {
      const { from, to, timeZone: time_zone, days, missed, json } = flags;
      return withQueue(surroundings, async ({ reports, by }) => {
        const wanted = new JsonText(JSON.stringify({ from, to, time_zone, days, missed }));
        await reports.setWindow(queue, wanted, by).catch((error: unknown) => {
          if (!(error instanceof DataRefused)) throw error;
          throw new CommandError(EXIT.usage, `The database refuses the window: ${error.message}.`);
        });
        if (!(await reports.isKnownQueue(queue))) doubt(terminal, queue);
        const send_window = await reports.window(queue);
        if (json) return printJson(terminal, { queue, send_window });
        terminal.print(`The queue ${queue} sends within ${send_window?.text}.`);
      });
    });

  windows
    .command('remove')
    .description("take a queue's window away: it sends at any hour")
    .argument('<queue>', 'the queue', queueNameOf)
    .option('--json', 'print one JSON document')
    .action((queue: string, flags: { json?: true }) =>
      withQueue(surroundings, async ({ reports, by }) => {
        if ((await reports.window(queue)) === null) {
          const where = '"broadcastd windows list" shows those that have one';
          throw new CommandError(EXIT.notFound, `The queue ${queue} has no send window: ${where}.`);
        }
        await reports.setWindow(queue, null, by);
        if (flags.json) printJson(terminal, { queue, send_window: null });
        else terminal.print(`The queue ${queue} sends at any hour.`);
      }),
    );
}

function timeOf(text: string): string {
  if (/^([01]\d|2[0-3]):[0-5]\d$/.test(text)) return text;
  throw new InvalidArgumentError('it must be a time such as 09:00');
}

function daysOf(text: string): number[] {
  if (/^[1-7](,[1-7]){0,6}$/.test(text)) return text.split(',').map(Number);
  throw new InvalidArgumentError('it must be days with commas, 1 (Monday) to 7 (Sunday), such as 1,2,3,4,5');
}
