/** `broadcastd status`: how the queues stand, who works, and what holds things up. */
import type { Command } from 'commander';
import { queueMeasures } from '../db/measures.js';
import type { QueueCounts } from '../db/reports.js';
import { type OpenQueue, printJson, type Surroundings, withQueue } from './commands.js';
import { ago, type Column, duration, moment, printTable, statusColour } from './table.js';
import { plain, type Terminal } from './terminal.js';

export function addStatus(program: Command, surroundings: Surroundings): void {
  program
    .command('status')
    .description('how the queues stand, who works, and what holds things up')
    .option('--json', 'print one JSON document')
    .action((options: { json?: true }) =>
      withQueue(surroundings, async (queue) => {
        const standing = await readStanding(queue);
        if (options.json) printJson(surroundings.terminal, standing);
        else printStanding(surroundings.terminal, standing);
      }),
    );
}

const STATUSES = ['pending', 'processing', 'retry', 'paused', 'completed', 'failed', 'cancelled'] as const;

async function readStanding({ database, reports }: OpenQueue) {
  const { queues, allPaused } = await reports.standing();
  const ready = await queueMeasures(database).ready();
  const total: QueueCounts & Record<string, number> = {
    ...{ pending: 0, processing: 0, completed: 0, failed: 0, retry: 0, paused: 0, cancelled: 0, active: 0 },
  };
  const lines = [...queues]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, { counts, paused }]) => {
      for (const [status, jobs] of Object.entries(counts)) total[status] = (total[status] ?? 0) + jobs;
      const due = ready.find(({ queue }) => queue === name);
      return { name, ...counts, due: due?.jobs ?? 0, oldest_due_seconds: due?.oldest_s ?? null, paused_by: paused };
    });
  const breaker = await reports.breaker();
  return {
    queues: lines,
    total,
    all_paused: allPaused,
    workers: (await reports.workers()).filter(({ alive }) => alive),
    gates: (await reports.gates('', 500)).filter(({ closed }) => closed),
    breaker,
    limits: await queueMeasures(database).limits(),
    timestamp: new Date(),
  };
}

type Standing = Awaited<ReturnType<typeof readStanding>>;
type Line = Standing['queues'][number];

function printStanding(terminal: Terminal, standing: Standing): void {
  const { queues, total, workers } = standing;
  const counts = STATUSES.map(
    (status): Column<Line> => ({
      title: status,
      text: (line) => line[status],
      right: true,
      colour: (line) => (line[status] > 0 ? statusColour(status) : 'dim'),
    }),
  );
  const all = { name: 'total', ...total, due: 0, oldest_due_seconds: null, paused_by: null };
  printTable<Line>(
    terminal,
    [
      { title: 'queue', text: ({ name }) => name },
      ...counts,
      { title: 'active', text: ({ active }) => active, right: true },
      { title: 'oldest due', text: ({ oldest_due_seconds: s }) => (s === null ? '' : duration(s * 1000)), right: true },
    ],
    [...queues, all],
  );
  terminal.print('');
  if (workers.length === 0) {
    terminal.print(terminal.paint('red', 'No daemon is running: start one with "broadcastd start".'));
  } else {
    printTable(
      terminal,
      [
        { title: 'daemon', text: ({ id }) => id },
        { title: 'version', text: ({ version }) => version },
        { title: 'jobs at hand', text: ({ active_jobs: jobs }) => jobs, right: true },
        { title: 'started', text: ({ started_at: at }) => ago(at), right: true },
        { title: 'last seen', text: ({ last_seen_at: at }) => ago(at), right: true },
      ],
      workers,
    );
  }
  const trouble = hindrances(standing);
  if (trouble.length > 0) terminal.print('');
  for (const line of trouble) terminal.print(terminal.paint('yellow', plain(line)));
}

/** What keeps jobs from being called, in sentences. */
function hindrances({ queues, all_paused, gates, breaker, limits }: Standing): string[] {
  const pauses = [
    { what: 'All queues are', pause: all_paused },
    ...queues.map(({ name, paused_by }) => ({ what: `The queue ${name} is`, pause: paused_by })),
  ];
  return [
    ...pauses.flatMap(({ what, pause }) =>
      pause === null
        ? []
        : [`${what} paused by ${pause.paused_by} since ${moment(pause.paused_at)}${because(pause.reason)}.`],
    ),
    ...gates.map(
      ({ key, closed_until, reason }) => `The gate ${key} is closed until ${moment(closed_until)}${because(reason)}.`,
    ),
    ...(breaker.state === 'closed'
      ? []
      : [`The breaker is open since ${moment(breaker.opened_at)}: the service fails${because(breaker.last_error)}.`]),
    ...limits
      .filter(({ taken_s }) => taken_s > 0)
      .map(
        ({ key, per_second, taken_s }) =>
          `The limit ${key} (${per_second} a second) is used up for ${taken_s.toFixed(1)} s.`,
      ),
  ];
}

function because(reason: string | null): string {
  return reason === null ? '' : ` (${reason})`;
}
