/** One attempt at one job: is it fit to run, who runs it, what came of it. Never throws: an error is a result. */
import { Interrupted, PermanentError } from '../errors.js';
import type { Handler, Outcome, Ports } from '../job.js';
import type { Leases } from './leases.js';
import type { Claim } from './ports.js';

export interface Registry {
  readonly handlers: ReadonlyMap<string, Handler>;
  /** A type without a handler fails at once, or waits for a daemon that has one (a rolling deploy). */
  readonly unknown: 'fail' | 'wait';
  readonly maxPayloadBytes: number;
}

export async function attempt(
  claim: Claim,
  registry: Registry,
  portsFor: (claim: Claim) => Ports,
  leases: Leases,
): Promise<Outcome | Error> {
  try {
    const handler = registry.handlers.get(claim.job.type);
    if (!handler && registry.unknown === 'wait') return waitForAnother(claim);
    if (!handler) {
      throw new PermanentError(`No processor registered for job type: ${claim.job.type}`, { code: 'unknown_job_type' });
    }
    refuseUnfit(claim, registry);
    if (claim.windowWaitMs !== null) return waitForWindow(claim.windowWaitMs);
    if (leases.expired(claim.leaseId)) throw new Interrupted('lease_lost', false);
    return await handler.run(claim.job, portsFor(claim), leases.signal(claim));
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

const UNKNOWN_TYPE_WAIT_MS = 5000;

function waitForAnother(claim: Claim): Outcome {
  const reason = `no processor registered for job type: ${claim.job.type} (UNKNOWN_JOB_TYPES=wait)`;
  return { kind: 'wait', reason, delayMs: UNKNOWN_TYPE_WAIT_MS };
}

function waitForWindow(waitMs: number): Outcome {
  if (waitMs >= 0) return { kind: 'wait', reason: 'waiting for its send window', delayMs: waitMs };
  throw new PermanentError('its send window passed before it could begin, and "missed" is "fail"', {
    code: 'window_missed',
  });
}

function refuseUnfit(claim: Claim, registry: Registry): void {
  if (claim.expired) {
    const when = claim.job.expiresAt?.toISOString();
    throw new PermanentError(`expired: not started before its expires_at, ${when}`, { code: 'expired' });
  }
  if (claim.oversizeBytes !== null) {
    throw new PermanentError(
      `job_data is ${claim.oversizeBytes} bytes, over the limit of ${registry.maxPayloadBytes} (MAX_PAYLOAD_BYTES)`,
      { code: 'payload_too_large' },
    );
  }
}
