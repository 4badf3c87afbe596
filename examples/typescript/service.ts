/**
 * A whole broadcast service of level 2 in one file, on PostgreSQL. It sends in slices, and nobody gets a message twice,
 * whatever is killed and whenever. Replace the users, `textOf` and `sendMessage` by your own, and it is yours.
 * docs/service-guide.md says why each step is as it is.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage } from 'node:http';
import { setTimeout as wait } from 'node:timers/promises';
import pg from 'pg';
import { Webhook } from 'standardwebhooks';

const { DATABASE_URL, BROADCAST_SERVICE_SECRET = '', BROADCAST_SERVICE_TOKEN = '' } = process.env;
const { HOST = '127.0.0.1', PORT = '4000', MESSENGER_PER_SECOND = '30', SAMPLE_USERS = '300' } = process.env;
const LARGEST_BATCH = 50;
const LARGEST_BODY = 2 * 1024 * 1024;
const NOBODY = { total: 0, processed: 0, sent: 0, skipped: 0, failed: 0, unknown: 0 };

// ---- Yours to replace -----------------------------------------------------------------------------------------------

const TABLES = `
create schema if not exists example_bot;
-- Your own. The id must be unique and growing: the cursor needs that.
create table if not exists users (user_id bigint primary key, segment text not null, opted_out boolean not null);
insert into users
select i, case when i % 5 = 0 then 'premium' else 'standard' end, i % 20 = 0
from generate_series(1, ${Number(SAMPLE_USERS)}) as i where not exists (select from users);

-- Who was sent what. A row is committed before its send, and the primary key lets nobody get anything twice.
create table if not exists ledger (
  broadcast_id text, user_id bigint, job_id text not null, step bigint not null, reason text,
  state text not null check (state in ('sending', 'sent', 'failed', 'skipped', 'unknown')),
  primary key (broadcast_id, user_id)
);
-- The latest epoch of each job, and its audience: frozen at the first call.
create table if not exists jobs (job_id text primary key, epoch bigint not null, last_user_id bigint, total integer);
-- What was answered to each Idempotency-Key. A short cut: the ledger would stand without it.
create table if not exists calls (
  key text primary key, fingerprint text not null, status integer not null, body text not null,
  created_at timestamptz not null default now()
);
delete from calls where created_at < now() - interval '60 days'`;

/** What to send. Here you would look it up in your tables, and throw a Problem of 422 when it is not there. */
function textOf(broadcastId: string): string {
  return `Hello, this is broadcast ${broadcastId}`;
}

/**
 * A pretended messenger, which prints. A real one is a request with a deadline of 10 s or less, for Telegram
 * `fetch('https://api.telegram.org/bot…/sendMessage', { …, signal: AbortSignal.timeout(10_000) })`, and its answer:
 * 200: return null. 400, 403: return a reason such as 'blocked'. 429: it was *not* sent, so wait as long as it says and
 * send again, or return 'throttled' if that is too long. Timeout, reset, 5xx: throw, since nobody knows.
 * @returns null when it was delivered, or why it certainly was not
 */
async function sendMessage(userId: string, text: string): Promise<string | null> {
  await wait(5);
  if (Number(userId) % 25 === 0) return 'blocked';
  console.log(`to ${userId}: ${text}`);
  return null;
}

// ---- One slice ------------------------------------------------------------------------------------------------------

/** Only for who holds the job's lock. */
async function work(sql: Sql, call: Call, isEnough: () => boolean): Promise<Answer> {
  // Left by a crash: it may have arrived or not, so it is listed, and not sent again.
  await sql`update ledger set state = 'unknown', reason = 'interrupted'
            where broadcast_id = ${call.ledgerId} and job_id = ${call.jobId} and state = 'sending'`;
  const audience = await freezeAudience(sql, call);
  const { perSecond } = call;
  let { after, maxItems: left } = call;
  if (call.dryRun) {
    const people = await nextPeople(sql, call, audience, after, null);
    const estimate = { audience: people.length, estimated_seconds: Math.ceil(people.length / perSecond) };
    return { status: 200, body: { status: 'completed', dry_run: true, ...estimate } };
  }

  const endsAt = performance.now() + call.waitSeconds * 1000;
  const text = textOf(call.broadcastId);
  let done = false;
  do {
    const size = Math.min(left, LARGEST_BATCH, Math.max(1, Math.floor(perSecond)));
    const people = await nextPeople(sql, call, audience, after, size);
    const claimed = await claim(sql, call, people);
    const paced = wait((claimed.length / perSecond) * 1000); // Also before the next batch, and the next slice.
    const sends = claimed.map((userId, i) => wait((i / perSecond) * 1000).then(() => deliver(userId, text)));
    await settle(sql, call, await Promise.all(sends));
    await paced;
    after = people.at(-1) ?? after;
    left -= people.length;
    done = people.length < size || after === audience.last_user_id;
  } while (!done && left > 0 && performance.now() < endsAt && !isEnough());

  const progress = await countHandled(sql, call, audience, done);
  if (done) return { status: 200, body: { status: 'completed', progress } };
  return { status: 202, body: { status: 'continue', cursor: `${call.firstStep}:${after}`, progress } };
}

type Audience = { readonly last_user_id: string; readonly total: number };

/** At the job's first call, so that whoever joins meanwhile waits for the next broadcast. */
async function freezeAudience(sql: Sql, { jobId, segment, only }: Call): Promise<Audience> {
  const [audience] = await sql`
    update jobs set (last_user_id, total) = (
      select coalesce(jobs.last_user_id, max(user_id), 0), coalesce(jobs.total, count(*)) from users
      where (${segment}::text is null or segment = ${segment})
        and (${only}::bigint[] is null or user_id = any (${only}::bigint[])))
    where job_id = ${jobId} returning last_user_id, total`;
  return audience;
}

/** Whose turn it is: the rest of the audience, or those whom an earlier walk of this job left in the scope's state. */
async function nextPeople(sql: Sql, call: Call, audience: Audience, after: string, size: number | null) {
  const { ledgerId, jobId, segment, only, scope, firstStep } = call;
  const rows = await sql`
    select u.user_id from users as u left join ledger as l on l.broadcast_id = ${ledgerId} and l.user_id = u.user_id
    where u.user_id > ${after} and u.user_id <= ${audience.last_user_id}
      and (${segment}::text is null or u.segment = ${segment})
      and (${only}::bigint[] is null or u.user_id = any (${only}::bigint[]))
      and case when ${scope} in ('failed', 'unknown')
               then l.state = ${scope} and l.job_id = ${jobId} and l.step < ${firstStep}
               else l.user_id is null end
    order by u.user_id limit ${size}`;
  return rows.map((row): string => row.user_id);
}

/** Committed when it returns: before anything is sent. @returns whom this call may send to */
async function claim(sql: Sql, { ledgerId, jobId, step, scope }: Call, people: readonly string[]): Promise<string[]> {
  const rows = await sql`
    insert into ledger as l (broadcast_id, user_id, job_id, step, state, reason)
    select ${ledgerId}, user_id, ${jobId}, ${step}::bigint,
           case when opted_out then 'skipped' else 'sending' end, case when opted_out then 'opted_out' end
    from users where user_id = any (${people}::bigint[]) order by user_id
    on conflict (broadcast_id, user_id) do update -- Of nobody, but for a scope's own people.
      set state = excluded.state, reason = excluded.reason, step = excluded.step
      where l.job_id = excluded.job_id and l.state = ${scope}
    returning user_id, state`;
  return rows.filter(({ state }) => state === 'sending').map((row) => row.user_id);
}

async function deliver(user_id: string, text: string) {
  try {
    const reason = await sendMessage(user_id, text);
    return { user_id, state: reason === null ? 'sent' : 'failed', reason };
  } catch (error) {
    console.error(`no answer about user ${user_id}:`, error);
    return { user_id, state: 'unknown', reason: 'no_answer' };
  }
}

async function settle(sql: Sql, { ledgerId, step }: Call, outcomes: readonly object[]): Promise<void> {
  await sql`update ledger as l set state = o.state, reason = o.reason
            from jsonb_to_recordset(${JSON.stringify(outcomes)}) as o (user_id bigint, state text, reason text)
            where l.broadcast_id = ${ledgerId} and l.user_id = o.user_id and l.step = ${step} and l.state = 'sending'`;
}

/** Absolute, from the ledger: a repetition cannot count twice. Whom another job handled, this one skipped. */
async function countHandled(sql: Sql, { ledgerId, jobId, segment, scope }: Call, audience: Audience, done: boolean) {
  const rows = await sql`
    select case when l.job_id = ${jobId} then l.state else 'skipped' end as state,
           case when l.job_id = ${jobId} then l.reason else 'already_handled' end as reason, count(*)::integer as people
    from ledger as l left join users as u using (user_id)
    where l.broadcast_id = ${ledgerId} and (l.job_id = ${jobId}
      or u.user_id <= ${audience.last_user_id} and (${segment}::text is null or u.segment = ${segment}))
    group by 1, 2`;
  const counters: Record<string, number> = { processed: 0, sent: 0, skipped: 0, failed: 0, unknown: 0 };
  const reasons: Record<string, number> = {};
  const add = (counts: Record<string, number>, name: string, n: number) => {
    counts[name] = (counts[name] ?? 0) + n;
  };
  for (const { state, reason, people } of rows) {
    add(counters, state, people);
    add(counters, 'processed', people);
    if (reason !== null) add(reasons, reason, people);
  }
  // At the end the total is who was met: people leave segments in mid-broadcast.
  const { processed = 0 } = counters;
  const isWhole = done && scope !== 'failed' && scope !== 'unknown';
  return { total: isWhole ? processed : Math.max(audience.total, processed), ...counters, reasons };
}

// ---- Each call once -------------------------------------------------------------------------------------------------

/** @throws Problem */
async function answerOnce(call: Call, isEnough: () => boolean): Promise<Answer> {
  const db = await pool.connect().catch((error) => {
    console.error(`no connection: ${error.message}`);
    throw new Problem(503, 'unavailable', 'The database is away, or this service is busy.', { retry_after: 5 });
  });
  const sql = statements(db);
  try {
    const [{ epoch }] = await sql`
      insert into jobs as j (job_id, epoch) values (${call.jobId}, ${call.epoch})
      on conflict (job_id) do update set epoch = greatest(j.epoch, excluded.epoch) returning epoch::float8`;
    if (epoch > call.epoch) throw new Problem(409, 'stale_epoch', 'A later call of this job has come.', { epoch });
    // The session holds it: whatever kills this process, PostgreSQL frees it with the connection.
    const [{ mine }] = await sql`select pg_try_advisory_lock(4000, hashtext(${call.jobId})) as mine`;
    if (!mine) throw new Problem(409, 'in_progress', 'An earlier call of this job still runs.', { retry_after: 1 });
    const [known] = await sql`select fingerprint, status, body from calls where key = ${call.key}`;
    if (known && known.fingerprint !== call.fingerprint) {
      throw new Problem(422, 'key_reused', 'This Idempotency-Key came with another request before.');
    }
    if (known) return { status: known.status, body: JSON.parse(known.body) };
    const answer = await work(sql, call, isEnough);
    await sql`insert into calls (key, fingerprint, status, body)
              values (${call.key}, ${call.fingerprint}, ${answer.status}, ${JSON.stringify(answer.body)})`;
    return answer;
  } finally {
    await sql`select pg_advisory_unlock_all()`.then(() => db.release(), db.release);
  }
}

const pool = new pg.Pool({
  connectionString: DATABASE_URL,
  options: '-c search_path=example_bot',
  max: 20, // One for each call at work.
  connectionTimeoutMillis: 5_000,
  query_timeout: 20_000,
});
// Without both listeners a connection that dies ends the process.
pool.on('error', (error) => console.error(`a connection was lost: ${error.message}`));
pool.on('connect', (db) => db.on('error', (error) => console.error(`a connection was lost: ${error.message}`)));

/** Each `${value}` becomes a parameter. Each statement is a transaction of its own. */
function statements(db: pg.PoolClient) {
  return async (parts: TemplateStringsArray, ...values: unknown[]) => {
    const text = parts.reduce((before, part, i) => `${before}$${i}${part}`);
    return (await db.query(text, values)).rows;
  };
}
type Sql = ReturnType<typeof statements>;

// ---- HTTP -----------------------------------------------------------------------------------------------------------

type Answer = { readonly status: number; readonly body: object };

/** RFC 9457. `retry_after`, in seconds, goes into the header as well. */
class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly members: { retry_after?: number; epoch?: number } = {},
  ) {
    super(detail);
  }
}

type Call = ReturnType<typeof readCall>;

/** @throws Problem */
function readCall(type: string, key: string, body: string) {
  const { protocol, job, payload, step } = parse(body);
  const { max_items: maxItems = 1000, wait_seconds: waitSeconds = 25 } = Object(step);
  const perSecond = Math.min(step?.per_second ?? Number.POSITIVE_INFINITY, Number(MESSENGER_PER_SECOND));
  const areCounts = [job?.epoch, step?.seq, maxItems].every(Number.isSafeInteger);
  if (
    protocol !== 1 ||
    typeof job?.id !== 'string' ||
    !areCounts ||
    !(maxItems > 0 && waitSeconds > 0 && perSecond > 0)
  ) {
    throw new Problem(422, 'invalid_envelope', 'The body is not an envelope of protocol 1.');
  }
  if (type !== 'send_broadcast' && type !== 'send_segment_broadcast') {
    throw new Problem(404, 'unknown_job_type', `This service knows no job type ${type}.`);
  }
  if (job.type !== type) throw new Problem(422, 'type_mismatch', `The path says ${type}, the body ${job.type}.`);
  const broadcastId = idOf(payload?.broadcast_id ?? payload?.broadcastId, 'broadcast_id');
  const segment = type === 'send_broadcast' ? null : idOf(payload.segment_id ?? payload.segmentId, 'segment_id');
  const only: unknown[] | null = payload.test_recipients ?? null;
  if (only && !(Array.isArray(only) && only.length > 0 && only.every((id) => /^\d{1,18}$/.test(String(id))))) {
    throw new Problem(422, 'invalid_payload', 'test_recipients must be a list of user ids.');
  }
  // The cursor: the step that this walk began with, and the last user it handled.
  const [, firstStep, after] = /^(\d{1,15}):(\d{1,18})$/.exec(step.cursor ?? `${step.seq}:0`) ?? [];
  if (!firstStep || !after) throw new Problem(422, 'bad_cursor', 'This service has not written that cursor.');
  // Without what may differ between repetitions: epoch, attempt, previous_failure, and the pace.
  const same = [job.id, type, job.dry_run, payload, step.seq, step.cursor, step.scope];
  return {
    key,
    fingerprint: sha256(JSON.stringify(same)).toString('hex'),
    jobId: String(job.id),
    epoch: Number(job.epoch),
    dryRun: job.dry_run === true,
    broadcastId,
    // A test has a name of its own in the ledger, or the real broadcast would leave its readers out.
    ledgerId: only ? `${broadcastId} tested by ${job.id}` : broadcastId,
    segment,
    only,
    scope: String(step.scope ?? 'all'),
    step: Number(step.seq),
    firstStep: Number(firstStep),
    after,
    maxItems: Number(maxItems),
    waitSeconds: Number(waitSeconds),
    perSecond,
  };
}

/** A whole number beyond 2^53 has lost digits already: such an id must come as a text. */
function idOf(value: unknown, name: string): string {
  if ((typeof value === 'string' && /^[^\0]{1,200}$/.test(value)) || Number.isSafeInteger(value)) return String(value);
  throw new Problem(422, 'invalid_payload', `${name} must be a text or a whole number.`);
}

function parse(text: string) {
  try {
    return Object(JSON.parse(text));
  } catch {
    throw new Problem(400, 'invalid_json', 'The body is not JSON.');
  }
}

/** Whose the body is must be known before it is believed. @throws Problem */
function authenticate({ headers }: IncomingMessage, body: Buffer): void {
  const token = sha256(headers.authorization ?? '');
  if (BROADCAST_SERVICE_TOKEN !== '' && !timingSafeEqual(token, sha256(`Bearer ${BROADCAST_SERVICE_TOKEN}`))) {
    throw new Problem(401, 'bad_token', 'The bearer token is missing or wrong.');
  }
  if (BROADCAST_SERVICE_SECRET === '') return;
  const names = ['webhook-id', 'webhook-timestamp', 'webhook-signature'];
  const signed = Object.fromEntries(names.map((name) => [name, String(headers[name] ?? '')]));
  try {
    new Webhook(BROADCAST_SERVICE_SECRET).verify(body, signed, { jsonParse: false });
  } catch {
    throw new Problem(401, 'bad_signature', 'The signature is missing, wrong or too old.');
  }
}

async function respond(request: IncomingMessage): Promise<Answer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size <= LARGEST_BODY) chunks.push(chunk);
  }
  if (size > LARGEST_BODY) throw new Problem(413, 'too_large', `A body may have ${LARGEST_BODY} bytes.`);
  const body = Buffer.concat(chunks);
  authenticate(request, body);
  const type = /^\/jobs\/(\w+)$/.exec(request.url ?? '')?.[1];
  if (!type || request.method !== 'POST') throw new Problem(404, 'not_found', 'There is only POST /jobs/{job_type}.');
  const key = String(request.headers['idempotency-key'] ?? '').replaceAll('"', '');
  if (key === '' || key.length > 300) throw new Problem(400, 'bad_key', 'Each call needs an Idempotency-Key.');
  // Every five minutes the daemon asks to try those again who were passingly out of reach: none are kept here.
  if (type === 'process_retries') return { status: 200, body: { status: 'completed', progress: NOBODY } };
  // The daemon hangs up when a job is cancelled: then the batch in hand is finished, and no other begun.
  return answerOnce(readCall(type, key, body.toString()), () => stopping || request.socket.destroyed);
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

let stopping = false;
const server = createServer({ requestTimeout: 30_000 }, async (request, response) => {
  response.setHeader('x-broadcast-level', '2');
  if (stopping) response.setHeader('connection', 'close');
  try {
    const { status, body } = await respond(request);
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    const known = error instanceof Problem ? error : new Problem(500, 'internal', 'The service failed; see its log.');
    const { status, code, message: detail, members } = known;
    if (members.retry_after !== undefined) response.setHeader('retry-after', members.retry_after);
    response.writeHead(status, { 'content-type': 'application/problem+json' });
    response.end(JSON.stringify({ status, code, detail, ...members }));
  }
});
await pool.query(TABLES);
server.listen(Number(PORT), HOST, () => console.log(`listening on http://${HOST}:${Object(server.address()).port}`));
const stop = () => {
  stopping = true;
  server.close(() => pool.end());
};
process.once('SIGTERM', stop).once('SIGINT', stop);
