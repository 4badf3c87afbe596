/** Texts of the command line as values. Each says what it would have liked to read. */
import { InvalidArgumentError } from 'commander';

export function integer(min: number, max: number) {
  return (text: string): number => {
    const value = Number(text);
    if (/^[+-]?\d+$/.test(text) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`it must be a whole number from ${min} to ${max}`);
  };
}

export function number(min: number, max: number) {
  return (text: string): number => {
    const value = Number(text);
    if (/^\d*\.?\d+$/.test(text) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`it must be a number from ${min} to ${max}`);
  };
}

const UNITS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

const TEN_YEARS_MS = 3650 * 86_400_000;

/** Such as 90s, 10m, 2h, 3d; in milliseconds. */
export function durationOf(text: string): number {
  const [, amount, unit] = /^(\d{1,9}(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text) ?? [];
  const ms = amount === undefined || unit === undefined ? Number.NaN : Number(amount) * (UNITS[unit] ?? 0);
  if (ms <= TEN_YEARS_MS) return ms;
  throw new InvalidArgumentError('it must be a duration such as 90s, 10m, 2h or 3d, of ten years at most');
}

/** An instant with its zone: a local time without one means something else on every machine. */
export function instantOf(text: string): string {
  const iso = /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)$/;
  if (iso.test(text) && !Number.isNaN(Date.parse(text.replace(' ', 'T').replace(/([+-]\d\d)$/, '$1:00')))) return text;
  throw new InvalidArgumentError('it must be an instant with a time zone, such as 2027-01-31T09:00:00+01:00 or …Z');
}

/** An instant, or a duration before now. */
export function sinceOf(text: string): string {
  return /^\d+(\.\d+)?(ms|s|m|h|d)$/.test(text)
    ? new Date(Date.now() - durationOf(text)).toISOString()
    : instantOf(text);
}

export function shortText(text: string): string {
  if (text.length >= 1 && text.length <= 500) return text;
  throw new InvalidArgumentError('it must be a text of 1 to 500 characters');
}

/** One of several `name=value`. */
export function pair(text: string, before: Readonly<Record<string, string>> = {}): Record<string, string> {
  const [, name, value] = /^([^=]{1,100})=([\s\S]*)$/.exec(text) ?? [];
  if (name !== undefined && value !== undefined) return { ...before, [name]: value };
  throw new InvalidArgumentError('it must be name=value, such as broadcast_id=42');
}
