/** `broadcastd queues`, `limits` and `gates`: what holds the queues, and letting them go. */
import type { Command } from 'commander';
import type { GateRow, LimitRow } from '../db/reports/flow.js';
import { DataRefused } from '../errors.js';
import { integer, number } from './arguments.js';
import { CommandError, doubt, EXIT, printJson, queueNameOf, type Surroundings, withQueue } from './commands.js';
import { ago, moment, printTable } from './table.js';

export function addQueues(program: Command, surroundings: Surroundings): void {
  const { terminal } = surroundings;
  const queues = program.command('queues').description('list, pause and resume whole queues');

  queues
    .command('list')
    .description('the queues, whether they are paused, and their send windows')
    .option('--json', 'print one JSON document')
    .action((options: { json?: true }) =>
      withQueue(surroundings, async ({ reports }) => {
        const { queues: known, allPaused } = await reports.standing();
        const windows = await reports.windows();
        const rows = [...known.keys(), ...[...windows.keys()].filter((name) => !known.has(name))]
          .sort()
          .map((name) => ({
            name,
            waiting: (known.get(name)?.counts.pending ?? 0) + (known.get(name)?.counts.retry ?? 0),
            active: known.get(name)?.counts.active ?? 0,
            paused: known.get(name)?.paused ?? null,
            send_window: windows.get(name) ?? null,
          }));
        if (options.json) return printJson(terminal, { queues: rows, all_paused: allPaused });
        printTable(
          terminal,
          [
            { title: 'queue', text: ({ name }) => name },
            { title: 'waiting', text: ({ waiting }) => waiting, right: true },
            { title: 'active', text: ({ active }) => active, right: true },
            { title: 'paused', text: ({ paused }) => ago(paused?.paused_at ?? null) ?? '', colour: () => 'yellow' },
            { title: 'by', text: ({ paused }) => paused?.paused_by ?? '' },
            { title: 'send window', text: ({ send_window }) => send_window?.text ?? '' },
            { title: 'reason', text: ({ paused }) => paused?.reason ?? '' },
          ],
          rows,
        );
        if (allPaused) {
          const why = allPaused.reason === null ? '' : `: ${allPaused.reason}`;
          terminal.print(
            terminal.paint(
              'yellow',
              `All are paused by ${allPaused.paused_by} since ${moment(allPaused.paused_at)}${why}`,
            ),
          );
        }
      }),
    );

  for (const action of ['pause', 'resume'] as const) {
    const command = queues
      .command(action)
      .description(
        action === 'pause'
          ? 'no daemon claims from it any more; without a name, from any'
          : 'let it go again; without a name, what was paused without one',
      )
      .argument('[name]', 'the queue');
    if (action === 'pause') command.option('--reason <text>', 'why, for whoever wonders');
    command.option('--json', 'print one JSON document').action((given: string | undefined, flags: PauseFlags) => {
      const name = given === undefined ? '*' : queueNameOf(given);
      return withQueue(surroundings, async ({ reports, by }) => {
        const changed = await (action === 'pause'
          ? reports.pause(name, flags.reason ?? null, by)
          : reports.resume(name, by));
        const known = name === '*' || (await reports.isKnownQueue(name));
        if (!known) doubt(terminal, name);
        if (flags.json) return printJson(terminal, { queue: name, action, changed, known });
        const what = name === '*' ? 'All queues' : `The queue ${name}`;
        const is = name === '*' ? 'are' : 'is';
        const words = action === 'pause' ? 'paused' : 'resumed';
        const already = `${name === '*' ? 'were' : 'was'} ${action === 'pause' ? 'paused already' : 'not paused'}`;
        terminal.print(`${what} ${changed ? `${is} ${words}` : already}.`);
      });
    });
  }
}

interface PauseFlags {
  readonly reason?: string;
  readonly json?: true;
}

export function addLimits(program: Command, surroundings: Surroundings): void {
  const { terminal } = surroundings;
  const limits = program
    .command('limits')
    .description('list, set and drop shared limits, obeyed by every daemon at once');

  limits
    .command('list')
    .description('the limits')
    .option('--json', 'print one JSON document')
    .action((options: { json?: true }) =>
      withQueue(surroundings, async ({ reports }) => {
        const rows = await allOf<LimitRow>((after) => reports.limits(after, PAGE));
        if (options.json) return printJson(terminal, { limits: rows });
        if (rows.length === 0) return terminal.complain('There are no limits.');
        printTable(
          terminal,
          [
            { title: 'limit', text: ({ key }) => key },
            { title: 'messages a second', text: ({ per_second }) => per_second, right: true },
            { title: 'jobs at once', text: ({ max_concurrent }) => max_concurrent, right: true },
            { title: 'changed', text: ({ updated_at }) => ago(updated_at), right: true },
            { title: 'by', text: ({ updated_by }) => updated_by },
          ],
          rows,
        );
      }),
    );

  limits
    .command('set')
    .description('set a limit, both members at once: what is not given is not limited')
    .argument('<key>', 'queue:<name> or bot:<bot_id of the payload>', limitKeyOf)
    .option('--per-second <number>', 'messages a second, over all daemons', number(0.001, 1_000_000))
    .option('--max-concurrent <number>', 'jobs at once, over all daemons', integer(1, 100_000))
    .option('--json', 'print one JSON document')
    .action((key: string, flags: { perSecond?: number; maxConcurrent?: number; json?: true }) => {
      const { perSecond = null, maxConcurrent = null } = flags;
      if (perSecond === null && maxConcurrent === null) {
        throw new CommandError(
          EXIT.usage,
          'Give --per-second, --max-concurrent or both; "limits drop" takes a limit away.',
        );
      }
      return withQueue(surroundings, async ({ reports, by }) => {
        await reports.setLimit(key, perSecond, maxConcurrent, by).catch((error: unknown) => {
          if (!(error instanceof DataRefused)) throw error;
          throw new CommandError(EXIT.usage, `The database refuses the limit: ${error.message}.`);
        });
        if (flags.json) return printJson(terminal, await reports.limit(key));
        const parts = [
          ...(perSecond === null ? [] : [`${perSecond} messages a second`]),
          ...(maxConcurrent === null ? [] : [`${maxConcurrent} jobs at once`]),
        ];
        terminal.print(`${key}: ${parts.join(', ')}.`);
      });
    });

  limits
    .command('drop')
    .description('take a limit away')
    .argument('<key>', 'queue:<name> or bot:<bot_id>', limitKeyOf)
    .option('--json', 'print one JSON document')
    .action((key: string, flags: { json?: true }) =>
      withQueue(surroundings, async ({ reports, by }) => {
        if (!(await reports.dropLimit(key, by))) {
          throw new CommandError(EXIT.notFound, `There is no limit ${key}: "broadcastd limits list" shows them.`);
        }
        if (flags.json) printJson(terminal, { key, dropped: true });
        else terminal.print(`${key} is not limited any more.`);
      }),
    );
}

export function addGates(program: Command, surroundings: Surroundings): void {
  const { terminal } = surroundings;
  const gates = program
    .command('gates')
    .description('list and open gates: nobody calls the service while its gate is closed');

  gates
    .command('list')
    .description('closed gates and the breaker, and since when')
    .option('--json', 'print one JSON document')
    .action((options: { json?: true }) =>
      withQueue(surroundings, async ({ reports }) => {
        const closed = (await allOf<GateRow>((after) => reports.gates(after, PAGE))).filter((gate) => gate.closed);
        const breaker = await reports.breaker();
        if (options.json) return printJson(terminal, { gates: closed, breaker });
        if (breaker.state !== 'closed') {
          terminal.print(`The breaker is open since ${moment(breaker.opened_at)}; "gates open service" closes it.`);
        }
        if (closed.length === 0) return terminal.complain('Every gate is open.');
        printTable(
          terminal,
          [
            { title: 'gate', text: ({ key }) => key },
            { title: 'closed', text: ({ closed_at }) => ago(closed_at), right: true },
            { title: 'until', text: ({ closed_until }) => moment(closed_until) },
            { title: 'reason', text: ({ reason }) => reason },
          ],
          closed,
        );
      }),
    );

  gates
    .command('open')
    .description('let everybody call again at once; "service" also closes the breaker')
    .argument('<key>', 'service, or bot:<bot_id>', gateKeyOf)
    .option('--json', 'print one JSON document')
    .action((key: string, flags: { json?: true }) =>
      withQueue(surroundings, async ({ reports, by }) => {
        const opened = await reports.openGate(key, by);
        if (flags.json) printJson(terminal, { key, opened });
        else terminal.print(opened ? `The gate ${key} is open.` : `The gate ${key} was open already.`);
      }),
    );
}

const PAGE = 500;
const ROWS_MAX = 10_000;

/** Page after page, by key. */
async function allOf<R extends { readonly key: string }>(page: (after: string) => Promise<R[]>): Promise<R[]> {
  const rows: R[] = [];
  while (rows.length < ROWS_MAX) {
    const more = await page(rows.at(-1)?.key ?? '');
    rows.push(...more);
    if (more.length < PAGE) break;
  }
  return rows;
}

function limitKeyOf(text: string): string {
  if (/^(queue:[a-z][a-z0-9_-]{0,49}|bot:.{1,100})$/.test(text)) return text;
  throw new CommandError(EXIT.usage, 'A limit is called queue:<name> or bot:<bot_id>, such as queue:broadcasts.');
}

function gateKeyOf(text: string): string {
  if (/^(service|bot:.{1,200})$/.test(text)) return text;
  throw new CommandError(EXIT.usage, 'A gate is called service or bot:<bot_id>.');
}
