/** Level 1: a step may be repeated as often as need be; and what cannot be done is refused in words for machines. */
import { setTimeout as wait } from 'node:timers/promises';
import type { Check } from '../check.js';
import type { Trial } from '../trial.js';
import {
  accountsForAll,
  Breach,
  countersOf,
  Inconclusive,
  isSame,
  isSuccess,
  keepsNoPace,
  mustSucceed,
  mustTell,
  Skipped,
} from '../verdict.js';

export const idempotentChecks: readonly Check[] = [
  {
    id: 'unknown-type',
    level: 1,
    title: 'a job type that the service does not know gets 404, 405 or 501 with the code unknown_job_type',
    why: 'A bare 404 might be a deploy or a proxy, so it is tried again; with the code, the job fails at once and says why.',
    mend: 'Answer 404 with {"code":"unknown_job_type","detail":…} as application/problem+json, for every /jobs/… that you do not serve.',
    needs: ['answer'],
    async run(trial) {
      const call = trial.fresh({ type: 'contract_test_unknown' });
      const answer = await trial.post(call);
      if ([404, 405, 501].includes(answer.status) && answer.json?.code === 'unknown_job_type') return undefined;
      throw new Breach(call, answer, 'it must be 404, 405 or 501, with "code": "unknown_job_type" in its body');
    },
  },
  {
    id: 'invalid-data',
    level: 1,
    title: 'a payload without its broadcast is refused with 4xx',
    why: 'A 5xx says that the service has trouble: the daemon would try the same data again and again.',
    mend: 'Check the payload before you work, and answer 422 (or 400) with a problem that names the member.',
    needs: ['answer'],
    async run(trial) {
      const { call, answer } = await invalid(trial);
      if (answer.status >= 400 && answer.status < 500) return undefined;
      throw new Breach(call, answer, 'data that cannot be worked on must get 4xx');
    },
  },
  {
    id: 'problem-json',
    level: 1,
    title: 'a refusal is application/problem+json',
    why: 'What the refusal says is what people see beside the failed job; a text or a page cannot be told from a proxy.',
    mend: 'Send errors as application/problem+json (RFC 9457) with title, detail, and code where the protocol has one.',
    needs: ['invalid-data'],
    async run(trial) {
      const { call, answer } = await invalid(trial);
      const type = String(answer.headers['content-type'] ?? 'none');
      if (!type.startsWith('application/problem+json')) throw new Breach(call, answer, `its content type is ${type}`);
      if (typeof answer.json?.detail === 'string' || typeof answer.json?.title === 'string') return undefined;
      throw new Breach(call, answer, 'it is no JSON object with a title or a detail');
    },
  },
  {
    id: 'same-key',
    level: 1,
    title: 'the same Idempotency-Key gets the same answer',
    why: 'After a lost answer the daemon asks again with the same key. Doing the step anew sends it twice, or skips people.',
    mend: 'Store each 2xx answer under its key, in the transaction that ends the step, and give it again as it was.',
    needs: ['answer'],
    async run(trial) {
      const call = trial.fresh({ maxItems: 5 });
      const first = await trial.begin(call);
      const second = await trial.post(call);
      if (!isSame(first, second)) throw new Breach(call, twice(first, second), 'the second answer is another one');
      mustTell(first);
      if (first.ms >= LONG_MS && second.ms >= first.ms * 0.8) {
        throw new Inconclusive(
          `the second answer took ${second.ms} ms, and the first ${first.ms}`,
          'see in your records that the step was not done anew: a stored answer is there at once',
        );
      }
      return undefined;
    },
  },
  {
    id: 'repetition',
    level: 1,
    title: 'another attempt, epoch or previous_failure does not make it another request',
    why: 'A repetition always has a later attempt and mostly a later epoch. Refused, the job could never go on.',
    mend: 'Leave epoch, attempt and previous_failure out of the fingerprint that you keep with a key (and max_items, wait_seconds and per_second too, which follow the shared limit).',
    needs: ['same-key'],
    async run(trial) {
      const call = trial.fresh({ maxItems: 5 });
      const first = await trial.begin(call);
      const again = trial.repetition(call);
      const second = await trial.post(again);
      if (!isSame(first, second)) throw new Breach(again, twice(first, second), 'the repetition got another answer');
      mustTell(first);
      return undefined;
    },
  },
  {
    id: 'in-progress',
    level: 1,
    title: 'a second call while the first still runs gets 409 in_progress, or waits and gets the very same answer',
    why: 'The daemon that lost its connection asks again while the first call may still send: both would send to everybody.',
    mend: 'Hold a lock per job while you work (an advisory lock, SELECT … FOR UPDATE), and answer 409 with {"code":"in_progress"} and Retry-After to whoever does not get it.',
    needs: ['same-key'],
    async run(trial) {
      const call = trial.fresh(lasting(trial, 20, 1.2));
      const running = trial.once(call);
      await wait(300, undefined, { signal: trial.signal });
      const second = await trial.once(call);
      const first = await running;
      mustSucceed(call, first);
      if (second.status === 409 && second.json?.code === 'in_progress') return undefined;
      if (second.status === 409) throw new Breach(call, second, 'a 409 says which by its code: in_progress');
      if (!isSame(first, second)) throw new Breach(call, twice(first, second), 'both calls did the work, side by side');
      const isOver = first.ms < 300 && trial.locationOf(first) === null;
      if (isOver) throw keepsNoPace('the first call was over before the second came');
      mustTell(first);
      return undefined;
    },
  },
  {
    id: 'old-epoch',
    level: 1,
    title: 'an older epoch gets 409 stale_epoch',
    why: 'A daemon that was cut off for a while does not know that another has taken its job over, or that it was cancelled.',
    mend: 'Keep the highest X-Job-Epoch of each job; answer 409 with {"code":"stale_epoch","epoch":<highest>} to lower ones, before anything else.',
    needs: ['answer'],
    async run(trial) {
      const call = trial.fresh({ epoch: 5, maxItems: 5 });
      const first = await trial.begin(call);
      const late = trial.next(call, first, { epoch: 4 });
      const answer = await trial.once(late);
      if (answer.status === 409 && answer.json?.code === 'stale_epoch') return undefined;
      throw new Breach(late, answer, 'epoch 5 was there before: it must be 409 with "code": "stale_epoch"');
    },
  },
  {
    id: 'cut',
    level: 1,
    title:
      'after a connection that was cut when the request was written, the same key completes, and the counts add up',
    why: 'This is the everyday case of a lost answer.',
    mend: 'Work on, or stop at a point that is recorded; the repetition must find in the ledger whom the first call has sent to.',
    needs: ['repetition', 'progress', 'cut-slice'],
    async run(trial) {
      const call = trial.fresh();
      const answered = await trial.once(call, { cutAfterMs: 0 }).then(isSuccess, () => false);
      const walk = await trial.through(trial.repetition(call));
      if (walk.answer.json?.progress !== undefined) {
        accountsForAll(walk.call, walk.answer, countersOf(walk.call, walk.answer));
      }
      if (answered) throw keepsNoPace('the answer came before the connection could be cut');
      mustTell(walk.answer);
      return undefined;
    },
  },
];

/** What takes longer than any look into a table. */
const LONG_MS = 500;

async function invalid(trial: Trial) {
  if (!trial.settings.type.startsWith('send_'))
    throw new Skipped('only of the send_… job types is it known what is invalid');
  const call = trial.fresh({ payload: '{"contract_test":"no broadcast"}' });
  return { call, answer: await trial.post(call) };
}

/** Members of a call that lasts about so long, where the service keeps the pace. */
function lasting(trial: Trial, people: number, seconds: number) {
  const audience = trial.facts.audience ?? people;
  const maxItems = trial.settings.level >= 2 ? Math.max(1, Math.min(people, Math.floor(audience / 3))) : audience;
  return { maxItems, perSecond: Math.max(1, Math.ceil(maxItems / seconds)) };
}

const twice = (first: { shown: string }, second: { shown: string }) => `${first.shown}, then ${second.shown}`;
