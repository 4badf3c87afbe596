/** The HTTP client without a queue: what the calls alone cost. */
import { startProgram } from '../setup/processes.ts';
import { type Place, payload, type Worker } from './contestant.ts';

export const BARE = 'no queue';

export interface BareClient extends Worker {
  /** Makes so many calls; resolves when the last is answered. */
  call(jobs: number, ms: number): Promise<void>;
}

export async function startBare({ serviceUrl, slots, scratch }: Omit<Place, 'databaseUrl'>): Promise<BareClient> {
  const child = await startProgram('bare', { serviceUrl, slots }, scratch);
  return {
    ...child,
    get running() {
      return child.running;
    },
    async call(jobs, ms) {
      const done = child.heard('done', ms);
      child.send({ payloads: Array.from({ length: jobs }, (_, id) => payload(id)) });
      await done;
    },
  };
}
