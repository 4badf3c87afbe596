/** The tables of the report. */
import type { Result } from '../setup/results.ts';
import { shown, spread, subjects } from './figures.ts';
import { isReached, type Target } from './targets.ts';

export interface Column {
  readonly figure: string;
  readonly title: string;
}

/** A row for each subject, a column for each figure: the median, and the least and the most of the rounds. */
export function figureTable(result: Result, columns: readonly Column[], title = ''): string {
  const rows = subjects(result).map((subject) => {
    const cells = columns.map(({ figure }) => {
      const found = spread(result, subject, figure);
      if (found === null) return '–';
      return found.min === found.max
        ? shown(found.median)
        : `**${shown(found.median)}** (${shown(found.min)}–${shown(found.max)})`;
    });
    // A variant that has none of these figures has its place in another table.
    return cells.every((cell) => cell === '–') ? '' : `| ${[subject, ...cells].join(' | ')} |\n`;
  });
  const head = `| ${[title, ...columns.map((column) => column.title)].join(' | ')} |\n|---|${columns.map(() => '---:|').join('')}\n`;
  return head + rows.join('');
}

export function targetTable(targets: readonly Target[]): string {
  const rows = targets.map((target) => {
    const { what, bound, aim, unit, value } = target;
    const reached = isReached(target);
    const verdict = reached === null ? 'not measured' : reached ? 'reached' : '**not reached**';
    return `| ${what} | ${bound} ${shown(aim)}${unit} | ${value === null ? '–' : shown(value) + unit} | ${verdict} |\n`;
  });
  return `| target | aim | measured | |\n|---|---:|---:|---|\n${rows.join('')}`;
}
