/** One call's way: written down, disturbed by a fault if one waits for it, carried out, answered. */
import type { FastifyBaseLogger, FastifyReply } from 'fastify';
import type pg from 'pg';
import { type Answer, problem, problemFrom, success } from './answer.js';
import { countAudience } from './audience.js';
import { afterWork, type Fault, type Faults, insteadOfWork, sendDespite } from './faults.js';
import { answerOnce, withConnection } from './memory.js';
import { Pacer } from './pace.js';
import { broadcastOf, type Call, type Level, readTask, type Task } from './request.js';
import { Stopped, send } from './send.js';
import { findBroadcast, type Pools, recordAnswer, recordRequest } from './store.js';

export interface ServiceSettings {
  readonly level: Level;
  /** Messages a second; null for as fast as possible. */
  readonly perSecond: number | null;
  readonly dailyLimit: number;
}

export class Service {
  readonly #working = new Set<Promise<unknown>>();
  /** By job, for as long as its last second lasts. */
  readonly #pacers = new Map<string, Pacer>();

  constructor(
    private readonly settings: ServiceSettings,
    private readonly pools: Pools,
    private readonly faults: Faults,
    private readonly closing: AbortSignal,
    private readonly log: FastifyBaseLogger,
  ) {}

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

  /** Resolves when no call is at work. */
  async idle(): Promise<void> {
    await Promise.allSettled(this.#working);
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
    try {
      const read = readTask(call, this.settings.level);
      if ('refusal' in read) return read.refusal;
      const work = (connection: pg.PoolClient) => this.#work(call, read.task, fault, gone, connection);
      return this.settings.level >= 1
        ? await answerOnce(this.pools, call, work)
        : await withConnection(this.pools, work);
    } catch (error) {
      if (error instanceof Stopped) {
        return problem(503, 'shutting_down', 'The sandbox is shutting down.', { retry_after: 1 });
      }
      this.log.error({ err: error }, 'a call failed');
      return problemFrom(error);
    }
  }

  async #work(
    call: Call,
    task: Task,
    fault: Fault | null,
    gone: AbortSignal,
    connection: pg.PoolClient,
  ): Promise<Answer> {
    if (task.kind === 'broadcast' && !(await findBroadcast(this.pools, task.broadcastId))) {
      const detail = `There is no broadcast ${task.broadcastId}.`;
      return problem(404, 'unknown_broadcast', detail, { retriable: false });
    }
    const { level, dailyLimit } = this.settings;
    const run = { connection, call, remembers: level >= 1, dailyLimit };
    const perSecond = slower(this.settings.perSecond, call.perSecond);
    if (call.dryRun) {
      const audience = await countAudience(run, task);
      const estimated_seconds = perSecond === null ? null : Math.ceil(audience / perSecond);
      return success({ status: 'completed', dry_run: true, audience, estimated_seconds });
    }
    const sliced = level === 2;
    const signal = sliced ? AbortSignal.any([this.closing, gone]) : this.closing;
    const { progress, cursor } = await send(run, task, { sliced, perSecond, pacer: this.#pacerOf(call.jobId), signal });
    await afterWork(fault, this.closing);
    if (cursor === null) return success({ status: 'completed', progress });
    return success({ status: 'continue', cursor, progress }, { status: 202 });
  }

  #pacerOf(jobId: string): Pacer {
    const now = performance.now();
    for (const [id, pacer] of this.#pacers) if (pacer.isIdle(now)) this.#pacers.delete(id);
    const pacer = this.#pacers.get(jobId) ?? new Pacer();
    this.#pacers.set(jobId, pacer);
    return pacer;
  }
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
