/** What happens becomes figures: the queue's events are counted as they come, beside observe.ts, which words them. */
import type { Claim, Events, Settlement } from '../queue/ports.js';
import type { Metrics } from './catalogue.js';
import type { Labels } from './labels.js';

export function countEvents(events: Events, metrics: Metrics, labels: Labels): void {
  const met = new Set<string>();
  const begin = (job: { type: string; queue: string }) => {
    const by = labels.job(job);
    const pair = `${by.job_type} ${by.queue}`;
    if (met.has(pair)) return by;
    met.add(pair);
    // At 0 from the start, since Prometheus does not see a counter's first value as an increase.
    for (const outcome of OUTCOMES) metrics.outcomes.inc({ ...by, outcome }, 0);
    for (const counter of [metrics.attempts, metrics.slices, metrics.messages, metrics.leasesLost]) counter.inc(by, 0);
    metrics.possibleDuplicates.inc(by, 0);
    metrics.reaped.inc({ job_type: by.job_type }, 0);
    return by;
  };
  for (const [type, queue] of USUAL) begin({ type, queue });
  for (const gate of GATES) metrics.gateClosings.inc({ gate }, 0);

  const ended = (outcome: (typeof OUTCOMES)[number]) => (claim: Claim, settlement: Settlement) => {
    const by = labels.job(claim.job);
    metrics.outcomes.inc({ ...by, outcome });
    metrics.run.observe(by, Math.max(settlement.ranMs, 0) / 1000);
    if (settlement.gained > 0) metrics.messages.inc(by, settlement.gained);
    if (settlement.flags.includes('possible_duplicate')) metrics.possibleDuplicates.inc(by);
  };
  const failed = ({ job }: Claim, { errorCode }: Settlement) => {
    metrics.failures.inc({ job_type: labels.type(job.type), code: labels.code(errorCode ?? 'unknown') });
  };

  events.on('started', ({ job, waitedMs }) => {
    const by = begin(job);
    metrics.attempts.inc(by);
    // A job may be due since -infinity, which no histogram takes.
    metrics.wait.observe({ queue: by.queue }, Math.min(Math.max(waitedMs, 0), Number.MAX_SAFE_INTEGER) / 1000);
  });
  events.on('completed', ended('completed'));
  events.on('deferred', (claim, settlement) => {
    const isSlice = settlement.nextCursor !== null;
    ended(isSlice ? 'continued' : 'waiting')(claim, settlement);
    if (isSlice) metrics.slices.inc(labels.job(claim.job));
  });
  events.on('retrying', ended('retrying'));
  events.on('retrying', failed);
  events.on('failed', ended('failed'));
  events.on('failed', failed);
  events.on('cancelled', ended('cancelled'));
  events.on('paused', ended('paused'));
  events.on('handedBack', ended('handed_back'));
  events.on('lost', ({ job }) => metrics.leasesLost.inc(labels.job(job)));
  events.on('reaped', (jobs) => {
    for (const { type } of jobs) metrics.reaped.inc({ job_type: labels.type(type) });
  });
  events.on('claimed', (jobs) => metrics.claimBatch.observe(jobs));
  events.on('gateClosed', (key) => metrics.gateClosings.inc({ gate: key === 'service' ? 'service' : 'bot' }));
  events.on('breakerOpened', () => metrics.breakerOpenings.inc());
  events.on('stuck', () => metrics.stuck.inc());
  events.on('scheduled', ({ name }) => metrics.ticks.inc({ schedule: labels.schedule(name) }));
  events.on('databaseDown', () => metrics.databaseErrors.inc({ kind: 'away' }));
  events.on('fault', () => metrics.databaseErrors.inc({ kind: 'fault' }));
}

const OUTCOMES = [
  'completed',
  'continued',
  'waiting',
  'retrying',
  'failed',
  'cancelled',
  'paused',
  'handed_back',
] as const;

const GATES = ['service', 'bot'];

/** The built-in job types in the queues that broadcast_usual_queue gives them. */
const USUAL = [
  ['send_broadcast', 'broadcasts'],
  ['send_segment_broadcast', 'segment-broadcasts'],
  ['process_retries', 'retries'],
  ['cleanup_queue', 'cleanup'],
] as const;

/** One statement, as the pool tells of it; `name` is null where it has none. */
export function countQuery(metrics: Metrics, { name, ms, rows }: { name: string | null; ms: number; rows: number }) {
  metrics.query.observe({ statement: name ?? 'other' }, ms / 1000);
  // It answers with a row for each settlement.
  if (name === 'settle' && rows > 0) metrics.settleBatch.observe(rows);
}
