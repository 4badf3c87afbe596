/**
 * What may happen to a queue, as commands that move a model and the real tables alike: workers and operators here, limits,
 * gates and the breaker in flow-commands.ts.
 */
import { expect } from '@jest/globals';
import fc from 'fast-check';
import type { Claim, Settlement } from '../../src/queue/ports.js';
import { flowCommands } from './flow-commands.js';
import {
  applySettlement,
  BOT,
  claimableNow,
  command,
  isHeld,
  isOver,
  jobOf,
  type Model,
  type ModelJob,
  pauseOr,
  pick,
  say,
} from './queue-model.js';
import { claim, fromNow, sqlState } from './store.js';

const enqueue = (maxAttempts: number, bot: string | null) =>
  command(
    `enqueue(${maxAttempts}, ${bot})`,
    async (model, { queue }) => {
      const { id, job_id } = await queue.insert({
        job_data: { bot_id: bot },
        max_attempts: maxAttempts,
        scheduled_at: fromNow('-1 minute'),
      });
      model.jobs.push({
        id,
        jobId: job_id,
        maxAttempts,
        bot,
        status: 'pending',
        lease: null,
        attempts: 0,
        epoch: 0,
        sliced: false,
        later: false,
        pauseAsked: false,
        pausedFrom: null,
        operation: null,
        errorCode: null,
        outageCalls: 0,
        doubtful: false,
      });
    },
    ({ jobs }) => jobs.length < 6,
  );

const claimSome = (slots: number) =>
  command(`claim(${slots})`, async (model, real) => {
    const { store } = real;
    const claimable = claimableNow(model);
    const claims = await claim(store, slots);
    expect(claims).toHaveLength(Math.min(slots, claimable.count));
    for (const claimed of claims) {
      const job = jobOf(model, claimed);
      expect(claimable.jobs).toContain(job);
      job.attempts = job.status === 'pending' && job.attempts >= job.maxAttempts ? 1 : job.attempts + 1;
      job.epoch += 1;
      job.status = 'processing';
      job.lease = claimed.leaseId;
      job.pauseAsked = false;
      expect(claimed.job).toMatchObject({
        attempt: job.attempts,
        epoch: job.epoch,
        step: { operation: job.operation },
      });
      model.claims.push(claimed);
    }
    const [first] = claims;
    if (first) model.leases.set(first.leaseId, { expired: false, open: new Set(claims.map(({ job }) => job.id)) });
    // That was the probe.
    if (first && model.breaker === 'half open') {
      model.breaker = 'open';
      real.probes += 1;
    }
  });

const WORDS = [
  { status: 'completed', result: '{}' },
  { status: 'failed', errorMessage: 'refused' },
  { status: 'cancelled' },
  { status: 'retry', dueInMs: 0 },
  { status: 'retry', dueInMs: 3_600_000, attempts: 'refund' },
  { status: 'retry', dueInMs: 3_600_000, attempts: 'refund', errorCode: 'http_503' },
  { status: 'retry', dueInMs: 0, attempts: 'refund', holdReason: 'waiting for its turn', unstarted: true },
  { status: 'retry', dueInMs: 3_600_000, attempts: 'refund', holdReason: 'waiting for its hours' },
  { status: 'retry', dueInMs: 0, errorCode: 'http_500', operation: '/operations/1' },
  { status: 'processing', dueInMs: 0, attempts: 'refund', operation: '/operations/1' },
  { status: 'processing', dueInMs: 3_600_000, attempts: 'refund', operation: '/operations/1' },
  { status: 'processing', dueInMs: 0, nextCursor: 'next', attempts: 'reset' },
  { status: 'processing', dueInMs: 0, nextCursor: 'same', attempts: 'refund' },
  { status: 'pending', attempts: 'refund', unstarted: true },
  { status: 'paused', pausedFrom: 'pending' },
  { status: 'paused', pausedFrom: 'processing' },
] as const satisfies (Partial<Settlement> & Pick<Settlement, 'status'>)[];

const settle = (n: number, word: (typeof WORDS)[number]) =>
  command(
    `settle(${n}, ${word.status})`,
    async (model, real) => {
      const job = pick(model.jobs.filter(isHeld), n);
      const claimed = model.claims.find(({ leaseId, job: { id } }) => leaseId === job.lease && id === job.id);
      if (!claimed) throw new Error('a lease that was never claimed');
      // A retry with the attempts spent is a failure: the core never settles it otherwise.
      const isSpent = word.status === 'retry' && !('attempts' in word) && job.attempts >= job.maxAttempts;
      const said = isSpent ? { ...word, status: 'failed' as const, dueInMs: null } : word;
      expect(await say(model, real, claimed, said)).toBe('settled');
      applySettlement(job, said);
    },
    ({ jobs }) => jobs.some(isHeld),
  );

const isStale = (model: Model) => (claimed: Claim) => jobOf(model, claimed).lease !== claimed.leaseId;

/** The late word of somebody who lost the job or has settled it already; now and then it looks like the same word. */
const zombieSettle = (n: number, word: (typeof WORDS)[number]) =>
  command(
    `zombie settle(${n}, ${word.status})`,
    async (model, real) => {
      const claimed = pick(model.claims.filter(isStale(model)), n);
      expect(await say(model, real, claimed, { ...word, raiseEpochAbove: 1000 })).not.toBe('settled');
      real.refused += 1;
    },
    (model) => model.claims.some(isStale(model)),
  );

/** One heartbeat for every claim ever made, as of a worker that knows nothing of its losses. */
const beat = command('beat', async (model, { store }) => {
  const asked = new Map<string, string[]>();
  for (const { leaseId, job } of model.claims) asked.set(leaseId, [...(asked.get(leaseId) ?? []), job.id]);
  const held = model.jobs.filter(isHeld).map(({ id }) => id);
  expect([...(await store.beat(asked))].sort()).toEqual(held.sort());
  for (const lease of model.leases.values()) lease.expired = false;
});

const expire = (n: number) =>
  command(
    `expire(${n})`,
    async (model, { queue }) => {
      const [id, lease] = pick([...model.leases], n);
      await queue.query(
        "update broadcast_queue_leases set expires_at = now() - interval '1 second' where lease_id = $1",
        [id],
      );
      lease.expired = true;
    },
    ({ leases }) => leases.size > 0,
  );

const reap = command('reap', async (model, { reaper }) => {
  const expired = new Set([...model.leases].filter(([, lease]) => lease.expired).map(([id]) => id));
  const lost = model.jobs.filter(({ lease }) => lease !== null && expired.has(lease));
  for (const job of lost) {
    const isSpent = job.attempts >= job.maxAttempts;
    if (job.pauseAsked) pauseOr(job, isSpent ? 'pending' : 'retry');
    else job.status = isSpent ? 'failed' : 'retry';
    Object.assign(job, { lease: null, later: false, pauseAsked: false, errorCode: 'lease_expired' });
    job.doubtful ||= job.operation === null;
  }
  for (const id of expired) model.leases.delete(id);
  const { reaped } = await reaper.reap();
  expect(reaped.map(({ jobId, status }) => `${jobId} ${status}`).sort()).toEqual(
    lost.map(({ jobId, status }) => `${jobId} ${status}`).sort(),
  );
});

const release = (n: number) =>
  command(
    `release(${n})`,
    async (model, { store }) => {
      const [id] = pick([...model.leases], n);
      const held = model.jobs.filter(({ lease }) => lease === id);
      expect(await store.release([id])).toBe(held.length);
      for (const job of held) {
        pauseOr(job, job.sliced || job.operation !== null ? 'processing' : 'pending');
        Object.assign(job, { lease: null, attempts: Math.max(job.attempts - 1, 0), later: false, pauseAsked: false });
      }
      model.leases.delete(id);
    },
    ({ leases }) => leases.size > 0,
  );

/** What an operator's function does to a job; null: its status does not allow it. */
const OPERATIONS: Record<string, (job: ModelJob, model: Model) => string | null> = {
  broadcast_pause(job) {
    if (isOver(job)) return null;
    if (job.lease !== null) {
      job.pauseAsked = true;
      return 'pausing';
    }
    if (job.status !== 'paused') job.pausedFrom = job.status;
    job.status = 'paused';
    return 'paused';
  },
  broadcast_resume(job) {
    if (job.lease !== null && job.pauseAsked) {
      job.pauseAsked = false;
      return 'processing';
    }
    if (job.status !== 'paused') return null;
    // With its attempts spent it could only fail: it starts over.
    job.status = job.attempts >= job.maxAttempts ? 'pending' : (job.pausedFrom ?? 'pending');
    job.pausedFrom = null;
    return job.status;
  },
  broadcast_cancel(job, model) {
    if (isOver(job)) return null;
    abandon(job, model);
    Object.assign(job, { status: 'cancelled', lease: null, epoch: job.epoch + 1, pauseAsked: false, pausedFrom: null });
    job.errorCode = 'cancelled';
    return 'cancelled';
  },
  broadcast_retry(job) {
    if (!['failed', 'cancelled', 'retry'].includes(job.status)) return null;
    startOver(job);
    return 'pending';
  },
  broadcast_resend(job, model) {
    if (job.status === 'processing') return null;
    abandon(job, model);
    startOver(job);
    Object.assign(job, { sliced: true, pausedFrom: null, pauseAsked: false });
    return 'pending';
  },
};

function abandon(job: ModelJob, model: Model): void {
  if (job.operation !== null) model.abandoned += 1;
  job.operation = null;
}

function startOver(job: ModelJob): void {
  Object.assign(job, { status: 'pending', attempts: 0, epoch: job.epoch + 1, later: false, outageCalls: 0 });
  job.errorCode = null;
}

const operate = (n: number, name: string) =>
  command(
    `${name}(${n})`,
    async (model, { queue }) => {
      const job = pick(model.jobs, n);
      const expected = OPERATIONS[name]?.(job, model);
      const more = name === 'broadcast_resend' ? ", 'all'" : '';
      const answer = queue.query(`select ${name}($1${more}) as answer`, [job.jobId]);
      if (expected === null) expect(await sqlState(answer)).toBe('55000');
      else expect(await answer).toEqual([{ answer: expected }]);
    },
    ({ jobs }) => jobs.length > 0,
  );

const setToPending = (n: number) =>
  command(
    `update … set status = 'pending' (${n})`,
    async (model, { queue }) => {
      const job = pick(model.jobs, n);
      await queue.query("update broadcast_queue_jobs set status = 'pending' where id = $1", [job.id]);
      Object.assign(job, { status: 'pending', lease: null });
    },
    ({ jobs }) => jobs.length > 0,
  );

const which = fc.nat({ max: 11 });
const words = fc.constantFrom(...WORDS);

/** Sequences of commands, those that the others need more often. */
export function commands(max: number) {
  return fc.commands(
    [
      fc.tuple(fc.integer({ min: 1, max: 3 }), fc.constantFrom(null, BOT)).map((given) => enqueue(...given)),
      fc.integer({ min: 1, max: 3 }).map(claimSome),
      fc.integer({ min: 1, max: 3 }).map(claimSome),
      fc.integer({ min: 1, max: 3 }).map(claimSome),
      fc.tuple(which, words).map((given) => settle(...given)),
      fc.tuple(which, words).map((given) => settle(...given)),
      fc.tuple(which, words).map((given) => zombieSettle(...given)),
      fc.tuple(which, words).map((given) => zombieSettle(...given)),
      fc.constant(beat),
      which.map(expire),
      fc.constant(reap),
      which.map(release),
      fc.tuple(which, fc.constantFrom(...Object.keys(OPERATIONS))).map((given) => operate(...given)),
      fc.tuple(which, fc.constantFrom(...Object.keys(OPERATIONS))).map((given) => operate(...given)),
      which.map(setToPending),
      ...flowCommands(which),
    ],
    { maxCommands: max, size: '+1' },
  );
}
