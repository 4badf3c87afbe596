/** Waiting a little longer than asked, so that those who failed together do not come back together. Never shorter. */

/** Up to a tenth later, at most a minute. @param random uniform in [0, 1) */
export function later(ms: number, random: () => number): number {
  return ms + Math.min(ms * 0.1, 60_000) * random();
}
