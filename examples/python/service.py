"""A whole broadcast service of level 2 in one file, with nothing but Python's standard library (3.10 or newer).

It sends in slices, and nobody gets a message twice, whatever is killed and whenever. Replace the users, `text_of` and
`send_message` by your own, and it is yours. docs/service-guide.md says why each step is as it is.
"""
import base64
import hashlib
import hmac
import json
import math
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATABASE = os.environ.get("DATABASE", "broadcasts.sqlite")
HOST, PORT = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "4000"))
SECRET, TOKEN = os.environ.get("BROADCAST_SERVICE_SECRET", ""), os.environ.get("BROADCAST_SERVICE_TOKEN", "")
MESSENGER_PER_SECOND = float(os.environ.get("MESSENGER_PER_SECOND", "30"))
SAMPLE_USERS = int(os.environ.get("SAMPLE_USERS", "300"))
LARGEST_BATCH, LARGEST_BODY = 50, 2 * 1024 * 1024
COUNTERS = ("total", "processed", "sent", "skipped", "failed", "unknown")

# ---- Yours to replace ------------------------------------------------------------------------------------------------

TABLES = f"""
-- Your own. The id must be unique and growing: the cursor needs that.
create table if not exists users (user_id integer primary key, segment text not null, opted_out integer not null);
with recursive number (i) as (select 1 union all select i + 1 from number where i < {SAMPLE_USERS})
insert into users select i, iif(i % 5 = 0, 'premium', 'standard'), i % 20 = 0 from number
where not exists (select * from users);

-- Who was sent what. A row is committed before its send, and the primary key lets nobody get anything twice.
create table if not exists ledger (
  broadcast_id text, user_id integer, job_id text not null, step integer not null, reason text,
  state text not null check (state in ('sending', 'sent', 'failed', 'skipped', 'unknown')),
  primary key (broadcast_id, user_id)
) without rowid;
-- The latest epoch of each job, and its audience: frozen at the first call.
create table if not exists jobs (job_id text primary key, epoch integer not null, last_user_id integer, total integer);
-- What was answered to each Idempotency-Key. A short cut: the ledger would stand without it.
create table if not exists calls (
  key text primary key, fingerprint text not null, status integer not null, body text not null,
  created_at text not null default current_timestamp
);
delete from calls where created_at < datetime('now', '-60 days');
"""


def text_of(broadcast_id):
    """What to send. Here you would look it up in your tables, and raise a Problem of 422 when it is not there."""
    return f"Hello, this is broadcast {broadcast_id}"


def send_message(user_id, text):
    """A pretended messenger, which prints. A real one is a request with a deadline of 10 s or less, and its answer:
    200: return None. 400, 403: return a reason such as "blocked". 429: it was *not* sent, so wait as long as it says
    and send again, or return "throttled" if that is too long. Timeout, reset, 5xx: raise, since nobody knows.

    Returns None when it was delivered, or why it certainly was not.
    """
    time.sleep(0.005)
    if user_id % 25 == 0:
        return "blocked"
    print(f"to {user_id}: {text}", flush=True)
    return None


# ---- One slice -------------------------------------------------------------------------------------------------------


def work(call):
    """Only for who holds the job's lock. Returns status and body."""
    # Left by a crash: it may have arrived or not, so it is listed, and not sent again.
    sql("update ledger set state = 'unknown', reason = 'interrupted'"
        " where broadcast_id = :ledger_id and job_id = :job_id and state = 'sending'", call)
    call |= freeze_audience(call)
    if call["dry_run"]:
        people = len(next_people(call, call["after"], -1))
        return 200, {"status": "completed", "dry_run": True, "audience": people,
                     "estimated_seconds": math.ceil(people / call["per_second"])}

    ends_at = time.monotonic() + call["wait_seconds"]
    text, after, left, done = text_of(call["broadcast_id"]), call["after"], call["max_items"], False
    while not done and left > 0 and time.monotonic() < ends_at and not stopping.is_set():
        size = min(left, LARGEST_BATCH, max(1, int(call["per_second"])))
        people = next_people(call, after, size)
        claimed = claim(call, people)
        sends = []
        for user_id in claimed:  # The pace holds also into the next batch, and the next slice.
            sends.append(messengers.submit(deliver, user_id, text))
            time.sleep(1 / call["per_second"])
        settle(call, [send.result() for send in sends])
        after = people[-1] if people else after
        left -= len(people)
        done = len(people) < size or after == call["last_user_id"]

    progress = count_handled(call, done)
    if done:
        return 200, {"status": "completed", "progress": progress}
    return 202, {"status": "continue", "cursor": f"{call['first_step']}:{after}", "progress": progress}


def freeze_audience(call):
    """At the job's first call, so that whoever joins meanwhile waits for the next broadcast."""
    meant = "from users where (:segment is null or segment = :segment)" \
            " and (:only is null or user_id in (select value from json_each(:only)))"
    sql(f"update jobs set last_user_id = (select coalesce(max(user_id), 0) {meant}), total = (select count(*) {meant})"
        " where job_id = :job_id and total is null", call)
    return sql("select last_user_id, total from jobs where job_id = :job_id", call)[0]


def next_people(call, after, size):
    """Whose turn it is: the rest of the audience, or whom an earlier walk of this job left in the scope's state."""
    rows = sql("""
        select u.user_id from users as u left join ledger as l on l.broadcast_id = :ledger_id and l.user_id = u.user_id
        where u.user_id > :from and u.user_id <= :last_user_id and (:segment is null or u.segment = :segment)
          and (:only is null or u.user_id in (select value from json_each(:only)))
          and case when :scope in ('failed', 'unknown')
                   then l.state = :scope and l.job_id = :job_id and l.step < :first_step
                   else l.user_id is null end
        order by u.user_id limit :size""", {**call, "from": after, "size": size})
    return [row["user_id"] for row in rows]


def claim(call, people):
    """Committed when it returns: before anything is sent. Returns whom this call may send to."""
    rows = sql("""
        insert into ledger (broadcast_id, user_id, job_id, step, state, reason)
        select :ledger_id, user_id, :job_id, :step,
               iif(opted_out, 'skipped', 'sending'), iif(opted_out, 'opted_out', null)
        from users where user_id in (select value from json_each(:people)) order by user_id
        on conflict (broadcast_id, user_id) do update -- Of nobody, but for a scope's own people.
          set state = excluded.state, reason = excluded.reason, step = excluded.step
          where ledger.job_id = excluded.job_id and ledger.state = :scope
        returning user_id, state""", {**call, "people": json.dumps(people)})
    return sorted(row["user_id"] for row in rows if row["state"] == "sending")


def deliver(user_id, text):
    try:
        reason = send_message(user_id, text)
        return {"user_id": user_id, "state": "sent" if reason is None else "failed", "reason": reason}
    except Exception as error:
        print(f"no answer about user {user_id}: {error!r}", file=sys.stderr)
        return {"user_id": user_id, "state": "unknown", "reason": "no_answer"}


def settle(call, outcomes):
    sql("""
        update ledger set state = json_extract(o.value, '$.state'), reason = json_extract(o.value, '$.reason')
        from json_each(:outcomes) as o
        where broadcast_id = :ledger_id and user_id = json_extract(o.value, '$.user_id') and step = :step
          and state = 'sending'""", {**call, "outcomes": json.dumps(outcomes)})


def count_handled(call, done):
    """Absolute, from the ledger: a repetition cannot count twice. Whom another job handled, this one skipped."""
    rows = sql("""
        select iif(l.job_id = :job_id, l.state, 'skipped') as state,
               iif(l.job_id = :job_id, l.reason, 'already_handled') as reason, count(*) as people
        from ledger as l left join users as u using (user_id)
        where l.broadcast_id = :ledger_id and (l.job_id = :job_id
          or u.user_id <= :last_user_id and (:segment is null or u.segment = :segment))
        group by 1, 2""", call)
    counters, reasons = {"processed": 0, "sent": 0, "skipped": 0, "failed": 0, "unknown": 0}, {}
    for row in rows:
        counters[row["state"]] += row["people"]
        counters["processed"] += row["people"]
        if row["reason"] is not None:
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["people"]
    # At the end the total is who was met: people leave segments in mid-broadcast.
    is_whole = done and call["scope"] not in ("failed", "unknown")
    total = counters["processed"] if is_whole else max(call["total"], counters["processed"])
    return {"total": total, **counters, "reasons": reasons}


# ---- Each call once --------------------------------------------------------------------------------------------------


def answer_once(call):
    """Returns status and body, or raises a Problem."""
    epoch = sql("insert into jobs (job_id, epoch) values (:job_id, :epoch) on conflict (job_id)"
                " do update set epoch = max(epoch, excluded.epoch) returning epoch", call)[0]["epoch"]
    if epoch > call["epoch"]:
        raise Problem(409, "stale_epoch", "A later call of this job has come.", epoch=epoch)
    with running_lock:
        if call["job_id"] in running:
            raise Problem(409, "in_progress", "An earlier call of this job still runs.", retry_after=1)
        running.add(call["job_id"])
    try:
        known = sql("select fingerprint, status, body from calls where key = :key", call)
        if known and known[0]["fingerprint"] != call["fingerprint"]:
            raise Problem(422, "key_reused", "This Idempotency-Key came with another request before.")
        if known:
            return known[0]["status"], json.loads(known[0]["body"])
        status, body = work(call)
        sql("insert into calls (key, fingerprint, status, body) values (:key, :fingerprint, :status, :body)",
            {**call, "status": status, "body": json.dumps(body)})
        return status, body
    finally:
        with running_lock:
            running.discard(call["job_id"])


# Jobs at work in this process: gone with it when it is killed, as they must be. It is the only one (see main).
running, running_lock, stopping = set(), threading.Lock(), threading.Event()
messengers = ThreadPoolExecutor(max_workers=32)


def sql(text, parameters):
    """Each statement is a transaction of its own: committed to the disk when this returns."""
    with connection_lock:
        return [dict(row) for row in connection.execute(text, parameters)]


# ---- HTTP ------------------------------------------------------------------------------------------------------------


class Problem(Exception):
    """RFC 9457. `retry_after`, in seconds, goes into the header as well."""

    def __init__(self, status, code, detail, **members):
        super().__init__(detail)
        self.status, self.body = status, {"status": status, "code": code, "detail": detail, **members}


def read_call(job_type, key, text):
    try:
        envelope = json.loads(text)
    except ValueError:
        raise Problem(400, "invalid_json", "The body is not JSON.")
    try:
        job, step, payload = envelope["job"], envelope["step"], envelope["payload"]
        max_items, wait_seconds = step.get("max_items", 1000), step.get("wait_seconds", 25)
        per_second = step.get("per_second") or MESSENGER_PER_SECOND
        sound = envelope["protocol"] == 1 and type(job["id"]) is str and type(job["epoch"]) is type(step["seq"]) is int
        sound = sound and max_items >= 1 and wait_seconds > 0 and per_second > 0
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise Problem(422, "invalid_envelope", "The body is not an envelope of protocol 1.")
    if job_type not in ("send_broadcast", "send_segment_broadcast"):
        raise Problem(404, "unknown_job_type", f"This service knows no job type {job_type}.")
    if job.get("type") != job_type:
        raise Problem(422, "type_mismatch", f"The path says {job_type}, the body {job.get('type')}.")
    payload = payload if type(payload) is dict else {}
    broadcast_id = id_of(payload, "broadcast_id", "broadcastId")
    segment = None if job_type == "send_broadcast" else id_of(payload, "segment_id", "segmentId")
    only = payload.get("test_recipients")
    are_ids = type(only) is list and only and all(re.fullmatch("[0-9]{1,18}", str(one)) for one in only)
    if only is not None and not are_ids:
        raise Problem(422, "invalid_payload", "test_recipients must be a list of user ids.")
    # The cursor: the step that this walk began with, and the last user it handled.
    cursor = re.fullmatch("([0-9]{1,15}):([0-9]{1,18})", step.get("cursor") or f"{step['seq']}:0")
    if cursor is None:
        raise Problem(422, "bad_cursor", "This service has not written that cursor.")
    # Without what may differ between repetitions: epoch, attempt, previous_failure, and the pace.
    same = [job["id"], job_type, job.get("dry_run"), payload, step["seq"], step.get("cursor"), step.get("scope")]
    return {
        "key": key, "fingerprint": hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest(),
        "job_id": job["id"], "epoch": job["epoch"], "dry_run": job.get("dry_run") is True,
        "broadcast_id": broadcast_id, "segment": segment, "only": only and json.dumps([int(i) for i in only]),
        # A test has a name of its own in the ledger, or the real broadcast would leave its readers out.
        "ledger_id": f"{broadcast_id} tested by {job['id']}" if only else broadcast_id,
        "scope": step.get("scope") or "all", "step": step["seq"],
        "first_step": int(cursor[1]), "after": int(cursor[2]),
        "max_items": max_items, "wait_seconds": wait_seconds, "per_second": min(per_second, MESSENGER_PER_SECOND),
    }


def id_of(payload, *names):
    value = next((payload[name] for name in names if payload.get(name) is not None), None)
    if type(value) is int or type(value) is str and 1 <= len(value) <= 200:
        return str(value)
    raise Problem(422, "invalid_payload", f"{names[0]} must be a text or a whole number.")


def authenticate(headers, body):
    """Whose the body is must be known before it is believed."""
    same = lambda one, other: hmac.compare_digest(one.encode("latin-1"), other.encode("latin-1"))
    if TOKEN and not same(headers.get("Authorization", ""), f"Bearer {TOKEN}"):
        raise Problem(401, "bad_token", "The bearer token is missing or wrong.")
    if not SECRET:
        return
    # Standard Webhooks: any one of the signatures may be ours, and none is good for more than five minutes.
    name, sent_at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    digest = hmac.new(key, f"{name}.{sent_at}.".encode("latin-1") + body, "sha256").digest()
    wanted = "v1," + base64.b64encode(digest).decode()
    fresh = re.fullmatch("[0-9]{1,12}", sent_at) and abs(time.time() - int(sent_at)) <= 300
    if not (fresh and any(same(given, wanted) for given in headers.get("webhook-signature", "").split())):
        raise Problem(401, "bad_signature", "The signature is missing, wrong or too old.")


class Handler(BaseHTTPRequestHandler):
    timeout, disable_nagle_algorithm = 30, True

    def do_POST(self):
        try:
            status, body = self.respond()
        except Problem as problem:
            status, body = problem.status, problem.body
        except Exception as error:
            print(f"a call failed: {error!r}", file=sys.stderr)
            status, body = 500, {"status": 500, "code": "internal", "detail": "The service failed; see its log."}
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status < 300 else "application/problem+json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("X-Broadcast-Level", "2")
        if "retry_after" in body:
            self.send_header("Retry-After", str(body["retry_after"]))
        self.end_headers()
        try:
            self.wfile.write(text)
        except ConnectionError:
            pass  # The daemon hung up. A success is stored for when it asks again.

    def respond(self):
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > LARGEST_BODY:
            raise Problem(413, "too_large", f"A body needs a Content-Length of at most {LARGEST_BODY}.")
        body = self.rfile.read(int(length))
        authenticate(self.headers, body)
        path = re.fullmatch(r"/jobs/(\w{1,200})", self.path)
        key = self.headers.get("Idempotency-Key", "").replace('"', "")
        if path is None:
            raise Problem(404, "not_found", "There is only POST /jobs/{job_type}.")
        if not 1 <= len(key) <= 300:
            raise Problem(400, "bad_key", "Each call needs an Idempotency-Key.")
        if path[1] == "process_retries":
            # Every five minutes the daemon asks to try those again who were passingly out of reach: none are kept here.
            return 200, {"status": "completed", "progress": dict.fromkeys(COUNTERS, 0)}
        return answer_once(read_call(path[1], key, body))

    def log_message(self, *_):
        """The messages are enough to read."""


def open_database():
    # Held until the process ends: `running` knows only its own jobs. For several processes, see the TypeScript example.
    only_one = sqlite3.connect(DATABASE + ".lock", timeout=0, isolation_level=None, check_same_thread=False)
    try:
        only_one.execute("begin exclusive")
    except sqlite3.OperationalError:
        sys.exit(f"Another process serves {DATABASE} already.")
    opened = sqlite3.connect(DATABASE, timeout=10, isolation_level=None, check_same_thread=False)
    opened.row_factory = sqlite3.Row
    opened.execute("pragma journal_mode = wal")
    opened.execute("pragma synchronous = full")  # Also a power failure must not undo a claim.
    opened.executescript(TABLES)
    return opened, only_one


if __name__ == "__main__":
    connection_lock = threading.Lock()
    connection, only_one = open_database()
    server = ThreadingHTTPServer((HOST, PORT), Handler)
    server.daemon_threads = False  # The slices in hand end after their batch, and are answered.

    def stop(*_):
        stopping.set()
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"listening on http://{HOST}:{server.server_port}", flush=True)
    server.serve_forever()
    server.server_close()
