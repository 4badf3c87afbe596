/** Where the program is that the tests start: what pack.ts made of dist/, or dist/ itself. */
import { fileURLToPath } from 'node:url';

export const PROGRAM_VARIABLE = 'BROADCASTD_TEST_PROGRAM';

export const PROGRAM = process.env[PROGRAM_VARIABLE] ?? fileURLToPath(new URL('../../dist/main.js', import.meta.url));
