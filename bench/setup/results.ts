/** What the scenarios measured: samples, kept as a file for each scenario, from which the report is made at any time. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Machine } from './machine.ts';

/** What was measured of one contestant, or one variant, in one round. */
export interface Sample {
  readonly subject: string;
  readonly round: number;
  /** Null: could not be told. */
  readonly figures: Readonly<Record<string, number | null>>;
  /** The percentiles 0 to 100 of what has many values. */
  readonly percentiles?: readonly number[];
}

export interface Result {
  readonly scenario: string;
  readonly machine: Machine;
  /** What was asked for, and which service ran. */
  readonly options: Readonly<Record<string, string | number>>;
  readonly samples: readonly Sample[];
}

export function writeResult(folder: string, result: Result): void {
  mkdirSync(folder, { recursive: true });
  writeFileSync(pathOf(folder, result.scenario), `${JSON.stringify(result, null, 2)}\n`);
}

/** Null: this scenario has not been run. */
export function readResult(folder: string, scenario: string): Result | null {
  const path = pathOf(folder, scenario);
  // Written by this file alone.
  return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as Result) : null;
}

function pathOf(folder: string, scenario: string): string {
  return join(folder, `${scenario}.json`);
}

/** @param share 0 to 1; between two values it is that between them */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * share;
  const [below, above] = [sorted[Math.floor(at)], sorted[Math.ceil(at)]];
  if (below === undefined || above === undefined) throw new Error('there is nothing of which to take a quantile');
  return below + (above - below) * (at - Math.floor(at));
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

export function percentiles(values: readonly number[]): number[] {
  return Array.from({ length: 101 }, (_, i) => rounded(quantile(values, i / 100)));
}

/** Four digits are more than any of these figures is good for. */
export function rounded(value: number): number {
  return Number(value.toPrecision(4));
}
