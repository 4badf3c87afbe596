/** What /metrics answers, as series. */
import type { Program } from './daemon.js';

interface Series {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Scrape {
  readonly status: number;
  readonly text: string;
  readonly series: readonly Series[];
  /** The sum of the series that have these labels at least; NaN: there is none. */
  value(name: string, labels?: Readonly<Record<string, string>>): number;
}

export async function scrape(daemon: Program, token?: string): Promise<Scrape> {
  const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
  const response = await fetch(`${daemon.url}/metrics`, { headers });
  const text = await response.text();
  const series = text.split('\n').flatMap((line) => {
    const [, name, labels = '', value] = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (name === undefined) return [];
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, label, text]) => [label, text]);
    return [{ name, labels: Object.fromEntries(pairs), value: Number(value?.replace('+Inf', 'Infinity')) }];
  });
  return {
    status: response.status,
    text,
    series,
    value(name, wanted = {}) {
      const fitting = series.filter(
        (one) => one.name === name && Object.entries(wanted).every(([label, value]) => one.labels[label] === value),
      );
      return fitting.length === 0 ? Number.NaN : fitting.reduce((sum, { value }) => sum + value, 0);
    },
  };
}
