/**
 * Every statement of a send. The order of commits is the whole point: a person is claimed in the ledger *before* the
 * messenger hears of them, and settled after. A crash in between leaves the row in `sending`; nobody can know whether
 * that message arrived, so the row becomes `unknown` and is not sent again.
 *
 * Level 0 walks the same way without the ledger: it remembers nobody, and a repetition reaches everybody again.
 *
 * Rows of users are locked in the order of their ids, always: two broadcasts at once cannot deadlock.
 */
import type pg from 'pg';
import type { Call } from './request.js';

/** One call at work. All its writes go over one connection: with level 1 the very one that holds the job's lock. */
export interface Run {
  readonly connection: pg.PoolClient;
  readonly call: Call;
  /** False at level 0. */
  readonly remembers: boolean;
  /** Broadcasts that one person may be sent on one day. */
  readonly dailyLimit: number;
}

/** Who is meant: `segment` null for everybody, with ids up to `lastUserId`. */
export interface Audience {
  readonly broadcastId: string;
  readonly segment: string | null;
  readonly lastUserId: string;
}

/** One person of a batch. Ids are decimal text. `taken`: another job came first. */
export interface Person {
  broadcast_id: string;
  user_id: string;
  state: 'sending' | 'skipped' | 'taken';
  reason: string | null;
  /** Sends that were tried before this one. */
  tries: number;
}

/** What the messenger said; no reason means delivered. */
export interface Verdict {
  broadcast_id: string;
  user_id: string;
  reason: string | null;
  tries: number;
}

export interface CountRow {
  state: 'sent' | 'failed' | 'skipped' | 'unknown';
  reason: string | null;
  count: number;
}

/** The only reason that puts a person into the retry queue. */
const PASSING = 'temporarily_unreachable';

/**
 * Rows that an earlier call of this job left behind. Only for the holder of the job's lock.
 * @param broadcastId null for a job that is not about one broadcast
 */
export async function giveUpInterrupted({ connection, call }: Run, broadcastId: string | null): Promise<void> {
  await connection.query(
    `update broadcast_sandbox.ledger
     set state = 'unknown', reason = 'interrupted', settled_at = clock_timestamp()
     where job_id = $1 and state = 'sending' and ($2::text is null or broadcast_id = $2)`,
    [call.jobId, broadcastId],
  );
}

/** The id at which this job's audience ends, the same for all its calls where the service remembers. */
export async function lastUserId({ connection, call, remembers }: Run): Promise<string> {
  const highest = 'coalesce((select max(user_id) from broadcast_sandbox.users), 0)';
  const found = remembers
    ? await connection.query<{ last: string }>(
        `update broadcast_sandbox.jobs set last_user_id = coalesce(last_user_id, ${highest})
         where job_id = $1 returning last_user_id as last`,
        [call.jobId],
      )
    : await connection.query<{ last: string }>(`select ${highest} as last`);
  return found.rows[0]?.last ?? '0';
}

/**
 * The next people of the audience, in the order of their ids: claimed if the service remembers, else only picked.
 * The frequency limit counts here, so that two broadcasts at once cannot both take a person's last place of the day.
 * An empty batch means that the audience is done.
 */
export async function claimNext(run: Run, audience: Audience, after: string, size: number): Promise<Person[]> {
  const ledger = `
    insert into broadcast_sandbox.ledger (broadcast_id, user_id, job_id, epoch, state, reason, settled_at)
    select $1, user_id, $7, $8, case when skip is null then 'sending' else 'skipped' end, skip,
           case when skip is not null then clock_timestamp() end
    from candidate
    on conflict (broadcast_id, user_id) do nothing
    returning user_id`;
  // Names the two parameters that only the ledger needs: Postgres must know their types.
  const everyCandidate = 'select user_id, $7::text, $8::bigint from candidate';
  const unclaimed = `not exists (select from broadcast_sandbox.ledger as l
                                 where l.broadcast_id = $1 and l.user_id = u.user_id and l.user_id > $2)`;
  const { rows } = await run.connection.query<Person>(
    `with candidate as materialized (
       select user_id,
              case when opted_out_at is not null then 'opted_out'
                   when last_broadcast_at >= date_trunc('day', now()) and sent_that_day >= $6 then 'frequency_limit'
              end as skip
       from broadcast_sandbox.users as u
       where user_id > $2 and user_id <= $3 and ($4::text is null or $4 = any (segments))
         and ${run.remembers ? unclaimed : 'true'}
       order by user_id limit $5
       for no key update
     ), mine as (${run.remembers ? ledger : everyCandidate}
     ), counted as (
       update broadcast_sandbox.users as u
       set last_broadcast_at = now(),
           sent_that_day = case when last_broadcast_at >= date_trunc('day', now()) then sent_that_day else 0 end + 1
       from mine join candidate using (user_id)
       where u.user_id = mine.user_id and candidate.skip is null
     )
     select $1::text as broadcast_id, user_id, skip as reason, 0 as tries,
            case when mine.user_id is null then 'taken' when skip is null then 'sending' else 'skipped' end as state
     from candidate left join mine using (user_id)
     order by user_id`,
    [
      audience.broadcastId,
      after,
      audience.lastUserId,
      audience.segment,
      size,
      run.dailyLimit,
      run.call.jobId,
      run.call.epoch,
    ],
  );
  return rows;
}

/** Takes people off the retry queue; those of the ledger become this job's. */
export async function claimRetries(run: Run, size: number): Promise<Person[]> {
  const { rows } = await run.connection.query<Person>(
    `with due as materialized (
       select broadcast_id, user_id from broadcast_sandbox.retry_queue
       where due_at <= now() order by due_at, broadcast_id, user_id limit $1
       for update skip locked
     ), taken as (
       delete from broadcast_sandbox.retry_queue as q using due
       where q.broadcast_id = due.broadcast_id and q.user_id = due.user_id
       returning q.broadcast_id, q.user_id, q.tries
     ), claimed as (
       update broadcast_sandbox.ledger as l
       set state = 'sending', reason = null, job_id = $2, epoch = $3, claimed_at = clock_timestamp(), settled_at = null
       from taken
       where l.broadcast_id = taken.broadcast_id and l.user_id = taken.user_id and l.state = 'failed'
       returning l.broadcast_id, l.user_id
     )
     select broadcast_id, user_id, tries, null as reason,
            case when claimed.user_id is null and $4 then 'taken' else 'sending' end as state
     from taken left join claimed using (broadcast_id, user_id)`,
    [size, run.call.jobId, run.call.epoch, run.remembers],
  );
  return rows;
}

/** The pretended messenger: writes down what it delivers, and says of the others why it could not. */
export async function deliver({ connection, call }: Run, people: readonly Person[]): Promise<Verdict[]> {
  const { rows } = await connection.query<Verdict>(
    `with person as materialized (
       select p.broadcast_id, p.user_id, p.tries,
              case when u.deactivated or u.user_id is null then 'deactivated'
                   when u.blocked_bot then 'blocked'
                   when u.flaky and p.tries = 0 then '${PASSING}' end as reason
       from unnest($1::text[], $2::bigint[], $3::integer[]) as p (broadcast_id, user_id, tries)
       left join broadcast_sandbox.users as u using (user_id)
     ), delivered as (
       insert into broadcast_sandbox.deliveries (broadcast_id, user_id, job_id, epoch, idempotency_key)
       select broadcast_id, user_id, $4, $5, $6 from person where reason is null
     )
     select broadcast_id, user_id, tries, reason from person`,
    [
      people.map((person) => person.broadcast_id),
      people.map((person) => person.user_id),
      people.map((person) => person.tries),
      call.jobId,
      call.epoch,
      call.key,
    ],
  );
  return rows;
}

/** Writes the verdicts into the ledger, where there is one, and queues those who may be reached later. */
export async function settle({ connection, call }: Run, verdicts: readonly Verdict[]): Promise<void> {
  await connection.query(
    `with verdict as materialized (
       select * from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[]) as v (broadcast_id, user_id, tries, reason)
     ), settled as (
       update broadcast_sandbox.ledger as l
       set state = case when v.reason is null then 'sent' else 'failed' end,
           reason = v.reason, settled_at = clock_timestamp()
       from verdict as v
       where l.broadcast_id = v.broadcast_id and l.user_id = v.user_id and l.job_id = $5 and l.state = 'sending'
     )
     insert into broadcast_sandbox.retry_queue (broadcast_id, user_id, tries, due_at)
     select broadcast_id, user_id, tries + 1, now() + make_interval(mins => tries)
     from verdict where reason = '${PASSING}'
     on conflict (broadcast_id, user_id) do nothing`,
    [
      verdicts.map((verdict) => verdict.broadcast_id),
      verdicts.map((verdict) => verdict.user_id),
      verdicts.map((verdict) => verdict.tries),
      verdicts.map((verdict) => verdict.reason),
      call.jobId,
    ],
  );
}

/**
 * Where the job stands when nobody of its own is in `sending`: from the ledger alone, so that what its earlier calls
 * did counts too. People of the audience whom another job handled count as skipped.
 */
export async function countHandled({ connection, call }: Run, audience: Audience | null): Promise<CountRow[]> {
  const { rows } = await connection.query<CountRow>(
    `select state, reason, count(*)::integer as count
     from broadcast_sandbox.ledger where job_id = $1 and ($2::text is null or broadcast_id = $2) group by 1, 2
     union all
     select 'skipped', 'already_handled', count(*)::integer
     from broadcast_sandbox.ledger as l join broadcast_sandbox.users as u using (user_id)
     where l.broadcast_id = $2 and l.job_id <> $1 and u.user_id <= $3 and ($4::text is null or $4 = any (u.segments))
     having count(*) > 0`,
    [call.jobId, audience?.broadcastId ?? null, audience?.lastUserId ?? null, audience?.segment ?? null],
  );
  return rows;
}
