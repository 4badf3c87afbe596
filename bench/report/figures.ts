/** Looking up what was measured: the rounds of one figure, and what they come to. */
import { median, type Result } from '../setup/results.ts';

export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** Null: not measured, or it could not be told. */
export function spread(result: Result | null, subject: string, figure: string): Spread | null {
  const values = (result?.samples ?? [])
    .filter((sample) => sample.subject === subject)
    .map(({ figures }) => figures[figure])
    .filter((value) => typeof value === 'number');
  if (values.length === 0) return null;
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

export function mid(result: Result | null, subject: string, figure: string): number | null {
  return spread(result, subject, figure)?.median ?? null;
}

/** Null where one of them is. */
export function ratio(one: number | null, other: number | null): number | null {
  return one === null || other === null || other === 0 ? null : one / other;
}

/** In the order in which they were first measured. */
export function subjects(result: Result): string[] {
  return [...new Set(result.samples.map(({ subject }) => subject))];
}

/** The percentiles 0 to 100, each as the median of its rounds. */
export function distribution(result: Result, subject: string): number[] | null {
  const rounds = result.samples.flatMap((sample) =>
    sample.subject === subject && sample.percentiles ? [sample.percentiles] : [],
  );
  if (rounds.length === 0) return null;
  return Array.from({ length: 101 }, (_, i) => median(rounds.map((values) => values[i] ?? 0)));
}

export function shown(value: number): string {
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en-US');
  return String(Number(value.toPrecision(3)));
}
