/** What a check finds, and how checks are run: side by side, each within its time, none in another's way. */
import { errorWords } from './words.js';

export type Outcome = 'ok' | 'warning' | 'failed' | 'skipped';

export interface Finding {
  readonly outcome: Outcome;
  /** What is the case. */
  readonly found: string;
  /** What to do about it; null where there is nothing to do. */
  readonly mend: string | null;
}

export interface Check {
  readonly name: string;
  readonly run: () => Promise<Finding | Finding[]>;
}

export const ok = (found: string): Finding => ({ outcome: 'ok', found, mend: null });
export const warning = (found: string, mend: string): Finding => ({ outcome: 'warning', found, mend });
export const failed = (found: string, mend: string): Finding => ({ outcome: 'failed', found, mend });
export const skipped = (found: string): Finding => ({ outcome: 'skipped', found, mend: null });

export type NamedFinding = Finding & { readonly check: string };

/** Longer than any statement of a check may take. */
const CHECK_WITHIN_MS = 12_000;

export async function runChecks(checks: readonly Check[]): Promise<NamedFinding[]> {
  const found = await Promise.all(checks.map(async (check) => ({ check, findings: await runOne(check) })));
  return found.flatMap(({ check, findings }) => findings.map((finding) => ({ check: check.name, ...finding })));
}

async function runOne(check: Check): Promise<Finding[]> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<Finding>((resolve) => {
    const words = failed(`no answer within ${CHECK_WITHIN_MS / 1000} s`, 'Try again; the other checks may tell why.');
    timer = setTimeout(() => resolve(words), CHECK_WITHIN_MS);
  });
  try {
    return [await Promise.race([check.run(), late])].flat();
  } catch (error) {
    return [failed(`it cannot be checked: ${errorWords(error)}`, 'Mend that first; then run doctor again.')];
  } finally {
    clearTimeout(timer);
  }
}
