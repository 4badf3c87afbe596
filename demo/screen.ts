/** Draws the jobs: in place on a terminal, one line per change elsewhere. */
import type { WriteStream } from 'node:tty';

export interface JobRow {
  job_id: string;
  job_type: string;
  queue_name: string;
  job_data: { broadcast_id?: unknown; segment_id?: unknown };
  status: string;
  attempts: number;
  error_message: string | null;
  progress: Counts | null;
  result: { progress?: Counts } | null;
  waited_ms: number | null;
  took_ms: number | null;
}

interface Counts {
  total?: number | null;
  processed?: number;
  sent?: number;
  skipped?: number;
  failed?: number;
}

export class Screen {
  #drawn = 0;
  readonly #last = new Map<string, string>();

  /** @param inPlace draws over what it drew before */
  constructor(
    private readonly out: WriteStream,
    private readonly inPlace: boolean,
  ) {}

  show(rows: readonly JobRow[]): void {
    const lines = rows.map(stateLine);
    if (this.inPlace) {
      const up = this.#drawn > 0 ? `\u001b[${this.#drawn}A` : '';
      this.out.write(up + lines.map((line) => `\u001b[2K${line.slice(0, this.out.columns || 120)}\n`).join(''));
      this.#drawn = lines.length;
      return;
    }
    rows.forEach((row, i) => {
      const line = lines[i] ?? '';
      if (this.#last.get(row.job_id) !== line) this.out.write(`${line}\n`);
      this.#last.set(row.job_id, line);
    });
  }

  summary(rows: readonly JobRow[]): void {
    const header = ['job', 'status', 'attempts', 'waited', 'took', 'sent', 'skipped', 'failed'];
    const table = [header, ...rows.map(summaryCells)];
    const widths = header.map((_, column) => Math.max(...table.map((cells) => cells[column]?.length ?? 0)));
    this.out.write('\n');
    for (const cells of table) {
      this.out.write(`  ${cells.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join('  ')}\n`);
    }
  }
}

const MARK: Record<string, string> = { completed: '✔', failed: '✘', retry: '↻', processing: '▶', cancelled: '✘' };

function stateLine(row: JobRow): string {
  const why = row.status === 'retry' || row.status === 'failed' ? `  (${row.error_message ?? ''})` : '';
  const counts = countsOf(row);
  // A service that works in slices says after each how far it is.
  const of = row.status === 'processing' && counts?.total ? ` of ${counts.total}` : '';
  const sent = row.status === 'completed' || of !== '' ? `  ${counts?.sent ?? 0} sent${of}` : '';
  return `  ${MARK[row.status] ?? '·'} ${title(row).padEnd(40)} ${row.status.padEnd(10)}${sent}${why}`;
}

function summaryCells(row: JobRow): string[] {
  const counts = countsOf(row);
  const number = (count: number | null | undefined) => (count === undefined || count === null ? '–' : String(count));
  const ms = (time: number | null) => (time === null ? '–' : `${Math.round(time)} ms`);
  return [
    title(row),
    row.status,
    String(row.attempts),
    ms(row.waited_ms),
    ms(row.took_ms),
    number(counts?.sent),
    number(counts?.skipped),
    number(counts?.failed),
  ];
}

function countsOf(row: JobRow): Counts | null {
  return row.progress ?? row.result?.progress ?? null;
}

function title({ job_type, job_data }: JobRow): string {
  const id = job_data.broadcast_id === undefined ? '' : ` ${String(job_data.broadcast_id)}`;
  const segment = job_data.segment_id === undefined ? '' : ` (${String(job_data.segment_id)})`;
  return `${job_type}${id}${segment}`;
}
