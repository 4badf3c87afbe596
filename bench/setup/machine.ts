/** Where it was measured: a figure means nothing without it. */
import { cpus, release, totalmem } from 'node:os';
import type { Server } from './postgres.ts';

export interface Machine {
  /** The day of the measurement. */
  readonly date: string;
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGib: number;
  readonly kernel: string;
  readonly node: string;
  readonly postgres: string;
  readonly settings: Readonly<Record<string, string>>;
}

export function thisMachine(server: Server): Machine {
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryGib: Math.round(totalmem() / 2 ** 30),
    kernel: `${process.platform} ${release()}`,
    node: process.versions.node,
    postgres: server.version,
    settings: server.settings,
  };
}
