/**
 * `broadcastd doctor`: everything that is known to go wrong, looked for at once, each with its mend. It changes nothing
 * and sends nothing, but for one notification to itself.
 */
import type { Command } from 'commander';
import { EXIT, type Surroundings } from './commands.js';
import type { NamedFinding, Outcome } from './doctor/finding.js';
import type { Colour, Terminal } from './terminal.js';

export function addDoctor(program: Command, surroundings: Surroundings): void {
  program
    .command('doctor')
    .description('look for everything that is known to go wrong, and say how to mend it')
    .option('--json', 'print one JSON document')
    .action(async (options: { json?: true }) => {
      const { examine } = await import('./doctor/examine.js');
      const findings = await examine(surroundings);
      const isWell = findings.every(({ outcome }) => outcome !== 'failed');
      if (options.json) surroundings.terminal.print(JSON.stringify({ ok: isWell, checks: findings }, null, 2));
      else printFindings(surroundings.terminal, findings);
      if (!isWell) surroundings.endWith(EXIT.failed);
    });
}

const COLOURS: Record<Outcome, Colour> = { ok: 'green', warning: 'yellow', failed: 'red', skipped: 'dim' };

function printFindings(terminal: Terminal, findings: readonly NamedFinding[]): void {
  for (const { check, outcome, found, mend } of findings) {
    terminal.print(`${terminal.paint(COLOURS[outcome], outcome.padEnd(8))} ${check}: ${found}`);
    if (mend !== null) terminal.print(`         ${terminal.paint('dim', '→')} ${mend}`);
  }
  const count = (wanted: Outcome) => findings.filter(({ outcome }) => outcome === wanted).length;
  const sum = `${count('ok')} ok, ${count('warning')} to look at, ${count('failed')} failed, ${count('skipped')} skipped`;
  terminal.print(`\n${terminal.paint('bold', sum)}`);
}
