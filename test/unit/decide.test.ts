import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import {
  DatabaseUnavailable,
  Interrupted,
  PermanentError,
  type TransientDetail,
  TransientError,
} from '../../src/errors.js';
import type { Job, Outcome, Step } from '../../src/job.js';
import { backoffMs, decide, type Policy, STALLED_CALLS_LIMIT, STALLED_TIME_LIMIT_MS } from '../../src/queue/decide.js';
import type { Claim, Settlement } from '../../src/queue/ports.js';

const policy: Policy = { retryBaseDelayMs: 60_000, retryMaxDelayMs: 3_600_000, ambiguous: 'retry' };

const STEP: Step = { seq: 0, cursor: null, scope: 'all', previousFailure: null, operation: null };

function claimOf(job: Partial<Job> = {}, claim: Partial<Claim> = {}): Claim {
  return {
    job: {
      id: '1',
      jobId: 'j',
      queue: 'broadcasts',
      type: 'send_broadcast',
      broadcastId: null,
      segmentId: null,
      payload: '{}',
      attempt: 1,
      maxAttempts: 3,
      epoch: 1,
      step: STEP,
      dryRun: false,
      traceparent: null,
      createdAt: new Date(0),
      scheduledAt: new Date(0),
      expiresAt: null,
      databaseNow: () => 0,
      ...job,
    },
    leaseId: 'l',
    first: true,
    expired: false,
    oversizeBytes: null,
    processed: 0,
    bot: null,
    skipped: 0,
    windowWaitMs: null,
    limited: false,
    troubled: false,
    stalledCalls: 0,
    stalledForMs: 0,
    waitedMs: 0,
    ...claim,
  };
}

const settle = (result: Outcome | Error, claim = claimOf(), random = 0, rules = policy) =>
  decide(claim, result, 5, rules, () => random);

const failing = (detail: Partial<TransientDetail> = {}) =>
  new TransientError('it failed', { code: 'http_500', ...detail });

describe('backoff', () => {
  test('doubles from the base: 60 s, 120 s, 240 s, …, and stays at the maximum', () => {
    const waits = [1, 2, 3, 4, 7, 8, 500].map((attempt) => backoffMs(attempt, policy, () => 0));
    expect(waits).toEqual([60_000, 120_000, 240_000, 480_000, 3_600_000, 3_600_000, 3_600_000]);
  });

  test('is never sooner than the schedule and at most 10 % later', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 10_000 }),
        fc.integer({ min: 1, max: 100_000 }),
        fc.integer({ min: 1, max: 10_000_000 }),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (attempt, base, max, random) => {
          const exact = Math.min(base * 2 ** Math.min(attempt - 1, 52), max);
          const wait = backoffMs(attempt, { ...policy, retryBaseDelayMs: base, retryMaxDelayMs: max }, () => random);
          expect(wait).toBeGreaterThanOrEqual(exact);
          expect(wait).toBeLessThanOrEqual(exact * 1.1);
        },
      ),
    );
  });
});

describe('what follows', () => {
  const CASES: [string, Settlement['status'], Partial<Settlement>, Outcome | Error, Claim?, Policy?][] = [
    ['a result completes', 'completed', { result: '1', attempts: 'keep', record: null }, { kind: 'done', result: '1' }],
    [
      'a slice with progress resets the attempts',
      'processing',
      { attempts: 'reset', nextCursor: 'c', dueInMs: 0, stalled: null },
      { kind: 'continue', cursor: 'c', progress: { processed: 5 }, delayMs: 0 },
    ],
    [
      'a slice without progress gives its attempt back and counts as stalled',
      'processing',
      { attempts: 'refund', nextCursor: 'c', stalled: 'call' },
      { kind: 'continue', cursor: 'c', progress: { processed: 5 }, delayMs: 0 },
      claimOf({}, { processed: 5 }),
    ],
    [
      'a hold waits at least a second and costs nothing',
      'retry',
      { attempts: 'refund', dueInMs: 1000, holdReason: 'quiet_hours' },
      { kind: 'hold', reason: 'quiet_hours', delayMs: -50 },
    ],
    [
      'a wait before the call costs nothing, and is not counted',
      'retry',
      { attempts: 'refund', dueInMs: 700, holdReason: 'its turn', stalled: null, unstarted: true, record: null },
      { kind: 'wait', reason: 'its turn', delayMs: 700 },
    ],
    [
      'a sliced broadcast stays processing while it waits, and keeps what its last call failed with',
      'processing',
      { unstarted: false, previousFailure: 'timeout' },
      { kind: 'wait', reason: 'its turn', delayMs: 700 },
      claimOf({ step: { ...STEP, seq: 4, cursor: 'c', previousFailure: 'timeout' } }, { first: false }),
    ],
    [
      'an operation is asked again, and only its time without progress counts',
      'processing',
      { attempts: 'refund', dueInMs: 5000, operation: '/o/1', stalled: 'time' },
      { kind: 'operation', location: '/o/1', delayMs: 5000, progress: { processed: 5 } },
      claimOf({ step: { ...STEP, operation: '/o/1' } }, { processed: 5 }),
    ],
    [
      'a question that failed leaves the operation',
      'retry',
      { attempts: 'refund', operation: '/o/1' },
      failing({ cost: 'free', code: 'http_500' }),
      claimOf({ step: { ...STEP, operation: '/o/1' } }),
    ],
    [
      'a failed operation is over',
      'retry',
      { attempts: 'keep', operation: null },
      failing({ code: 'service_failed' }),
      claimOf({ step: { ...STEP, operation: '/o/1' } }),
    ],
    [
      'an incomplete broadcast fails, and keeps its counts',
      'failed',
      { errorCode: 'incomplete', flags: ['incomplete'], progress: { total: 9, processed: 7 }, result: '{}' },
      { kind: 'incomplete', reason: '7 of 9', result: '{}', progress: { total: 9, processed: 7 }, httpStatus: 200 },
    ],
    [
      'a slice of a resend that moves on is not circling, though the same people are processed again',
      'processing',
      { attempts: 'refund', stalled: 'time' },
      { kind: 'continue', cursor: 'd', progress: { processed: 5 }, delayMs: 0 },
      claimOf({ step: { ...STEP, seq: 4, cursor: 'c', scope: 'failed' } }, { processed: 5 }),
    ],
    [
      'a slice of a resend that does not move on is',
      'processing',
      { stalled: 'call' },
      { kind: 'continue', cursor: 'c', progress: { processed: 5 }, delayMs: 0 },
      claimOf({ step: { ...STEP, seq: 4, cursor: 'c', scope: 'failed' } }, { processed: 5 }),
    ],
    ['a cancel by the service ends it', 'cancelled', { errorMessage: 'gone' }, { kind: 'cancel', reason: 'gone' }],
    ['a permanent error fails at once', 'failed', { errorCode: 'x' }, new PermanentError('no', { code: 'x' })],
    ['a failure waits for its backoff', 'retry', { attempts: 'keep', dueInMs: 60_000 }, failing()],
    ['the last attempt fails the job', 'failed', {}, failing(), claimOf({ attempt: 3 })],
    [
      'what never reached the service never costs the last attempt',
      'retry',
      { attempts: 'refund', dueInMs: 240_000 },
      failing({ cost: 'never_last' }),
      claimOf({ attempt: 3 }),
    ],
    [
      'a limit below the maximum of the job counts',
      'failed',
      {},
      failing({ attemptLimit: 3 }),
      claimOf({ attempt: 3, maxAttempts: 10 }),
    ],
    [
      'a throttled call waits as told',
      'retry',
      { attempts: 'refund', dueInMs: 5000 },
      failing({ cost: 'free', retryAfterMs: 5000 }),
    ],
    [
      'a throttled call without a time waits for the base delay',
      'retry',
      { dueInMs: 60_000 },
      failing({ cost: 'free' }),
    ],
    ['Retry-After is a lower bound on the backoff', 'retry', { dueInMs: 90_000 }, failing({ retryAfterMs: 90_000 })],
    ['a shorter Retry-After does not shorten the backoff', 'retry', { dueInMs: 60_000 }, failing({ retryAfterMs: 9 })],
    [
      'an ambiguous failure is marked',
      'retry',
      { flags: ['possible_duplicate'], previousFailure: 'timeout' },
      failing({ code: 'timeout', ambiguous: true }),
    ],
    [
      'an ambiguous failure pauses where the policy says so',
      'paused',
      { pausedFrom: 'pending' },
      failing({ ambiguous: true }),
      claimOf(),
      { ...policy, ambiguous: 'pause' },
    ],
    [
      'the policy is about broadcasts only',
      'retry',
      {},
      failing({ ambiguous: true }),
      claimOf({ type: 'process_retries' }),
      { ...policy, ambiguous: 'pause' },
    ],
    [
      'a shutdown before the call leaves no trace',
      'pending',
      { attempts: 'refund', unstarted: true, flags: [], record: null },
      new Interrupted('shutdown', false),
    ],
    [
      'a shutdown in mid-call hands back with the reason',
      'pending',
      { attempts: 'refund', unstarted: false, previousFailure: 'shutdown', flags: ['possible_duplicate'] },
      new Interrupted('shutdown', true),
    ],
    [
      'after a first slice it is handed back as processing, due now',
      'processing',
      { attempts: 'refund', dueInMs: 0 },
      new Interrupted('shutdown', true),
      claimOf({ step: { seq: 4, cursor: 'c', scope: 'all', previousFailure: null, operation: null } }),
    ],
    [
      'a database that is away costs a handler nothing, not even at the last attempt',
      'retry',
      { attempts: 'refund', errorCode: 'database', flags: [] },
      new DatabaseUnavailable('gone'),
      claimOf({ type: 'cleanup_queue', attempt: 3 }),
    ],
    ['a bug costs an attempt, never a broadcast', 'retry', { errorCode: 'internal' }, new TypeError('x is undefined')],
  ];
  for (const [sentence, status, rest, result, claim, rules] of CASES) {
    test(sentence, () => {
      expect(settle(result, claim, 0, rules)).toMatchObject({ status, ...rest });
    });
  }

  test('nothing circles for ever: after so many calls, or so long, without progress the job is paused', () => {
    const many = claimOf({}, { stalledCalls: STALLED_CALLS_LIMIT - 1, stalledForMs: 7_200_000 });
    const long = claimOf({}, { stalledCalls: 3, stalledForMs: STALLED_TIME_LIMIT_MS });
    const wait = failing({ cost: 'free' });
    expect(settle(wait, many)).toMatchObject({
      status: 'paused',
      pausedFrom: 'retry',
      holdReason: 'no progress in 50 calls within 120 min; the last: it failed',
    });
    expect(settle(wait, long).status).toBe('paused');
    expect(settle(wait, claimOf({}, { stalledCalls: STALLED_CALLS_LIMIT - 2 })).status).toBe('retry');
    expect(settle({ kind: 'done', result: null }, many).status).toBe('completed');
    expect(settle({ kind: 'continue', cursor: 'c', progress: { processed: 1 }, delayMs: 0 }, many).status).toBe(
      'processing',
    );
  });

  test('error messages are one line of at most 2 KiB without control characters, cut at a character', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 4000 }), (text) => {
        const { errorMessage } = settle(new PermanentError(text, { code: 'x' }));
        expect(Buffer.byteLength(errorMessage ?? '')).toBeLessThanOrEqual(2048);
        // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there
        expect(errorMessage).not.toMatch(/[\u0000-\u001f\u007f]/);
      }),
    );
    expect(settle(new PermanentError('é'.repeat(2000), { code: 'x' })).errorMessage).toMatch(/^é+…$/);
  });
});
