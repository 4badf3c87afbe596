/**
 * What is kept of an answer as the job's result: JSON text for a jsonb column, at most MAX_RESULT_BYTES, and never
 * written anew from JavaScript's numbers.
 */
import { readProgress } from './progress.js';
import { MAX_RESULT_BYTES } from './protocol.js';
import { fitForJsonb } from './wording.js';

/**
 * @param text valid JSON
 * @param body the same, read
 * @returns the text as it came where it fits, else its counters and `"truncated": true`
 */
export function kept(text: string, body: Record<string, unknown>): string {
  const result = fitForJsonb(text);
  return fits(result) ? result : JSON.stringify({ ...countersOf(body), truncated: true });
}

/**
 * @param location where the service says the work goes on
 * @param answer JSON text, or null when it said no more; left out where both together are too long
 */
export function located(location: string, answer: string | null): string {
  const alone = JSON.stringify({ location });
  const both = `${alone.slice(0, -1)},"answer":${answer}}`;
  return answer !== null && fits(both) ? both : alone;
}

const fits = (json: string) => Buffer.byteLength(json) <= MAX_RESULT_BYTES;

function countersOf(body: Record<string, unknown>): object | undefined {
  const progress = readProgress(body);
  return progress !== undefined && typeof body.progress === 'object' ? { progress } : progress;
}
