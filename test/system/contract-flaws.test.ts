/**
 * The contract test catches what it is for: each deliberate breach of the sandbox fails exactly the check that is meant
 * for it. What cannot be told apart from it is skipped, and says because of which.
 */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { type ContractReport, testContract } from '../../src/contract/run.js';
import { FLAWS, type Flaw } from '../../src/sandbox/flaws.js';
import { type Sandbox, startSandbox } from '../../src/sandbox/server.js';
import { createDatabase, type TestDatabase } from '../support/postgres.js';

const SECRET = `whsec_${Buffer.from('a secret of the contract tests').toString('base64')}`;
const TOKEN = 'a-token-of-the-contract-tests';

/** The check that is meant for it, and a level that promises what it breaks. */
const CATCHES: Record<Exclude<Flaw, 'resends-unknown'>, readonly [check: string, level: 2 | 3]> = {
  'bare-404': ['unknown-type', 2],
  'bad-data-500': ['invalid-data', 2],
  'plain-errors': ['problem-json', 2],
  'any-signature': ['bad-signature', 2],
  'any-token': ['bad-token', 2],
  redirects: ['reachable', 2],
  'empty-202': ['answer', 2],
  'says-no-level': ['level-header', 2],
  'forgets-keys': ['same-key', 2],
  'fingerprints-attempt': ['repetition', 2],
  'runs-beside': ['in-progress', 2],
  'ignores-epoch': ['old-epoch', 2],
  'too-many-items': ['slices', 2],
  overstays: ['wait', 2],
  'ignores-pace': ['pace', 2],
  'delta-progress': ['progress', 2],
  'wrong-sum': ['progress', 2],
  'no-ledger': ['replayed-cursor', 2],
  'forgets-cut-slice': ['cut-slice', 2],
  'dry-run-sends': ['dry-run', 2],
  'test-sends-all': ['test-send', 2],
  'ignores-scope': ['scope', 2],
  'location-elsewhere': ['location', 3],
  'delete-ignored': ['delete', 3],
  'forgets-operation': ['poll', 3],
};
/** What needs the pace, or an operation that can be asked for, to meet a call at work. */
const LEAVES_OPEN: Readonly<Record<string, readonly string[]>> = {
  'ignores-pace': ['in-progress', 'wait', 'cut-slice'],
  'location-elsewhere': ['in-progress'],
};
const caught = Object.entries(CATCHES).map(([flaw, [check, level]]) => ({ flaw, check, level }));

/** As many at once: they mostly wait for the pace that they have asked for. */
const SIDE_BY_SIDE = 5;

let database: TestDatabase;
const reports = new Map<string, ContractReport>();

beforeAll(async () => {
  database = await createDatabase();
  // All are started before the first is used: what one does to the tables at its start would disturb the others.
  const waiting: { flaw: string; level: 2 | 3; sandbox: Sandbox }[] = [];
  for (const { flaw, level } of caught) waiting.push({ flaw, level, sandbox: await startFlawed(flaw, level) });
  // Its wait is the longest by far.
  waiting.sort((one, other) => Number(other.flaw === 'overstays') - Number(one.flaw === 'overstays'));
  const lane = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      reports.set(next.flaw, await testOf(next.sandbox, next.level));
      await next.sandbox.close();
    }
  };
  await Promise.all(Array.from({ length: SIDE_BY_SIDE }, lane));
}, 120_000);

afterAll(() => database.drop());

describe('of each flaw', () => {
  test('there is one in the table', () => {
    expect([...caught.map(({ flaw }) => flaw), 'resends-unknown'].sort()).toEqual(Object.keys(FLAWS).sort());
  });

  test.each(caught)('$flaw: the check $check fails, and no other', ({ flaw, check }) => {
    const results = reports.get(flaw)?.results ?? [];
    const failed = results.filter(({ outcome }) => outcome === 'failed');
    expect(failed).toEqual([
      expect.objectContaining({
        check: expect.objectContaining({ id: check }),
        ...{ sent: expect.any(String), came: expect.any(String), said: expect.any(String) },
      }),
    ]);
    const inconclusive = results.filter(({ outcome }) => outcome === 'inconclusive').map((result) => result.check.id);
    expect(inconclusive.filter((id) => !LEAVES_OPEN[flaw]?.includes(id))).toEqual([]);
    for (const { outcome, said } of results) {
      if (outcome === 'skipped') expect(said).toMatch(new RegExp(`^${check} fails$|${NOT_IN_THIS_TEST.source}`));
    }
  });
});

const NOT_IN_THIS_TEST = /no --restart-cmd was given|level 3 is not asked for|operations \(level 3\), not in slices/;

function startFlawed(flaw: string, level: 2 | 3): Promise<Sandbox> {
  return startSandbox({
    databaseUrl: database.url,
    recipients: 100,
    dailyLimit: 1_000_000,
    ...{ secrets: [SECRET], token: TOKEN, level },
    // A key of the table.
    flaws: [flaw as Flaw],
  });
}

function testOf({ url }: Sandbox, level: 2 | 3): Promise<ContractReport> {
  return testContract({
    ...{ url, secret: SECRET, token: TOKEN, version: '0.0.0', level, only: null, timeoutMs: 60_000 },
    ...{ type: 'send_broadcast', broadcast: null, segment: null, testRecipients: ['1'] },
    ...{ restart: null, slowMessenger: false, signal: new AbortController().signal },
  });
}
