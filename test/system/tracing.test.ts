/** Traces through a real daemon: with a real SDK registered, and without one. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { reply } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { until } from '../support/until.js';

const stage = setStage({ RETRY_BASE_DELAY_MS: '100' });
const sdk = new URL('../support/tracing-sdk.js', import.meta.url).pathname;
const traceId = '0af7651916cd43dd8448eb211c80319c';
const theirs = `00-${traceId}-b7ad6b7169203331-01`;
let directory: string;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'broadcastd-traces-'));
});
afterAll(() => rmSync(directory, { recursive: true }));

async function send(traceparent: string | null): Promise<string> {
  const [job] = await stage.database.query<{ job_id: string }>(
    `select job_id from broadcast_enqueue('send_broadcast', '{"broadcast_id": 1}', unique_key => null, traceparent => $1)`,
    [traceparent],
  );
  await until('it is completed', async () => {
    const rows = await stage.database.query(`select from broadcast_queue_jobs where status <> 'completed'`);
    return rows.length === 0;
  });
  return job?.job_id ?? '';
}

const sent = () => stage.service.requests.map(({ headers }) => headers.traceparent);

test("with an SDK each attempt is a span under the row's traceparent, and the call goes on from it", async () => {
  const file = join(directory, 'spans');
  await stage.start({ NODE_OPTIONS: `--import ${sdk}`, SPANS_FILE: file });
  stage.service.next(reply(500), reply(200));
  const jobId = await send(theirs);
  const spans = await until('both are exported', async () => {
    const lines = readFileSync(file, 'utf8').trim().split('\n');
    return lines.length === 2 && lines.map((line) => JSON.parse(line));
  });
  const common = {
    'broadcastd.job.id': jobId,
    'broadcastd.job.type': 'send_broadcast',
    'broadcastd.job.queue': 'broadcasts',
    'broadcastd.job.step': 0,
  };
  expect(spans).toMatchObject([
    {
      name: 'broadcastd.attempt',
      traceId,
      parent: 'b7ad6b7169203331',
      attributes: { ...common, 'broadcastd.job.attempt': 1, 'error.type': 'http_500' },
      status: { code: 2, message: 'http_500' },
    },
    {
      name: 'broadcastd.attempt',
      traceId,
      parent: 'b7ad6b7169203331',
      attributes: { ...common, 'broadcastd.job.attempt': 2, 'broadcastd.outcome': 'done' },
      status: { code: 0 },
    },
  ]);
  expect(sent()).toEqual(spans.map(({ spanId }) => `00-${traceId}-${spanId}-01`));
});

test('with an SDK a job without a traceparent begins a trace of its own', async () => {
  const file = join(directory, 'roots');
  await stage.start({ NODE_OPTIONS: `--import ${sdk}`, SPANS_FILE: file });
  await send(null);
  const span = JSON.parse(readFileSync(file, 'utf8'));
  expect(span.parent).toBeNull();
  expect(sent()).toEqual([`00-${span.traceId}-${span.spanId}-01`]);
});

test("without an SDK the row's traceparent goes through unchanged, also one of a later version, and none is made up", async () => {
  await stage.start();
  const later = `cc-${traceId}-b7ad6b7169203331-01-what-is-to-come`;
  await send(theirs);
  await send(later);
  await send(null);
  await send('no traceparent');
  expect(sent()).toEqual([theirs, later, undefined, undefined]);
});
