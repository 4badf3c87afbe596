/** What the checks found, in words and as a document. */
import type { ContractReport, Result } from './run.js';

const LEVELS = ['plain', 'idempotent', 'sliced', 'operation'] as const;

export interface ContractDocument {
  readonly url: string;
  readonly level_claimed: number | null;
  readonly level_tested: number;
  readonly passed: number;
  readonly failed: number;
  /** Neither passed nor failed: a service that breaks the promise would have looked the same. */
  readonly inconclusive: number;
  readonly skipped: number;
  readonly checks: readonly {
    readonly id: string;
    readonly level: number;
    readonly title: string;
    readonly outcome: Result['outcome'];
    /** What was sent, what came back and what is wrong with it; or a remark on what passed. */
    readonly seen: string | null;
    /** Of what is skipped or inconclusive. */
    readonly reason: string | null;
    /** Of a failure: what it leads to. */
    readonly why: string | null;
    /** Of what failed or is inconclusive. */
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
    inconclusive: count('inconclusive'),
    skipped: count('skipped'),
    checks: report.results.map((result) => {
      const { check, outcome, sent, came, said, why, mend, ms } = result;
      const { id, level, title } = check;
      const isJudged = outcome === 'passed' || outcome === 'failed';
      const seen = [sent && `sent: ${sent}`, came && `came back: ${came}`, isJudged && said].filter(Boolean).join('; ');
      return { id, level, title, outcome, seen: seen || null, reason: isJudged ? null : said, why, mend, ms };
    }),
  };
}

/** Lines for people, level by level, and what it comes to. */
export function wordsOf(report: ContractReport): string[] {
  const { levelClaimed, levelTested, isReachable, results } = report;
  const { passed, failed, inconclusive, skipped } = documentOf(report);
  const lines: string[] = [];
  for (const [level, name] of LEVELS.entries()) {
    const those = results.filter(({ check }) => check.level === level && (isReachable || check.id === 'reachable'));
    if (those.length === 0) continue;
    lines.push('', `Level ${level}, ${name}`);
    // All of them are skipped for the same reason.
    if (level > levelTested) lines.push(`  -    skipped: ${those[0]?.said}`);
    else lines.push(...groupsOf(those).flatMap(describeGroup));
  }
  if (!isReachable) lines.push(`  -    skipped, since reachable fails: all the others (${skipped})`);
  const shownNothing = inconclusive === 0 ? '' : `${inconclusive} SHOW NOTHING, `;
  const scope = isReachable ? `, up to level ${levelTested}` : '';
  lines.push('', `${passed} hold, ${failed} fail, ${shownNothing}${skipped} skipped${scope}.`);
  lines.push(...warningsOf(report));
  if (!isReachable) return lines;
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

/** What nobody may overlook: how far the report is from being whole. */
export function warningsOf({ results, interrupted }: ContractReport): string[] {
  const lines: string[] = [];
  const inconclusive = results.filter(({ outcome }) => outcome === 'inconclusive');
  if (inconclusive.length > 0) {
    const checks = inconclusive.length === 1 ? '1 check has' : `${inconclusive.length} checks have`;
    lines.push(`NOT PROVEN: ${checks} shown nothing; a service that breaks these promises would have looked the same.`);
    for (const reason of new Set(inconclusive.map(({ said }) => said))) {
      const those = inconclusive.filter(({ said }) => said === reason);
      lines.push(`  ${those.map(({ check }) => check.id).join(', ')}: ${reason}. To mend it, ${those[0]?.mend}.`);
    }
  }
  if (interrupted) lines.push('It was ended early: this is not all.');
  return lines;
}

/** In their order; those that are skipped for one reason together, at the place of the first. */
function groupsOf(results: readonly Result[]): Result[][] {
  const groups: Result[][] = [];
  for (const result of results) {
    const alike = groups.find(([first]) => result.outcome === 'skipped' && first?.said === result.said);
    if (alike === undefined) groups.push([result]);
    else alike.push(result);
  }
  return groups;
}

function describeGroup(results: readonly Result[]): string[] {
  if (results.length === 1) return results.flatMap(describeResult);
  return [`  -    ${results.map(({ check }) => check.id).join(', ')}`, `       skipped: ${results[0]?.said}`];
}

const MARKS = { passed: 'ok  ', failed: 'FAIL', inconclusive: '?   ', skipped: '-   ' } as const;

function describeResult({ check, outcome, sent, came, said, why, mend, ms }: Result): string[] {
  const head = `  ${MARKS[outcome]} ${check.id.padEnd(16)} ${check.title}${ms >= 1000 ? ` (${(ms / 1000).toFixed(1)} s)` : ''}`;
  if (outcome === 'skipped') return [head, `       skipped: ${said}`];
  if (outcome === 'inconclusive') return [head, `       shows nothing: ${said}`];
  if (outcome === 'passed') return said === null ? [head] : [head, `       but: ${said}`];
  return [
    head,
    ...[
      ['wrong', said],
      ['sent', sent],
      ['came', came],
      ['why', why],
      ['mend', mend],
    ].flatMap(([name, text]) => (text ? [`       ${`${name}:`.padEnd(7)}${text}`] : [])),
  ];
}
