/** What a check is: a small value. Its files are one for each level; index.ts puts them in order. */
import type { Level } from './call.js';
import type { Trial } from './trial.js';

export interface Check {
  /** One word, or two with a hyphen: for --only, and to speak of. */
  readonly id: string;
  /** The level of service that promises it. */
  readonly level: Level;
  /** What holds when it passes. */
  readonly title: string;
  /** What goes wrong where it does not. */
  readonly why: string;
  readonly mend: string;
  /** Checks without which this one could not tell its own matter from theirs. */
  readonly needs: readonly string[];
  /** Kills the service: nothing else may run meanwhile. */
  readonly alone?: true;
  /** @returns a remark, where passing says less than it might. @throws Breach, Inconclusive, Skipped; NoAnswer counts as a breach */
  readonly run: (trial: Trial) => Promise<string | undefined>;
}
