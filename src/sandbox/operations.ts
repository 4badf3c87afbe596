/**
 * Level 3: a broadcast that the service runs by itself, with an address where to look at it and to cancel it. It sends
 * slice after slice, as the daemon would have it do at level 2, and writes down how far it has come after each.
 *
 * What has to outlive a kill is in the database: the operation's row, and person by person the ledger. A sandbox that
 * starts goes on with every operation that is still `running`. Who runs it holds the job's lock (see memory.ts), so two
 * sandboxes never run one operation; the second waits, and takes over when the first dies.
 */
import { randomUUID } from 'node:crypto';
import type { FastifyBaseLogger } from 'fastify';
import type pg from 'pg';
import { Value } from 'typebox/value';
import { type Answer, isDatabaseAway, problem, Refusal, success } from './answer.js';
import { doneAnswer, type Flaws } from './flaws.js';
import { inProgress, lockJob, withConnection } from './memory.js';
import { pause } from './pace.js';
import { Body, type Call, readCall } from './request.js';
import type { Counters, Sent } from './send.js';
import type { Pools } from './store.js';

/** How often the progress is written down. */
const SLICE_SECONDS = 0.25;
/** When the job's lock or the database is not to be had. */
const AGAIN_AFTER_MS = 1_000;
const RETRY_AFTER_SECONDS = 1;

interface Operation {
  operation_id: string;
  status: 'running' | 'completed' | 'failed' | 'cancelled';
  /** Null before its first slice. */
  progress: Counters | null;
  error: string | null;
}

/** What an operation has to go on with. */
interface Rest {
  job_type: string;
  idempotency_key: string;
  request: string;
  cursor: string | null;
}

/** Sends one slice over the connection; when the signal fires it ends after the batch in hand. */
type SendSlice = (call: Call, connection: pg.PoolClient, signal: AbortSignal) => Promise<Sent>;

export class Operations {
  readonly #runs = new Map<string, { readonly stop: AbortController; readonly ended: Promise<void> }>();

  constructor(
    private readonly pools: Pools,
    private readonly flaws: Flaws,
    private readonly closing: AbortSignal,
    private readonly log: FastifyBaseLogger,
    private readonly sendSlice: SendSlice,
  ) {}

  /** Goes on with what was cut short. */
  async goOn(): Promise<void> {
    const { rows } = await this.pools.statements.query<{ operation_id: string; job_id: string }>(
      `select operation_id, job_id from broadcast_sandbox.operations where status = 'running'`,
    );
    for (const { operation_id, job_id } of rows) this.#begin(operation_id, job_id);
  }

  /**
   * Begins an operation, at most one of a job at a time. The same key finds the same one; that goes on from where it
   * was if it has failed, or if it was cancelled and a later epoch wants it after all.
   */
  async accept(call: Call, key: string): Promise<Answer> {
    const { rows } = await this.pools.statements.query<Operation>(
      `insert into broadcast_sandbox.operations as o (idempotency_key, job_id, job_type, epoch, request, cursor)
       select $1, $2, $3, $4::bigint, $5, $6
       where not exists (select from broadcast_sandbox.operations
                         where job_id = $2 and status = 'running' and idempotency_key <> $1)
       on conflict (idempotency_key) do update
       set status = case when o.status = 'failed' or (o.status = 'cancelled' and o.epoch < excluded.epoch)
                         then 'running' else o.status end,
           epoch = excluded.epoch, request = excluded.request
       returning operation_id, status, progress, error`,
      [
        // Under another name nobody finds it again.
        this.flaws.has('forgets-keys') ? `${key} ${randomUUID()}` : key,
        ...[call.jobId, call.type, call.epoch, JSON.stringify(call.body), call.cursor],
      ],
    );
    const [operation] = rows;
    if (operation === undefined) return inProgress();
    if (operation.status === 'running') this.#begin(operation.operation_id, call.jobId);
    const origin = this.flaws.has('location-elsewhere') ? 'http://elsewhere.invalid' : '';
    const location = `${origin}/operations/${operation.operation_id}`;
    return doneAnswer(this.flaws, stateOf(operation, { status: 202, headers: { location } }));
  }

  async look(id: string): Promise<Answer> {
    const operation = await this.#find(id);
    return operation === null || this.flaws.has('forgets-operation') ? unknownOperation() : stateOf(operation);
  }

  /** When it answers, this sandbox sends nothing more of the operation. */
  async cancel(id: string): Promise<Answer> {
    if ((await this.#find(id)) === null) return unknownOperation();
    if (!this.flaws.has('delete-ignored')) {
      await this.pools.statements.query(
        `update broadcast_sandbox.operations set status = 'cancelled' where operation_id = $1 and status = 'running'`,
        [id],
      );
      const run = this.#runs.get(id);
      run?.stop.abort();
      await run?.ended;
    }
    return { status: 204, headers: {}, body: '' };
  }

  /** Resolves when none is at work. */
  async idle(): Promise<void> {
    await Promise.all([...this.#runs.values()].map(({ ended }) => ended));
  }

  /** Runs it, unless it runs here already. */
  #begin(id: string, jobId: string): void {
    const before = this.#runs.get(id);
    if (before !== undefined && !before.stop.signal.aborted) return;
    const stop = new AbortController();
    const ended = this.#run(id, jobId, AbortSignal.any([this.closing, stop.signal])).finally(() => {
      if (this.#runs.get(id)?.stop === stop) this.#runs.delete(id);
    });
    this.#runs.set(id, { stop, ended });
  }

  async #run(id: string, jobId: string, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        if (await withConnection(this.pools, (connection) => this.#sendRest(id, jobId, connection, signal))) return;
      } catch (error) {
        if (!(error instanceof Refusal)) this.log.error({ err: error }, 'an operation was interrupted');
        const mayPass = error instanceof Refusal || isDatabaseAway(error);
        if (!mayPass && (await this.#fail(id))) return;
      }
      await pause(AGAIN_AFTER_MS, signal);
    }
  }

  /** @returns false when somebody else is at work on the job */
  async #sendRest(id: string, jobId: string, connection: pg.PoolClient, signal: AbortSignal): Promise<boolean> {
    if (!(await lockJob(connection, jobId))) return false;
    const rest = await restOf(connection, id);
    if (rest === null) return true;
    const { job_type, idempotency_key, request } = rest;
    const call = readCall(
      job_type,
      { 'idempotency-key': idempotency_key },
      Value.Parse(Body, JSON.parse(request)),
      this.flaws,
    );
    const shares = { maxItems: Number.POSITIVE_INFINITY, waitSeconds: SLICE_SECONDS };
    for (let cursor = rest.cursor; !signal.aborted; ) {
      const sent = await this.sendSlice({ ...call, ...shares, cursor }, connection, signal);
      if ((await record(connection, id, sent)) !== 'running') return true;
      cursor = sent.cursor;
    }
    return true;
  }

  /** @returns false when that could not be written down */
  async #fail(id: string): Promise<boolean> {
    try {
      await this.pools.statements.query(
        `update broadcast_sandbox.operations set status = 'failed', error = $2
         where operation_id = $1 and status = 'running'`,
        [id, 'The sandbox failed; its log says why.'],
      );
      return true;
    } catch {
      return false;
    }
  }

  async #find(id: string): Promise<Operation | null> {
    const { rows } = await this.pools.statements.query<Operation>(
      'select operation_id, status, progress, error from broadcast_sandbox.operations where operation_id = $1',
      [id],
    );
    return rows[0] ?? null;
  }
}

/** Null when nothing is left to do. */
async function restOf(connection: pg.PoolClient, id: string): Promise<Rest | null> {
  const { rows } = await connection.query<Rest>(
    `select job_type, idempotency_key, request, cursor from broadcast_sandbox.operations
     where operation_id = $1 and status = 'running'`,
    [id],
  );
  return rows[0] ?? null;
}

/** Writes a slice down. @returns the operation's status: it may have been cancelled meanwhile */
async function record(connection: pg.PoolClient, id: string, { progress, cursor }: Sent): Promise<string | undefined> {
  const { rows } = await connection.query<{ status: string }>(
    `update broadcast_sandbox.operations
     set progress = $2, cursor = $3,
         status = case when status = 'running' and $3::text is null then 'completed' else status end
     where operation_id = $1
     returning status`,
    [id, progress, cursor],
  );
  return rows[0]?.status;
}

function stateOf(
  { status, progress, error }: Operation,
  { status: code = 200, headers = {} }: { status?: number; headers?: Record<string, string> } = {},
): Answer {
  const body = { status, ...(progress !== null && { progress }), ...(status === 'failed' && { error }) };
  const later = { 'retry-after': String(RETRY_AFTER_SECONDS) };
  return success(body, { status: code, headers: { ...headers, ...(status === 'running' && later) } });
}

function unknownOperation(): Answer {
  return problem(404, 'unknown_operation', 'There is no such operation.', { retriable: false });
}
