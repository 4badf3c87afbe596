/** Level 2 and above, as far as it is about who is sent to: dry runs, tests, sending again, and a service that is killed. */
import { setTimeout as wait } from 'node:timers/promises';
import type { Progress } from '../../job.js';
import { type Answer, type Call, NoAnswer } from '../call.js';
import type { Check } from '../check.js';
import { type Trial, UNLIMITED, type Walk } from '../trial.js';
import {
  accountsForAll,
  Breach,
  countersOf,
  Inconclusive,
  isSuccess,
  keepsNoPace,
  nobodySentTo,
  Skipped,
} from '../verdict.js';

export const resendingChecks: readonly Check[] = [
  {
    id: 'dry-run',
    level: 2,
    title: 'a dry run says how many people it would be, and sends nothing',
    why: 'A dry run is what an operator does to be sure that nobody gets a message yet.',
    mend: 'With job.dry_run, count the audience and answer {"status":"completed","dry_run":true,"audience":<n>}; write nothing down.',
    needs: ['progress'],
    async run(trial) {
      trial.mustBeFresh();
      const payload = trial.payload(trial.freshBroadcast());
      const dry = trial.fresh({ payload, dryRun: true });
      const answer = await trial.begin(dry);
      const people = answer.json?.audience ?? Object(answer.json?.progress).total;
      if (typeof people !== 'number') throw new Breach(dry, answer, 'the answer has no audience, a number');
      // Against one without a dry run before it, since people also leave, or have had their fill of messages today.
      const real = await trial.through(trial.fresh({ payload }));
      const other = await trial.through(trial.fresh());
      const [found, usual] = [sentBy(real), sentBy(other)];
      if (found < usual * 0.95) {
        throw new Breach(
          dry,
          answer,
          `the real send after it reached ${found} people instead of ${usual}: it had sent`,
        );
      }
      if (usual === 0) throw nobodySentTo();
      return undefined;
    },
  },
  {
    id: 'test-send',
    level: 2,
    title: 'a payload with test_recipients goes to those and nobody else',
    why: 'A test that goes to everybody is the accident that it was to prevent.',
    mend: 'When payload.test_recipients is there, the audience is that list; keep its ledger apart from the real one.',
    needs: ['progress'],
    async run(trial) {
      const { testRecipients } = trial.settings;
      const payload = trial.payload(trial.freshBroadcast(), { test_recipients: testRecipients });
      const call = trial.fresh({ payload });
      const first = await trial.post(call);
      if (first.status >= 400 && first.status < 500) {
        throw new Inconclusive(
          `the service refuses the recipient ${testRecipients}: ${first.shown}`,
          'name people that it knows by --test-recipients',
        );
      }
      const walk = await trial.through(call);
      const { processed } = countersOf(walk.call, walk.answer);
      if (processed <= testRecipients.length) return undefined;
      throw new Breach(call, walk.answer, `${processed} people were handled for ${testRecipients.length} recipient(s)`);
    },
  },
  {
    id: 'scope',
    level: 2,
    title: 'sending again with the scope failed, or unknown, touches only those',
    why: 'An operator asks for it after the event: whoever has the message must not get it again.',
    mend: 'A step with step.scope failed (unknown) walks over the ledger rows of this job in that state, and over nobody else.',
    needs: ['progress'],
    async run(trial) {
      let walk = await trial.through(trial.fresh());
      const remarks: string[] = [];
      for (const scope of ['failed', 'unknown'] as const) {
        const before = countersOf(walk.call, walk.answer);
        walk = await trial.through(trial.next(walk.call, walk.answer, { scope, cursor: null }));
        mustTouchOnly(walk, before, scope);
        if (!before[scope]) remarks.push(scope);
        if (scope === 'failed' && !before.sent) throw nobodySentTo();
      }
      return remarks.length === 2 ? 'nobody had failed or was unknown' : undefined;
    },
  },
  {
    id: 'killed',
    level: 2,
    title: 'after a kill in mid-send the same key goes on: nobody is counted twice, and few are unknown',
    why: 'A service is killed by every deploy that takes too long. Whoever was being sent to just then may have the message: they are to be listed as unknown, not sent to again.',
    mend: 'Commit each claim (state sending) before the send. At the next call of the job, turn rows left in sending into unknown.',
    needs: ['progress', 'repetition', 'cut-slice', 'poll'],
    alone: true,
    async run(trial) {
      const { restart, slowMessenger } = trial.settings;
      if (restart === null) throw new Skipped('no --restart-cmd was given');
      for (let round = 1; ; round++) {
        const unknown = await killOnce(trial, restart);
        if (unknown > 0) return undefined;
        if (!slowMessenger) return 'nobody was left unknown; --slow-messenger says whether that can be (see --help)';
        if (round < MOST_KILLS) continue;
        const what = `nobody was left unknown by ${round} kills, though messages take their time (--slow-messenger)`;
        throw new Breach(
          '--restart-cmd in mid-send, then the same key',
          'unknown: 0',
          `${what}: they were sent to again`,
        );
      }
    },
  },
];

const MOST_KILLS = 3;

function sentBy({ call, answer }: Walk): number {
  const { sent = 0 } = countersOf(call, answer);
  return sent;
}

function mustTouchOnly({ call, answer }: Walk, before: Progress, scope: 'failed' | 'unknown'): void {
  const after = countersOf(call, answer);
  const [were = 0, sent = 0, had = 0] = [before[scope], after.sent, before.sent];
  if (after.processed !== before.processed) {
    throw new Breach(call, answer, `processed was ${before.processed} and is ${after.processed}: others were touched`);
  }
  if (sent - had > were)
    throw new Breach(call, answer, `${sent - had} more were sent to, but only ${were} were ${scope}`);
}

/** @returns how many the kill has left unknown */
async function killOnce(trial: Trial, restart: (signal: AbortSignal) => Promise<void>): Promise<number> {
  const people = trial.audience();
  const maxItems = trial.settings.level === 3 ? people : Math.floor(people / 2);
  const call = trial.fresh({ maxItems, perSecond: Math.ceil(maxItems / 2.5) });
  const running = trial.once(call).catch(() => null);
  await wait(800, undefined, { signal: trial.signal });
  await restart(trial.signal).catch((error: unknown) => {
    if (trial.signal.aborted) throw error;
    throw new Breach('--restart-cmd', String(error), 'the command did not restart the service');
  });
  const early = await running;
  if (early !== null && isSuccess(early) && trial.locationOf(early) === null) {
    throw keepsNoPace('the slice was over before the kill');
  }
  const again = trial.repetition(call);
  await untilBack(trial, again);
  const walk = await trial.through(again, UNLIMITED);
  const counters = countersOf(walk.call, walk.answer);
  accountsForAll(walk.call, walk.answer, counters);
  const { unknown = 0 } = counters;
  if (unknown <= maxItems) return unknown;
  throw new Breach(walk.call, walk.answer, `${unknown} are unknown, more than the slice of ${maxItems} had in hand`);
}

/** The service needs a moment to start. */
async function untilBack(trial: Trial, call: Call): Promise<Answer> {
  for (;;) {
    try {
      return await trial.post(call);
    } catch (error) {
      if (!(error instanceof NoAnswer) || trial.signal.aborted) throw error;
      await trial.pause(250);
    }
  }
}
