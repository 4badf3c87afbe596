/**
 * What this process holds. A lease is one claim's hold over the jobs it took; the heartbeat renews all of them with one
 * statement and hears which jobs are still ours. A job missing from the answer was cancelled, reaped or taken: its
 * handler is told to stop.
 */
import type { AbortReason } from '../errors.js';
import type { Claim, Settlement, Store } from './ports.js';

interface Lease {
  /** On this process's monotonic clock: no call may begin after it. */
  deadline: number;
  readonly jobs: Map<string, AbortController>;
  /** A settlement of one of its jobs was never written: the row must stay, so that the reaper finds that job. */
  leftToReaper: boolean;
}

export class Leases {
  readonly #held = new Map<string, Lease>();

  constructor(private readonly leaseMs: number) {}

  /** @param askedAt when the claim was sent; the lease cannot have begun earlier */
  add(leaseId: string, claims: readonly Claim[], askedAt: number): void {
    const jobs = new Map(claims.map((claim) => [claim.job.id, new AbortController()]));
    this.#held.set(leaseId, { deadline: askedAt + this.#safeMs, jobs, leftToReaper: false });
  }

  signal(claim: Claim): AbortSignal {
    const controller = this.#held.get(claim.leaseId)?.jobs.get(claim.job.id);
    return controller?.signal ?? AbortSignal.abort('lease_lost' satisfies AbortReason);
  }

  /** Too late to begin a call: somebody else may hold the job by now. */
  expired(leaseId: string): boolean {
    const lease = this.#held.get(leaseId);
    return lease === undefined || performance.now() > lease.deadline;
  }

  /** The leases that hold nothing more once this batch is settled. */
  finishedBy(batch: readonly Settlement[]): string[] {
    const settled = new Map<string, number>();
    for (const { leaseId } of batch) settled.set(leaseId, (settled.get(leaseId) ?? 0) + 1);
    return [...settled.keys()].filter((id) => {
      const lease = this.#held.get(id);
      return lease?.jobs.size === settled.get(id) && !lease?.leftToReaper;
    });
  }

  /** @param answered the database has answered; else the job is left to its lease's end, which is renewed no more for it */
  forget({ leaseId, id }: Settlement, answered: boolean): void {
    const lease = this.#held.get(leaseId);
    if (!lease) return;
    lease.jobs.delete(id);
    if (!answered) lease.leftToReaper = true;
    if (lease.jobs.size === 0) this.#held.delete(leaseId);
  }

  /** One heartbeat. @throws DatabaseUnavailable */
  async beat(store: Store): Promise<void> {
    const askedAt = performance.now();
    const asked = new Map([...this.#held].map(([id, lease]) => [id, [...lease.jobs.keys()]]));
    const stillOurs = await store.beat(asked);
    for (const [leaseId, ids] of asked) {
      const lease = this.#held.get(leaseId);
      if (!lease) continue;
      if (ids.some((id) => stillOurs.has(id))) lease.deadline = askedAt + this.#safeMs;
      for (const id of ids) {
        if (!stillOurs.has(id)) lease.jobs.get(id)?.abort('lease_lost' satisfies AbortReason);
      }
    }
  }

  abortAll(reason: AbortReason): void {
    for (const { jobs } of this.#held.values()) {
      for (const controller of jobs.values()) controller.abort(reason);
    }
  }

  /** A tenth is kept back for the way of the request to the service. */
  get #safeMs(): number {
    return this.leaseMs * 0.9;
  }
}
