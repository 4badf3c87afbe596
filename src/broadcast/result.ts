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

const fits = (json: string) => Buffer.byteLength(json) <= MAX_RESULT_BYTES;

function countersOf(body: Record<string, unknown>): object | undefined {
  const progress = readProgress(body);
  return progress !== undefined && typeof body.progress === 'object' ? { progress } : progress;
}
