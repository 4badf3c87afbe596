/** What a scenario comes to. */
import type { Sample } from '../setup/results.ts';

export interface Outcome {
  readonly samples: readonly Sample[];
  readonly options: Readonly<Record<string, string | number>>;
}
