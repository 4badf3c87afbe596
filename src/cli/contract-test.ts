/** `broadcastd contract-test`: whether a bot team's service keeps the service protocol, tried on the running service. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Webhook } from 'standardwebhooks';
import type { Level } from '../contract/call.js';
import { checks } from '../contract/checks/index.js';
import { documentOf, warningsOf, wordsOf } from '../contract/report.js';
import { testContract } from '../contract/run.js';

export interface ContractTestOptions {
  readonly level?: Level | undefined;
  readonly secret?: string | undefined;
  readonly token?: string | undefined;
  readonly broadcast?: string | undefined;
  readonly segment?: string | undefined;
  readonly jobType?: string | undefined;
  readonly testRecipients?: string | undefined;
  readonly restartCmd?: string | undefined;
  readonly slowMessenger?: true | undefined;
  readonly only?: string | undefined;
  /** Seconds for each check. */
  readonly timeout: number;
  readonly json?: true | undefined;
}

interface Surroundings {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly version: string;
  /** Ends it early. */
  readonly signal: AbortSignal;
  readonly print: (line: string) => void;
  readonly complain: (line: string) => void;
}

/** A command line that makes no sense. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

export const CONTRACT_TEST_HELP = `
It makes the service send for real: run it against a staging instance, with 50 to 10,000 people who do not mind,
and who may get some twenty broadcasts on one day: whom a frequency limit leaves out shows nothing.
Each check uses fresh job ids (UUIDs) and, unless --broadcast names one, fresh broadcast ids
(contract-<random>-<check>). Checks that must count from zero are skipped where a given broadcast has nothing left to do.

--restart-cmd is run by the shell, with nothing attached, and must return: for instance
  'kill -9 $(cat service.pid); ./start-service &'
What a kill leaves uncertain shows only where sending takes time. When each message of this instance takes 50 ms or
more, say so by --slow-messenger: a service that then leaves nobody unknown, kill after kill, sends to them again.

Checks: ${checks.map(({ id }) => id).join(', ')}.

A check that finds nothing to judge by, such as people who can be sent to today, neither holds nor fails: it SHOWS
NOTHING, and the last lines say which and how to mend it. In JSON it is "inconclusive"; CI had better want 0 of them.

Exit code: 0 nothing fails, 1 something fails or the service cannot be reached, 2 usage.`;

/** @returns whether nothing fails and it came to its end. @throws UsageError */
export async function contractTest(
  url: string,
  options: ContractTestOptions,
  { env, version, signal, print, complain }: Surroundings,
): Promise<boolean> {
  const { level = null, broadcast = null, segment = null, slowMessenger = false, timeout, json = false } = options;
  const secret = (options.secret ?? env.BROADCAST_SERVICE_SECRET)?.split(',')[0]?.trim() || null;
  const token = options.token ?? (env.BROADCAST_SERVICE_TOKEN || null);
  const only = options.only?.split(',').map((id) => id.trim()) ?? null;
  refuseNonsense(url, secret, only);
  const type = options.jobType ?? (segment === null ? 'send_broadcast' : 'send_segment_broadcast');
  const testRecipients = (options.testRecipients ?? '1').split(',').map((id) => id.trim());
  const restart = options.restartCmd === undefined ? null : restartBy(options.restartCmd);

  const ids = broadcast === null ? 'fresh broadcast ids (contract-…)' : `the broadcast ${broadcast}`;
  complain(`Testing ${url}: it is made to send for real, ${type} of ${ids}, each check with job ids of its own.`);
  const report = await testContract({
    ...{ url, secret, token, version, level, broadcast, segment, type, testRecipients, restart, slowMessenger },
    ...{ only, signal },
    timeoutMs: timeout * 1000,
  });
  if (json) {
    print(JSON.stringify(documentOf(report), null, 2));
    for (const line of warningsOf(report)) complain(line);
  } else for (const line of wordsOf(report)) print(line);
  return !report.interrupted && report.results.every(({ outcome }) => outcome !== 'failed');
}

function refuseNonsense(url: string, secret: string | null, only: readonly string[] | null): void {
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
    throw new UsageError(`${url} is not an http or https URL`);
  }
  const { username, password } = new URL(url);
  if (username || password) throw new UsageError('the URL must hold no user or password: use --token or --secret');
  const strange = only?.find((id) => !checks.some((check) => check.id === id));
  if (strange !== undefined) {
    throw new UsageError(`--only: there is no check ${strange}; there are ${checks.map(({ id }) => id).join(', ')}`);
  }
  try {
    if (secret !== null) new Webhook(secret);
  } catch {
    // Without its value: it may be a real secret with a slip in it.
    throw new UsageError('the signing secret is not of the form whsec_ and base64');
  }
}

const RESTART_WITHIN_MS = 60_000;

/** By the shell. What the command leaves running in the background is not waited for. */
function restartBy(command: string): (signal: AbortSignal) => Promise<void> {
  return async (signal) => {
    const shell = spawn(command, { shell: true, stdio: 'ignore' });
    const bounds = AbortSignal.any([signal, AbortSignal.timeout(RESTART_WITHIN_MS)]);
    const [code] = await once(shell, 'exit', { signal: bounds });
    if (code !== 0) throw new Error(`--restart-cmd ended with exit code ${code}`);
  };
}
