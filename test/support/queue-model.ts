/**
 * The queue's states as a model, to be compared with the real tables: what sql/001_jobs.sql and sql/004_flow.sql promise,
 * said a second time and more simply. The commands that move both are in queue-commands.ts and flow-commands.ts.
 */
import { expect } from '@jest/globals';
import type fc from 'fast-check';
import type { Claim, FlowStore, Settlement, Store } from '../../src/queue/ports.js';
import { type JobRow, settlement, type TestQueue } from './store.js';

type Status = 'pending' | 'processing' | 'retry' | 'paused' | 'completed' | 'failed' | 'cancelled';

export interface ModelJob {
  readonly id: string;
  readonly jobId: string;
  readonly maxAttempts: number;
  readonly bot: string | null;
  status: Status;
  /** Whose word counts; null: nobody's. */
  lease: string | null;
  attempts: number;
  epoch: number;
  sliced: boolean;
  /** Its next retry lies in the future. */
  later: boolean;
  pauseAsked: boolean;
  pausedFrom: Status | null;
  /** Where the service runs it by itself. */
  operation: string | null;
  errorCode: string | null;
  /** Calls that an outage cost and not the job. */
  outageCalls: number;
  /** Its holder died in a call that may have been carried out. */
  doubtful: boolean;
}

export interface Model {
  readonly jobs: ModelJob[];
  /** Every claim ever made. */
  readonly claims: Claim[];
  /** The leases that the database knows: whether they have run out, and which jobs their holder has not settled. */
  readonly leases: Map<string, { expired: boolean; open: Set<string> }>;
  /** How many operations are to be ended. */
  abandoned: number;
  /** The one bot's gate is closed; its jobs at once are limited to so many. */
  gateClosed: boolean;
  botLimit: number | null;
  breaker: 'closed' | 'open' | 'half open';
  /** The jobs whose failures the breaker was told, the newest last. */
  told: string[];
}

export const BOT = 'shop';

export interface Real {
  readonly queue: TestQueue;
  readonly store: Store;
  readonly reaper: Store;
  readonly flow: FlowStore;
  /** How many late words were refused. */
  refused: number;
  /** How often the breaker let one job through. */
  probes: number;
}

export const emptyModel = (): Model => ({
  jobs: [],
  claims: [],
  leases: new Map(),
  abandoned: 0,
  gateClosed: false,
  botLimit: null,
  breaker: 'closed',
  told: [],
});

export type Command = fc.AsyncCommand<Model, Real>;

/** A command, with the whole table compared with the model after it. */
export function command(
  name: string,
  run: (model: Model, real: Real) => Promise<void>,
  check: (model: Model) => boolean = () => true,
): Command {
  return {
    check,
    async run(model, real) {
      const before = new Map(model.jobs.map(({ id, epoch }) => [id, epoch]));
      await run(model, real);
      await compare(model, real, before);
    },
    toString: () => name,
  };
}

async function compare(model: Model, { queue }: Real, epochs: ReadonlyMap<string, number>): Promise<void> {
  const [rows, [rest]] = await Promise.all([
    queue.jobs(),
    queue.query<{ held: string[]; abandoned: number }>(
      `select array(select lease_id from broadcast_queue_leases) as held,
              (select count(*)::integer from broadcast_queue_abandoned) as abandoned`,
    ),
  ]);
  expect(rows.map(seen)).toEqual(
    model.jobs.map(({ id, status, lease, attempts, epoch, operation, outageCalls, doubtful }) => {
      return { id, status, lease, attempts, epoch, operation, outageCalls, doubtful };
    }),
  );
  expect(rest?.abandoned).toBe(model.abandoned);
  const leases = new Set(rest?.held);
  expect([...leases].sort()).toEqual([...model.leases.keys()].sort());
  for (const row of rows) {
    expect(row.attempts).toBeLessThanOrEqual(row.max_attempts);
    expect(row.epoch).toBeGreaterThanOrEqual(epochs.get(row.id) ?? 0);
    expect(row.due_at).toEqual(dueBy(row));
    // A job under a lease that nobody knows would wait for ever.
    if (row.due_at === null && row.status === 'processing') expect(leases).toContain(row.lease_id);
  }
}

function seen({ id, status, lease_id, attempts, epoch, operation_url, outage_calls, flags }: JobRow) {
  return {
    id,
    status,
    lease: status === 'processing' ? lease_id : null,
    attempts,
    epoch,
    operation: operation_url,
    outageCalls: outage_calls,
    doubtful: flags.includes('possible_duplicate'),
  };
}

function dueBy({ status, lease_id, scheduled_at, next_retry_at }: JobRow): Date | null {
  if (status === 'pending') return scheduled_at;
  const waits = status === 'retry' || (status === 'processing' && lease_id === null);
  return waits ? (next_retry_at ?? scheduled_at) : null;
}

function isClaimable({ status, lease, later }: ModelJob): boolean {
  return status === 'pending' || ((status === 'retry' || (status === 'processing' && lease === null)) && !later);
}

/** Those that a claim of enough slots takes, if all of the limited bot's that have no room are left out. */
export function claimableNow(model: Model): { jobs: ModelJob[]; count: number } {
  const due = model.breaker === 'open' ? [] : model.jobs.filter(isClaimable);
  const ofBot = model.gateClosed ? [] : due.filter(({ bot }) => bot !== null);
  const others = due.filter(({ bot }) => bot === null);
  const running = model.jobs.filter(({ bot, lease }) => bot !== null && lease !== null).length;
  const room = Math.max((model.botLimit ?? Number.POSITIVE_INFINITY) - running, 0);
  const count = others.length + Math.min(ofBot.length, room);
  return { jobs: [...others, ...ofBot], count: model.breaker === 'half open' ? Math.min(count, 1) : count };
}

export const isHeld = ({ lease }: ModelJob) => lease !== null;
export const isOver = ({ status }: ModelJob) => ['completed', 'failed', 'cancelled'].includes(status);

/** One of several, by any number. */
export function pick<T>(from: readonly T[], n: number): T {
  const one = from[n % from.length];
  if (one === undefined) throw new Error('nothing to pick from');
  return one;
}

export function jobOf(model: Model, claimed: Claim): ModelJob {
  const job = model.jobs.find(({ id }) => id === claimed.job.id);
  if (!job) throw new Error('a claim of an unknown job');
  return job;
}

export function pauseOr(job: ModelJob, status: Status): void {
  job.pausedFrom = job.pauseAsked ? status : null;
  job.status = job.pauseAsked ? 'paused' : status;
}

/** Settles, and forgets the lease when it was the last of it, as the worker does. */
export async function say(model: Model, { store }: Real, claimed: Claim, change: Partial<Settlement>): Promise<string> {
  const lease = model.leases.get(claimed.leaseId);
  lease?.open.delete(claimed.job.id);
  const finished = lease?.open.size === 0 ? [claimed.leaseId] : [];
  for (const id of finished) model.leases.delete(id);
  const [answer] = await store.settle([settlement(claimed, change)], finished);
  return answer ?? 'none';
}

export function applySettlement(job: ModelJob, word: Partial<Settlement> & Pick<Settlement, 'status'>): void {
  job.attempts =
    word.attempts === 'reset' ? 0 : word.attempts === 'refund' ? Math.max(job.attempts - 1, 0) : job.attempts;
  job.later = (word.dueInMs ?? 0) > 0;
  job.sliced ||= word.nextCursor !== undefined;
  job.lease = null;
  job.operation = word.operation ?? null;
  job.errorCode = word.errorCode ?? null;
  if (word.attempts === 'reset' || word.status === 'completed') job.outageCalls = 0;
  const goesOn = ['retry', 'pending', 'processing'].includes(word.status);
  if (goesOn) pauseOr(job, word.status);
  else {
    job.status = word.status;
    job.pausedFrom = word.pausedFrom ?? null;
  }
  job.pauseAsked = false;
}
