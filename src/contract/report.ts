/** What the checks found, in words and as a document. */
import type { ContractReport, Result } from './run.js';

const LEVELS = ['plain', 'idempotent', 'sliced', 'operation'] as const;

export interface ContractDocument {
  readonly url: string;
  readonly level_claimed: number | null;
  readonly level_tested: number;
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  readonly checks: readonly {
    readonly id: string;
    readonly level: number;
    readonly title: string;
    readonly outcome: Result['outcome'];
    /** What was sent, what came back and what is wrong with it; or why it was skipped, or a remark. */
    readonly seen: string | null;
    /** Of a failure. */
    readonly mend: string | null;
    readonly ms: number;
  }[];
}

export function documentOf(report: ContractReport): ContractDocument {
  const count = (outcome: Result['outcome']) => report.results.filter((result) => result.outcome === outcome).length;
  return {
    url: report.url,
    level_claimed: report.levelClaimed,
    level_tested: report.levelTested,
    passed: count('passed'),
    failed: count('failed'),
    skipped: count('skipped'),
    checks: report.results.map(({ check, outcome, sent, came, said, ms }) => ({
      id: check.id,
      level: check.level,
      title: check.title,
      outcome,
      seen: [sent && `sent: ${sent}`, came && `came back: ${came}`, said].filter(Boolean).join('; ') || null,
      mend: outcome === 'failed' ? check.mend : null,
      ms,
    })),
  };
}

/** Lines for people, level by level. */
export function wordsOf(report: ContractReport): string[] {
  const { levelClaimed, levelTested, results } = report;
  const lines: string[] = [];
  for (const [level, name] of LEVELS.entries()) {
    const those = results.filter(({ check }) => check.level === level);
    if (those.length === 0) continue;
    lines.push('', `Level ${level}, ${name}`);
    // All of them are skipped for the same reason.
    if (level > levelTested) lines.push(`  -    skipped: ${those[0]?.said}`);
    else lines.push(...those.flatMap(describeResult));
  }
  const { passed, failed, skipped } = documentOf(report);
  lines.push('', `${passed} hold, ${failed} fail, ${skipped} skipped, up to level ${levelTested}.`);
  if (report.interrupted) lines.push('It was ended early: this is not all.');
  if (levelClaimed === null) {
    lines.push(
      'The service says no level. The daemon takes it for a plain one (0) until an answer carries X-Broadcast-Level, or',
      'BROADCAST_SERVICE_LEVEL says so; to test what it can do, give --level.',
    );
  } else if (levelClaimed > levelTested) {
    lines.push(`The service claims level ${levelClaimed}: without --level all of it is tested.`);
  }
  return lines;
}

const MARKS = { passed: 'ok  ', failed: 'FAIL', skipped: '-   ' } as const;

function describeResult({ check, outcome, sent, came, said, ms }: Result): string[] {
  const head = `  ${MARKS[outcome]} ${check.id.padEnd(16)} ${check.title}${ms >= 1000 ? ` (${(ms / 1000).toFixed(1)} s)` : ''}`;
  if (outcome === 'skipped') return [head, `       skipped: ${said}`];
  if (outcome === 'passed') return said === null ? [head] : [head, `       but: ${said}`];
  return [
    head,
    ...[
      ['wrong', said],
      ['sent', sent],
      ['came', came],
      ['why', check.why],
      ['mend', check.mend],
    ].flatMap(([name, text]) => (text ? [`       ${`${name}:`.padEnd(7)}${text}`] : [])),
  ];
}
