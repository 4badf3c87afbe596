/** Level 3: the service runs the broadcast by itself, and says at an address of its own how it stands. */
import { headerOf } from '../../broadcast/reply.js';
import type { Answer, Call } from '../call.js';
import type { Check } from '../check.js';
import type { Trial } from '../trial.js';
import { Breach, countersOf, Inconclusive, isSuccess, keepsNoPace } from '../verdict.js';

export const operationChecks: readonly Check[] = [
  {
    id: 'location',
    level: 3,
    title: 'a job is taken over with 202 and a Location of the same origin',
    why: 'The address is kept with the job, so that any daemon asks on; one of another origin could lead the token anywhere.',
    mend: 'Answer 202 with Location: /operations/<id>, a path of this very service, of at most 2 KiB.',
    needs: ['answer'],
    async run(trial) {
      const call = trial.fresh();
      const answer = await trial.begin(call);
      const location = headerOf(answer, 'location');
      if (answer.status !== 202 || location === undefined)
        throw new Breach(call, answer, 'it is no 202 with a Location');
      if (trial.service.pathOf(location) === null) throw new Breach(call, answer, 'the Location is of another origin');
      if (location.length > LONGEST_LOCATION) throw new Breach(call, answer, 'the Location is longer than 2 KiB');
      return undefined;
    },
  },
  {
    id: 'poll',
    level: 3,
    title: 'GET of the Location says how it stands, until it is completed',
    why: 'The daemon asks there until the operation says that it is over; an operation that cannot be asked is lost, and is begun again.',
    mend: 'Answer {"status":"running"|"completed"|"failed"|"cancelled","progress":{…}} with Retry-After, from the database, also after a restart.',
    needs: ['location'],
    async run(trial) {
      const { steps, call, answer } = await trial.through(trial.fresh());
      const strange = steps.find((step) => !STATES.includes(String(step.answer.json?.status)));
      // The first one is the 202, which need not say anything.
      if (strange !== undefined && strange !== steps[0]) {
        throw new Breach(
          `GET of the Location of ${call.job}`,
          strange.answer,
          `its status is none of ${STATES.join(', ')}`,
        );
      }
      if (answer.json?.status !== 'completed' && answer.json?.status !== 'done') {
        throw new Breach(`GET of the Location of ${call.job}`, answer, 'the operation did not complete');
      }
      trial.facts.audience ??= countersOf(call, answer).total ?? null;
      return undefined;
    },
  },
  {
    id: 'same-location',
    level: 3,
    title: 'the same key gets the same Location, also when the operation has ended',
    why: 'A daemon that lost the answer asks for it again; a second operation would send a second time.',
    mend: 'Keep the operation under its key, unique, and give its Location whenever the key comes.',
    needs: ['poll', 'same-key'],
    async run(trial) {
      const call = trial.fresh();
      const { steps } = await trial.through(call);
      const first = steps[0]?.answer;
      const again = trial.repetition(call);
      const second = await trial.post(again);
      const [one, other] = [first, second].map((answer) => answer && headerOf(answer, 'location'));
      if (one === other) return undefined;
      throw new Breach(again, second, `the Location was ${one} and is ${other}`);
    },
  },
  {
    id: 'running-epoch',
    level: 3,
    title: 'an older epoch gets 409 stale_epoch also while an operation runs',
    why: 'A daemon that was cut off for a while must not begin a second operation beside the one of its successor.',
    mend: 'Compare X-Job-Epoch with the highest seen for the job before anything else.',
    needs: ['location', 'old-epoch'],
    async run(trial) {
      const call = trial.fresh({ epoch: 5, perSecond: slowly(trial) });
      const first = await trial.begin(call);
      const late = { ...call, epoch: 4, seq: 1 };
      const answer = await trial.once(late);
      await end(trial, call, first);
      if (answer.status === 409 && answer.json?.code === 'stale_epoch') return undefined;
      throw new Breach(late, answer, 'epoch 5 is at work: it must be 409 with "code": "stale_epoch"');
    },
  },
  {
    id: 'delete',
    level: 3,
    title: 'DELETE of the Location stops the sending',
    why: 'It is what happens when somebody cancels a broadcast; often because its text is wrong.',
    mend: 'Mark the operation cancelled, let the sender look at that before each message, and answer 204.',
    needs: ['poll'],
    async run(trial) {
      trial.audience();
      const call = trial.fresh({ perSecond: slowly(trial) });
      const first = await trial.begin(call);
      const path = trial.locationOf(first);
      if (path === null) throw keepsNoPace('the operation was over at once');
      await untilUnderWay(trial, path, call);
      const answer = await trial.ask('DELETE', path, call);
      if (!isSuccess(answer)) throw new Breach(`DELETE ${path}`, answer, 'it is not answered 2xx');
      // A message may be under way, and what was counted last may still be on its way into the progress.
      await trial.pause(1000);
      const before = await trial.ask('GET', path, call);
      await trial.pause(1500);
      const after = await trial.ask('GET', path, call);
      if (!isSuccess(before) || !isSuccess(after)) {
        throw new Inconclusive(
          'the operation cannot be asked for any more',
          'let GET of a cancelled operation still say how far it came',
        );
      }
      if (after.json?.status === 'completed') {
        throw keepsNoPace('the operation was completed before it could be stopped');
      }
      const [then, now] = [processedOf(before), processedOf(after)];
      if (now <= then) return undefined;
      throw new Breach(`DELETE ${path}, then GET`, after, `processed went on from ${then} to ${now}`);
    },
  },
];

const LONGEST_LOCATION = 2048;
const STATES = ['running', 'completed', 'done', 'failed', 'cancelled'];

/** A pace that leaves time to meet the operation under way. */
function slowly(trial: Trial): number {
  return Math.max(1, Math.min(20, Math.ceil((trial.facts.audience ?? 100) / 10)));
}

async function untilUnderWay(trial: Trial, path: string, call: Call): Promise<void> {
  for (;;) {
    const answer = await trial.ask('GET', path, call);
    if (answer.json?.status !== 'running' || processedOf(answer) > 0) return;
    await trial.pause(200);
  }
}

function processedOf({ json }: Answer): number {
  const { processed } = Object(json?.progress);
  return typeof processed === 'number' ? processed : 0;
}

/** Nobody waits for it any more. What it answers is the matter of another check. */
async function end(trial: Trial, call: Call, first: Answer): Promise<void> {
  const path = trial.locationOf(first);
  if (path !== null) await trial.ask('DELETE', path, call);
}
