/** Level 3: the service runs a broadcast by itself, and the daemons ask how far it is. */
import { expect, test } from '@jest/globals';
import { held, type RecordedRequest, reply, replyJson } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { gate, until } from '../support/until.js';

const stage = setStage({ LEASE_MS: '2000', RETRY_BASE_DELAY_MS: '200' });

const AT = '/operations/7';
const TAKEN = reply(202, '', { location: AT, 'retry-after': '1', 'x-broadcast-level': '3' });

const insert = () =>
  stage.database.query<{ job_id: string }>(
    `insert into broadcast_queue_jobs (job_type, job_data) values ('send_broadcast', '{"broadcast_id": 1}') returning job_id`,
  );

const row = async () => {
  const [only] = await stage.database.query<{
    status: string;
    attempts: number;
    stalled_calls: number;
    flags: string[];
  }>(
    `select status, attempts, stalled_calls, flags, operation_url, progress -> 'processed' as processed, epoch
     from broadcast_queue_jobs`,
  );
  return only;
};

const asked = (method: string) => stage.service.requests.filter((request) => request.method === method);

/** Takes the job over at the first call; then each question gets the next answer, the last one again and again. */
function answering(...answers: object[]) {
  stage.service.otherwise(({ method }: RecordedRequest) => {
    if (method === 'POST') return TAKEN;
    if (method === 'DELETE') return reply(204);
    const nth = asked('GET').length - 1;
    return replyJson(200, answers[Math.min(nth, answers.length - 1)], { 'retry-after': '1' });
  });
}

test('an operation is polled until it is done, without consuming attempts or a slot in between', async () => {
  answering(
    { status: 'running', progress: { total: 10, processed: 4, sent: 4 } },
    { status: 'running', progress: { total: 10, processed: 4, sent: 4 } },
    { status: 'completed', progress: { total: 10, processed: 10, sent: 10 } },
  );
  await stage.start();
  await insert();
  await until('it is at the service', async () => (await row())?.status === 'processing');
  await until('it is completed', async () => (await row())?.status === 'completed');
  expect(asked('POST')).toHaveLength(1);
  expect(asked('GET').map(({ url }) => url)).toEqual([AT, AT, AT]);
  expect(await row()).toMatchObject({ attempts: 1, processed: 10, operation_url: null, flags: [], stalled_calls: 0 });
});

test('another daemon polls on when the one that began dies, and nothing is called again', async () => {
  answering({ status: 'running', progress: { total: 10, processed: 4, sent: 4 } });
  const first = await stage.start();
  await insert();
  await until('it was asked', async () => asked('GET').length > 0);
  first.signal('SIGKILL');
  await first.ended;
  const before = asked('GET').length;
  await stage.start();
  await until('it is asked again', async () => asked('GET').length > before + 1, 15_000);
  expect(asked('POST')).toHaveLength(1);
  expect((await row())?.flags).toEqual([]);
}, 30_000);

test('a cancel ends the operation with DELETE', async () => {
  answering({ status: 'running' });
  const daemon = await stage.start();
  const [job] = await insert();
  await until('it was asked', async () => asked('GET').length > 0);
  await stage.database.query('select broadcast_cancel($1)', [job?.job_id]);
  await until('it is ended', async () => asked('DELETE').length > 0, 3000);
  expect(asked('DELETE').map(({ url }) => url)).toEqual([AT]);
  await daemon.line(({ msg }) => msg.startsWith('operation of a cancelled job ended'));
  expect(await row()).toMatchObject({ status: 'cancelled', operation_url: null });
  // Also where an answer was on its way when the cancel came.
  const left = () => stage.database.query('select from broadcast_queue_abandoned');
  await until('nothing is left to end', async () => (await left()).length === 0);
  expect(asked('DELETE')).toHaveLength(1);
});

test('an operation that began while its job was being cancelled is ended as well', async () => {
  const answer = gate();
  stage.service.otherwise(({ method }) => (method === 'DELETE' ? reply(204) : held(answer.opened, TAKEN)));
  const daemon = await stage.start();
  const [job] = await insert();
  await stage.service.received(1);
  // The call is not aborted by a cancel that nobody hears of.
  await stage.database.query(
    `update broadcast_queue_jobs set status = 'cancelled', lease_id = null, epoch = epoch + 1 where job_id = $1`,
    [job?.job_id],
  );
  answer.open();
  await daemon.line(({ msg }) => msg.startsWith('job cancelled while it was called'));
  await until('it is ended', async () => asked('DELETE').length > 0, 5000);
}, 20_000);

test('a failed operation is begun anew with the same key, a lost one too', async () => {
  answering(
    { status: 'failed', error: 'the disk is full' },
    { status: 'completed', progress: { processed: 3, sent: 3 } },
  );
  await stage.start();
  await insert();
  await until('it is completed', async () => (await row())?.status === 'completed', 15_000);
  const keys = asked('POST').map(({ headers }) => headers['idempotency-key']);
  expect(keys).toHaveLength(2);
  expect(new Set(keys).size).toBe(1);
}, 30_000);

test('questions that fail cost nothing and call nothing', async () => {
  let asks = 0;
  stage.service.otherwise(({ method }) => {
    if (method === 'POST') return TAKEN;
    asks++;
    if (asks <= 4) return reply(500);
    return replyJson(200, { status: 'completed', progress: { processed: 3, sent: 3 } });
  });
  await stage.start();
  await insert();
  await until('it is completed', async () => (await row())?.status === 'completed', 20_000);
  expect(asked('POST')).toHaveLength(1);
  expect(await row()).toMatchObject({ attempts: 1 });
}, 30_000);
