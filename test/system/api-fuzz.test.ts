/**
 * Requests made from the routes' own schemas, some of them bent: whatever comes, the answer is one that the OpenAPI
 * document has, and never a fault of ours. A few hundred of them, or ten thousand with LONG_TESTS=1.
 */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import fc from 'fast-check';
import type { Route } from '../../src/admin/route.js';
import { allRoutes } from '../../src/admin/routes.js';
import { openApi, type TestApi } from '../support/api.js';

const RUNS = process.env.LONG_TESTS === '1' ? 10_000 : 400;

let api: TestApi;
let jobIds: string[];

beforeAll(async () => {
  api = await openApi();
  await api.queue.query(
    `insert into broadcast_queue_jobs (job_type, job_data, status, error_message)
     select 'send_broadcast', jsonb_build_object('broadcast_id', n),
            (array['pending', 'failed', 'completed', 'paused', 'cancelled', 'retry'])[n % 6 + 1], 'HTTP 500: ' || n
     from generate_series(1, 60) n`,
  );
  jobIds = (await api.queue.jobs()).map(({ job_id }) => job_id);
});
afterAll(() => api.close());

interface Schema {
  readonly type?: string;
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly anyOf?: readonly Schema[];
  readonly pattern?: string;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly maxLength?: number;
  readonly maxItems?: number;
  readonly items?: Schema;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly patternProperties?: Readonly<Record<string, Schema>>;
}

const junk: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    '',
    '\u0000',
    -1,
    1e308,
    2 ** 53,
    true,
    [],
    {},
    '__proto__',
    `' or 1=1 --`,
    '<b>',
    'NaN',
  ),
  fc.string({ unit: 'binary', maxLength: 50 }),
  fc.jsonValue({ maxDepth: 3 }),
);

/** Mostly what fits, now and then what does not. */
function anyValue(schema: Schema): fc.Arbitrary<unknown> {
  return fc.oneof({ weight: 30, arbitrary: fitting(schema) }, { weight: 1, arbitrary: junk });
}

function fitting(schema: Schema): fc.Arbitrary<unknown> {
  if (schema.anyOf) return fc.oneof(...schema.anyOf.map(anyValue));
  if (schema.enum) return fc.constantFrom(...schema.enum);
  switch (schema.type) {
    case 'string':
      return text(schema);
    case 'integer':
      return fc.integer({ min: schema.minimum ?? -5, max: Math.min(schema.maximum ?? 100, 2 ** 31 - 1) });
    case 'number':
      return fc.double({ min: schema.minimum ?? -5, max: schema.maximum ?? 100, noNaN: true });
    case 'boolean':
      return fc.boolean();
    case 'null':
      return fc.constant(null);
    case 'array':
      return fc.array(anyValue(schema.items ?? {}), { maxLength: Math.min(schema.maxItems ?? 5, 5) });
    case 'object':
      return object(schema);
    default:
      return fc.jsonValue();
  }
}

function text({ pattern, maxLength }: Schema): fc.Arbitrary<unknown> {
  if (pattern?.includes('[0-9a-fA-F]{8}')) return fc.nat().map((n) => jobIds[n % jobIds.length]);
  if (pattern !== undefined)
    return fc.stringMatching(new RegExp(pattern.replace(/\(\?![^)]*\)\$?\)/, '')), { maxLength: 60 });
  return fc.string({ unit: 'grapheme', maxLength: Math.min(maxLength ?? 30, 30) });
}

function object({ properties = {}, required = [], patternProperties }: Schema): fc.Arbitrary<unknown> {
  if (Object.keys(properties).length === 0)
    return fc.dictionary(fc.stringMatching(/^[a-z_]{1,8}$/), fc.jsonValue(), { maxKeys: 3 });
  const members = Object.fromEntries(Object.entries(properties).map(([name, schema]) => [name, anyValue(schema)]));
  const known = fc.record(members, { requiredKeys: [...required] });
  const data = patternProperties ? fc.constantFrom({}, { 'data.broadcast_id': '5' }) : fc.constant({});
  const more = fc.oneof({ weight: 30, arbitrary: data }, { weight: 1, arbitrary: fc.constant({ surplus: 1 }) });
  return fc.tuple(known, more).map(([one, other]) => ({ ...one, ...other }));
}

const asked = allRoutes('0').filter(({ url }) => url !== '/api/admin/queue/events');

/** Made once for each route: the text of a pattern costs most in the making. */
const requests = fc.oneof(
  ...asked.map((route: Route) =>
    fc.record({
      route: fc.constant(route),
      // Of TypeBox's schemas these are the members that this file knows.
      params: object((route.params ?? {}) as Schema),
      query: route.query ? anyValue(route.query as Schema) : fc.constant({}),
      body: route.body ? anyValue(route.body as Schema) : fc.constant(undefined),
      key: fc.option(fc.stringMatching(/^[a-z]{1,2}$/), { nil: undefined }),
    }),
  ),
);

function pathOf(url: string, params: unknown, query: unknown): string {
  const values = new Map(Object.entries(Object(params)));
  const path = url.replace(/:(\w+)/g, (_, name: string) => encoded(values.get(name)) || 'x');
  const members = Object.entries(typeof query === 'object' ? (query ?? {}) : { [String(query)]: '' }).map(
    ([name, value]) => `${encoded(name)}=${encoded(value)}`,
  );
  const below = path.startsWith('/api/admin/queue') ? path.slice('/api/admin/queue'.length) : `/${path}`;
  return `${below}${members.length > 0 ? `?${members.join('&')}` : ''}`;
}

function encoded(value: unknown): string {
  return encodeURIComponent(typeof value === 'object' ? JSON.stringify(value) : String(value));
}

test(
  `${RUNS} requests yield no fault of ours, and no answer that the document does not have`,
  async () => {
    const seen = new Map<number, number>();
    await fc.assert(
      fc.asyncProperty(requests, async ({ route, params, query, body, key }) => {
        const answer = await api.ask(route.method, pathOf(route.url, params, query), {
          body,
          headers: key === undefined ? {} : { 'idempotency-key': key },
        });
        seen.set(answer.status, (seen.get(answer.status) ?? 0) + 1);
        expect(answer.status).toBeLessThan(500);
        expect(api.faults).toEqual([]);
      }),
      { numRuns: RUNS },
    );
    // The requests are good enough to do something, and bad enough to be refused.
    expect([...seen.keys()].sort()).toEqual(expect.arrayContaining([200, 400, 404, 409]));
    expect((seen.get(200) ?? 0) / RUNS).toBeGreaterThan(0.2);
  },
  RUNS * 100,
);
