/**
 * The HTTP side of the daemon: the table of routes, served. Whoever asks is known before anything else is read; bodies
 * and times are bounded; a request is held against its route's schemas; and every error is a problem document.
 */
import { randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import type { Reports } from '../db/reports.js';
import { type Caller, gatekeeper, type Token } from './auth.js';
import { checkOf } from './checks.js';
import { EventFeed } from './feed.js';
import { stringify } from './json.js';
import { type MetricsSettings, metricsRoute } from './metrics.js';
import { problemDocument, Refusal, refusalOf } from './problems.js';
import type { DaemonState, Route, ScheduleFacts, Surroundings } from './route.js';
import { allRoutes } from './routes.js';

export type { DaemonState } from './route.js';

export interface AdminSettings {
  /** Nothing but /livez and /readyz, beside /metrics. */
  readonly probesOnly?: boolean;
  readonly tokens: readonly Token[];
  readonly reports: Reports;
  readonly redacted: readonly string[];
  readonly maxPayloadBytes: number;
  readonly version: string;
  readonly metrics: MetricsSettings;
  state(): DaemonState;
  schedules(): readonly ScheduleFacts[];
  /** Told of every error that is ours. */
  onError(error: Error, request: { method: string; route: string; requestId: string }): void;
}

declare module 'fastify' {
  interface FastifyRequest {
    caller: Caller | null;
  }
}

const BODY_MAX_BYTES = 1024 * 1024;
/** What stands around the payload in a request to enqueue it. */
const ENVELOPE_BYTES = 16 * 1024;
const REQUEST_TIMEOUT_MS = 30_000;

export function buildAdmin(settings: AdminSettings): FastifyInstance {
  const app = Fastify({
    bodyLimit: BODY_MAX_BYTES,
    requestTimeout: REQUEST_TIMEOUT_MS,
    forceCloseConnections: true,
    // A limit's key may be a bot's id, percent-encoded.
    routerOptions: { maxParamLength: 500 },
    requestIdHeader: false,
    genReqId: ({ headers }) => {
      const given = headers['x-request-id'];
      return typeof given === 'string' && /^[\w.-]{1,64}$/.test(given) ? given : randomUUID();
    },
    frameworkErrors: (error, request, reply) => void refuse(error, request, reply),
  });
  const keeper = gatekeeper(settings.tokens);
  const feed = new EventFeed(settings.reports);
  const surroundings: Surroundings = {
    ...{ reports: settings.reports, redacted: settings.redacted, feed },
    state: () => settings.state(),
    schedules: () => settings.schedules(),
  };

  app.decorateRequest('caller', null);
  app.setReplySerializer(stringify);
  readBodies(app);
  app.addHook('onRequest', async (request, reply) => {
    reply.headers({ ...SECURITY_HEADERS, 'x-request-id': request.id });
  });
  app.addHook('preClose', async () => feed.close());

  const isServed = ({ url }: Route) => !settings.probesOnly || url === '/livez' || url === '/readyz';
  for (const route of allRoutes(settings.version).filter(isServed)) serve(app, route);
  app.register(metricsRoute(settings.metrics));

  app.setNotFoundHandler(async (request) => {
    if (request.url.startsWith('/api')) keeper.admit(request.headers.authorization, request.ip, 'viewer');
    const path = request.url.split('?')[0]?.slice(0, 200);
    throw new Refusal('no_such_route', `${request.method} ${path} is not a route of this API; /docs lists them`);
  });
  app.setErrorHandler(refuse);
  return app;

  function serve(to: FastifyInstance, route: Route): void {
    const { method, url, role, contentType } = route;
    const check = checkOf(route);
    to.route({
      method,
      url,
      // A live view has no end to wait for.
      exposeHeadRoute: contentType !== 'text/event-stream',
      bodyLimit: route.takesPayload ? settings.maxPayloadBytes + ENVELOPE_BYTES : BODY_MAX_BYTES,
      // Before the body is read.
      onRequest: async (request) => {
        const { authorization } = request.headers;
        if (role !== null) request.caller = keeper.admit(authorization, request.ip, role);
        else if (authorization !== undefined) request.caller = keeper.known(authorization, request.ip);
      },
      handler: async (request, reply) => {
        const { caller, headers, id: requestId } = request;
        const signal = goneSignal(reply);
        const body = request.body instanceof Body ? request.body : NO_BODY;
        const parts = check({ params: request.params, query: request.query, body: body.value });
        const by = { name: caller?.name ?? '', role: caller?.role ?? '', requestId };
        const asked = { ...surroundings, ...parts, bodyText: body.text, headers, caller, by, signal };
        // The check has just made the parts what the route's own types say; the table forgets those.
        const sent = await route.run(asked as Parameters<Route['run']>[0]);
        const [[status, answer] = ['500', null]] = Object.entries(sent);
        reply.code(Number(status)).type(contentType ?? 'application/json; charset=utf-8');
        return answer instanceof Readable || typeof answer === 'string' ? reply.send(answer) : answer;
      },
    });
  }

  function refuse(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
    const refusal = refusalOf(error, request.routeOptions.bodyLimit) ?? new Refusal('internal', '');
    const document = problemDocument(refusal, request.id);
    if (document.code === 'internal') {
      const cause = error instanceof Error ? error : new Error(String(error));
      settings.onError(cause, { method: request.method, route: request.routeOptions.url ?? '', requestId: request.id });
    }
    return reply
      .code(document.status)
      .headers({ ...SECURITY_HEADERS, 'x-request-id': request.id, ...refusal.headers })
      .type('application/problem+json')
      .send(document);
  }
}

/** A request's body: as it came, and read. */
class Body {
  constructor(
    readonly text: string,
    readonly value: unknown,
  ) {}
}
const NO_BODY = new Body('', undefined);

function readBodies(app: FastifyInstance): void {
  const parse = app.getDefaultJsonParser('error', 'error');
  app.removeAllContentTypeParsers();
  app.addContentTypeParser<string>('application/json', { parseAs: 'string' }, (request, text, done) => {
    if (text === '') return done(null, NO_BODY);
    parse(request, text, (error, value) => {
      if (error) done(new Refusal('invalid_json', error.message));
      else done(null, new Body(text, value));
    });
  });
}

/**
 * Written out: of what the usual package sends, Strict-Transport-Security and upgrade-insecure-requests would turn a page
 * that is served over plain HTTP on a LAN blank.
 */
const SECURITY_HEADERS = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
};

/**
 * Fires when the caller goes away before it has its answer. Not Fastify's own signal: on Node 20 that fires as soon as the
 * body has been read.
 */
function goneSignal({ raw }: FastifyReply): AbortSignal {
  const gone = new AbortController();
  raw.once('close', () => {
    if (!raw.writableEnded) gone.abort();
  });
  return gone.signal;
}
