/** Limits, gates and the breaker: looked at, and changed while the daemons run. */
import { Type } from 'typebox';
import { cursorOf, keyOf } from '../cursors.js';
import { Refusal } from '../problems.js';
import { route, strict } from '../route.js';
import * as schemas from '../schemas.js';

const ofLimit = strict({ key: schemas.LimitKey });
const PerSecond = Type.Number({ minimum: 0.001, maximum: 1_000_000 });
const MaxConcurrent = Type.Integer({ minimum: 1, maximum: 100_000 });

export const flowRoutes = [
  route({
    method: 'GET',
    url: '/api/admin/queue/limits',
    role: 'viewer',
    summary: 'The shared limits, by key.',
    query: schemas.PageQuery,
    answers: { 200: schemas.Limits },
    problems: ['invalid_cursor'],
    async run({ reports, query: { limit = schemas.LIMIT, cursor } }) {
      const limits = await reports.limits(keyOf('limits', cursor) ?? '', limit);
      const nextCursor = cursorOf('limits', limits.length === limit ? (limits.at(-1)?.key ?? null) : null);
      return { 200: { count: limits.length, nextCursor, limits } };
    },
  }),
  route({
    method: 'PUT',
    url: '/api/admin/queue/limits/:key',
    role: 'admin',
    summary: 'Sets a limit: messages a second, jobs at once, or both. What is left out is not limited.',
    params: ofLimit,
    body: strict({
      per_second: Type.Optional(Type.Union([PerSecond, Type.Null()])),
      max_concurrent: Type.Optional(Type.Union([MaxConcurrent, Type.Null()])),
    }),
    answers: { 200: schemas.LimitSet },
    problems: ['invalid_value', 'no_such_limit'],
    async run({ reports, params: { key }, body: { per_second = null, max_concurrent = null }, by }) {
      if (per_second === null && max_concurrent === null) {
        throw new Refusal('invalid_request', 'give per_second, max_concurrent or both; DELETE takes a limit away');
      }
      await reports.setLimit(key, per_second, max_concurrent, by);
      const limit = await reports.limit(key);
      if (!limit) throw new Refusal('no_such_limit', `the limit ${key} was taken away just now`);
      return { 200: { success: true as const, message: `the limit ${key} is set`, limit } };
    },
  }),
  route({
    method: 'DELETE',
    url: '/api/admin/queue/limits/:key',
    role: 'admin',
    summary: 'Takes a limit away.',
    params: ofLimit,
    answers: { 200: schemas.Done },
    problems: ['no_such_limit'],
    async run({ reports, params: { key }, by }) {
      if (!(await reports.dropLimit(key, by))) throw new Refusal('no_such_limit', `there is no limit ${key}`);
      return { 200: { success: true as const, message: `the limit ${key} is gone` } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/gates',
    role: 'viewer',
    summary: 'The gates that a 429 or 503 closed: nobody calls until they open.',
    query: schemas.PageQuery,
    answers: { 200: schemas.Gates },
    problems: ['invalid_cursor'],
    async run({ reports, query: { limit = schemas.LIMIT, cursor } }) {
      const gates = await reports.gates(keyOf('gates', cursor) ?? '', limit);
      const nextCursor = cursorOf('gates', gates.length === limit ? (gates.at(-1)?.key ?? null) : null);
      return { 200: { count: gates.length, nextCursor, gates } };
    },
  }),
  route({
    method: 'POST',
    url: '/api/admin/queue/gates/:key/open',
    role: 'operator',
    summary: 'Opens a gate before its time; `service` closes the breaker as well.',
    params: strict({
      key: Type.String({ pattern: '^(service|bot:.{1,100})$', description: '`service`, or `bot:<id>`.' }),
    }),
    answers: { 200: schemas.Done },
    async run({ reports, params: { key }, by }) {
      const opened = await reports.openGate(key, by);
      const message = opened ? `the gate ${key} is open` : `the gate ${key} was open already`;
      return { 200: { success: true as const, message } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/breaker',
    role: 'viewer',
    summary: 'The breaker between the daemons and the service.',
    answers: { 200: schemas.Breaker },
    async run({ reports }) {
      return { 200: await reports.breaker() };
    },
  }),
];
