/** The contract test kills a service in mid-send, by the command that it was given, and sees what becomes of the job. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { startRestartable } from '../support/contract-service.js';
import { runProgram } from '../support/daemon.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';

const SECRET = `whsec_${Buffer.from('a secret of the contract tests').toString('base64')}`;
const TOKEN = 'a-token-of-the-contract-tests';
const CREDENTIALS = { BROADCAST_SERVICE_SECRET: SECRET, BROADCAST_SERVICE_TOKEN: TOKEN };

let database: TestDatabase;
beforeEach(async () => {
  database = await createDatabase();
});
afterEach(() => database.drop());

describe('a service that is killed in mid-send', () => {
  test.each([
    [2, 'passed', []],
    [3, 'passed', []],
    [2, 'failed', ['resends-unknown']],
  ] as const)(
    'at level %d: the check has %s with the flaws %j',
    async (level, outcome, flaws) => {
      const options = ['--level', String(level), ...flaws.flatMap((flaw) => ['--flaw', flaw])];
      const service = await startRestartable(database.url, options, { secret: SECRET, token: TOKEN });
      try {
        const restart = service.restartCommand;
        const { code, stdout } = await runProgram(
          ['contract-test', service.url, '--only', 'killed', '--slow-messenger', '--restart-cmd', restart, '--json'],
          CREDENTIALS,
        );
        const killed = JSON.parse(stdout).checks.find((check: { id: string }) => check.id === 'killed');
        expect(killed).toMatchObject({
          outcome,
          seen: outcome === 'failed' ? expect.stringContaining('unknown') : null,
        });
        expect(code).toBe(outcome === 'passed' ? 0 : 1);
      } finally {
        await service.close();
      }
    },
    60_000,
  );
});
