/** What an operation answers when it is asked: an Outcome, its end, or a question put in vain. */
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { readOperationAnswer } from '../../src/broadcast/answer.js';
import { askedInVain } from '../../src/broadcast/operation.js';
import type { Circumstances, Reply } from '../../src/broadcast/reply.js';
import { Interrupted, PermanentError, TransientError } from '../../src/errors.js';
import type { Outcome } from '../../src/job.js';

const ABOUT: Circumstances = {
  where: 'GET /ops/1',
  url: 'http://service.test/ops/1?a=b',
  epoch: 3,
  dryRun: false,
  nowMs: Date.UTC(2026, 10, 23, 12, 0, 0),
  othersSucceed: false,
  hidden: ['sesame'],
};

type Answer = Partial<Reply> & { json?: unknown };

function read({ json, ...given }: Answer, about: Partial<Circumstances> = {}): Outcome {
  const body = json === undefined ? '' : JSON.stringify(json);
  const reply = { status: 200, headers: {}, body, bodyTooLarge: false, ...given };
  return readOperationAnswer(reply, { ...ABOUT, ...about }, '/ops/1?a=b');
}

/** What the queue is thrown. */
function failure(answer: Answer, about: Partial<Circumstances> = {}): unknown {
  try {
    read(answer, about);
  } catch (error) {
    return askedInVain(error);
  }
  throw new Error('the answer was taken for a success');
}

describe('an operation', () => {
  const running = { kind: 'operation', location: '/ops/1?a=b', progress: undefined, delayMs: 5000 };

  test('that is running is asked again in five seconds', () => {
    expect(read({ json: { status: 'running' } })).toEqual(running);
  });

  test('is asked again when it says, and its progress is kept', () => {
    const progress = { total: 10, processed: 4, sent: 4 };
    const answer = { json: { status: 'running', progress }, headers: { 'retry-after': '30' } };
    expect(read(answer)).toEqual({ ...running, progress, delayMs: 30_000 });
  });

  test('is asked at most once a second', () => {
    expect(read({ json: { status: 'running' }, headers: { 'retry-after': '0' } })).toMatchObject({ delayMs: 1000 });
  });

  test('that moves within its origin is followed there', () => {
    expect(read({ json: { status: 'running' }, headers: { location: '2' } })).toEqual({
      ...running,
      location: '/ops/2',
    });
  });

  test.each(['http://elsewhere.test/ops/1', `/${'x'.repeat(3000)}`, ''])(
    'that moves where it is not followed is asked where it was',
    (location) => {
      expect(read({ json: { status: 'running' }, headers: { location } })).toEqual(running);
    },
  );

  test.each(['completed', 'done'])('"%s" with all accounted for is done', (status) => {
    const progress = { total: 10, processed: 10, sent: 9, failed: 1 };
    const json = { status, progress };
    expect(read({ json })).toEqual({ kind: 'done', result: JSON.stringify(json), progress });
  });

  test('"completed" without counters is done, but unverified', () => {
    expect(read({ json: { status: 'completed' } })).toMatchObject({ kind: 'done', flags: ['unverified'] });
  });

  test('"completed" with fewer processed than there are is incomplete', () => {
    const json = { status: 'completed', progress: { total: 10, processed: 9 } };
    expect(read({ json })).toEqual({
      kind: 'incomplete',
      reason: 'GET /ops/1: the service says completed, but only 9 of 10 are processed',
      result: JSON.stringify(json),
      progress: { total: 10, processed: 9 },
      httpStatus: 200,
    });
  });

  test('of a dry run has nothing to account for', () => {
    const json = { status: 'completed', audience: 900 };
    expect(read({ json }, { dryRun: true })).toEqual({ kind: 'done', result: JSON.stringify(json) });
  });

  test('that was cancelled cancels the job', () => {
    const json = { status: 'cancelled', reason: 'by an editor' };
    expect(read({ json })).toEqual({ kind: 'cancel', reason: 'by an editor' });
    expect(read({ status: 410 })).toEqual({ kind: 'cancel', reason: 'the service answered 410 Gone' });
  });

  test('409 already_done is done', () => {
    expect(read({ status: 409, json: { code: 'already_done' } })).toMatchObject({ kind: 'done' });
  });
});

describe('the end of an operation costs an attempt', () => {
  test.each(['error', 'message', 'detail'])('when it failed, in the words of its %s', (member) => {
    const error = failure({
      json: { status: 'failed', [member]: 'the bot was blocked' },
      headers: { 'retry-after': '9' },
    });
    expect(error).toBeInstanceOf(TransientError);
    expect(error).toMatchObject({
      message: 'GET /ops/1: the service says it failed: the bot was blocked',
      code: 'service_failed',
      cost: 'attempt',
      ambiguous: false,
      retryAfterMs: 9000,
    });
  });

  test('and ends the job when it failed and says that another try is no use', () => {
    const error = failure({ json: { status: 'failed', error: 'no such bot', retriable: false } });
    expect(error).toBeInstanceOf(PermanentError);
    expect(error).toMatchObject({ code: 'service_failed', httpStatus: 200 });
  });

  test('when the service does not know it any more, and then nobody knows how far it got', () => {
    const error = failure({ status: 404 });
    expect(error).toBeInstanceOf(TransientError);
    expect(error).toMatchObject({ code: 'operation_lost', cost: 'attempt', ambiguous: true, httpStatus: 404 });
  });
});

describe('a question put in vain costs nothing and doubts nothing', () => {
  const rows: [string, Answer, object][] = [
    ['a redirect', { status: 303, headers: { location: '/ops/2' } }, { code: 'bad_route', httpStatus: 303 }],
    ['400', { status: 400 }, { code: 'http_400' }],
    ['401', { status: 401 }, { code: 'unauthorized' }],
    ['403', { status: 403 }, { code: 'unauthorized' }],
    ['405', { status: 405 }, { code: 'http_405', attemptLimit: undefined }],
    ['408', { status: 408 }, { code: 'http_408' }],
    ['409 in_progress', { status: 409, json: { code: 'in_progress' } }, { code: 'in_progress', retryAfterMs: 5000 }],
    ['409 stale_epoch', { status: 409, json: { code: 'stale_epoch', epoch: 9 } }, { raiseEpochAbove: 9 }],
    ['422', { status: 422, json: { retriable: false } }, { code: 'http_422' }],
    ['429', { status: 429, headers: { 'retry-after': '7' } }, { code: 'throttled', retryAfterMs: 7000 }],
    ['500', { status: 500 }, { code: 'http_500' }],
    ['500 said to be final', { status: 500, json: { retriable: false } }, { code: 'http_500' }],
    ['502', { status: 502 }, { code: 'http_502' }],
    ['503', { status: 503 }, { code: 'http_503' }],
    [
      '503 with Retry-After',
      { status: 503, headers: { 'retry-after': '7' } },
      { code: 'throttled', retryAfterMs: 7000 },
    ],
    ['markup', { body: '<html>login</html>' }, { code: 'bad_response' }],
    ['a body over the cap', { bodyTooLarge: true }, { code: 'bad_response' }],
    ['broken JSON', { body: '{"status":"comp' }, { code: 'bad_response' }],
    ['no body', { status: 204 }, { code: 'bad_response' }],
    ['a text', { body: 'OK' }, { code: 'bad_response' }],
    ['an array', { body: '[]' }, { code: 'bad_response' }],
    ['no status', { json: { ok: false } }, { code: 'bad_response' }],
    ['a status of a call', { json: { status: 'continue', cursor: 'c' } }, { code: 'bad_response' }],
    [
      'a bad answer with Retry-After',
      { headers: { 'retry-after': '7' } },
      { code: 'bad_response', retryAfterMs: 7000 },
    ],
  ];
  test.each(rows)('%s', (_name, answer, detail) => {
    const error = failure(answer);
    expect(error).toBeInstanceOf(TransientError);
    expect(error).toMatchObject({ cost: 'free', ambiguous: false, ...detail });
  });

  test('a refusal while other jobs succeed', () => {
    const error = failure({ status: 401 }, { othersSucceed: true });
    expect(error).toBeInstanceOf(TransientError);
    expect(error).toMatchObject({ code: 'unauthorized', cost: 'free', httpStatus: 401 });
  });

  test('an interruption, which cuts no work short', () => {
    expect(askedInVain(new Interrupted('shutdown', true))).toMatchObject({ reason: 'shutdown', requestWritten: false });
  });

  test('but a bug of ours stays what it is', () => {
    const bug = new TypeError('undefined is not a function');
    expect(askedInVain(bug)).toBe(bug);
  });

  test('whatever is answered, and never with a word of our secrets', () => {
    const body = fc.oneof(
      fc.string({ unit: 'binary' }),
      fc.json(),
      fc.constant('{"status":"failed","error":"sesame"}'),
    );
    fc.assert(
      fc.property(fc.integer({ min: 200, max: 599 }), body, (status, text) => {
        try {
          read({ status, body: text });
        } catch (thrown) {
          const error = askedInVain(thrown);
          if (!(error instanceof TransientError)) throw error;
          const isOver = ['service_failed', 'operation_lost'].includes(error.code);
          expect(error.cost).toBe(isOver ? 'attempt' : 'free');
          expect(error.message).not.toContain('sesame');
        }
      }),
    );
  });
});
