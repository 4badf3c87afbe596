/**
 * What makes a service level 1, and each slice of level 2 safe to repeat: the same Idempotency-Key gets the same answer
 * and no second send, however often it comes, from whichever daemon, also across a restart of this service.
 *
 * That a call is running is not a mark in a table, which a killed process would leave behind, but a session-level
 * advisory lock on the connection that does all of the call's writing. When the process dies, Postgres closes the
 * connection and frees the lock; and a call that lost its connection lost the lock and the means to write with it.
 * (So this database must be reached directly: a transaction pooler would tear lock and connection apart.)
 */
import type pg from 'pg';
import { type Answer, problem, Refusal } from './answer.js';
import type { Flaws } from './flaws.js';
import type { Call } from './request.js';
import { LOCK_CLASS } from './schema.js';
import type { Pools } from './store.js';

const LONGEST_KEY = 300;
const LOOK_AGAIN_SECONDS = 1;

/**
 * Whether the call may be carried out: it has a key, which stands for this request alone, and its epoch is not over.
 * @returns the key
 * @throws Refusal
 */
export async function admit(pools: Pools, call: Call, flaws: Flaws): Promise<string> {
  const { key } = call;
  if (key === null || key.length > LONGEST_KEY) {
    const detail = `Each call needs an Idempotency-Key of at most ${LONGEST_KEY} characters.`;
    throw new Refusal(problem(400, 'bad_idempotency_key', detail, { retriable: false }));
  }
  const known = await register(pools, key, call, flaws);
  if (known.epoch > call.epoch) {
    throw new Refusal(problem(409, 'stale_epoch', `Epoch ${call.epoch} is over.`, { epoch: known.epoch }));
  }
  if (known.fingerprint !== call.fingerprint) {
    const detail = 'This Idempotency-Key came with another request before.';
    throw new Refusal(problem(422, 'key_reused', detail, { retriable: false }));
  }
  return key;
}

/** While a job is at work, its other calls have to come again. */
export function inProgress(): Answer {
  const members = { retriable: true, retry_after: LOOK_AGAIN_SECONDS };
  return problem(409, 'in_progress', 'An earlier call of this job still runs.', members);
}

/**
 * Does the work of a call unless it was done before.
 * @param work given the connection that holds the job's lock; its answer is stored if it is a success
 * @throws Refusal
 */
export async function answerOnce(
  pools: Pools,
  call: Call,
  flaws: Flaws,
  work: (connection: pg.PoolClient) => Promise<Answer>,
): Promise<Answer> {
  const key = await admit(pools, call, flaws);
  return await withConnection(pools, async (connection) => {
    if (!(await lockJob(connection, call.jobId)) && !flaws.has('runs-beside')) return inProgress();
    const stored = await storedAnswer(connection, key);
    if (stored !== null && !flaws.has('forgets-keys')) return stored;
    const answer = await work(connection);
    if (answer.status >= 200 && answer.status < 300) await storeAnswer(connection, key, answer);
    return answer;
  });
}

/**
 * Lends a connection for the length of a call, and takes back whatever session it had: a connection on which anything
 * went wrong is closed, and with it every lock that it held.
 * @throws Refusal when there are no more connections
 */
export async function withConnection<T>(pools: Pools, work: (connection: pg.PoolClient) => Promise<T>): Promise<T> {
  const { runs } = pools;
  if (runs.idleCount === 0 && runs.totalCount >= runs.options.max) {
    const members = { retry_after: LOOK_AGAIN_SECONDS };
    throw new Refusal(problem(503, 'busy', 'This service runs as many calls as it can.', members));
  }
  const connection = await runs.connect();
  try {
    const result = await work(connection);
    await connection.query('select pg_advisory_unlock_all()');
    connection.release();
    return result;
  } catch (error) {
    connection.release(true);
    throw error;
  }
}

/** The latest epoch seen, this one included, and the fingerprint that the key first came with. */
async function register(
  pools: Pools,
  key: string,
  call: Call,
  flaws: Flaws,
): Promise<{ epoch: number; fingerprint: string }> {
  const latest = flaws.has('ignores-epoch') ? 'excluded.epoch' : 'greatest(j.epoch, excluded.epoch)';
  const { rows } = await pools.statements.query<{ epoch: string; fingerprint: string | null }>(
    `with job as (
       insert into broadcast_sandbox.jobs as j (job_id, epoch) values ($1, $2)
       on conflict (job_id) do update set epoch = ${latest}
       returning epoch
     ), call as (
       insert into broadcast_sandbox.calls as c (idempotency_key, job_id, fingerprint)
       select $3, $1, $4 from job where job.epoch = $2
       on conflict (idempotency_key) do update set idempotency_key = c.idempotency_key
       returning fingerprint
     )
     select job.epoch, call.fingerprint from job left join call on true`,
    [call.jobId, call.epoch, key, call.fingerprint],
  );
  return { epoch: Number(rows[0]?.epoch), fingerprint: rows[0]?.fingerprint ?? '' };
}

/** Held until the connection is given back or lost. @returns false when somebody else is at work on the job */
export async function lockJob(connection: pg.PoolClient, jobId: string): Promise<boolean> {
  const { rows } = await connection.query<{ locked: boolean }>(
    'select pg_try_advisory_lock($1, hashtext($2)) as locked',
    [LOCK_CLASS, jobId],
  );
  return rows[0]?.locked === true;
}

async function storedAnswer(connection: pg.PoolClient, key: string): Promise<Answer | null> {
  const { rows } = await connection.query<{ body: string | null; status: number }>(
    'select answer as body, status from broadcast_sandbox.calls where idempotency_key = $1',
    [key],
  );
  const [row] = rows;
  if (row === undefined || row.body === null) return null;
  const { body, status } = row;
  return { status, headers: { 'content-type': 'application/json', 'idempotent-replayed': 'true' }, body };
}

async function storeAnswer(connection: pg.PoolClient, key: string, { body, status }: Answer): Promise<void> {
  await connection.query('update broadcast_sandbox.calls set answer = $2, status = $3 where idempotency_key = $1', [
    key,
    body,
    status,
  ]);
}
