/** Reading the counters of an answer, and judging whether they account for a whole broadcast. */
import { Compile } from 'typebox/compile';
import type { Progress } from '../job.js';
import { Counters } from './protocol.js';
import { quote } from './wording.js';

const PARTS = ['sent', 'skipped', 'failed', 'unknown'] as const;

/** Reasons that are kept, and the characters of each: the row holds them, and the page lists them. */
const MAX_REASONS = 50;
const MAX_REASON_LENGTH = 100;

const counters = Compile(Counters);

/**
 * @param body an answer: its `progress`, or the counters at its top where it has none
 * @returns undefined when there are no counters, or none to rely on
 */
export function readProgress(body: Record<string, unknown>): Progress | undefined {
  const given = body.progress ?? body;
  if (!counters.Check(given)) return undefined;
  const isBrokenDown = PARTS.some((part) => typeof given[part] === 'number');
  const processed = given.processed ?? (isBrokenDown ? sumOfParts(given) : undefined);
  if (processed === undefined) return undefined;
  const progress: Progress = { processed };
  if (given.total !== undefined) progress.total = given.total;
  for (const part of PARTS) {
    const count = given[part];
    if (typeof count === 'number') progress[part] = count;
  }
  if (given.reasons) progress.reasons = shortReasons(given.reasons);
  return progress;
}

/**
 * What speaks against calling a broadcast with these counters complete; null when nothing does. A service that counts
 * `sent` counts them all, so the four parts must then make up `processed` (absent ones are 0); otherwise the parts
 * given must not exceed it.
 */
export function incompleteness(progress: Progress): string | null {
  const { total, processed } = progress;
  if (typeof total === 'number' && processed < total) return `only ${processed} of ${total} are processed`;
  const sum = sumOfParts(progress);
  const isAccounted = progress.sent === undefined ? sum <= processed : sum === processed;
  return isAccounted ? null : `${processed} are processed, but sent + skipped + failed + unknown is ${sum}`;
}

function sumOfParts(given: Counters | Progress): number {
  return PARTS.reduce((sum, part) => sum + (given[part] ?? 0), 0);
}

function shortReasons(reasons: Record<string, number>): Record<string, number> {
  const kept = Object.entries(reasons).slice(0, MAX_REASONS);
  return Object.fromEntries(kept.map(([reason, count]) => [quote(reason).slice(0, MAX_REASON_LENGTH), count]));
}
