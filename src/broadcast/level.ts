/**
 * The level that the service speaks: what was said of it before, what its answers say, and what must not be asked of
 * one that speaks too low a level.
 */
import { PermanentError } from '../errors.js';
import type { Job } from '../job.js';
import { headerOf, type Reply } from './reply.js';

export interface LevelOptions {
  /** What is known so far, by the settings or by the database; null: nothing. */
  readonly level: () => number | null;
  /** Called with the level of an answer that is higher than those of all before it. Must not throw. */
  readonly onLevel?: ((level: number) => void) | undefined;
}

export interface Level {
  /** The highest that anybody has said; null: nobody has. */
  known(): number | null;
  /** Reads what an answer says of it. */
  note(reply: Reply): void;
}

/** From this level on the service works in slices, and knows dry runs and test sends. */
export const SLICED = 2;

export function watchLevel({ level, onLevel }: LevelOptions): Level {
  let highest: number | null = null;
  return {
    known() {
      const told = level();
      return told === null || highest === null ? (told ?? highest) : Math.max(told, highest);
    },
    note(reply) {
      const said = headerOf(reply, 'x-broadcast-level');
      if (said === undefined || !/^[0-3]$/.test(said) || Number(said) <= (highest ?? -1)) return;
      highest = Number(said);
      onLevel?.(highest);
    },
  };
}

/**
 * Below level 2 a service knows neither dry runs nor test sends nor scopes, and would send to everybody.
 * @throws PermanentError
 */
export function refuseBelowSlices(job: Job, level: number | null): void {
  if (level !== null && level >= SLICED) return;
  const why = () =>
    `this one ${level === null ? 'has not said its level' : `speaks level ${level}`} (BROADCAST_SERVICE_LEVEL)`;
  if (job.dryRun) {
    const message = `a dry run needs a service of level 2, which does not send then; ${why()}`;
    throw new PermanentError(message, { code: 'dry_run_unsupported' });
  }
  if (job.step.scope !== 'all') {
    const message = `to send again to those ${job.step.scope} needs a service of level 2, any other sends to everybody; ${why()}`;
    throw new PermanentError(message, { code: 'scope_unsupported' });
  }
  if (isTestSend(job.payload)) {
    const message = `test_recipients need a service of level 2, which sends to nobody else then; ${why()}`;
    throw new PermanentError(message, { code: 'test_send_unsupported' });
  }
}

/** Payloads may be large, so only one that has the word somewhere is read to see whether it is a member of its own. */
function isTestSend(payload: string): boolean {
  if (!payload.includes('"test_recipients"')) return false;
  try {
    const read: unknown = JSON.parse(payload);
    return typeof read === 'object' && read !== null && Object.hasOwn(read, 'test_recipients');
  } catch {
    return false;
  }
}
