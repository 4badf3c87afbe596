/** What `broadcastd migrate` says about a table of the older shape: the plan, a poller that still runs, the outcome. */
import type { BroughtOver } from '../db/legacy.js';
import type { Grant, LegacyPlan } from '../db/legacy-plan.js';
import { MAYBE_SENT, VERDICTS, type Verdict } from '../db/legacy-reading.js';
import { BACKUP, commandFor, TABLE } from '../db/legacy-shape.js';
import type { PollersFound } from '../db/old-pollers.js';

/** @returns lines */
export function describePlan(plan: LegacyPlan): string[] {
  const { schema, owner, timezone, rows, oldest, newest, newestAheadSeconds, effort } = plan;
  const left = plan.columns.filter(({ carried }) => !carried);
  return [
    `The table ${TABLE} in the schema "${schema}" is of an older shape. Nothing has been changed; this is what`,
    `"${commandFor({ needsTimezone: timezone !== null }, timezone ?? undefined)}" will do, in one transaction:`,
    '',
    `- rename it to ${BACKUP}, which stays as a backup;`,
    `- make the new ${TABLE}, owned by ${owner}, and copy all ${number(rows)} rows.`,
    '',
    ...section(
      'What becomes of them',
      plan.statuses.map((s) => `${number(s.rows)} ${s.status ?? '(no status)'}: ${fate(s.verdict)}`),
    ),
    ...section('Times', [
      oldest === null
        ? 'none'
        : `created from ${oldest} to ${newest}${timezone === null ? '' : `, read in ${timezone}`}`,
      ...(newestAheadSeconds > 60
        ? [`WARNING: the newest lies ${number(newestAheadSeconds)} s in the future. Is ${timezone ?? 'it'} right?`]
        : []),
      ...plan.clockChanges.map(({ hour, shown, times }) =>
        shown === 'twice'
          ? `${number(times)} in the hour from ${hour}, which the clock showed twice: taken for the second (standard time)`
          : `${number(times)} in the hour from ${hour}, which the clock never showed: taken for an hour later`,
      ),
    ]),
    ...section('Columns', [
      ...plan.columns.map(
        (column) =>
          `${column.name} ${column.type}${column.default === null ? '' : ` default ${column.default}`}` +
          (column.carried ? '' : ': stays in the backup only'),
      ),
      ...(left.length > 0 ? ['Statements that still name a column left in the backup will be refused.'] : []),
    ]),
    ...section('Queues renamed, because their names could not be used in addresses', [
      ...plan.queuesRenamed.map(({ from, to, rows: n }) => `"${from}" to "${to}" (${number(n)} rows)`),
      ...(plan.queuesRenamed.length > 0 ? ['New rows with the old names will be refused.'] : []),
    ]),
    ...section(
      'Made fit',
      plan.repairs.map(({ what, rows: n }) => `${number(n)}: ${what}`),
    ),
    ...section('Stays with the backup, not carried over', leftBehind(plan)),
    ...section('Privileges carried over', grantWords(plan.grants)),
    ...section('Effort', [
      `about ${number(effort.seconds)} s, in which the bot's statements wait, and ${number(Math.ceil(effort.bytes / 2 ** 20))} MiB more on disk`,
    ]),
    ...section('Afterwards', [
      "ids are bigint: Node's pg hands those out as strings, and named prepared statements that return one need a reconnect",
      "times that the bot writes as text without a zone are read in its session's zone (TimeZone)",
      'completed jobs older than RETENTION_DAYS go with the first nightly cleanup; the backup keeps them',
    ]),
  ];
}

/** @returns lines; none when nothing was found */
export function describePollers({ pollers, hiddenSessions }: PollersFound): string[] {
  return [
    ...pollers.flatMap(({ pid, applicationName, user, clientAddress, query }, n) => [
      ...(n === 0
        ? [
            `WARNING: an old worker seems to poll ${TABLE} still. Stop it before "broadcastd start", or people get`,
            'messages twice: it takes jobs without regard to who holds them.',
          ]
        : []),
      `  pid ${pid}, application "${applicationName}", user ${user}, from ${clientAddress}: ${query}`,
    ]),
    ...(hiddenSessions > 0
      ? [
          `note: ${hiddenSessions} sessions of other users could not be looked into (that takes GRANT pg_read_all_stats);`,
          '  an old worker may be among them.',
        ]
      : []),
  ];
}

/** @returns lines */
export function describeBroughtOver({ rows, verdicts, applied, backup, lockedMs }: BroughtOver, schema: string) {
  const inSchema = schema === 'public' ? '' : `${schema}.`;
  // Object.entries forgets that the keys are verdicts.
  const counted = (Object.entries(verdicts) as [Verdict, number][]).sort(([, a], [, b]) => b - a);
  return [
    `Brought over: all ${number(rows)} rows of ${TABLE}. Applied: ${applied.join(', ')}.`,
    `The bot's statements waited ${(lockedMs / 1000).toFixed(1)} s at most, from the moment of the lock.`,
    ...counted.map(
      ([verdict, n]) => `  ${number(n)} ${verdict}${verdict === fate(verdict) ? '' : `: ${fate(verdict)}`}`,
    ),
    '',
    ...(counted.some(([verdict]) => VERDICTS[verdict] === 'paused')
      ? [
          'Look at the paused ones; each says in hold_reason how to resume or cancel it:',
          `  SELECT job_id, job_type, job_data, created_at, hold_reason FROM ${inSchema}${TABLE} WHERE status = 'paused';`,
        ]
      : []),
    'Stop the old worker if it still runs, then start the daemon: broadcastd start.',
    `The old table is kept. When nobody needs it any more: DROP TABLE ${inSchema}${backup};`,
  ];
}

function fate(verdict: Verdict): string {
  const why: Partial<Record<Verdict, string>> = {
    processing: MAYBE_SENT,
    retry: MAYBE_SENT,
    stale: `${MAYBE_SENT} (pending for more than an hour)`,
    future: `${MAYBE_SENT} (created_at in the future)`,
    unknown: `${MAYBE_SENT} (unknown status)`,
  };
  return why[verdict] ? `${VERDICTS[verdict]}, for it ${why[verdict]}` : VERDICTS[verdict];
}

function leftBehind({ left }: LegacyPlan): string[] {
  const advice: Record<string, string> = {
    view: ': goes on reading the backup; create it anew afterwards',
    'foreign key to it': ': goes on pointing to the backup, so new ids are refused there; drop the constraint first',
    'row security policy': ': the new table has none',
    publication: ': add the new table to it afterwards',
  };
  const unique = ': no longer kept unique, and ON CONFLICT clauses that rely on it are refused';
  return left.map(({ kind, name, definition }) => {
    const consequence = definition.startsWith('CREATE UNIQUE') ? unique : (advice[kind] ?? '');
    return `${kind} ${name}: ${definition}${consequence}`;
  });
}

function grantWords(grants: readonly Grant[]): string[] {
  const byWhom = new Map<string, string[]>();
  for (const { on, column, privilege, grantee, grantable } of grants) {
    const whom = grantee ?? 'PUBLIC';
    const what = `${privilege}${column === null ? '' : ` (${column})`}${on === 'sequence' ? ' on the sequence' : ''}`;
    byWhom.set(whom, [...(byWhom.get(whom) ?? []), `${what}${grantable ? ' with grant option' : ''}`]);
  }
  return [...byWhom].map(([whom, what]) => `${whom}: ${what.join(', ')}`);
}

function section(title: string, lines: readonly string[]): string[] {
  return lines.length === 0 ? [] : [`${title}:`, ...lines.map((line) => `  ${line}`), ''];
}

function number(value: number): string {
  return value.toLocaleString('en-US');
}
