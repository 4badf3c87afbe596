/**
 * Where a command's words go: answers to standard output, everything beside them to standard error. Colours, cut lines
 * and moving bars are for people at a terminal; what is piped gets plain whole lines.
 */
import type { Readable, Writable } from 'node:stream';
import { styleText } from 'node:util';
import stringWidth from 'string-width';

export type Colour = 'red' | 'green' | 'yellow' | 'cyan' | 'dim' | 'bold';

export interface Terminal {
  /** A line of the answer. */
  print(line: string): void;
  /** A line beside the answer. */
  complain(line: string): void;
  /** In this colour, where colours are wanted. */
  paint(colour: Colour, text: string): string;
  /** Of the answer's lines; null: it is piped, and nothing is to be cut. */
  readonly columns: number | null;
  /**
   * A line beside the answer that the next one replaces; null takes it away.
   * @returns false where nobody looks, and nothing was written
   */
  moving(line: string | null): boolean;
  /** @throws RangeError when there is more than this */
  readInput(maxBytes: number): Promise<string>;
}

/** Where a terminal does not know its own, and says 0. */
const WIDTH = 80;

type Output = Writable & { readonly isTTY?: boolean; readonly columns?: number };

export function openTerminal(
  streams: { readonly stdin: Readable; readonly stdout: Output; readonly stderr: Output },
  env: Readonly<Record<string, string | undefined>>,
): Terminal {
  const { stdin, stdout, stderr } = streams;
  const coloured = stdout.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb';
  const moves = stderr.isTTY === true && env.TERM !== 'dumb';

  return {
    print: (line) => void stdout.write(`${line}\n`),
    complain: (line) => void stderr.write(`${line}\n`),
    paint: (colour, text) => (coloured ? styleText(colour, text) : text),
    columns: stdout.isTTY === true ? stdout.columns || WIDTH : null,
    moving(line) {
      if (moves) stderr.write(`\r\x1b[K${line === null ? '' : cut(line, (stderr.columns || WIDTH) - 1)}`);
      return moves;
    },
    async readInput(maxBytes) {
      const chunks: Buffer[] = [];
      let bytes = 0;
      for await (const chunk of stdin) {
        const buffer = Buffer.from(chunk);
        bytes += buffer.length;
        if (bytes > maxBytes) throw new RangeError(`standard input has more than ${maxBytes} bytes`);
        chunks.push(buffer);
      }
      return Buffer.concat(chunks).toString();
    },
  };
}

/**
 * A text of somebody else's on one line, and without what a terminal would obey: an error message may hold whatever a
 * service wrote into it.
 */
export function plain(text: string): string {
  return text.replace(/[\p{Cc}\u2028\u2029]+/gu, ' ').replace(/[\u202a-\u202e\u2066-\u2069]/g, '');
}

/** At most so many columns, with a sign that there was more. */
export function cut(text: string, columns: number): string {
  if (stringWidth(text) <= columns) return text;
  let kept = '';
  let width = 1;
  for (const character of text) {
    width += stringWidth(character);
    if (width > columns) break;
    kept += character;
  }
  return `${kept}…`;
}

/** `done` of `total`, such as `██████░░░░  60.0 %`. */
export function bar(done: number, total: number, width = 30): string {
  const share = total > 0 ? Math.min(Math.max(done / total, 0), 1) : 0;
  const full = Math.floor(share * width);
  return `${'█'.repeat(full)}${'░'.repeat(width - full)} ${(share * 100).toFixed(1)} %`;
}
