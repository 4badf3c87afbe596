/** How many jobs to claim, and which begins next: never more calls than slots, and ahead only what is soon done. */
import { describe, expect, test } from '@jest/globals';
import type { Claim } from '../../src/queue/ports.js';
import { Slots } from '../../src/queue/slots.js';

/** Only what Slots looks at: a claim's queue. */
function claims(count: number, queue = 'broadcasts'): Claim[] {
  return Array.from({ length: count }, () => ({ job: { queue } }) as Claim);
}

const always = () => true;

function openSlots(named: Record<string, number>, others = 0) {
  const clock = { ms: 0 };
  const slots = new Slots({ named: new Map(Object.entries(named)), others }, () => clock.ms);
  /** One claim that brings all it asks for, or so many. */
  const claim = (most = Number.POSITIVE_INFINITY, queue = 'broadcasts') => {
    const asked = slots.appetite();
    if (!asked) return 0;
    const count = Math.min((asked.free.get(queue) ?? 0) + (asked.ahead.get(queue) ?? 0), most);
    slots.add(claims(count, queue), asked, false);
    return count;
  };
  /** Everything that may begin does, takes a while, and is settled. @returns how many calls that were */
  const callAll = (ms: number) => {
    const begun = slots.begin(always);
    clock.ms += ms;
    for (const { job } of begun) slots.end(job.queue);
    for (const { job } of begun) slots.settled(job.queue);
    return begun.length;
  };
  /** Claims and calls until things go as they go. */
  const runWell = (rounds: number, ms: number) => {
    for (let n = 0; n < rounds; n++) {
      claim();
      callAll(ms);
    }
  };
  return { slots, clock, claim, callAll, runWell };
}

describe('at first', () => {
  test('a claim is for the free slots and nothing beyond them', () => {
    const { slots } = openSlots({ broadcasts: 3 });
    expect(slots.appetite()).toEqual({ free: new Map([['broadcasts', 3]]), ahead: new Map() });
  });

  test('with all slots taken there is no appetite', () => {
    const { slots, claim } = openSlots({ broadcasts: 2 });
    claim();
    slots.begin(always);
    expect(slots.appetite()).toBeNull();
  });

  test('no more calls begin than there are slots', () => {
    const { slots } = openSlots({ broadcasts: 2 });
    slots.add(claims(5), { free: new Map([['broadcasts', 2]]), ahead: new Map([['broadcasts', 3]]) }, false);
    expect(slots.begin(always)).toHaveLength(2);
    expect(slots.begin(always)).toHaveLength(0);
  });
});

describe('while there is a backlog', () => {
  test('short calls let it claim ahead, up to what is done in a tenth of a second', () => {
    const { slots, claim, runWell } = openSlots({ broadcasts: 2 });
    runWell(50, 10);
    claim();
    slots.begin(always);
    // Two in 10 ms, which is twenty in 100.
    const ahead = slots.withdraw().length;
    expect(ahead).toBeGreaterThan(10);
    expect(ahead).toBeLessThanOrEqual(20);
  });

  test('it never claims more than 500 ahead', () => {
    const { slots, claim, runWell } = openSlots({ broadcasts: 1000 });
    runWell(50, 1);
    claim();
    slots.begin(always);
    expect(slots.withdraw()).toHaveLength(500);
  });

  test('long calls claim nothing ahead', () => {
    const { slots, runWell } = openSlots({ broadcasts: 2 });
    runWell(20, 1000);
    expect(slots.appetite()?.ahead.get('broadcasts') ?? 0).toBe(0);
  });

  test('a claim that brings less than it was asked for ends it', () => {
    const { slots, claim, callAll, runWell } = openSlots({ broadcasts: 2 });
    runWell(50, 10);
    claim(1);
    while (callAll(10) > 0);
    expect(slots.appetite()).toEqual({ free: new Map([['broadcasts', 2]]), ahead: new Map() });
  });

  test('a claim that looked at another queue only says nothing of this one', () => {
    const { slots, runWell } = openSlots({ broadcasts: 2, retries: 1 });
    runWell(50, 10);
    const asked = slots.appetite();
    if (asked) slots.add(claims(1, 'retries'), asked, false, new Set(['retries']));
    expect(slots.appetite()?.ahead.get('broadcasts')).toBeGreaterThan(0);
  });

  test('a claim that went on behind another and brought less does not end it: more may stand elsewhere in the line', () => {
    const { slots, runWell } = openSlots({ broadcasts: 1 });
    runWell(50, 10);
    const asked = slots.appetite();
    if (asked) slots.add(claims(1), asked, false, new Set(['broadcasts']));
    while (slots.begin(always).length > 0) {
      const more = slots.end('broadcasts');
      slots.settled('broadcasts');
      if (more) return;
    }
    throw new Error('no slot that was freed called for another claim');
  });

  test('a look that found no room is made up for as soon as a slot is free', () => {
    const { slots, claim } = openSlots({ broadcasts: 2 });
    claim(1);
    slots.begin(always);
    claim(1);
    slots.begin(always);
    expect(slots.appetite()).toBeNull();
    expect(slots.end('broadcasts')).toBe(true);
  });

  test('what was withdrawn is handed back, once, and it begins small again', () => {
    const { slots, claim, runWell } = openSlots({ broadcasts: 2 });
    runWell(50, 10);
    claim();
    const begun = slots.begin(always).length;
    const withdrawn = slots.withdraw('broadcasts').length;
    expect(withdrawn).toBeGreaterThan(10);
    expect(slots.withdraw()).toHaveLength(0);
    expect(slots.appetite()?.ahead.get('broadcasts') ?? 0).toBe(0);
    // Handed back is not settled: a shutdown waits for these too.
    expect(slots.active).toBe(begun + withdrawn);
  });

  test('a withdrawal from one queue leaves the others alone', () => {
    const { slots, runWell } = openSlots({ broadcasts: 2, retries: 1 });
    runWell(50, 10);
    slots.withdraw('retries');
    expect(slots.appetite()?.ahead.get('broadcasts')).toBeGreaterThan(0);
  });
});

describe('what may not begin yet', () => {
  test('holds the line up, and says so', () => {
    const { slots } = openSlots({ broadcasts: 2 });
    const all = claims(6);
    slots.add(all, { free: new Map([['broadcasts', 2]]), ahead: new Map([['broadcasts', 4]]) }, false);
    const begun = new Set(all.slice(0, 2));
    const mayBegin = (claim: Claim) => begun.has(claim);
    expect(slots.begin(mayBegin)).toEqual(all.slice(0, 2));
    expect(slots.isHeldUp(mayBegin)).toBe(true);
    expect(slots.imminent()).toEqual(all.slice(2));
    expect(slots.isHeldUp(always)).toBe(false);
  });
});

test('settlements that are not written hold back new calls, so that nothing piles up while the database is away', () => {
  const { slots } = openSlots({ broadcasts: 2 });
  slots.add(claims(1000), { free: new Map([['broadcasts', 2]]), ahead: new Map([['broadcasts', 998]]) }, false);
  let calls = 0;
  for (let begun = slots.begin(always); begun.length > 0; begun = slots.begin(always)) {
    calls += begun.length;
    for (const { job } of begun) slots.end(job.queue);
  }
  expect(calls).toBe(100);
  slots.settled('broadcasts');
  expect(slots.begin(always)).toHaveLength(2);
});

test('a queue that nobody named is forgotten once it is empty', () => {
  const { slots, claim, callAll } = openSlots({}, 2);
  slots.add(claims(1, 'own'), { free: new Map(), ahead: new Map() }, false);
  callAll(10);
  claim(0, 'own');
  expect(slots.appetite()?.free.has('own')).toBe(false);
});
