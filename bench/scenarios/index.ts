/** The scenarios by name, in the order of the report, each with the sizes that its figures are published for. */
import type { Asked, Stage } from '../setup/stage.ts';
import { measureAdmin } from './admin.ts';
import { measureBacklog } from './backlog.ts';
import { measureDrain } from './drain.ts';
import { measureEnqueue } from './enqueue.ts';
import { measureIdle } from './idle.ts';
import { measureLatency } from './latency.ts';
import { measureLateness } from './lateness.ts';
import { measureScaling } from './scaling.ts';
import type { Outcome } from './scenario.ts';

export interface Scenario {
  readonly description: string;
  readonly standard: Partial<Asked>;
  /** For PostgreSQL's shared_preload_libraries. */
  readonly preload?: string;
  measure(stage: Stage): Promise<Outcome>;
}

export const scenarios: Readonly<Record<string, Scenario>> = {
  drain: {
    description: 'a backlog, with a service that answers at once',
    standard: { rounds: 5, jobs: 40_000, slots: 50 },
    measure: measureDrain,
  },
  latency: {
    description: 'from an INSERT to the call, one row every 30 ms',
    standard: { rounds: 3, jobs: 500, slots: 50 },
    measure: measureLatency,
  },
  lateness: {
    description: 'how late delayed jobs start on an idle daemon',
    standard: { rounds: 3, jobs: 200, slots: 50 },
    measure: measureLateness,
  },
  enqueue: {
    description: 'rows a second: one by one, sixteen clients at once, batches',
    standard: { rounds: 5, jobs: 100_000, slots: 50, seconds: 5 },
    measure: measureEnqueue,
  },
  backlog: {
    description: 'a large table with stale statistics, and a transaction held open',
    standard: { rounds: 3, jobs: 20_000, slots: 50, pending: 1_000_000, finished: 5_000_000, holdMinutes: 5 },
    measure: measureBacklog,
  },
  scaling: {
    description: 'one, two and four daemons, with a service of 20 ms; jobs: for each daemon',
    standard: { rounds: 3, jobs: 5000, slots: 10 },
    measure: measureScaling,
  },
  idle: {
    description: 'statements, CPU and memory of a worker without work',
    standard: { rounds: 3, slots: 50, seconds: 60, pending: 1_000_000 },
    preload: 'pg_stat_statements',
    measure: measureIdle,
  },
  admin: {
    description: 'reads of the API during a drain',
    standard: { rounds: 3, jobs: 40_000, slots: 50 },
    measure: measureAdmin,
  },
};
