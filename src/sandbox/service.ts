/** One call's way: written down, disturbed by a fault if one waits for it, carried out, answered. */
import type { FastifyBaseLogger, FastifyReply } from 'fastify';
import type pg from 'pg';
import { type Answer, problem, problemFrom, success } from './answer.js';
import { afterWork, type Fault, type Faults, insteadOfWork, sendDespite } from './faults.js';
import { answerOnce, withConnection } from './memory.js';
import { broadcastOf, type Call, readTask, type Task } from './request.js';
import { Stopped, send } from './send.js';
import { findBroadcast, type Pools, recordAnswer, recordRequest } from './store.js';

export interface ServiceSettings {
  readonly level: 0 | 1;
  /** Messages a second; null for as fast as possible. */
  readonly perSecond: number | null;
  readonly dailyLimit: number;
}

export class Service {
  readonly #working = new Set<Promise<unknown>>();

  constructor(
    private readonly settings: ServiceSettings,
    private readonly pools: Pools,
    private readonly faults: Faults,
    private readonly closing: AbortSignal,
    private readonly log: FastifyBaseLogger,
  ) {}

  /** Answers a call. The work goes on to its end also when the caller has gone: it will ask again. */
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
    const requestNo = await recordRequest(this.pools, call);
    const fault = this.faults.take(call.type, broadcastOf(call.body.payload));
    const answer = (await insteadOfWork(fault, reply, this.closing)) ?? (await this.#carryOut(call, fault));
    if (answer === 'gone') return reply;
    if (fault?.fault !== 'reset_after') await recordAnswer(this.pools, requestNo, answer.status);
    return sendDespite(fault, reply, answer, this.closing);
  }

  async #carryOut(call: Call, fault: Fault | null): Promise<Answer> {
    try {
      const read = readTask(call);
      if ('refusal' in read) return read.refusal;
      const work = (connection: pg.PoolClient) => this.#work(call, read.task, fault, connection);
      return this.settings.level === 1
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

  async #work(call: Call, task: Task, fault: Fault | null, connection: pg.PoolClient): Promise<Answer> {
    if (task.kind === 'broadcast' && !(await findBroadcast(this.pools, task.broadcastId))) {
      const detail = `There is no broadcast ${task.broadcastId}.`;
      return problem(404, 'unknown_broadcast', detail, { retriable: false });
    }
    const { level, perSecond, dailyLimit } = this.settings;
    const pace = { perSecond: slower(perSecond, call.perSecond), signal: this.closing };
    const progress = await send({ connection, call, remembers: level === 1, dailyLimit }, task, pace);
    await afterWork(fault, this.closing);
    return success({ status: 'completed', progress });
  }
}

function slower(one: number | null, other: number | null): number | null {
  if (one === null || other === null) return one ?? other;
  return Math.min(one, other);
}
