/** Who a job is about: written down when it is first called, so that whoever joins meanwhile waits for the next one. */
import type { Run } from './ledger.js';
import type { BroadcastTask, Task } from './request.js';

/** A broadcast's people: those its task means, with ids up to `lastUserId`. */
export interface Audience {
  readonly task: BroadcastTask;
  readonly lastUserId: string;
  /** How many there were at the first call. */
  readonly total: number;
}

/** The condition on `u`, a row of users; its parameters are those of `membership`. */
const MEANT = '($1::text is null or $1 = any (u.segments)) and ($2::bigint[] is null or u.user_id = any ($2))';

/** The same audience for all of a job's calls where the service remembers; else as it is now. */
export async function freezeAudience({ connection, call, remembers }: Run, task: BroadcastTask): Promise<Audience> {
  if (remembers) {
    const { rows } = await connection.query<{ last: string; total: number }>(
      `select last_user_id as last, total from broadcast_sandbox.jobs where job_id = $1 and total is not null`,
      [call.jobId],
    );
    if (rows[0]) return { task, lastUserId: rows[0].last, total: rows[0].total };
  }
  const { rows } = await connection.query<{ last: string; total: number }>(
    `select coalesce(max(u.user_id), 0) as last, count(*)::integer as total
     from broadcast_sandbox.users as u where ${MEANT}`,
    membership(task),
  );
  const { last, total } = rows[0] ?? { last: '0', total: 0 };
  if (!remembers) return { task, lastUserId: last, total };
  // A job that was begun before totals were kept has its bound already.
  const frozen = await connection.query<{ last: string }>(
    `update broadcast_sandbox.jobs set last_user_id = coalesce(last_user_id, $2), total = $3
     where job_id = $1 returning last_user_id as last`,
    [call.jobId, last, total],
  );
  return { task, lastUserId: frozen.rows[0]?.last ?? last, total };
}

/** Nobody is left: what the job met is what there was. */
export async function closeAudience({ connection, call }: Run, total: number): Promise<void> {
  await connection.query('update broadcast_sandbox.jobs set total = $2 where job_id = $1', [call.jobId, total]);
}

/** For a dry run: how many people this call and those after it would try to reach, with nothing written down. */
export async function countAudience({ connection, call }: Run, task: Task): Promise<number> {
  const { rows } =
    task.kind === 'retries'
      ? await connection.query<{ people: number }>(
          `select least(count(*), $1)::integer as people from broadcast_sandbox.retry_queue where due_at <= now()`,
          [task.limit],
        )
      : await connection.query<{ people: number }>(
          `select count(*)::integer as people
           from broadcast_sandbox.users as u
           left join broadcast_sandbox.ledger as l on l.broadcast_id = $3 and l.user_id = u.user_id
           where ${MEANT}
             and case when $4 in ('failed', 'unknown') then l.state = $4 and l.job_id = $5 else l.user_id is null end`,
          [...membership(task), task.ledgerId, call.scope, call.jobId],
        );
  return rows[0]?.people ?? 0;
}

function membership(task: BroadcastTask): [string | null, readonly string[] | null] {
  return [task.segment, task.only];
}
