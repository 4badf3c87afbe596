/**
 * Words what happened: the queue's events become log lines, here and nowhere else. One line per thing that happened;
 * a flood of equal warnings is counted instead of repeated, so that a service that is down for an hour does not fill
 * the disk. Lines carry names, codes and durations, never a payload.
 */
import type { Logger } from 'pino';
import type { Claim, Events, Settlement } from './queue/ports.js';

export function observe(events: Events, logger: Logger): void {
  const seldom = floodgate(logger);

  events.on('started', (claim) => {
    if (claim.first) logger.info({ ...named(claim), waited_ms: Math.round(claim.waitedMs) }, 'job added');
    logger.info(attempted(claim), 'job started');
  });
  events.on('completed', (claim, settlement) => {
    logger.info({ ...ended(claim, settlement), ...remarks(settlement) }, 'job completed');
  });
  events.on('deferred', (claim, settlement) => {
    const due = { ...ended(claim, settlement), due_in_ms: rounded(settlement.dueInMs), reason: settlement.holdReason };
    logger.info(due, settlement.nextCursor === null ? 'job waits' : 'step done');
  });
  events.on('retrying', (claim, settlement) => {
    const line = { ...ended(claim, settlement), ...failure(settlement), due_in_ms: rounded(settlement.dueInMs) };
    seldom('warn', `retry ${claim.job.type} ${settlement.errorCode}`, line, 'job scheduled for retry');
  });
  events.on('failed', (claim, settlement) => {
    const line = { ...ended(claim, settlement), ...failure(settlement) };
    seldom('warn', `failed ${claim.job.type} ${settlement.errorCode}`, line, 'job failed');
  });
  events.on('cancelled', (claim, settlement) => {
    logger.info({ ...ended(claim, settlement), ...failure(settlement) }, 'job cancelled');
  });
  events.on('paused', (claim, settlement) => {
    logger.warn({ ...ended(claim, settlement), reason: settlement.holdReason }, 'job paused');
  });
  events.on('handedBack', (claim, settlement) => {
    logger.info({ ...ended(claim, settlement), ...remarks(settlement) }, 'job handed back');
  });
  events.on('lost', (claim, settlement) => {
    const line = { ...ended(claim, settlement), refused_status: settlement.status };
    seldom('warn', 'lost', line, 'lease lost: the job was reaped or taken over; our late word is refused');
  });
  events.on('recalled', (claim, settlement) => {
    logger.info(ended(claim, settlement), 'job cancelled while it was called; what the call still said is refused');
  });
  events.on('reaped', (jobs) => {
    for (const job of jobs) {
      const line = { job_id: job.jobId, job_type: job.type, status: job.status, worker: job.workerId };
      seldom('warn', 'reaped', line, 'job taken from a worker that stopped renewing its lease');
    }
  });
  events.on('gateClosed', (key, ms, reason) => {
    const line = { gate: key, closed_for_ms: Math.round(ms), reason };
    seldom('warn', `gate ${key}`, line, 'gate closed: nobody calls until it opens');
  });
  events.on('breakerOpened', (reason) => {
    logger.error({ reason }, 'breaker opened: the service fails; single probes go out until one succeeds');
  });
  events.on('breakerClosed', () => logger.info('breaker closed: the service answers again'));
  events.on('stuck', (claim, ms) => {
    logger.warn({ ...named(claim), stuck_ms: Math.round(ms) }, 'broadcast is stuck: it runs and makes no progress');
  });
  events.on('operationEnded', ({ jobId, operation }) => {
    logger.info({ job_id: jobId, operation }, 'operation of a cancelled job ended');
  });
  events.on('operationNotEnded', ({ jobId, operation, tries }, error) => {
    const line = { job_id: jobId, operation, tries, error: error.message };
    logger.warn(
      line,
      tries < 10 ? 'operation not ended yet; trying again' : 'operation not ended, and not tried again',
    );
  });
  events.on('scheduled', ({ name, type }) => logger.info({ schedule: name, job_type: type }, 'scheduled job added'));
  events.on('databaseDown', (doing, error) => {
    seldom('error', 'database', { doing, error: error.message }, 'the database does not answer; trying on');
  });
  events.on('databaseUp', (downMs) => logger.info({ down_ms: Math.round(downMs) }, 'the database answers again'));
  events.on('fault', (doing, error) => {
    seldom('error', `fault ${doing} ${error.message}`, { doing, error: error.message, stack: error.stack }, 'fault');
  });
  events.on('draining', (active) => logger.info({ active_jobs: active }, 'stopping: claims no more, lets jobs finish'));
  events.on('drained', () => logger.info('stopped'));
}

function named({ job }: Claim) {
  const { jobId, type, queue, broadcastId, segmentId } = job;
  return {
    job_id: jobId,
    job_type: type,
    queue,
    ...(broadcastId === null ? {} : { broadcast_id: broadcastId }),
    ...(segmentId === null ? {} : { segment_id: segmentId }),
  };
}

function attempted(claim: Claim) {
  const { attempt, maxAttempts, epoch, step } = claim.job;
  return { ...named(claim), attempt, max_attempts: maxAttempts, epoch, ...(step.seq > 0 ? { step: step.seq } : {}) };
}

function ended(claim: Claim, settlement: Settlement) {
  return { ...attempted(claim), ran_ms: Math.round(settlement.ranMs) };
}

function failure({ errorCode, errorMessage, httpStatus, flags }: Settlement) {
  return {
    code: errorCode,
    error: errorMessage,
    ...(httpStatus === null ? {} : { http_status: httpStatus }),
    ...(flags.length > 0 ? { flags } : {}),
  };
}

function remarks({ flags, progress }: Settlement) {
  return { ...(progress ? { progress } : {}), ...(flags.length > 0 ? { flags } : {}) };
}

function rounded(ms: number | null) {
  return ms === null ? undefined : Math.round(ms);
}

const FLOOD_WINDOW_MS = 10_000;
const FLOOD_LINES_PER_WINDOW = { warn: 10, error: 2 };
const FLOOD_KEYS_MAX = 500;

type Seldom = (level: 'warn' | 'error', key: string, line: object, message: string) => void;

/** The first lines of each kind in a window are written, the rest counted and told when the window ends. */
function floodgate(logger: Logger): Seldom {
  const windows = new Map<string, { lines: number; suppressed: number }>();
  return (level, key, line, message) => {
    let window = windows.get(key);
    if (!window) {
      if (windows.size >= FLOOD_KEYS_MAX) return;
      window = { lines: 0, suppressed: 0 };
      windows.set(key, window);
      const opened = window;
      setTimeout(() => {
        windows.delete(key);
        if (opened.suppressed === 0) return;
        logger[level]({ ...line, suppressed: opened.suppressed }, `${message} (and ${opened.suppressed} more like it)`);
      }, FLOOD_WINDOW_MS).unref();
    }
    if (window.lines++ < FLOOD_LINES_PER_WINDOW[level]) logger[level](line, message);
    else window.suppressed++;
  };
}
