/** Every row of the protocol's tables: an answer in, an Outcome or a thrown error out. */
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { readAnswer } from '../../src/broadcast/answer.js';
import type { Circumstances, Reply } from '../../src/broadcast/reply.js';
import { MAX_RETRY_AFTER_MS, readRetryAfter } from '../../src/broadcast/retry-after.js';
import { PermanentError, TransientError } from '../../src/errors.js';
import type { Outcome } from '../../src/job.js';

const NOW = Date.UTC(2026, 10, 23, 12, 0, 0);
const ABOUT: Circumstances = {
  where: 'POST /jobs/send_broadcast',
  url: 'http://service.test/jobs/send_broadcast',
  epoch: 3,
  dryRun: false,
  nowMs: NOW,
  othersSucceed: false,
  hidden: ['sesame'],
};

type Answer = Partial<Reply> & { json?: unknown };

function read({ json, ...given }: Answer, about: Partial<Circumstances> = {}): Outcome {
  const body = json === undefined ? '' : JSON.stringify(json);
  return readAnswer({ status: 200, headers: {}, body, bodyTooLarge: false, ...given }, { ...ABOUT, ...about });
}

function failure(answer: Answer, about: Partial<Circumstances> = {}): TransientError | PermanentError {
  try {
    read(answer, about);
  } catch (error) {
    if (error instanceof TransientError || error instanceof PermanentError) return error;
    throw error;
  }
  throw new Error('the answer was taken for a success');
}

const transient = (answer: Answer, about: Partial<Circumstances> = {}): TransientError => {
  const error = failure(answer, about);
  expect(error).toBeInstanceOf(TransientError);
  // Just asserted.
  return error as TransientError;
};

const resultOf = (outcome: Outcome): unknown =>
  outcome.kind === 'done' && outcome.result !== null ? JSON.parse(outcome.result) : null;

describe('a plain service has done all the work', () => {
  const rows: [string, Answer, Outcome][] = [
    ['204', { status: 204 }, { kind: 'done', result: null }],
    ['an empty 200', {}, { kind: 'done', result: null }],
    ['a body of blanks', { body: ' \r\n' }, { kind: 'done', result: null }],
    ['OK', { body: 'OK' }, { kind: 'done', result: '"OK"' }],
    [
      'OK that calls itself JSON',
      { body: 'OK', headers: { 'content-type': 'application/json' } },
      { kind: 'done', result: '"OK"' },
    ],
    [
      'OK that calls itself HTML',
      { body: 'OK', headers: { 'content-type': 'text/html' } },
      { kind: 'done', result: '"OK"' },
    ],
    ['a text with a NUL', { body: 'O\0K' }, { kind: 'done', result: '"OK"' }],
    ['a text of 1 KiB', { body: 'x'.repeat(1024) }, { kind: 'done', result: `"${'x'.repeat(1024)}"` }],
    ['JSON without a status', { json: { ok: true } }, { kind: 'done', result: '{"ok":true}' }],
    ['JSON with a status of its own', { json: { status: 'ok' } }, { kind: 'done', result: '{"status":"ok"}' }],
    ['a status that is no text', { json: { status: 200 } }, { kind: 'done', result: '{"status":200}' }],
    ['an array', { body: '[1,2]' }, { kind: 'done', result: '[1,2]' }],
    ['JSON after a byte order mark', { body: '\ufeff{"ok":true}' }, { kind: 'done', result: '{"ok":true}' }],
    [
      'plain counters',
      { json: { total: 3, sent: 2, failed: 1 } },
      {
        kind: 'done',
        result: '{"total":3,"sent":2,"failed":1}',
        progress: { total: 3, processed: 3, sent: 2, failed: 1 },
      },
    ],
    [
      'counters that do not add up, which a plain service never promised',
      { json: { total: 3, sent: 2 } },
      { kind: 'done', result: '{"total":3,"sent":2}' },
    ],
    [
      'counters that are none',
      { json: { sent: 'all', failed: ['u1'] } },
      { kind: 'done', result: '{"sent":"all","failed":["u1"]}' },
    ],
  ];
  test.each(rows)('%s', (_name, answer, outcome) => {
    expect(read(answer)).toEqual(outcome);
  });
});

describe('a sliced service', () => {
  const progress = { total: 10, processed: 10, sent: 7, skipped: 1, failed: 1, unknown: 1, reasons: { blocked: 1 } };

  test.each(['completed', 'done'])('"%s" with all accounted for is done', (status) => {
    const outcome = read({ json: { status, progress } });
    expect(outcome).toEqual({ kind: 'done', result: JSON.stringify({ status, progress }), progress });
  });

  test('"completed" may come with 202 as well', () => {
    expect(read({ status: 202, json: { status: 'completed', progress } })).not.toHaveProperty('flags');
  });

  test('plain counters account for it too', () => {
    const outcome = read({ json: { status: 'completed', total: 5, sent: 4, failed: 1 } });
    expect(outcome).toMatchObject({ kind: 'done', progress: { total: 5, processed: 5, sent: 4, failed: 1 } });
  });

  test.each([
    ['no counters', {}],
    ['a total alone', { progress: { total: 10 } }],
    ['a negative counter', { progress: { total: 10, processed: -1 } }],
    ['a counter beyond what a number holds', { progress: { processed: 1e300 } }],
  ])('"completed" with %s is done, but unverified', (_name, body) => {
    expect(read({ json: { status: 'completed', ...body } })).toMatchObject({ kind: 'done', flags: ['unverified'] });
  });

  test.each([
    ['says so', { dry_run: true, audience: 900 }, false],
    ['says so and counts nobody as processed', { dry_run: true, total: 900, processed: 0 }, false],
    ['does not say so', { audience: 900 }, true],
  ])('a dry run whose answer %s has nothing to account for', (_name, members, dryRun) => {
    const json = { status: 'completed', ...members };
    expect(read({ json }, { dryRun })).toEqual({ kind: 'done', result: JSON.stringify(json), progress: undefined });
  });

  test.each([
    ['fewer processed than there are', { total: 10, processed: 9 }, 'only 9 of 10'],
    ['parts that fall short', { total: 10, processed: 10, sent: 5, failed: 1 }, 'is 6'],
    ['parts that exceed it', { processed: 10, skipped: 11 }, 'is 11'],
    ['a short sum where processed is left out', { total: 10, sent: 5, failed: 1 }, 'only 6 of 10'],
  ])('"completed" with %s is incomplete', (_name, counters, text) => {
    const json = { status: 'completed', progress: counters };
    expect(read({ status: 201, json })).toEqual({
      kind: 'incomplete',
      reason: expect.stringMatching(`^POST /jobs/send_broadcast: the service says completed, but .*${text}`),
      result: JSON.stringify(json),
      progress: expect.objectContaining(counters),
      httpStatus: 201,
    });
  });

  test.each([
    ['without a total', { processed: 4, sent: 4 }],
    ['with a total of null', { total: null, processed: 4, sent: 3, skipped: 1 }],
    ['with some parts only', { total: 9, processed: 9, failed: 2 }],
    ['with more processed than were expected', { total: 9, processed: 11 }],
  ])('counters %s may be complete', (_name, counters) => {
    expect(read({ json: { status: 'done', progress: counters } })).toEqual(
      expect.objectContaining({ kind: 'done', progress: counters }),
    );
  });

  test('reasons are kept within bounds and without control characters', () => {
    const reasons = Object.fromEntries(Array.from({ length: 80 }, (_, i) => [`${i}\0${'x'.repeat(200)}`, 1]));
    const outcome = read({ json: { status: 'completed', progress: { processed: 80, reasons } } });
    if (outcome.kind !== 'done') throw new Error('not done');
    const kept = Object.keys(outcome.progress?.reasons ?? {});
    expect(kept).toHaveLength(50);
    expect(kept.every((reason) => reason.length <= 100 && !reason.includes('\0'))).toBe(true);
  });

  test('"continue" carries cursor and progress and is due at once', () => {
    const json = { status: 'continue', cursor: 'c1', progress: { total: 10, processed: 4 } };
    const progress = { total: 10, processed: 4 };
    expect(read({ status: 202, json })).toEqual({ kind: 'continue', cursor: 'c1', progress, delayMs: 0 });
  });

  test('"continue" waits for Retry-After', () => {
    const outcome = read({ json: { status: 'continue', cursor: 'c' }, headers: { 'retry-after': '7' } });
    expect(outcome).toMatchObject({ kind: 'continue', delayMs: 7000 });
  });

  test('"continue" with unusable progress goes on with its cursor', () => {
    const outcome = read({ json: { status: 'continue', cursor: 'c', progress: { processed: 'many' } } });
    expect(outcome).toEqual({ kind: 'continue', cursor: 'c', progress: undefined, delayMs: 0 });
  });

  test.each([
    ['no cursor', { status: 'continue' }],
    ['an empty cursor, which would start anew', { status: 'continue', cursor: '' }],
    ['a cursor that is a number', { status: 'continue', cursor: 17 }],
    ['a cursor beyond 4 KiB', { status: 'continue', cursor: 'é'.repeat(2049) }],
    ['a cursor with a NUL', { status: 'continue', cursor: 'a\0b' }],
    ['a cursor with half a surrogate pair', { status: 'continue', cursor: 'a\ud800b' }],
    ['a hold whose cursor is a number', { status: 'hold', cursor: 17 }],
    ['a hold whose reason is no text', { status: 'hold', reason: 5 }],
  ])('%s is a bad response', (_name, json) => {
    expect(transient({ json })).toMatchObject({ code: 'bad_response', ambiguous: true, cost: 'attempt' });
  });

  test('a cursor of exactly 4 KiB passes', () => {
    const cursor = 'c'.repeat(4096);
    expect(read({ json: { status: 'continue', cursor } })).toMatchObject({ cursor });
  });

  test('"hold" waits until the instant it names, by the database\'s clock', () => {
    const json = { status: 'hold', reason: 'quiet_hours', resume_at: '2026-11-23T14:00:00+01:00', cursor: 'c9' };
    const outcome = { kind: 'hold', reason: 'quiet_hours', delayMs: 3_600_000, cursor: 'c9', progress: undefined };
    expect(read({ json })).toEqual(outcome);
  });

  test.each([
    ['in the past', { resume_at: '2020-01-01T00:00:00Z' }, {}, 1000],
    ['beyond the calendar', { resume_at: '9999-12-31T23:59:59Z' }, {}, 366 * 86_400_000],
    ['without a zone', { resume_at: '2026-11-23T14:00:00' }, {}, 60_000],
    ['that is no instant', { resume_at: '2026-99-99T14:00:00Z' }, {}, 60_000],
    ['left out', {}, {}, 60_000],
    ['left out, with Retry-After', { resume_at: null }, { 'retry-after': '90' }, 90_000],
    ['left out, with a Retry-After of none', {}, { 'retry-after': '0' }, 1000],
  ])('a hold until an instant %s', (_name, body, headers, delayMs) => {
    expect(read({ json: { status: 'hold', ...body }, headers })).toMatchObject({ kind: 'hold', delayMs });
  });

  test('a hold without a reason still shows one', () => {
    expect(read({ json: { status: 'hold' } })).toMatchObject({
      reason: 'the service asked to wait',
      cursor: undefined,
    });
  });
});

describe('a service that has taken the work over is never called again', () => {
  const untracked = (result: string | null): Outcome => ({ kind: 'done', result, flags: ['untracked'] });
  const rows: [string, Answer, Outcome][] = [
    ['a bare 202', { status: 202 }, untracked(null)],
    ['202 with a text', { status: 202, body: 'queued' }, untracked('"queued"')],
    ['202 with JSON', { status: 202, json: { id: 5 } }, untracked('{"id":5}')],
    ['202 "running"', { status: 202, json: { status: 'running' } }, untracked('{"status":"running"}')],
    ['200 "running"', { json: { status: 'running' } }, untracked('{"status":"running"}')],
  ];
  test.each(rows)('%s', (_name, answer, outcome) => {
    expect(read(answer)).toEqual(outcome);
  });

  test.each([
    ['at another origin', 'http://elsewhere.test/ops/1'],
    ['at another port', 'http://service.test:8080/ops/1'],
    ['under another scheme', 'https://service.test/ops/1'],
    ['at another host by its path', '//elsewhere.test/ops/1'],
    ['that is no HTTP at all', 'javascript:alert(1)'],
    ['that is none', 'http://['],
    ['that is empty', ''],
    ['beyond 2 KiB', `/ops/${'x'.repeat(2048 - 4)}`],
    ['beyond 2 KiB once it is encoded', `/ops/${'é'.repeat(400)}`],
  ])('a Location %s is not kept', (_name, location) => {
    expect(read({ status: 202, body: 'queued', headers: { location } })).toEqual(untracked('"queued"'));
  });
});

describe('a service that names where the work goes on', () => {
  const headers = { location: '/ops/1' };
  const operation = { kind: 'operation', location: '/ops/1', progress: undefined, delayMs: 5000 };

  test.each<[string, Answer]>([
    ['202 without a body', { status: 202 }],
    ['202 with a text', { status: 202, body: 'queued' }],
    ['202 with an array', { status: 202, body: '[]' }],
    ['202 with JSON', { status: 202, json: { id: 5 } }],
    ['202 with a status of its own', { status: 202, json: { status: 'queued' } }],
    ['202 "running"', { status: 202, json: { status: 'running' } }],
    ['200 "running"', { json: { status: 'running' } }],
  ])('%s is asked there after five seconds', (_name, answer) => {
    expect(read({ ...answer, headers })).toEqual(operation);
  });

  test.each([
    ['an address', 'http://service.test/ops/1?a=b', '/ops/1?a=b'],
    ['an address with credentials and a fragment', 'http://me:you@service.test/ops/1#now', '/ops/1'],
    ['a path', '/ops/1?a=b', '/ops/1?a=b'],
    ['a path relative to the call', '../ops/1', '/ops/1'],
    ['a bare name', 'op-1', '/jobs/op-1'],
    ['a path of exactly 2 KiB', `/ops/${'x'.repeat(2048 - 5)}`, `/ops/${'x'.repeat(2048 - 5)}`],
    ['a path with other letters', '/ops/é', '/ops/%C3%A9'],
  ])('the Location may be %s', (_name, location, path) => {
    expect(read({ status: 202, headers: { location } })).toEqual({ ...operation, location: path });
  });

  test('its Retry-After and its progress count', () => {
    const progress = { total: 10, processed: 0 };
    const answer = { status: 202, json: { progress }, headers: { ...headers, 'retry-after': '30' } };
    expect(read(answer)).toEqual({ ...operation, progress, delayMs: 30_000 });
  });

  test('it is asked at most once a second', () => {
    expect(read({ status: 202, headers: { ...headers, 'retry-after': '0' } })).toEqual({ ...operation, delayMs: 1000 });
  });

  test.each([
    ['completed', 'done'],
    ['done', 'done'],
    ['continue', 'continue'],
    ['hold', 'hold'],
    ['cancelled', 'cancel'],
  ])('its body wins when it says "%s"', (status, kind) => {
    expect(read({ status: 202, json: { status, cursor: 'c1' }, headers })).toMatchObject({ kind });
  });

  test('a Location with another status than 202 means nothing', () => {
    expect(read({ status: 201, json: { id: 5 }, headers })).toEqual({ kind: 'done', result: '{"id":5}' });
  });
});

describe('a 2xx that says it failed', () => {
  test.each([
    ['ok: false with a message', { ok: false, message: 'no such segment' }, 'no such segment'],
    ['success: false with an error', { success: false, error: 'broken' }, 'broken'],
    ['ok: false with a detail', { ok: false, detail: 'why' }, 'why'],
    ['ok: false beside a good status', { ok: false, status: 'completed', error: 'odd' }, 'odd'],
    ['ok: false without a word', { ok: false, error: { code: 7 } }, 'it gave no reason'],
    ['status: failed', { status: 'failed', error: 'gone wrong' }, 'gone wrong'],
  ])('%s is worth another try', (_name, json, text) => {
    const error = transient({ json, headers: { 'retry-after': '3' } });
    expect(error).toMatchObject({ code: 'service_failed', cost: 'attempt', ambiguous: false, retryAfterMs: 3000 });
    expect(error.message).toBe(`POST /jobs/send_broadcast: the service says it failed: ${text}`);
  });

  test.each([{ ok: false }, { status: 'failed' }])('%j is permanent where it says so', (json) => {
    const error = failure({ json: { ...json, message: 'no such bot', retriable: false } });
    expect(error).toBeInstanceOf(PermanentError);
    expect(error).toMatchObject({ code: 'service_failed', httpStatus: 200 });
  });

  test('"cancelled" cancels the job', () => {
    expect(read({ json: { status: 'cancelled', message: 'by editor' } })).toEqual({
      kind: 'cancel',
      reason: 'by editor',
    });
  });
});

describe('a 2xx that cannot be read is ambiguous', () => {
  const rows: [string, Answer][] = [
    ['markup', { body: '<html>login</html>' }],
    ['markup after blanks', { body: '\n  <!doctype html>' }],
    ['markup that calls itself JSON', { body: '<p>', headers: { 'content-type': 'application/json' } }],
    ['a body over the cap', { bodyTooLarge: true }],
    ['a text beyond 1 KiB', { body: 'x'.repeat(1025) }],
    ['a text beyond 1 KiB of bytes', { body: 'é'.repeat(513) }],
    ['broken JSON', { body: '{"status":"comp' }],
    ['JSON with something after it', { body: '{} {}' }],
    ['an array cut short', { body: '[1,' }],
    ['a compressed body', { body: '\u001f\ufffd', headers: { 'content-encoding': 'gzip' } }],
    ['markup with 202', { status: 202, body: '<html>' }],
  ];
  test.each(rows)('%s', (_name, answer) => {
    expect(transient(answer)).toMatchObject({ code: 'bad_response', ambiguous: true, cost: 'attempt' });
  });
});

describe('what is kept as the result', () => {
  test('is the JSON text as it came, with numbers that JavaScript cannot hold', () => {
    const body = '{ "id": 9007199254740993, "price": 1.10 }';
    expect(read({ body })).toMatchObject({ result: body });
  });

  test('loses escaped NULs and lone surrogates, which jsonb refuses, and nothing else', () => {
    const body = String.raw`{"a":"x\u0000y","b":"\\u0000","c":"\ud83d\ude00","d":"\ud83d!","e":"\uDE00","f":"\n\u00e9"}`;
    const kept = String.raw`{"a":"xy","b":"\\u0000","c":"\ud83d\ude00","d":"\ufffd!","e":"\ufffd","f":"\n\u00e9"}`;
    expect(read({ body })).toMatchObject({ result: kept });
  });

  test('is only the progress when the answer exceeds 16 KiB', () => {
    const json = { status: 'completed', progress: { total: 2, processed: 2 }, log: 'é'.repeat(9000) };
    expect(resultOf(read({ json }))).toEqual({ progress: { total: 2, processed: 2 }, truncated: true });
  });

  test('is only the plain counters when the answer exceeds 16 KiB', () => {
    const json = { total: 2, sent: 2, log: 'x'.repeat(20_000) };
    expect(resultOf(read({ json }))).toEqual({ total: 2, processed: 2, sent: 2, truncated: true });
  });

  test('is only the remark that it was cut when there are no counters', () => {
    expect(resultOf(read({ json: { log: 'x'.repeat(20_000) } }))).toEqual({ truncated: true });
  });

  test('holds an answer of exactly 16 KiB', () => {
    const body = JSON.stringify({ log: 'x'.repeat(16_384 - 10) });
    expect(Buffer.byteLength(body)).toBe(16_384);
    expect(read({ body })).toMatchObject({ result: body });
  });

  test('does not reach the prototype of anything', () => {
    read({
      body: '{"__proto__":{"status":"continue","admin":true},"progress":{"processed":1,"reasons":{"__proto__":1}}}',
    });
    expect({}).not.toHaveProperty('admin');
  });
});

describe('the failure table', () => {
  const rows: [number, string | undefined, object][] = [
    [300, undefined, { code: 'bad_route', cost: 'attempt', ambiguous: false }],
    [301, undefined, { code: 'bad_route' }],
    [304, undefined, { code: 'bad_route' }],
    [307, undefined, { code: 'bad_route' }],
    [401, undefined, { code: 'unauthorized', cost: 'free' }],
    [403, undefined, { code: 'unauthorized', cost: 'free' }],
    [404, undefined, { code: 'http_404', cost: 'attempt', attemptLimit: 3 }],
    [405, undefined, { code: 'http_405', cost: 'attempt', attemptLimit: 3 }],
    [404, 'no_such_segment', { code: 'http_404', attemptLimit: 3 }],
    [408, undefined, { code: 'http_408', cost: 'attempt', ambiguous: false, attemptLimit: undefined }],
    [423, undefined, { code: 'http_423', cost: 'attempt' }],
    [425, undefined, { code: 'http_425', cost: 'attempt' }],
    [429, undefined, { code: 'throttled', cost: 'free', retryAfterMs: undefined }],
    [409, 'in_progress', { code: 'in_progress', cost: 'free', retryAfterMs: 5000 }],
    [409, 'stale_epoch', { code: 'stale_epoch', cost: 'free', raiseEpochAbove: 1003 }],
    [500, undefined, { code: 'http_500', cost: 'attempt', ambiguous: false, retryAfterMs: undefined }],
    [501, undefined, { code: 'http_501', cost: 'attempt' }],
    [502, undefined, { code: 'http_502', cost: 'attempt' }],
    [503, undefined, { code: 'http_503', cost: 'attempt' }],
    [504, undefined, { code: 'http_504', cost: 'attempt' }],
    [507, undefined, { code: 'http_507', cost: 'attempt' }],
    [599, undefined, { code: 'http_599', cost: 'attempt' }],
  ];
  test.each(rows)('%d %s is worth another try', (status, code, detail) => {
    expect(transient({ status, json: { code } })).toMatchObject({ httpStatus: status, ...detail });
  });

  test.each([
    [400, undefined, 'http_400'],
    [402, undefined, 'http_402'],
    [404, 'unknown_job_type', 'unknown_job_type'],
    [405, 'unknown_job_type', 'unknown_job_type'],
    [406, undefined, 'http_406'],
    [409, undefined, 'http_409'],
    [409, 'already_exists', 'http_409'],
    [413, undefined, 'http_413'],
    [415, undefined, 'http_415'],
    [418, undefined, 'http_418'],
    [422, undefined, 'http_422'],
    [451, undefined, 'http_451'],
    [501, 'unknown_job_type', 'unknown_job_type'],
  ])('%d %s is permanent', (status, problem, code) => {
    const error = failure({ status, json: { code: problem } });
    expect(error).toBeInstanceOf(PermanentError);
    expect(error).toMatchObject({ code, httpStatus: status });
  });

  test.each([401, 403])("%d while other jobs succeed is this job's fault", (status) => {
    const error = failure({ status }, { othersSucceed: true });
    expect(error).toBeInstanceOf(PermanentError);
    expect(error).toMatchObject({ code: 'unauthorized', httpStatus: status });
  });

  test("410 cancels the job, in the service's words", () => {
    expect(read({ status: 410, json: { detail: 'the bot is gone' } })).toEqual({
      kind: 'cancel',
      reason: 'the bot is gone',
    });
    expect(read({ status: 410 })).toEqual({ kind: 'cancel', reason: 'the service answered 410 Gone' });
  });

  test('409 already_done is done', () => {
    const json = { code: 'already_done', progress: { total: 4, processed: 4 } };
    const outcome = { kind: 'done', result: JSON.stringify(json), progress: { total: 4, processed: 4 } };
    expect(read({ status: 409, json })).toEqual(outcome);
  });

  test.each([
    ['the epoch it names', { epoch: 12 }, 12],
    ['its current_epoch', { current_epoch: 14 }, 14],
    ['our own, when it names the same', { epoch: 3 }, 3],
    ['a leap, when it names an earlier one', { epoch: 2 }, 1003],
    ['a leap, when it names a text', { epoch: '12' }, 1003],
    ['a leap, when it names what a number cannot hold', { epoch: 1e300 }, 1003],
  ])('409 stale_epoch continues above %s', (_name, members, raiseEpochAbove) => {
    const json = { code: 'stale_epoch', ...members };
    expect(transient({ status: 409, json })).toMatchObject({ raiseEpochAbove });
  });

  test.each([
    [429, {}, 'throttled', 'free'],
    [503, {}, 'throttled', 'free'],
    [409, { code: 'in_progress' }, 'in_progress', 'free'],
    [500, {}, 'http_500', 'attempt'],
    [408, {}, 'http_408', 'attempt'],
  ])('%d with Retry-After waits that long', (status, json, code, cost) => {
    const byHeader = transient({ status, json, headers: { 'retry-after': '30' } });
    expect(byHeader).toMatchObject({ code, cost, retryAfterMs: 30_000 });
    const byProblem = transient({ status, json: { ...json, retry_after: 1.5 } });
    expect(byProblem).toMatchObject({ code, cost, retryAfterMs: 1500 });
    const byBoth = transient({ status, json: { ...json, retry_after: 1.5 }, headers: { 'retry-after': '30' } });
    expect(byBoth).toMatchObject({ retryAfterMs: 30_000 });
  });

  test('503 with a senseless Retry-After is a plain 503', () => {
    expect(transient({ status: 503, headers: { 'retry-after': '-5' } })).toMatchObject({ code: 'http_503' });
    expect(transient({ status: 503, json: { retry_after: -5 } })).toMatchObject({ code: 'http_503' });
    expect(transient({ status: 503, json: { retry_after: 'soon' } })).toMatchObject({ code: 'http_503' });
  });

  test('the first of several Retry-After counts', () => {
    // Node types the header as one text, since servers must not repeat it; undici gives what came.
    const headers = { 'retry-after': ['4', '9'] } as unknown as Reply['headers'];
    expect(transient({ status: 503, headers })).toMatchObject({ retryAfterMs: 4000 });
  });
});

describe('an explicit "retriable" wins over the table', () => {
  test.each([400, 401, 409, 410, 422])('%d retriable', (status) => {
    const error = transient({ status, json: { retriable: true, retry_after: 2 } }, { othersSucceed: true });
    expect(error).toMatchObject({ httpStatus: status, cost: 'attempt', retryAfterMs: 2000 });
  });

  test.each([401, 404, 408, 429, 500, 503])('%d not retriable', (status) => {
    const error = failure({ status, json: { retriable: false } });
    expect(error).toBeInstanceOf(PermanentError);
    expect(error).toMatchObject({ httpStatus: status });
  });

  test('a 404 said to be retriable is not limited to three attempts', () => {
    expect(transient({ status: 404, json: { retriable: true } }).attemptLimit).toBeUndefined();
  });

  test('an unknown job type said to be retriable is tried again', () => {
    const json = { code: 'unknown_job_type', retriable: true };
    expect(transient({ status: 404, json })).toMatchObject({ code: 'unknown_job_type' });
  });

  test('a "retriable" that is no boolean is no answer', () => {
    expect(failure({ status: 400, json: { retriable: 'true' } })).toBeInstanceOf(PermanentError);
  });

  test('what the table knows beside it still holds', () => {
    expect(transient({ status: 429, json: { retriable: true } })).toMatchObject({ code: 'throttled', cost: 'free' });
  });
});

describe('the message of a failure', () => {
  test("says where, what, and in the service's words why", () => {
    const json = { title: 'Bad Request', detail: 'no text', code: 'text_missing' };
    expect(failure({ status: 400, json }).message).toBe(
      'POST /jobs/send_broadcast answered 400 (text_missing): no text',
    );
    expect(failure({ status: 500, body: 'out of\n memory' }).message).toBe(
      'POST /jobs/send_broadcast answered 500: out of memory',
    );
  });

  test.each([
    ['a page of markup', { body: '<html><h1>502</h1>' }],
    ['no body', {}],
    ['a body over the cap', { bodyTooLarge: true }],
  ])('is brief with %s', (_name, answer) => {
    expect(failure({ status: 502, ...answer }).message).toBe('POST /jobs/send_broadcast answered 502');
  });

  test('quotes at most 500 characters, without control characters and whole ones only', () => {
    const { message } = failure({ status: 500, body: `a\u001b[31m\u202e${'x'.repeat(496)}😀${'y'.repeat(900)}` });
    const quoted = message.replace('POST /jobs/send_broadcast answered 500: ', '');
    expect(quoted.length).toBeLessThanOrEqual(500);
    expect(quoted).not.toMatch(/[\p{Cc}\p{Cs}\u202e]/u);
  });

  test('never repeats a secret that the service echoes', () => {
    const echoes: Answer[] = [
      { status: 401, body: 'bad header: Bearer sesame' },
      { status: 400, json: { code: 'sesame', detail: 'sesame' } },
      { json: { ok: false, message: 'sesame?' } },
    ];
    for (const echo of echoes) expect(failure(echo).message).not.toContain('sesame');
    expect(read({ status: 410, body: 'sesame' })).toEqual({ kind: 'cancel', reason: '[hidden]' });
    expect(read({ json: { status: 'hold', reason: 'sesame' } })).toMatchObject({ reason: '[hidden]' });
  });

  test('survives any body', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 200, max: 599 }),
        fc.oneof(fc.string({ unit: 'binary' }), fc.json()),
        (status, body) => {
          try {
            const outcome = read({ status, body });
            if (outcome.kind === 'done' && outcome.result !== null) JSON.parse(outcome.result);
          } catch (error) {
            expect(error).toHaveProperty('code');
            // Asserted to be one of ours.
            expect((error as Error).message.length).toBeLessThan(600);
          }
        },
      ),
    );
  });
});

describe('Retry-After', () => {
  const rows: [string, string | undefined, number | undefined][] = [
    ['no header', undefined, undefined],
    ['an empty one', '', undefined],
    ['zero', '0', 0],
    ['seconds', '120', 120_000],
    ['seconds between blanks', ' 120\t', 120_000],
    ['leading zeros', '007', 7000],
    ['a day', '86400', MAX_RETRY_AFTER_MS],
    ['more than a day', '86401', MAX_RETRY_AFTER_MS],
    ['ten years', '315360000', MAX_RETRY_AFTER_MS],
    ['more digits than a number holds', '9'.repeat(400), MAX_RETRY_AFTER_MS],
    ['a negative number', '-5', undefined],
    ['a negative zero', '-0', undefined],
    ['a plus sign', '+5', undefined],
    ['a fraction', '1.5', undefined],
    ['an exponent', '1e3', undefined],
    ['an endless exponent', '1e309', undefined],
    ['hexadecimal', '0x10', undefined],
    ['NaN', 'NaN', undefined],
    ['Infinity', 'Infinity', undefined],
    ['a word', 'soon', undefined],
    ['a unit', '5s', undefined],
    ['two numbers', '5, 10', undefined],
    ['digits of another script', '٥', undefined],
    ['a date', 'Mon, 23 Nov 2026 12:01:30 GMT', 90_000],
    ['a date in the obsolete form of RFC 850', 'Monday, 23-Nov-26 12:01:30 GMT', 90_000],
    ['a date in the form of asctime', 'Mon Nov 23 12:01:30 2026', 90_000],
    ['a date of asctime with a one-digit day', 'Tue Dec  1 12:00:00 2026', MAX_RETRY_AFTER_MS],
    ['a date on the wrong weekday', 'Tue, 23 Nov 2026 12:01:30 GMT', 90_000],
    ['a leap second', 'Mon, 23 Nov 2026 12:00:60 GMT', 60_000],
    ['this very second', 'Mon, 23 Nov 2026 12:00:00 GMT', 0],
    ['a past date', 'Mon, 23 Nov 2026 11:59:59 GMT', undefined],
    ['the year 1970', 'Thu, 01 Jan 1970 00:00:00 GMT', undefined],
    ['a two-digit year more than fifty ahead', 'Monday, 23-Nov-94 12:01:30 GMT', undefined],
    ['a date years ahead', 'Tue, 23 Nov 2036 12:00:00 GMT', MAX_RETRY_AFTER_MS],
    ['no day of the calendar', 'Mon, 31 Nov 2026 12:00:00 GMT', undefined],
    ['day zero', 'Mon, 00 Dec 2026 12:00:00 GMT', undefined],
    ['hour 24', 'Mon, 23 Nov 2026 24:00:00 GMT', undefined],
    ['minute 60', 'Mon, 23 Nov 2026 12:60:00 GMT', undefined],
    ['another zone', 'Mon, 23 Nov 2026 12:01:30 CET', undefined],
    ['an offset', 'Mon, 23 Nov 2026 12:01:30 +0100', undefined],
    ['small letters', 'mon, 23 nov 2026 12:01:30 gmt', undefined],
    ['ISO 8601', '2026-11-23T12:01:30Z', undefined],
  ];
  test.each(rows)('%s', (_name, value, wait) => {
    expect(readRetryAfter(value, undefined, NOW)).toBe(wait);
  });

  test("a date is measured by the service's own clock where the answer tells it", () => {
    const until = 'Mon, 23 Nov 2026 13:00:10 GMT';
    expect(readRetryAfter(until, 'Mon, 23 Nov 2026 13:00:00 GMT', NOW)).toBe(10_000);
    expect(readRetryAfter(until, 'just now', NOW)).toBe(3_610_000);
  });

  test('whatever it says, the wait is between nothing and a day', () => {
    const value = fc.oneof(
      fc.string(),
      fc.double().map(String),
      fc.bigInt().map(String),
      fc.date({ noInvalidDate: true }).map((date) => date.toUTCString()),
    );
    fc.assert(
      fc.property(value, fc.option(value, { nil: undefined }), (text, date) => {
        const wait = readRetryAfter(text, date, NOW);
        if (wait === undefined) return;
        expect(Number.isSafeInteger(wait)).toBe(true);
        expect(wait).toBeGreaterThanOrEqual(0);
        expect(wait).toBeLessThanOrEqual(MAX_RETRY_AFTER_MS);
      }),
    );
  });

  test('every second of a day comes back, as a number and as a date', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 86_400 }), (seconds) => {
        const date = new Date(NOW + seconds * 1000).toUTCString();
        expect(readRetryAfter(date, undefined, NOW)).toBe(seconds * 1000);
        expect(readRetryAfter(String(seconds), undefined, NOW)).toBe(seconds * 1000);
      }),
    );
  });
});
