/** Checks of the work itself: is somebody there to do it, does something hold it up, and what came of it. */
import { queueMeasures } from '../../db/measures.js';
import { type Database, identifier } from '../../db/pool.js';
import type { Reports } from '../../db/reports.js';
import { duration, many, moment } from '../table.js';
import { one } from './connection.js';
import { type Check, type Finding, failed, ok, warning } from './finding.js';

export function workChecks(database: Database, reports: Reports, version: string, stuckAfterMs: number): Check[] {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;
  return [
    {
      name: 'daemons',
      async run() {
        const alive = (await reports.workers()).filter((worker) => worker.alive);
        if (alive.length === 0) {
          return warning('no daemon is running', 'Start one with "broadcastd start"; without it nothing is sent.');
        }
        const versions = [...new Set(alive.map((worker) => worker.version))].sort();
        const words = `${alive.length} running, version ${versions.join(' and ')}`;
        if (versions.length === 1 && versions[0] === version) return ok(words);
        return warning(`${words}; this is ${version}`, 'During a deploy that is well; else bring all to one version.');
      },
    },
    { name: 'due jobs', run: () => dueJobs(database, reports) },
    {
      name: 'leases',
      async run() {
        const { expired, seconds } = await one<{ expired: number; seconds: number }>(
          database,
          `select count(*)::integer as expired,
                  coalesce(extract(epoch from clock_timestamp() - min(expires_at)), 0)::float8 as seconds
           from ${at('broadcast_queue_leases')} where expires_at < clock_timestamp() - interval '10 seconds'`,
        );
        if (expired === 0) return ok('every lease is renewed or taken over in time');
        return failed(
          `${many(expired, 'expired lease')}, the oldest since ${duration(seconds * 1000)}, and nobody takes the jobs over`,
          'Start a daemon: every running one does that. If one runs, its log tells what keeps it from the database.',
        );
      },
    },
    {
      name: 'pauses',
      async run() {
        const { queues, allPaused } = await reports.standing();
        const paused = [...queues].flatMap(([name, state]) => (state.paused ? [{ name, pause: state.paused }] : []));
        if (allPaused) paused.unshift({ name: '*', pause: allPaused });
        if (paused.length === 0) return ok('no queue is paused');
        return paused.map(({ name, pause }) =>
          warning(
            `${name === '*' ? 'all queues are' : `the queue ${name} is`} paused by ${pause.paused_by} since ` +
              `${moment(pause.paused_at)}${pause.reason === null ? '' : `: ${pause.reason}`}`,
            `When the reason is gone: broadcastd queues resume${name === '*' ? '' : ` ${name}`}`,
          ),
        );
      },
    },
    {
      name: 'gates',
      async run() {
        const closed = (await reports.gates('', 500)).filter((gate) => gate.closed);
        const breaker = await reports.breaker();
        if (breaker.state !== 'closed') {
          return failed(
            `the breaker is open since ${moment(breaker.opened_at)}: ${breaker.last_error ?? 'the service fails'}`,
            'Mend the service or its address: probes go on by themselves. "broadcastd gates open service" tries at once.',
          );
        }
        if (closed.length === 0) return ok('every gate is open, and the breaker closed');
        return closed
          .slice(0, 5)
          .map(({ key, closed_until, reason }) =>
            warning(
              `the gate ${key} is closed until ${moment(closed_until)}: ${reason ?? 'the service asked for it'}`,
              `It opens by itself; "broadcastd gates open ${key}" does not wait.`,
            ),
          );
      },
    },
    { name: 'failed jobs', run: () => failedJobs(reports) },
    {
      name: 'stuck jobs',
      async run() {
        const { stuck } = await one<{ stuck: string[] }>(
          database,
          `select array(
             select j.job_id::text from ${at('broadcast_queue_jobs')} j
             where j.id = any(array(select unnest(l.job_ids) from ${at('broadcast_queue_leases')} l))
               and j.status = 'processing' and j.lease_id is not null
               and coalesce(j.stalled_since, j.updated_at) < clock_timestamp() - $1::float8 * interval '1 millisecond'
             order by j.id limit 100) as stuck`,
          [stuckAfterMs],
        );
        if (stuck.length === 0) return ok(`no running job is without progress for ${duration(stuckAfterMs)}`);
        return warning(
          `${many(stuck.length, 'running job')} without progress for ${duration(stuckAfterMs)}, such as ${stuck[0]}`,
          'broadcastd jobs show tells what they do; the service may hang. Cancelling one ends its call.',
        );
      },
    },
  ];
}

const LATE_WARNING_S = 60;

async function dueJobs(database: Database, reports: Reports): Promise<Finding[]> {
  const ready = await queueMeasures(database).ready();
  if (ready.length === 0) return [ok('nothing is due')];
  const alive = (await reports.workers()).filter((worker) => worker.alive);
  const findings = ready.map(({ queue, jobs, oldest_s }): Finding => {
    const words = `${many(jobs, 'due job')} in the queue ${queue}, the oldest for ${duration(oldest_s * 1000)}`;
    if (alive.length === 0) return failed(`${words}, and no daemon is running`, 'Start one with "broadcastd start".');
    if (!alive.some(({ slots }) => slotsFor(slots, queue) > 0)) {
      const mend = `Add ${queue}=2 or *=2 to CONCURRENCY of a daemon, and start it again.`;
      return failed(`${words}, and no running daemon has a slot for that queue`, mend);
    }
    if (oldest_s < LATE_WARNING_S) return ok(words);
    const mend =
      'broadcastd jobs show on one of them says why it waits; more slots (CONCURRENCY) help where all are busy.';
    return warning(words, mend);
  });
  return findings.sort((a, b) => Number(a.outcome === 'ok') - Number(b.outcome === 'ok')).slice(0, 10);
}

function slotsFor(slots: unknown, queue: string): number {
  if (typeof slots !== 'object' || slots === null) return 0;
  const given: unknown = Reflect.get(slots, queue) ?? Reflect.get(slots, '*');
  return typeof given === 'number' ? given : 0;
}

const DAY_MS = 86_400_000;

async function failedJobs(reports: Reports): Promise<Finding[]> {
  const { groups } = await reports.failures(null);
  const { queues } = await reports.standing();
  let waiting = 0;
  for (const { counts } of queues.values()) waiting += counts.paused;
  const recent = groups.filter(({ last_seen }) => Date.now() - last_seen.getTime() < DAY_MS);
  const findings = recent.slice(0, 3).map(({ count, job_type, error_code, message, last_seen }) => {
    const code = error_code === null ? '' : ` --error-code ${error_code}`;
    return warning(
      `${count} ${job_type} failed, last at ${moment(last_seen)}: ${message}`,
      `Mend the cause, then: broadcastd jobs retry --status failed --type ${job_type}${code}`,
    );
  });
  if (waiting > 0) {
    findings.push(
      warning(
        `${many(waiting, 'paused job')}: waiting for a person`,
        'broadcastd jobs list --status paused shows why.',
      ),
    );
  }
  return findings.length > 0 ? findings : [ok('nothing failed in the last day, and nothing waits for a person')];
}
