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
import type { Audience } from './audience.js';
import type { Position } from './cursor.js';
import type { Flaws } from './flaws.js';
import type { Call } from './request.js';

/** One call at work. All its writes go over one connection: with level 1 the very one that holds the job's lock. */
export interface Run {
  readonly connection: pg.PoolClient;
  readonly call: Call;
  /** False at level 0. */
  readonly remembers: boolean;
  /** Broadcasts that one person may be sent on one day. */
  readonly dailyLimit: number;
  readonly flaws: Flaws;
}

/** One person of a batch. Ids are decimal text. `taken`: another job came first. */
export interface Person {
  broadcast_id: string;
  user_id: string;
  state: 'sending' | 'skipped' | 'taken';
  reason: string | null;
  /** Which text of an A/B test, if there is one: chosen at the claim, and the same at every later try. */
  variant: string | null;
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

/** By a hash of broadcast and person alone: the same wherever and whenever it is asked. */
const VARIANT = `($11::text[])[1 + ('x' || left(md5($1 || ':' || user_id), 8))::bit(32)::bigint % cardinality($11)]`;

/**
 * Rows that an earlier call of this job left behind. Only for the holder of the job's lock.
 * @param broadcastId null for a job that is not about one broadcast
 */
export async function giveUpInterrupted({ connection, call, flaws }: Run, broadcastId: string | null): Promise<void> {
  if (flaws.has('runs-beside')) return; // They may be of a call that runs.
  const give = flaws.has('resends-unknown')
    ? 'delete from broadcast_sandbox.ledger'
    : `update broadcast_sandbox.ledger
       set state = 'unknown', reason = 'interrupted', settled_at = clock_timestamp()`;
  await connection.query(
    `${give}
     where job_id = $1 and state = 'sending' and ($2::text is null or broadcast_id = $2)`,
    [call.jobId, broadcastId],
  );
}

/**
 * The next people of the audience, in the order of their ids: claimed if the service remembers, else only picked.
 * The frequency limit counts here, so that two broadcasts at once cannot both take a person's last place of the day.
 * A batch of less than `size` means that the audience is done.
 */
export async function claimNext(run: Run, audience: Audience, after: string, size: number): Promise<Person[]> {
  const { task, lastUserId } = audience;
  const forgotten = forgottenRows(run);
  const ledger = `
    insert into broadcast_sandbox.ledger as l
      (broadcast_id, user_id, job_id, epoch, step, variant, state, reason, settled_at)
    select $1, user_id, $7, $8, $9, variant, case when skip is null then 'sending' else 'skipped' end, skip,
           case when skip is not null then clock_timestamp() end
    from candidate
    on conflict (broadcast_id, user_id) ${forgotten === null ? 'do nothing' : `${CLAIM_ANEW} where ${forgotten}`}
    returning user_id`;
  // Names the parameters that only the ledger needs: Postgres must know their types.
  const everyCandidate = 'select user_id, $7::text, $8::bigint, $9::bigint from candidate';
  const unclaimed = `not exists (select from broadcast_sandbox.ledger as l
                                 where l.broadcast_id = $1 and l.user_id = u.user_id and l.user_id > $2
                                   ${forgotten === null ? '' : `and not (${forgotten})`})`;
  const { rows } = await run.connection.query<Person>(
    `with candidate as materialized (
       select user_id,
              case when opted_out_at is not null then 'opted_out'
                   when last_broadcast_at >= date_trunc('day', now()) and sent_that_day >= $6 then 'frequency_limit'
              end as skip,
              ${VARIANT} as variant
       from broadcast_sandbox.users as u
       where user_id > $2 and user_id <= $3 and ($4::text is null or $4 = any (segments))
         and ($10::bigint[] is null or user_id = any ($10))
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
     select $1::text as broadcast_id, user_id, skip as reason, variant, 0 as tries,
            case when mine.user_id is null then 'taken' when skip is null then 'sending' else 'skipped' end as state
     from candidate left join mine using (user_id)
     order by user_id`,
    [
      ...[task.ledgerId, after, lastUserId, task.segment, size, run.dailyLimit],
      ...[run.call.jobId, run.call.epoch, run.call.step, task.only, task.variants],
    ],
  );
  return rows;
}

/** Which rows of the ledger do not protect their people: none, but where a flaw asks for it. */
function forgottenRows({ call, flaws }: Run): string | null {
  if (flaws.has('forgets-cut-slice')) return 'l.job_id = $7 and l.step = $9';
  if (flaws.has('no-ledger')) return `l.job_id = $7 and l.step < $9 and l.state = 'sent'`;
  const isScoped = call.scope === 'failed' || call.scope === 'unknown';
  return isScoped && flaws.has('ignores-scope') ? 'l.job_id = $7 and l.step < $9' : null;
}

const CLAIM_ANEW = `
  do update set epoch = excluded.epoch, step = excluded.step, state = excluded.state, reason = excluded.reason,
                claimed_at = clock_timestamp(), settled_at = excluded.settled_at`;

/**
 * People of this job's earlier walks who are in this state now, for an operator who asks for them: claimed once more.
 * Those whom this walk itself brought into that state are left alone, also when it was cut short and goes on.
 */
export async function claimAgain(
  { connection, call }: Run,
  { task }: Audience,
  state: 'failed' | 'unknown',
  { firstStep, after }: Position,
  size: number,
): Promise<Person[]> {
  const { rows } = await connection.query<Person>(
    `with candidate as materialized (
       select user_id from broadcast_sandbox.ledger
       where broadcast_id = $1 and user_id > $2 and job_id = $3 and state = $4 and step < $5
       order by user_id limit $6
       for no key update
     ), unqueued as (
       delete from broadcast_sandbox.retry_queue as q using candidate
       where q.broadcast_id = $1 and q.user_id = candidate.user_id
     ), claimed as (
       update broadcast_sandbox.ledger as l
       set state = 'sending', reason = null, epoch = $7, step = $8, claimed_at = clock_timestamp(), settled_at = null
       from candidate
       where l.broadcast_id = $1 and l.user_id = candidate.user_id
       returning l.broadcast_id, l.user_id, l.variant
     )
     select broadcast_id, user_id, variant, 'sending' as state, null as reason, 1 as tries
     from claimed order by user_id`,
    [task.ledgerId, after, call.jobId, state, firstStep, size, call.epoch, call.step],
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
       set state = 'sending', reason = null, job_id = $2, epoch = $3, step = $5, claimed_at = clock_timestamp(),
           settled_at = null
       from taken
       where l.broadcast_id = taken.broadcast_id and l.user_id = taken.user_id and l.state = 'failed'
       returning l.broadcast_id, l.user_id, l.variant
     )
     select broadcast_id, user_id, tries, null as reason, variant,
            case when claimed.user_id is null and $4 then 'taken' else 'sending' end as state
     from taken left join claimed using (broadcast_id, user_id)`,
    [size, run.call.jobId, run.call.epoch, run.remembers, run.call.step],
  );
  return rows;
}

/** The pretended messenger: writes down what it delivers, and says of the others why it could not. */
export async function deliver({ connection, call }: Run, people: readonly Person[]): Promise<Verdict[]> {
  const { rows } = await connection.query<Verdict>(
    `with person as materialized (
       select p.broadcast_id, p.user_id, p.tries, p.variant,
              case when u.deactivated or u.user_id is null then 'deactivated'
                   when u.blocked_bot then 'blocked'
                   when u.flaky and p.tries = 0 then '${PASSING}' end as reason
       from unnest($1::text[], $2::bigint[], $3::integer[], $7::text[]) as p (broadcast_id, user_id, tries, variant)
       left join broadcast_sandbox.users as u using (user_id)
     ), delivered as (
       insert into broadcast_sandbox.deliveries (broadcast_id, user_id, job_id, epoch, idempotency_key, variant)
       select broadcast_id, user_id, $4, $5, $6, variant from person where reason is null
     )
     select broadcast_id, user_id, tries, reason from person`,
    [
      people.map((person) => person.broadcast_id),
      people.map((person) => person.user_id),
      people.map((person) => person.tries),
      call.jobId,
      call.epoch,
      call.key,
      people.map((person) => person.variant),
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
     from broadcast_sandbox.ledger
     where job_id = $1 and ($2::text is null or broadcast_id = $2) and state <> 'sending' group by 1, 2
     union all
     select 'skipped', 'already_handled', count(*)::integer
     from broadcast_sandbox.ledger as l join broadcast_sandbox.users as u using (user_id)
     where l.broadcast_id = $2 and l.job_id <> $1 and u.user_id <= $3 and ($4::text is null or $4 = any (u.segments))
     having count(*) > 0`,
    [call.jobId, audience?.task.ledgerId ?? null, audience?.lastUserId ?? null, audience?.task.segment ?? null],
  );
  return rows;
}

/** Deliveries of the job to people who had one from it before: what a service without a good ledger counts as well. */
export async function countRepeats({ connection, call }: Run, audience: Audience | null): Promise<CountRow[]> {
  const { rows } = await connection.query<CountRow>(
    `select 'sent' as state, null as reason, (count(*) - count(distinct user_id))::integer as count
     from broadcast_sandbox.deliveries where job_id = $1 and broadcast_id = $2`,
    [call.jobId, audience?.task.ledgerId ?? null],
  );
  return rows;
}
