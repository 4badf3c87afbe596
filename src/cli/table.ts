/** Rows under aligned headings. On a terminal the last column, where long texts stand, is cut to fit. */
import stringWidth from 'string-width';
import { type Colour, cut, plain, type Terminal } from './terminal.js';

export interface Column<R> {
  readonly title: string;
  readonly text: (row: R) => string | number | null;
  /** Numbers stand right. */
  readonly right?: true;
  readonly colour?: (row: R) => Colour | null;
}

export function printTable<R>(terminal: Terminal, columns: readonly Column<R>[], rows: readonly R[]): void {
  const texts = rows.map((row) => columns.map(({ text }) => plain(String(text(row) ?? '-'))));
  const widths = columns.map(({ title }, at) =>
    Math.max(stringWidth(title), ...texts.map((cells) => stringWidth(cells[at] ?? ''))),
  );

  const line = (cells: readonly string[], painted: (text: string, at: number) => string) => {
    let left = terminal.columns ?? Number.POSITIVE_INFINITY;
    const laid = cells.map((cell, at) => {
      const isLast = at === cells.length - 1;
      const shown = isLast ? cut(cell, Math.max(left, 10)) : cell;
      const room = ' '.repeat(Math.max((widths[at] ?? 0) - stringWidth(shown), 0));
      left -= (widths[at] ?? 0) + GAP.length;
      if (columns[at]?.right) return room + painted(shown, at);
      return painted(shown, at) + (isLast ? '' : room);
    });
    terminal.print(laid.join(GAP).trimEnd());
  };

  line(
    columns.map(({ title }) => title),
    (text) => terminal.paint('dim', text),
  );
  rows.forEach((row, index) => {
    line(texts[index] ?? [], (text, at) => {
      const colour = columns[at]?.colour?.(row) ?? null;
      return colour === null ? text : terminal.paint(colour, text);
    });
  });
}

const GAP = '  ';

/** Name and value, one below the other; what is null is left out. */
export function printFields(terminal: Terminal, fields: readonly (readonly [string, string | number | null])[]): void {
  const given = fields.filter(([, value]) => value !== null);
  const width = Math.max(...given.map(([name]) => name.length));
  for (const [name, value] of given) {
    terminal.print(`${terminal.paint('dim', name.padEnd(width))}  ${plain(String(value))}`);
  }
}

/** Of a job. */
export function statusColour(status: string): Colour | null {
  const colours: Record<string, Colour> = {
    completed: 'green',
    failed: 'red',
    retry: 'yellow',
    paused: 'yellow',
    processing: 'cyan',
    cancelled: 'dim',
  };
  return colours[status] ?? null;
}

/** An instant, to the second. Infinity comes as the last that a Date can hold, what is merely too far right before it. */
export function moment(at: Date | null): string | null {
  if (at === null) return null;
  if (Math.abs(at.getTime()) === 8.64e15) return at.getTime() > 0 ? 'never' : 'ever since';
  if (at.getTime() === 8.64e15 - 1) return 'in more than 200,000 years';
  return at
    .toISOString()
    .replace('T', ' ')
    .replace(/\.\d+Z$/, 'Z');
}

/** Such as `1 job`, `5,000 jobs`. */
export function many(n: number, noun: string): string {
  return `${n.toLocaleString('en-US')} ${noun}${n === 1 ? '' : 's'}`;
}

/** Such as `3 s`, `12 min`, `5 h`, `8 d`. */
export function duration(ms: number): string {
  const s = Math.max(ms, 0) / 1000;
  if (s < 100) return `${Math.round(s)} s`;
  if (s < 6000) return `${Math.round(s / 60)} min`;
  if (s < 48 * 3600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86_400)} d`;
}

export function ago(at: Date | null): string | null {
  return at === null ? null : `${duration(Date.now() - at.getTime())} ago`;
}
