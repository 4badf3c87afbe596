/** Whether the daemon lives, is ready and well; the live view; and what the API says of itself. */
import type { Readable } from 'node:stream';
import { Type } from 'typebox';
import { docsPage, STYLE } from '../docs.js';
import { openapi } from '../openapi.js';
import { type DaemonState, type Route, route } from '../route.js';
import * as schemas from '../schemas.js';
import { isRunning } from './queues.js';

export const systemRoutes = [
  route({
    method: 'GET',
    url: '/livez',
    role: null,
    summary: 'The process lives. Never depends on the database.',
    answers: { 200: schemas.Alive },
    run: async () => ({ 200: { status: 'alive' as const } }),
  }),
  route({
    method: 'GET',
    url: '/readyz',
    role: null,
    summary: 'The daemon works, and its database answers.',
    answers: { 200: schemas.Readiness, 503: schemas.Readiness },
    async run({ state }) {
      const missing = whatIsMissing(state());
      if (missing.length > 0) return { 503: { status: 'not_ready' as const, missing } };
      return { 200: { status: 'ready' as const, missing } };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/health',
    role: null,
    summary: 'Whether the queue is well; with a token, more than that.',
    answers: { 200: schemas.Health, 503: schemas.Health },
    async run({ state, caller }) {
      const now = state();
      const healthy = isRunning(now) && now.databaseDownMs < DATABASE_PATIENCE_MS;
      const status = healthy ? ('healthy' as const) : ('unhealthy' as const);
      const more = {
        running: isRunning(now),
        activeJobs: now.activeJobs,
        listening: now.listening,
        databaseDownMs: Math.round(now.databaseDownMs),
        timestamp: new Date(),
      };
      const answer = caller === null ? { status } : { status, ...more };
      return healthy ? { 200: answer } : { 503: answer };
    },
  }),
  route({
    method: 'GET',
    url: '/api/admin/queue/events',
    role: 'viewer',
    summary:
      'Server-sent events: changed jobs and counts, once a second at most. `Last-Event-ID` goes on where it was.',
    contentType: 'text/event-stream',
    answers: { 200: Type.Unsafe<Readable>({ type: 'string' }) },
    problems: ['too_many_listeners'],
    async run({ feed, headers }) {
      const last = headers['last-event-id'];
      return { 200: await feed.open(typeof last === 'string' ? last : undefined) };
    },
  }),
];

/** Of all routes, these included. */
export function documentRoutes(all: () => readonly Route[], version: string) {
  return [
    route({
      method: 'GET',
      url: '/openapi.json',
      role: null,
      summary: 'This API as an OpenAPI 3.1 document.',
      answers: { 200: Type.Unsafe<object>({ type: 'object' }) },
      run: async () => ({ 200: openapi(all(), version) }),
    }),
    route({
      method: 'GET',
      url: '/docs',
      role: null,
      summary: 'The routes and problems as a page.',
      contentType: 'text/html; charset=utf-8',
      answers: { 200: Type.String() },
      run: async () => ({ 200: docsPage(all()) }),
    }),
    route({
      method: 'GET',
      url: '/docs.css',
      role: null,
      summary: 'How that page looks.',
      contentType: 'text/css; charset=utf-8',
      answers: { 200: Type.String() },
      run: async () => ({ 200: STYLE }),
    }),
  ];
}

/** A restart of the database is no reason to take the daemon out of service. */
const DATABASE_PATIENCE_MS = 15_000;

function whatIsMissing(state: DaemonState): string[] {
  const missing: string[] = [];
  if (!state.running) missing.push('the worker has not started');
  if (state.draining) missing.push('it is stopping');
  if (state.databaseDownMs >= DATABASE_PATIENCE_MS) missing.push('the database does not answer');
  return missing;
}
