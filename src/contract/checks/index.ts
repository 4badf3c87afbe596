/** All checks, level by level. */
import type { Check } from '../check.js';
import { idempotentChecks } from './idempotent.js';
import { operationChecks } from './operation.js';
import { plainChecks } from './plain.js';
import { resendingChecks } from './resending.js';
import { slicedChecks } from './sliced.js';

export const checks: readonly Check[] = [
  ...plainChecks,
  ...idempotentChecks,
  ...slicedChecks,
  ...resendingChecks,
  ...operationChecks,
];
