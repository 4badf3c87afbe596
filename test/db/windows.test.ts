/** Send windows: when they open, also across midnight and changes of the clocks; whose holds; what is refused. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { claimOne, fromNow, openQueue, settlement, sqlState, type TestQueue } from '../support/store.js';

let queue: TestQueue;

beforeAll(async () => {
  queue = await openQueue();
});
afterEach(() => queue.clear());
afterAll(() => queue.close());

const DAY = { from: '09:00', to: '21:00', time_zone: 'Europe/Berlin' };
const NIGHT = { from: '22:00', to: '06:00', time_zone: 'Europe/Berlin' };
const WORKDAYS = { ...DAY, days: [1, 2, 3, 4, 5] };
const FRIDAY_NIGHT = { ...NIGHT, days: [5] };
const ALL_DAY = { from: '08:00', to: '08:00', time_zone: 'Europe/Berlin' };
const NEW_YORK = { from: '09:00', to: '17:00', time_zone: 'America/New_York' };
/** In Berlin the hour from 02:00 is skipped on 2026-03-29 and comes twice on 2026-10-25; in New York 03-08 and 11-01. */
const EARLY = { from: '01:30', to: '03:30', time_zone: 'Europe/Berlin' };
const IN_THE_GAP = { from: '02:30', to: '03:15', time_zone: 'Europe/Berlin' };
const ALL_IN_THE_GAP = { from: '02:10', to: '02:40', time_zone: 'America/New_York' };

/** A window, a moment, and when it may be sent from then on, and until when, in UTC. */
const CASES: [name: string, window: object, at: string, opens: string, closes: string][] = [
  ['in it', DAY, '2026-01-14T11:00Z', '2026-01-14T08:00Z', '2026-01-14T20:00Z'],
  ['before it', DAY, '2026-01-14T07:59:59Z', '2026-01-14T08:00Z', '2026-01-14T20:00Z'],
  ['at its first moment', DAY, '2026-01-14T08:00Z', '2026-01-14T08:00Z', '2026-01-14T20:00Z'],
  ['at its end', DAY, '2026-01-14T20:00Z', '2026-01-15T08:00Z', '2026-01-15T20:00Z'],
  ['at its last moment', DAY, '2026-01-14T19:59:59.999999Z', '2026-01-14T08:00Z', '2026-01-14T20:00Z'],
  ['in summer', DAY, '2026-07-14T06:00Z', '2026-07-14T07:00Z', '2026-07-14T19:00Z'],
  ['over midnight, in the evening', NIGHT, '2026-01-14T21:30Z', '2026-01-14T21:00Z', '2026-01-15T05:00Z'],
  ['over midnight, in the morning', NIGHT, '2026-01-15T04:00Z', '2026-01-14T21:00Z', '2026-01-15T05:00Z'],
  ['over midnight, at noon', NIGHT, '2026-01-15T11:00Z', '2026-01-15T21:00Z', '2026-01-16T05:00Z'],
  ['on workdays, Friday evening', WORKDAYS, '2026-01-16T20:30Z', '2026-01-19T08:00Z', '2026-01-19T20:00Z'],
  ['on workdays, Sunday', WORKDAYS, '2026-01-18T11:00Z', '2026-01-19T08:00Z', '2026-01-19T20:00Z'],
  ['of Friday night, early on Saturday', FRIDAY_NIGHT, '2026-01-17T02:00Z', '2026-01-16T21:00Z', '2026-01-17T05:00Z'],
  ['of Friday night, early on Friday', FRIDAY_NIGHT, '2026-01-16T02:00Z', '2026-01-16T21:00Z', '2026-01-17T05:00Z'],
  ['of Friday night, on Saturday', FRIDAY_NIGHT, '2026-01-17T05:00Z', '2026-01-23T21:00Z', '2026-01-24T05:00Z'],
  ['of a whole day', ALL_DAY, '2026-01-14T06:00Z', '2026-01-13T07:00Z', '2026-01-14T07:00Z'],
  ['of a whole day, its day', { ...ALL_DAY, days: [3] }, '2026-01-15T06:59Z', '2026-01-14T07:00Z', '2026-01-15T07:00Z'],
  ['far away', NEW_YORK, '2026-01-14T13:59Z', '2026-01-14T14:00Z', '2026-01-14T22:00Z'],
  ['spring: the day before', DAY, '2026-03-28T20:00Z', '2026-03-29T07:00Z', '2026-03-29T19:00Z'],
  ['spring: over the night', NIGHT, '2026-03-29T03:30Z', '2026-03-28T21:00Z', '2026-03-29T04:00Z'],
  ['spring: around the hour that is skipped', EARLY, '2026-03-29T00:00Z', '2026-03-29T00:30Z', '2026-03-29T01:30Z'],
  [
    'spring: begun in the hour that is skipped',
    IN_THE_GAP,
    '2026-03-29T00:00Z',
    '2026-03-29T01:30Z',
    '2026-03-29T02:15Z',
  ],
  ['spring: over', IN_THE_GAP, '2026-03-29T02:15Z', '2026-03-30T00:30Z', '2026-03-30T01:15Z'],
  ['spring: all skipped', ALL_IN_THE_GAP, '2026-03-08T05:00Z', '2026-03-08T07:10Z', '2026-03-08T07:40Z'],
  ['autumn: the day before', DAY, '2026-10-24T19:00Z', '2026-10-25T08:00Z', '2026-10-25T20:00Z'],
  ['autumn: over the night', NIGHT, '2026-10-25T04:30Z', '2026-10-24T20:00Z', '2026-10-25T05:00Z'],
  ['autumn: around the hour that comes twice', EARLY, '2026-10-25T01:00Z', '2026-10-24T23:30Z', '2026-10-25T02:30Z'],
  [
    'autumn: in the hour that comes twice, once',
    ALL_IN_THE_GAP,
    '2026-11-01T05:00Z',
    '2026-11-01T07:10Z',
    '2026-11-01T07:40Z',
  ],
  ['autumn: far away', NEW_YORK, '2026-10-31T21:00Z', '2026-11-01T14:00Z', '2026-11-01T22:00Z'],
];

test.each(CASES)('the window to send in is right: %s', async (_, window, at, opens, closes) => {
  const iso = (moment: string) => new Date(moment).toISOString();
  const [row] = await queue.query<{ opens: Date; closes: Date }>('select * from broadcast_window_opens($1, $2)', [
    window,
    at,
  ]);
  expect([row?.opens.toISOString(), row?.closes.toISOString()]).toEqual([iso(opens), iso(closes)]);
});

test('a moment of the year lies in its window where the clock on the wall says so, and else before the next one', async () => {
  const zones = ['Europe/Berlin', 'America/New_York', 'Australia/Lord_Howe', 'Asia/Kolkata'];
  const windows = zones.flatMap((time_zone) => [
    { from: '04:00', to: '23:30', time_zone },
    { from: '21:15', to: '05:45', time_zone, days: [2, 6] },
  ]);
  const wrong = await queue.query(
    `select w, at from jsonb_array_elements($1) w
     cross join generate_series('2026-01-01T00:07Z', '2026-12-31T23:59Z', interval '97 minutes') at
     cross join lateral (select at at time zone (w ->> 'time_zone') as wall) wall
     cross join lateral (select extract(isodow from wall)::integer as day, wall::time as clock) c
     cross join lateral broadcast_window_opens(w, at) o
     cross join lateral (select case when w ->> 'from' < w ->> 'to'
         then clock >= (w ->> 'from')::time and clock < (w ->> 'to')::time
         else clock >= (w ->> 'from')::time and coalesce(w -> 'days' @> to_jsonb(day), true)
           or clock < (w ->> 'to')::time and coalesce(w -> 'days' @> to_jsonb((day + 5) % 7 + 1), true) end as inside) i
     where (o.opens <= at) <> inside or o.closes <= at limit 3`,
    [JSON.stringify(windows)],
  );
  expect(wrong).toEqual([]);
});

/** Hours that are open now, or that begin in two hours. */
async function hours(shift: number): Promise<{ from: string; to: string; time_zone: string }> {
  const [row] = await queue.query<{ from: string; to: string }>(
    `select to_char(now() at time zone 'UTC' + ($1 - 1) * interval '1 hour', 'HH24:MI') as from,
            to_char(now() at time zone 'UTC' + ($1 + 1) * interval '1 hour', 'HH24:MI') as to`,
    [shift],
  );
  if (!row) throw new Error('there is no time');
  return { ...row, time_zone: 'UTC' };
}

const setWindow = (name: string, window: object | null) =>
  queue.query('select broadcast_set_window($1, $2)', [name, window]);
/** Until the window of the next job opens, in whole minutes. */
const wait = async () => {
  const { windowWaitMs } = await claimOne(queue.store());
  return windowWaitMs === null ? null : Math.floor(windowWaitMs / 60_000);
};

describe('a job waits for', () => {
  test('nothing where neither it nor its queue has a window', async () => {
    await setWindow('other', await hours(3));
    await queue.insert();
    expect(await wait()).toBeNull();
  });

  test('nothing in its hours', async () => {
    await queue.insert({ send_window: await hours(0) });
    expect(await wait()).toBeNull();
  });

  test('its own hours, and else for its queue’s', async () => {
    await setWindow('broadcasts', await hours(5));
    await queue.insert();
    expect(await wait()).toBeGreaterThan(230);
    await queue.insert({ send_window: await hours(3) });
    const own = await wait();
    expect(own).toBeGreaterThan(110);
    expect(own).toBeLessThanOrEqual(120);
    await queue.insert({ send_window: await hours(0) });
    expect(await wait()).toBeNull();
    await setWindow('broadcasts', null);
    await queue.insert();
    expect(await wait()).toBeNull();
  });

  test('the next hours also before a later slice, or again after it was put off', async () => {
    const window = await hours(3);
    await queue.insert({ send_window: window, status: 'processing', step_seq: 4, started_at: fromNow('-1 hour') });
    expect(await wait()).toBeGreaterThan(110);
    await queue.insert({ send_window: window, status: 'retry', scheduled_at: fromNow('-1 day') });
    expect(await wait()).toBeGreaterThan(110);
  });
});

describe('a job that could not begin in its first window', () => {
  const missed = async (shift: number) => ({ ...(await hours(shift)), missed: 'fail' });
  const waits = async (columns: Readonly<Record<string, unknown>>) => {
    await queue.insert(columns);
    return wait();
  };

  test('waits for the next one, unless it is to fail: then it does not go out', async () => {
    const scheduled_at = fromNow('-12 hours');
    expect(await waits({ scheduled_at, send_window: await hours(-5) })).toBeGreaterThan(0);
    expect(await waits({ scheduled_at, send_window: await missed(-5) })).toBeLessThan(0);
  });

  test('has missed it also when the next one is open already', async () => {
    expect(await waits({ scheduled_at: fromNow('-23 hours'), send_window: await missed(0) })).toBeNull();
    expect(await waits({ scheduled_at: fromNow('-24 hours'), send_window: await missed(0) })).toBeLessThan(0);
    expect(await waits({ scheduled_at: fromNow('-10 days'), send_window: await missed(0) })).toBeLessThan(0);
  });

  test('has not missed one that is still to come, or still open', async () => {
    expect(await waits({ send_window: await missed(3) })).toBeGreaterThan(110);
    expect(await waits({ scheduled_at: fromNow('-30 minutes'), send_window: await missed(0) })).toBeNull();
  });

  test('is one that has not begun: a later slice waits', async () => {
    const begun = {
      status: 'processing',
      step_seq: 1,
      scheduled_at: fromNow('-2 days'),
      started_at: fromNow('-2 days'),
    };
    expect(await waits({ ...begun, send_window: await missed(3) })).toBeGreaterThan(0);
  });

  test('is still one after it was put off without a call', async () => {
    await queue.insert({ send_window: await missed(-5), scheduled_at: fromNow('-30 minutes') });
    const store = queue.store();
    const claimed = await claimOne(store);
    expect(claimed.windowWaitMs).toBeGreaterThan(0);
    await store.settle(
      [settlement(claimed, { status: 'retry', dueInMs: 0, attempts: 'refund', unstarted: true })],
      [claimed.leaseId],
    );
    await queue.query("update broadcast_queue_jobs set scheduled_at = now() - interval '2 days'");
    expect(await wait()).toBeLessThan(0);
  });

  test.each(['infinity', '-infinity'])('is none that was scheduled for %s', async (scheduled_at) => {
    expect(
      await waits({ scheduled_at, status: 'retry', next_retry_at: fromNow('-1 second'), send_window: await missed(0) }),
    ).toBeNull();
  });
});

const BAD: [unknown, string][] = [
  [[], 'it is no JSON object'],
  ['09:00-21:00', 'it is no JSON object'],
  [{ ...DAY, zone: 'UTC' }, 'it has an unknown member "zone"'],
  [{ to: '21:00', time_zone: 'UTC' }, '"from" is no time such as 09:00'],
  [{ ...DAY, from: '9:00' }, '"from" is no time such as 09:00'],
  [{ ...DAY, from: 900 }, '"from" is no time such as 09:00'],
  [{ ...DAY, to: '24:00' }, '"to" is no time such as 21:00'],
  [{ ...DAY, to: null }, '"to" is no time such as 21:00'],
  [{ from: '09:00', to: '21:00' }, '"time_zone" is no name such as Europe/Berlin'],
  [{ ...DAY, time_zone: 'Berlin+1' }, '"time_zone" is no name such as Europe/Berlin'],
  [{ ...DAY, time_zone: 'Europe/Berlin+1' }, '"time_zone" is no name such as Europe/Berlin'],
  [{ ...DAY, time_zone: 'CEST' }, '"time_zone" is no name such as Europe/Berlin'],
  [{ ...DAY, time_zone: 'Europe/Berlim' }, 'the time zone "Europe/Berlim" is unknown'],
  [{ ...DAY, days: [] }, '"days" is no list of days, 1 (Monday) to 7 (Sunday)'],
  [{ ...DAY, days: 1 }, '"days" is no list of days, 1 (Monday) to 7 (Sunday)'],
  [{ ...DAY, days: [0] }, '"days" is no list of days, 1 (Monday) to 7 (Sunday)'],
  [{ ...DAY, days: ['Mon'] }, '"days" is no list of days, 1 (Monday) to 7 (Sunday)'],
  [{ ...DAY, days: null }, '"days" is no list of days, 1 (Monday) to 7 (Sunday)'],
  [{ ...DAY, missed: 'skip' }, '"missed" is neither "wait" nor "fail"'],
];

describe.each(BAD)('a window such as %j', (window, fault) => {
  const given = JSON.stringify(window);
  const WAYS: Record<string, () => Promise<unknown>> = {
    'an INSERT': () => queue.insert({ send_window: given }),
    broadcast_enqueue: () =>
      queue.query("select broadcast_enqueue('send_broadcast', '{}', send_window => $1)", [given]),
    broadcast_enqueue_many: () =>
      queue.query('select * from broadcast_enqueue_many($1)', [
        JSON.stringify([{ job_type: 'send_broadcast', job_data: {}, send_window: window }]),
      ]),
    broadcast_set_window: () => queue.query("select broadcast_set_window('broadcasts', $1)", [given]),
  };

  test.each(Object.entries(WAYS))('is refused in plain words by %s', async (_, way) => {
    await expect(way()).rejects.toThrow(`send_window: ${fault}`);
    expect(await sqlState(way())).toBe('23514');
    expect(await queue.jobs()).toEqual([]);
    expect(await queue.query('select from broadcast_queue_windows')).toEqual([]);
  });
});

test('a sound window is kept as it was given, by every way in, and a JSON null is none', async () => {
  await queue.insert({ send_window: WORKDAYS });
  await queue.query("select broadcast_enqueue('send_broadcast', '{}', send_window => $1)", [WORKDAYS]);
  await queue.query('select * from broadcast_enqueue_many($1)', [
    JSON.stringify([
      { job_type: 'send_broadcast', job_data: {}, send_window: WORKDAYS },
      { job_type: 'send_broadcast', job_data: {}, send_window: null },
    ]),
  ]);
  expect((await queue.jobs()).map(({ send_window }) => send_window)).toEqual([WORKDAYS, WORKDAYS, WORKDAYS, null]);
});

test.each(['UTC', 'GMT', 'Etc/GMT+5', 'America/Argentina/Buenos_Aires', 'America/Port-au-Prince', 'Asia/Kolkata'])(
  'the time zone %s is known',
  async (time_zone) => {
    expect((await queue.insert({ send_window: { ...DAY, time_zone } })).send_window).toMatchObject({ time_zone });
  },
);

test('a batch of 2,000 jobs with windows is no matter of minutes', async () => {
  const jobs = Array.from({ length: 2000 }, () => ({
    job_type: 'send_broadcast',
    job_data: {},
    send_window: WORKDAYS,
  }));
  const begun = performance.now();
  await queue.query('select count(*) from broadcast_enqueue_many($1)', [JSON.stringify(jobs)]);
  expect(performance.now() - begun).toBeLessThan(5000);
});

test('a job that waits for its own window goes as soon as that is lifted', async () => {
  const shut = { from: '00:00', to: '00:01', time_zone: 'UTC' };
  const { id } = await queue.insert({
    status: 'retry',
    send_window: shut,
    next_retry_at: fromNow('5 hours'),
    hold_reason: 'waiting for its send window',
  });
  await queue.query('update broadcast_queue_jobs set send_window = null where id = $1', [id]);
  const { due_at } = await queue.job(id);
  expect(due_at?.getTime()).toBeLessThanOrEqual(Date.now() + 1000);
});
