/**
 * What the contract test says where it finds nothing to judge by: neither that a promise holds nor that it is broken,
 * and loudly, lest somebody takes a service for good that was never put to the test.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import type { ContractDocument } from '../../src/contract/report.js';
import { type RestartableService, startRestartable } from '../support/contract-service.js';
import { runProgram } from '../support/daemon.js';
import { replyJson, type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';

const SECRET = `whsec_${Buffer.from('a secret of the contract tests').toString('base64')}`;
const TOKEN = 'a-token-of-the-contract-tests';
const CREDENTIALS = { BROADCAST_SERVICE_SECRET: SECRET, BROADCAST_SERVICE_TOKEN: TOKEN };
const FLAWS = ['ignores-scope', 'dry-run-sends', 'no-ledger'].flatMap((flaw) => ['--flaw', flaw]);
const CAUGHT = ['replayed-cursor', 'dry-run', 'scope'];

describe('a sandbox with flaws', () => {
  let database: TestDatabase;
  let service: RestartableService;
  beforeEach(async () => {
    database = await createDatabase();
  });
  afterEach(async () => {
    await service.close();
    await database.drop();
  });

  test('whose people can be sent to fails for each of them', async () => {
    service = await startFlawed([]);
    const { code, document } = await jsonOf([service.url]);
    expect([code, idsOf(document, 'failed')]).toEqual([1, CAUGHT]);
  });

  test('whose people have had their fill of the day is told that these checks show nothing, and how to mend it', async () => {
    service = await startFlawed(['--daily-limit', '1']);
    const { code, document, stderr } = await jsonOf([service.url]);
    expect([code, idsOf(document, 'failed')]).toEqual([0, []]);
    const inconclusive = idsOf(document, 'inconclusive');
    expect(inconclusive).toEqual(expect.arrayContaining([...CAUGHT, 'pace', 'cut-slice']));
    expect(document.inconclusive).toBe(inconclusive.length);
    expect(document.checks.find(({ id }) => id === 'scope')).toMatchObject({
      ...{ seen: null, reason: 'nobody was sent to', why: null },
      mend: expect.stringContaining('--daily-limit'),
    });
    // Beside the document, for whoever looks at its exit code alone.
    expect(stderr).toContain(`NOT PROVEN: ${inconclusive.length} checks have shown nothing`);

    const { stdout } = await runProgram(['contract-test', service.url, '--only', 'scope'], CREDENTIALS);
    expect(stdout).toMatch(/^ {2}\? {4}scope .*\n {7}shows nothing: nobody was sent to$/m);
    expect(stdout).toMatch(/\d+ hold, 0 fail, 1 SHOW NOTHING, \d+ skipped, up to level 2\.\nNOT PROVEN: 1 check has/);
    expect(stdout).toMatch(/\n {2}scope: nobody was sent to\. To mend it, give the service people .*--daily-limit/);
  });

  const startFlawed = (options: readonly string[]) =>
    startRestartable(database.url, [...FLAWS, ...options], { secret: SECRET, token: TOKEN });
});

describe('a service whose answers say little', () => {
  let service: ScriptedServer;
  beforeAll(async () => {
    service = await startHttpServer();
    service.otherwise(replyJson(200, { status: 'completed' }));
  });
  afterAll(() => service.close());

  test('is not believed to remember its keys because it says the same twice', async () => {
    const { code, document } = await jsonOf([service.url, '--level', '1', '--only', 'repetition,in-progress']);
    expect([code, idsOf(document, 'failed')]).toEqual([0, []]);
    expect(idsOf(document, 'inconclusive')).toEqual(['same-key', 'repetition', 'in-progress']);
    expect(document.checks.find(({ id }) => id === 'same-key')).toMatchObject({
      reason: expect.stringContaining('without counters'),
      mend: expect.stringContaining('"progress"'),
    });
  });
});

async function jsonOf(args: string[]) {
  const { code, stdout, stderr } = await runProgram(['contract-test', ...args, '--json'], CREDENTIALS);
  // The program's own word for it.
  return { code, stderr, document: JSON.parse(stdout) as ContractDocument };
}

function idsOf({ checks }: ContractDocument, outcome: string): string[] {
  return checks.filter((check) => check.outcome === outcome).map(({ id }) => id);
}
