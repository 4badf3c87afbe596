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
  /** Those not settled yet, and what stops their calls once one was begun. */
  readonly jobs: Map<string, AbortController | null>;
  /** Its jobs in their order, and how many of these, from the first, the database knows as begun. */
  readonly order: ReadonlyMap<string, number>;
  begun: number;
  /** A settlement of one of its jobs was never written: the row must stay, so that the reaper finds that job. */
  leftToReaper: boolean;
}

export class Leases {
  readonly #held = new Map<string, Lease>();
  /** Hold nothing more, and their rows are there still. */
  readonly #over = new Set<string>();

  constructor(private readonly leaseMs: number) {}

  /**
   * @param claims in the order in which the lease names them
   * @param askedAt when the claim was sent; the lease cannot have begun earlier
   * @param begun how many of them, from the first, may be called at once
   */
  add(leaseId: string, claims: readonly Claim[], askedAt: number, begun: number): void {
    const jobs = new Map<string, AbortController | null>(claims.map((claim) => [claim.job.id, null]));
    const order = new Map(claims.map((claim, i) => [claim.job.id, i + 1]));
    this.#held.set(leaseId, { deadline: askedAt + this.#safeMs, jobs, order, begun, leftToReaper: false });
  }

  /**
   * Whether it may be called: a job that was claimed ahead only after the database knows, for else the reaper would say
   * of a call that a crash cut short that there was none.
   */
  mayBegin({ leaseId, job }: Claim): boolean {
    const lease = this.#held.get(leaseId);
    // Of a lease that is gone no call is made; to find that out the job has to begin.
    return lease === undefined || (lease.order.get(job.id) ?? 0) <= lease.begun;
  }

  /** What the database is to be told, by lease, before these may be called. */
  unbegun(claims: readonly Claim[]): Map<string, number> {
    const last = new Map<string, number>();
    for (const claim of claims) {
      if (this.mayBegin(claim)) continue;
      const place = this.#held.get(claim.leaseId)?.order.get(claim.job.id) ?? 0;
      last.set(claim.leaseId, Math.max(last.get(claim.leaseId) ?? 0, place));
    }
    return last;
  }

  /** The database was told, and answered which of these leases are still ours. */
  begin(told: ReadonlyMap<string, number>, ours: ReadonlySet<string>): void {
    for (const [leaseId, begun] of told) {
      const lease = this.#held.get(leaseId);
      if (!lease) continue;
      lease.begun = Math.max(lease.begun, begun);
      if (ours.has(leaseId)) continue;
      for (const id of lease.jobs.keys()) controllerOf(lease, id).abort('lease_lost' satisfies AbortReason);
    }
  }

  signal(claim: Claim): AbortSignal {
    const lease = this.#held.get(claim.leaseId);
    return lease ? controllerOf(lease, claim.job.id).signal : AbortSignal.abort('lease_lost' satisfies AbortReason);
  }

  /** Too late to begin a call: somebody else may hold the job by now. */
  expired(leaseId: string): boolean {
    const lease = this.#held.get(leaseId);
    return lease === undefined || performance.now() > lease.deadline;
  }

  /** The leases that hold nothing more: now, or once this batch is settled. */
  finishedBy(batch: readonly Settlement[]): string[] {
    const settled = new Map<string, number>();
    for (const { leaseId } of batch) settled.set(leaseId, (settled.get(leaseId) ?? 0) + 1);
    const byBatch = [...settled.keys()].filter((id) => {
      const lease = this.#held.get(id);
      return lease?.jobs.size === settled.get(id) && !lease?.leftToReaper;
    });
    return [...byBatch, ...this.#over];
  }

  /** Their rows are gone. */
  struckOff(leases: readonly string[]): void {
    for (const id of leases) this.#over.delete(id);
  }

  /** Those whose last jobs two batches settled at the same time, so that neither could strike them off. */
  get over(): readonly string[] {
    return [...this.#over];
  }

  /** @param answered the database has answered; else the job is left to its lease's end, which is renewed no more for it */
  forget({ leaseId, id }: Settlement, answered: boolean): void {
    const lease = this.#held.get(leaseId);
    if (!lease) return;
    lease.jobs.delete(id);
    if (!answered) lease.leftToReaper = true;
    if (lease.jobs.size > 0) return;
    this.#held.delete(leaseId);
    if (!lease.leftToReaper) this.#over.add(leaseId);
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
        if (!stillOurs.has(id) && lease.jobs.has(id)) controllerOf(lease, id).abort('lease_lost' satisfies AbortReason);
      }
    }
  }

  abortAll(reason: AbortReason): void {
    for (const lease of this.#held.values()) {
      for (const id of lease.jobs.keys()) controllerOf(lease, id).abort(reason);
    }
  }

  /** A tenth is kept back for the way of the request to the service. */
  get #safeMs(): number {
    return this.leaseMs * 0.9;
  }
}

/** Made when it is first needed, which for a job that waits may be never. */
function controllerOf(lease: Lease, id: string): AbortController {
  const controller = lease.jobs.get(id) ?? new AbortController();
  lease.jobs.set(id, controller);
  return controller;
}
