/** Who works, when what is due by the clock, and who did what. */
import { Type } from 'typebox';
import { cursorOf, idOf } from '../cursors.js';
import { route, strict } from '../route.js';
import * as schemas from '../schemas.js';

export const recordRoutes = [
  route({
    method: 'GET',
    url: '/api/admin/queue/workers',
    role: 'viewer',
    summary: 'The daemons: slots, jobs at hand, last sign of life.',
    answers: { 200: schemas.Workers },
    async run({ reports }) {
      const workers = await reports.workers();
      return { 200: { count: workers.length, workers } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/schedules',
    role: 'viewer',
    summary: 'The schedules of this daemon, and when each last enqueued its job.',
    answers: { 200: schemas.Schedules },
    async run({ reports, schedules }) {
      const ticks = await reports.lastTicks();
      const rows = schedules().map(({ name, cron, timeZone, nextTick }) => ({
        ...{ name, cron, time_zone: timeZone, last_tick: ticks.get(name) ?? null, next_tick: nextTick },
      }));
      const known = new Set(rows.map(({ name }) => name));
      // Of another daemon, or switched off since.
      const others = [...ticks].flatMap(([name, last_tick]) =>
        known.has(name) ? [] : [{ name, cron: null, time_zone: null, last_tick, next_tick: null }],
      );
      return { 200: { count: rows.length + others.length, schedules: [...rows, ...others] } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/audit',
    role: 'viewer',
    summary: 'Every change that somebody made through the API, newest first.',
    query: strict({
      actor: Type.Optional(Type.String({ maxLength: 50 })),
      target: Type.Optional(Type.String({ maxLength: 200 })),
      limit: Type.Optional(schemas.Limit),
      cursor: Type.Optional(schemas.Cursor),
    }),
    answers: { 200: schemas.Audit },
    problems: ['invalid_cursor'],
    async run({ reports, query: { actor = null, target = null, limit = schemas.LIMIT, cursor } }) {
      const before = idOf('audit', cursor) ?? LAST;
      const entries = await reports.audit({ before, actor, target, limit });
      const nextCursor = cursorOf('audit', entries.length === limit ? (entries.at(-1)?.id ?? null) : null);
      return { 200: { count: entries.length, nextCursor, entries } };
    },
  }),
];

/** Above every id. */
const LAST = '9223372036854775807';
