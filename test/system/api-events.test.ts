/** The live view over a real socket, and a real daemon behind it. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { EventFeed } from '../../src/admin/feed.js';
import { openReports } from '../../src/db/reports.js';
import { openApi, secretOf, type TestApi, TOKENS } from '../support/api.js';
import { reply } from '../support/http-server.js';
import { setStage } from '../support/stage.js';
import { claimOne, settlement } from '../support/store.js';
import { until } from '../support/until.js';

interface Heard {
  readonly event: string;
  readonly id: string;
  readonly data: {
    jobs: { job_id: string; status: string; active: boolean }[];
    queues: Record<string, Record<string, number>>;
  };
}

interface Listener {
  readonly status: number;
  readonly heard: readonly Heard[];
  /** The stream has ended, and not by our doing. */
  readonly ended: boolean;
  stop(): void;
}

const open: Listener[] = [];

/** An EventSource of few lines: Node 20 has none. */
async function listenTo(url: string, lastEventId?: string): Promise<Listener> {
  const controller = new AbortController();
  const response = await fetch(`${url}/api/admin/queue/events`, {
    signal: controller.signal,
    headers: {
      authorization: `Bearer ${secretOf('viewer')}`,
      ...(lastEventId === undefined ? {} : { 'last-event-id': lastEventId }),
    },
  });
  const heard: Heard[] = [];
  const listener = { status: response.status, heard, ended: false, stop: () => controller.abort() };
  open.push(listener);
  void (async () => {
    let text = '';
    try {
      for await (const chunk of response.body ?? []) {
        text += Buffer.from(chunk).toString();
        for (let end = text.indexOf('\n\n'); end !== -1; end = text.indexOf('\n\n')) {
          const fields = Object.fromEntries(
            text
              .slice(0, end)
              .split('\n')
              .map((line) => line.split(/: (.*)/s)),
          );
          text = text.slice(end + 2);
          if (fields.data) heard.push({ event: fields.event, id: fields.id, data: JSON.parse(fields.data) });
        }
      }
      listener.ended = true;
    } catch {
      // Stopped by the test, or cut off.
      listener.ended = !controller.signal.aborted;
    }
  })();
  return listener;
}

afterEach(() => {
  for (const listener of open.splice(0)) listener.stop();
});

const changes = ({ heard }: Listener, jobId: string) =>
  heard.flatMap(({ data }) => data.jobs.filter(({ job_id }) => job_id === jobId).map(({ status }) => status));

describe('the events', () => {
  let api: TestApi;
  let url: string;

  beforeAll(async () => {
    api = await openApi();
    url = await api.app.listen({ host: '127.0.0.1', port: 0 });
  });
  afterAll(() => api.close());
  beforeEach(() => api.queue.clear());

  test('begin with a snapshot of what runs and all counts, then tell each change once', async () => {
    const running = await api.queue.insert();
    const claim = await claimOne(api.queue.store());
    await api.queue.insert({ status: 'failed' });
    const listener = await listenTo(url);
    await until('there is a snapshot', async () => listener.heard.length > 0);
    expect(listener.heard[0]).toMatchObject({
      event: 'snapshot',
      id: expect.stringMatching(/^\d+-\d+$/),
      data: {
        jobs: [{ job_id: running.job_id, status: 'processing', active: true }],
        queues: { broadcasts: { processing: 1, failed: 1, active: 1 } },
      },
    });
    await api.queue.store().settle([settlement(claim)], [claim.leaseId]);
    const added = await api.queue.insert();
    await until('the end is told', async () => changes(listener, running.job_id).includes('completed'));
    await until('the new one is told', async () => changes(listener, added.job_id).includes('pending'));
    const later = await api.queue.insert();
    await until('a later one is told', async () => changes(listener, later.job_id).length > 0);
    // Though the looks overlap.
    expect(changes(listener, added.job_id)).toEqual(['pending']);
    expect(listener.heard.at(-1)?.data.queues.broadcasts).toMatchObject({ completed: 1, pending: 2 });
  });

  test('go on where they were with Last-Event-ID', async () => {
    const listener = await listenTo(url);
    const added = await api.queue.insert();
    await until('it is told', async () => changes(listener, added.job_id).length > 0);
    const id = listener.heard.at(-1)?.id;
    listener.stop();
    const claim = await claimOne(api.queue.store());
    await api.queue.store().settle([settlement(claim)], [claim.leaseId]);
    const again = await listenTo(url, id);
    await until('the stream goes on', async () => again.heard.length > 0);
    expect(again.heard[0]?.event).toBe('change');
    expect(changes(again, added.job_id)).toEqual(['completed']);
  });

  test.each(['nonsense', '99999999999999999-1', '1-1'])('begin anew after %s', async (lastEventId) => {
    const listener = await listenTo(url, lastEventId);
    await until('there is a snapshot', async () => listener.heard.length > 0);
    expect(listener.heard[0]?.event).toBe('snapshot');
  });

  test('come once a second at most, whatever happens', async () => {
    const listener = await listenTo(url);
    await until('there is a snapshot', async () => listener.heard.length > 0);
    const begun = performance.now();
    let n = 0;
    await until('three seconds are over', async () => {
      await api.queue.insert();
      n++;
      return performance.now() - begun > 3000;
    });
    expect(n).toBeGreaterThan(20);
    expect(listener.heard.length).toBeGreaterThan(1);
    expect(listener.heard.length).toBeLessThanOrEqual(5);
  });

  test('are kept for a client that does not read only as far as a buffer goes', async () => {
    const feed = new EventFeed(openReports(api.queue.database, []));
    const unread = await feed.open(undefined);
    let most = 0;
    await api.queue.query(
      `insert into broadcast_queue_jobs (job_type, job_data, error_message)
       select 'x', '{}', repeat('x', 500) from generate_series(1, 500)`,
    );
    await until('it is let go', async () => {
      most = Math.max(most, unread.readableLength);
      await api.queue.query('update broadcast_queue_jobs set updated_at = clock_timestamp()');
      return unread.destroyed;
    });
    expect(most).toBeGreaterThan(300_000);
    expect(most).toBeLessThan(2_000_000);
    await feed.close();
  });

  test('are for fifty clients at once; a place that is left is free again', async () => {
    const listeners = await Promise.all(Array.from({ length: 50 }, () => listenTo(url)));
    expect(new Set(listeners.map(({ status }) => status))).toEqual(new Set([200]));
    expect((await listenTo(url)).status).toBe(503);
    expect((await api.ask('GET', '/events')).body.code).toBe('too_many_listeners');
    listeners[0]?.stop();
    await until('there is room', async () => (await listenTo(url)).status === 200);
  });
});

describe('with a daemon', () => {
  const stage = setStage({
    ADMIN_TOKENS: TOKENS.map(({ name, role, secret }) => `${name}:${role}:${secret}`).join(','),
  });

  test('an operator finds a job by its broadcast, sees why it waits, and lets it go; a live view ends with the daemon', async () => {
    const daemon = await stage.start({ RETRY_BASE_DELAY_MS: '60000' });
    const ask = async (method: string, path: string, body?: object) => {
      const response = await fetch(`${daemon.url}/api/admin/queue${path}`, {
        method,
        headers: {
          authorization: `Bearer ${secretOf('operator')}`,
          ...(body ? { 'content-type': 'application/json' } : {}),
        },
        ...(body ? { body: JSON.stringify(body) } : {}),
      });
      return JSON.parse(await response.text());
    };
    const listener = await listenTo(daemon.url);
    stage.service.next(reply(500));
    await stage.database.query(`select broadcast_enqueue('send_broadcast', '{"broadcast_id": "B-42"}')`);
    const { job_id } = await until('it failed once', async () => {
      const { jobs } = await ask('GET', '/jobs?data.broadcast_id=B-42');
      return jobs[0]?.status === 'retry' && jobs[0];
    });
    const job = await ask('GET', `/job/${job_id}`);
    expect(job.waiting_because).toMatch(/^retry 2 of 3 at .*, after: /);
    expect(job.history).toEqual([expect.objectContaining({ outcome: 'retry', http_status: 500 })]);
    expect(await ask('POST', `/job/${job_id}/pause`)).toMatchObject({ status: 'paused' });
    expect((await ask('GET', `/job/${job_id}`)).waiting_because).toMatch(/^paused/);
    expect(await ask('POST', `/job/${job_id}/resume`)).toMatchObject({ status: 'retry' });
    expect(await ask('POST', `/job/${job_id}/retry`)).toMatchObject({ status: 'pending' });
    await until('it is done', async () => (await ask('GET', `/job/${job_id}`)).status === 'completed');
    expect((await ask('GET', '/workers')).workers).toHaveLength(1);
    expect((await ask('GET', '/status')).queues.broadcasts).toMatchObject({ completed: 1, active: 0 });
    await until('the view was told', async () => changes(listener, job_id).includes('completed'));
    daemon.signal('SIGTERM');
    expect(await daemon.ended).toBe(0);
    await until('the view ended', async () => listener.ended);
  }, 30_000);
});
