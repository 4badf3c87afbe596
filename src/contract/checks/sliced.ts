/** Level 2: the work comes in slices that keep to what they were granted, with counters that can be relied on. */
import { MAX_CURSOR_BYTES } from '../../broadcast/protocol.js';
import { type Answer, type Call, levelOf, NoAnswer } from '../call.js';
import type { Check } from '../check.js';
import { UNLIMITED } from '../trial.js';
import { accountsForAll, Breach, countersOf, keepsNoPace, nobodySentTo, Skipped, sumOf } from '../verdict.js';

export const slicedChecks: readonly Check[] = [
  {
    id: 'level-header',
    level: 2,
    title: 'answers say the level in X-Broadcast-Level',
    why: 'Below level 2 the daemon refuses dry runs and test sends, which a plain service would send for real; it learns the level from this header.',
    mend: 'Send X-Broadcast-Level: 2 with every answer (or set BROADCAST_SERVICE_LEVEL where the daemon runs).',
    needs: ['answer'],
    async run(trial) {
      const call = trial.fresh({ maxItems: 5 });
      const answer = await trial.begin(call);
      const said = levelOf(answer);
      if (said === null) throw new Breach(call, answer, 'there is no X-Broadcast-Level of 0 to 3');
      if (said < trial.settings.level) {
        throw new Breach(call, answer, `it says level ${said}, and level ${trial.settings.level} is tested`);
      }
      return undefined;
    },
  },
  {
    id: 'progress',
    level: 2,
    title: 'progress counts since the job began, never falls, adds up, and accounts for everybody at the end',
    why: 'A job whose counts do not add up is taken for incomplete; counts of one slice alone look like a broadcast that goes backwards.',
    mend: 'Count from the ledger at each answer: total frozen at the first slice, processed = sent + skipped + failed + unknown.',
    needs: ['answer', 'poll'],
    async run(trial) {
      const maxItems = Math.max(1, Math.ceil((trial.facts.audience ?? 100) / 4));
      const { steps } = await trial.through(trial.fresh({ maxItems }));
      let [total, processed] = [-1, 0];
      for (const { call, answer } of steps) {
        // An operation may not have counted anything yet.
        if (trial.locationOf(answer) !== null && answer.json?.progress === undefined) continue;
        if (answer.json?.status === 'running' && answer.json.progress === undefined) continue;
        const counters = countersOf(call, answer);
        const wrong = (what: string) => new Breach(call, answer, what);
        const sum = sumOf(counters);
        if (sum !== counters.processed) {
          throw wrong(`processed is ${counters.processed}, but sent + skipped + failed + unknown is ${sum}`);
        }
        if (counters.processed < processed)
          throw wrong(`processed has fallen from ${processed} to ${counters.processed}`);
        if (typeof counters.total === 'number') {
          if (total !== -1 && counters.total !== total) throw wrong(`total was ${total} and is ${counters.total} now`);
          total = counters.total;
        }
        processed = counters.processed;
      }
      const last = steps.at(-1);
      if (last !== undefined) accountsForAll(last.call, last.answer, countersOf(last.call, last.answer));
      return total === -1 ? 'no total is given, so there is no percentage and no time left to show' : undefined;
    },
  },
  {
    id: 'slices',
    level: 2,
    title: 'a slice handles at most max_items, says "continue" with a cursor, and the last one "completed"',
    why: 'max_items is what the shared limit grants: more overruns the messenger; a cursor beyond 4 KiB cannot be kept.',
    mend: 'Stop claiming people at max_items; answer 202 {"status":"continue","cursor":"…"} with the key of the last person handled.',
    needs: ['progress'],
    async run(trial) {
      const maxItems = Math.ceil(trial.audience() / 5);
      const call = trial.fresh({ maxItems });
      const first = trial.mustContinue(call, await trial.post(call));
      let processed = mustBeSlice(call, first, 0);
      const walk = await trial.through(trial.next(call, first));
      for (const step of walk.steps) processed = mustBeSlice(step.call, step.answer, processed);
      const { status } = walk.answer.json ?? {};
      if (status === 'completed' || status === 'done') return undefined;
      throw new Breach(walk.call, walk.answer, 'the last slice must say "completed"');
    },
  },
  {
    id: 'wait',
    level: 2,
    title: 'a slice ends when its wait_seconds are over',
    why: 'From level 2 on, a call that takes longer than its wait and 15 seconds is cut; and pausing takes as long as a slice.',
    mend: 'Look at the clock after each message, and answer "continue" when wait_seconds are over.',
    needs: ['progress'],
    async run(trial) {
      // So slow that the whole broadcast would take longer than the daemon waits.
      const perSecond = Math.max(1, Math.min(20, Math.floor(trial.audience() / 20)));
      const call = trial.fresh({ waitSeconds: 1, perSecond });
      const answer = await trial.post(call).catch((error: unknown) => {
        if (!(error instanceof NoAnswer) || trial.signal.aborted) throw error;
        throw new Breach(call, error.message, 'a slice must end within wait_seconds and 15 seconds');
      });
      if (trial.locationOf(answer) !== null) throw new Skipped(OPERATIONS);
      if (answer.json?.status === 'continue') return undefined;
      throw keepsNoPace('the whole broadcast was done before the time was over');
    },
  },
  {
    id: 'pace',
    level: 2,
    title: 'per_second is kept to, within a fifth',
    why: 'The limit is shared by all broadcasts of a bot: who overruns it makes the messenger block the bot.',
    mend: 'Space the messages of a slice evenly: one each 1/per_second seconds, across slices as well.',
    needs: ['progress'],
    async run(trial) {
      const perSecond = Math.max(1, Math.min(20, Math.floor(trial.audience() / 4)));
      const call = trial.fresh({ waitSeconds: 2, perSecond });
      const answer = await trial.begin(call);
      if (trial.locationOf(answer) !== null) throw new Skipped(OPERATIONS);
      const { sent = 0 } = countersOf(call, answer);
      // Rounded up by one message; and whoever is given a second may use it up at its beginning.
      const most = perSecond * Math.max(1, answer.ms / 1000) * 1.2 + 1;
      if (sent > most) {
        throw new Breach(call, answer, `${sent} messages in ${answer.ms / 1000} s are more than ${perSecond} a second`);
      }
      if (sent === 0) throw nobodySentTo();
      return undefined;
    },
  },
  {
    id: 'replayed-cursor',
    level: 2,
    title: 'a new step with an old cursor reaches nobody a second time',
    why: 'After a failover the database may have lost the last cursor; the job then goes on from an older one, under a new key.',
    mend: 'Let the ledger decide, not the cursor: claim each person by INSERT … ON CONFLICT (broadcast, person) DO NOTHING before the send.',
    needs: ['slices'],
    async run(trial) {
      const call = trial.fresh({ maxItems: Math.ceil(trial.audience() / 3) });
      const first = trial.mustContinue(call, await trial.post(call));
      const walk = await trial.through(trial.next(call, first));
      const before = countersOf(walk.call, walk.answer);
      const { cursor } = trial.next(call, first);
      const replay = await trial.through(trial.next(walk.call, walk.answer, { cursor }));
      const after = countersOf(replay.call, replay.answer);
      if (after.processed !== before.processed || after.sent !== before.sent) {
        const what = `sent was ${before.sent} of ${before.processed} at the end, and is ${after.sent} of ${after.processed}`;
        throw new Breach(replay.call, replay.answer, `${what}: people were counted again`);
      }
      if (!before.sent) throw nobodySentTo();
      return undefined;
    },
  },
  {
    id: 'cut-slice',
    level: 2,
    title: 'a slice that was cut in its middle and repeated with the same key counts everybody exactly once',
    why: 'What was sent before the cut must neither be sent again nor be missing from the counts.',
    mend: 'Record each person before and after the send, in commits of their own; stop (or work on) when the connection goes, and let the repetition go on behind them.',
    needs: ['slices', 'repetition', 'replayed-cursor'],
    async run(trial) {
      const people = trial.audience();
      const begun = trial.fresh({ maxItems: Math.ceil(people / 10) });
      const first = trial.mustContinue(begun, await trial.post(begun));
      const { total } = countersOf(begun, first);
      const maxItems = Math.floor(people / 2);
      const slow = trial.next(begun, first, { maxItems, perSecond: Math.ceil(maxItems / 1.5) });
      const early = await trial.once(slow, { cutAfterMs: 600 }).catch((error: unknown) => {
        if (!(error instanceof NoAnswer) || trial.signal.aborted) throw error;
        return null;
      });
      const again = trial.repetition(slow);
      const answer = trial.mustContinue(again, await trial.post(again));
      const walk = await trial.through(trial.next(again, answer, UNLIMITED));
      const counters = countersOf(walk.call, walk.answer);
      accountsForAll(walk.call, walk.answer, counters);
      if (counters.total !== total) {
        throw new Breach(walk.call, walk.answer, `total was ${total} before the cut, and is ${counters.total}`);
      }
      if (!counters.sent) throw nobodySentTo();
      if (early !== null) throw keepsNoPace('the slice was over before it could be cut');
      return undefined;
    },
  },
];

const OPERATIONS = 'the service works in operations (level 3), not in slices';

/** @returns how many are processed with it */
function mustBeSlice(call: Call, answer: Answer, before: number): number {
  const { processed } = countersOf(call, answer);
  const wrong = (what: string) => new Breach(call, answer, what);
  if (processed - before > call.maxItems) throw wrong(`the slice did ${processed - before}, more than max_items`);
  const { status, cursor } = answer.json ?? {};
  if (status !== 'continue') return processed;
  if (typeof cursor !== 'string' || cursor === '') throw wrong('"continue" needs a cursor: a text that is not empty');
  if (Buffer.byteLength(cursor) > MAX_CURSOR_BYTES) throw wrong('the cursor is beyond 4 KiB');
  return processed;
}
