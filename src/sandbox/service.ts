/** One call's way: written down, disturbed by a fault if one waits for it, carried out, answered. */
import type { FastifyBaseLogger, FastifyReply } from 'fastify';
import type pg from 'pg';
import { type Answer, problem, problemFrom, Refusal, success } from './answer.js';
import { countAudience } from './audience.js';
import { afterWork, type Fault, type Faults, insteadOfWork, sendDespite } from './faults.js';
import { doneAnswer, type Flaws } from './flaws.js';
import type { Run } from './ledger.js';
import { admit, answerOnce, withConnection } from './memory.js';
import { Operations } from './operations.js';
import { Pacer } from './pace.js';
import { type BroadcastTask, broadcastOf, type Call, type Level, readTask, type Task } from './request.js';
import { type Sent, Stopped, send } from './send.js';
import { findBroadcast, type Pools, recordAnswer, recordRequest } from './store.js';

export interface ServiceSettings {
  readonly level: Level;
  /** Messages a second; null for as fast as possible. */
  readonly perSecond: number | null;
  readonly dailyLimit: number;
  readonly flaws: Flaws;
}

export class Service {
  /** What runs by itself: only at level 3. */
  readonly operations: Operations;
  readonly #working = new Set<Promise<unknown>>();
  /** By job, for as long as its last second lasts. */
  readonly #pacers = new Map<string, Pacer>();

  constructor(
    private readonly settings: ServiceSettings,
    private readonly pools: Pools,
    private readonly faults: Faults,
    private readonly closing: AbortSignal,
    private readonly log: FastifyBaseLogger,
  ) {
    this.operations = new Operations(pools, settings.flaws, closing, log, (call, connection, signal) =>
      this.#send(call, this.#understand(call), connection, signal),
    );
  }

  /**
   * Answers a call. When the caller has gone, a slice ends at the next batch and its answer is kept for whoever asks
   * again; below level 2 the work goes on to its end.
   */
  async answer(call: Call, reply: FastifyReply): Promise<FastifyReply> {
    const working = this.#answer(call, reply);
    this.#working.add(working);
    try {
      return await working;
    } finally {
      this.#working.delete(working);
    }
  }

  /** Resolves when nothing is at work. */
  async idle(): Promise<void> {
    await Promise.allSettled(this.#working);
    await this.operations.idle();
  }

  async #answer(call: Call, reply: FastifyReply): Promise<FastifyReply> {
    const gone = goneSignal(reply);
    const requestNo = await recordRequest(this.pools, call);
    const fault = this.faults.take(call.type, broadcastOf(call.body.payload));
    const answer = (await insteadOfWork(fault, reply, this.closing)) ?? (await this.#carryOut(call, fault, gone));
    if (answer === 'gone') return reply;
    if (fault?.fault !== 'reset_after') await recordAnswer(this.pools, requestNo, answer.status);
    return sendDespite(fault, reply, answer, this.closing);
  }

  async #carryOut(call: Call, fault: Fault | null, gone: AbortSignal): Promise<Answer> {
    const { level, flaws } = this.settings;
    try {
      const task = this.#understand(call);
      if (level === 3 && task.kind === 'broadcast' && !call.dryRun) return await this.#handOver(call, task, fault);
      const work = (connection: pg.PoolClient) => this.#work(call, task, fault, gone, connection);
      return level >= 1 ? await answerOnce(this.pools, call, flaws, work) : await withConnection(this.pools, work);
    } catch (error) {
      if (error instanceof Stopped) {
        return problem(503, 'shutting_down', 'The sandbox is shutting down.', { retry_after: 1 });
      }
      if (!(error instanceof Refusal)) this.log.error({ err: error }, 'a call failed');
      return problemFrom(error);
    }
  }

  /** @throws Refusal */
  #understand(call: Call): Task {
    const read = readTask(call, this.settings.level, this.settings.flaws);
    if ('refusal' in read) throw new Refusal(read.refusal);
    return read.task;
  }

  async #handOver(call: Call, task: BroadcastTask, fault: Fault | null): Promise<Answer> {
    const key = await admit(this.pools, call, this.settings.flaws);
    if (!(await findBroadcast(this.pools, task.broadcastId))) return unknownBroadcast(task);
    const answer = await this.operations.accept(call, key);
    await afterWork(fault, this.closing);
    return answer;
  }

  async #work(
    call: Call,
    task: Task,
    fault: Fault | null,
    gone: AbortSignal,
    connection: pg.PoolClient,
  ): Promise<Answer> {
    const { level, flaws } = this.settings;
    if (task.kind === 'broadcast' && !(await findBroadcast(this.pools, task.broadcastId)))
      return unknownBroadcast(task);
    const signal = level >= 2 ? AbortSignal.any([this.closing, gone]) : this.closing;
    if (call.dryRun) {
      const audience = await countAudience(this.#runOf(call, connection), task);
      if (flaws.has('dry-run-sends')) await this.#send(call, task, connection, signal);
      const pace = this.#paceOf(call);
      const estimated_seconds = pace === null ? null : Math.ceil(audience / pace);
      return success({ status: 'completed', dry_run: true, audience, estimated_seconds });
    }
    const { progress, cursor } = await this.#send(call, task, connection, signal);
    await afterWork(fault, this.closing);
    // Unstored, so that the repetition does it again.
    if (gone.aborted && flaws.has('forgets-cut-slice')) throw new Stopped();
    if (cursor !== null) return success({ status: 'continue', cursor, progress }, { status: 202 });
    return doneAnswer(flaws, success({ status: 'completed', progress }));
  }

  #send(call: Call, task: Task, connection: pg.PoolClient, signal: AbortSignal): Promise<Sent> {
    const limits = {
      sliced: this.settings.level >= 2,
      perSecond: this.#paceOf(call),
      pacer: this.#pacerOf(call.jobId),
    };
    return send(this.#runOf(call, connection), task, { ...limits, signal });
  }

  #runOf(call: Call, connection: pg.PoolClient): Run {
    const { level, dailyLimit, flaws } = this.settings;
    return { connection, call, remembers: level >= 1, dailyLimit, flaws };
  }

  #paceOf(call: Call): number | null {
    return slower(this.settings.perSecond, this.settings.flaws.has('ignores-pace') ? null : call.perSecond);
  }

  #pacerOf(jobId: string): Pacer {
    const now = performance.now();
    for (const [id, pacer] of this.#pacers) if (pacer.isIdle(now)) this.#pacers.delete(id);
    const pacer = this.#pacers.get(jobId) ?? new Pacer();
    this.#pacers.set(jobId, pacer);
    return pacer;
  }
}

function unknownBroadcast({ broadcastId }: BroadcastTask): Answer {
  return problem(404, 'unknown_broadcast', `There is no broadcast ${broadcastId}.`, { retriable: false });
}

/** Fires when the connection is closed, by the caller or after the answer. */
function goneSignal(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  reply.raw.once('close', () => gone.abort());
  if (reply.raw.socket?.destroyed) gone.abort();
  return gone.signal;
}

function slower(one: number | null, other: number | null): number | null {
  if (one === null || other === null) return one ?? other;
  return Math.min(one, other);
}
