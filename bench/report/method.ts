/** How it was measured, what cannot be compared, and on what machine. */
import { ALL_QUEUES } from '../contestants/index.ts';
import type { Machine } from '../setup/machine.ts';
import type { Result } from '../setup/results.ts';
import type { Results } from './targets.ts';

export function method({ drain }: Results): string {
  const settings = ALL_QUEUES.map(({ name, settings }) => `- **${name}**: ${settings}.`).join('\n');
  return `## Method

All contestants run on the same machine, the same PostgreSQL and the same service${drain ? ` (${drain.options.service} in the drain)` : ''}, one after the other
and by turns: each round begins with another one. Every turn has a fresh database and begins with a CHECKPOINT. A figure is
the median of its rounds, in parentheses the least and the most of them; ratios are those of the medians.

Each worker is a process of its own under the Node of the container image. It is started on an empty queue, and what is
measured begins when it listens to notifications. For a drain all jobs are inserted in one transaction: the clock starts
at its commit and stops when the last job is settled in the database, not when its call has arrived. A twentieth as many
jobs go through before, unmeasured. CPU is what the kernel counted for the worker's process, and for PostgreSQL's
processes including those that ended, over the same time. After each drain the number of calls at the service must be the
number of jobs, or the run fails.

Everybody's job carries the same payload and leads to the same POST with the same headers, a body of the same size, and an
answer of a few bytes; the peers' handlers make it with undici, as broadcastd does, with a connection for each call at a
time. **No queue** is that handler in a loop: what the calls alone cost.

${settings}

**What cannot be compared.** broadcastd writes down each job's result, times and counts, and keeps the row; graphile-worker
deletes it, pg-boss keeps it with one result for a whole batch. broadcastd's late word about a job that somebody else
holds by now is refused, and its calls say so to the service (epoch and idempotency key); graphile-worker has no such
fence. In pg-boss the jobs of a batch succeed and fail together: a worker that dies calls for all of them again, up to a
thousand at the setting that is quickest. broadcastd's rows are plain INSERTs, without unique keys, as the peers' are.`;
}

export function places(results: Results): string {
  const measured = Object.entries(results).filter((entry): entry is [string, Result] => entry[1] !== null);
  if (measured.length === 0) return '## Machine\n\nNothing has been measured yet.';
  const alike = new Map<string, { machine: Machine; names: string[] }>();
  for (const [name, { machine }] of measured) {
    const { settings, ...where } = machine;
    const key = JSON.stringify([where, settings]);
    const place = alike.get(key) ?? { machine, names: [] };
    place.names.push(name);
    alike.set(key, place);
  }
  const texts = [...alike.values()].map(({ machine, names }) => placeText(machine, alike.size > 1 ? names : []));
  return `## Machine\n\n${texts.join('\n\n')}`;
}

function placeText(machine: Machine, names: readonly string[]): string {
  const settings = Object.entries(machine.settings).map(([name, value]) => `\`${name}\` ${value}`);
  const which = names.length > 0 ? `${names.join(', ')}: ` : '';
  return `${which}${machine.date}, ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGib} GiB of memory, ${machine.kernel}; Node ${machine.node};
PostgreSQL ${machine.postgres} with ${settings.join(', ')}, and everything else as it comes. Worker, PostgreSQL, service and producer share these cores.`;
}
