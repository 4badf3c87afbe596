/**
 * The HTTP side of the daemon: whether it lives, whether it is ready, whether the queue is well. Bodies and times are
 * bounded, errors are problem documents (RFC 9457), and nothing but those three is answered without a token.
 */
import { type TypeBoxTypeProvider, TypeBoxValidatorCompiler } from '@fastify/type-provider-typebox';
import Fastify, { type FastifyError, type FastifyInstance } from 'fastify';
import type { Static } from 'typebox';
import { type Actor, authenticator } from './auth.js';
import { Alive, Health, type Problem, Readiness } from './schemas.js';

/** What the API must know of the running daemon. Durations in milliseconds. */
export interface DaemonState {
  readonly running: boolean;
  readonly draining: boolean;
  readonly activeJobs: number;
  readonly listening: boolean;
  readonly databaseDownMs: number;
}

export interface AdminSettings {
  readonly tokens: Parameters<typeof authenticator>[0];
  state(): DaemonState;
  /** Told of every error that is ours. */
  onError(error: Error, request: { method: string; route: string }): void;
}

const BODY_MAX_BYTES = 1024 * 1024;
const REQUEST_TIMEOUT_MS = 30_000;
/** A restart of the database is no reason to take the daemon out of service. */
const DATABASE_PATIENCE_MS = 15_000;

export function buildAdmin(settings: AdminSettings) {
  const app = Fastify({
    bodyLimit: BODY_MAX_BYTES,
    requestTimeout: REQUEST_TIMEOUT_MS,
    // Unknown members are an error, never dropped.
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
    forceCloseConnections: true,
  })
    .withTypeProvider<TypeBoxTypeProvider>()
    .setValidatorCompiler(TypeBoxValidatorCompiler);
  const whoAsks = authenticator(settings.tokens);

  app.get('/livez', { schema: { response: { 200: Alive } } }, async () => ({ status: 'alive' as const }));

  app.get('/readyz', { schema: { response: { 200: Readiness, 503: Readiness } } }, async (_request, reply) => {
    const missing = whatIsMissing(settings.state());
    if (missing.length > 0) return reply.code(503).send({ status: 'not_ready', missing });
    return { status: 'ready' as const, missing };
  });

  app.get('/api/admin/queue/health', { schema: { response: { 200: Health, 503: Health } } }, async (request, reply) => {
    const answer = health(settings.state(), whoAsks(request.headers.authorization));
    return reply.code(answer.status === 'healthy' ? 200 : 503).send(answer);
  });

  answerErrorsAsProblems(app, settings);
  return app;
}

function health(state: DaemonState, actor: Actor | null) {
  const healthy = state.running && !state.draining && state.databaseDownMs < DATABASE_PATIENCE_MS;
  const status = healthy ? ('healthy' as const) : ('unhealthy' as const);
  if (!actor) return { status };
  return {
    status,
    running: state.running && !state.draining,
    activeJobs: state.activeJobs,
    listening: state.listening,
    databaseDownMs: Math.round(state.databaseDownMs),
    timestamp: new Date().toISOString(),
  };
}

function whatIsMissing(state: DaemonState): string[] {
  const missing: string[] = [];
  if (!state.running) missing.push('the worker has not started');
  if (state.draining) missing.push('it is stopping');
  if (state.databaseDownMs >= DATABASE_PATIENCE_MS) missing.push('the database does not answer');
  return missing;
}

function answerErrorsAsProblems(
  app: Pick<FastifyInstance, 'setNotFoundHandler' | 'setErrorHandler'>,
  settings: AdminSettings,
) {
  app.setNotFoundHandler((request, reply) => {
    const detail = `${request.method} ${request.url.split('?')[0]?.slice(0, 200)} is not a route of this API`;
    return reply
      .code(404)
      .type(PROBLEM_TYPE)
      .send(problem(404, 'no_such_route', 'Not Found', detail));
  });
  app.setErrorHandler<FastifyError>((error, request, reply) => {
    const status = error.statusCode ?? 500;
    if (status >= 500) {
      settings.onError(error, { method: request.method, route: request.routeOptions.url ?? '' });
      return reply
        .code(500)
        .type(PROBLEM_TYPE)
        .send(problem(500, 'internal', 'Internal Server Error'));
    }
    return reply
      .code(status)
      .type(PROBLEM_TYPE)
      .send(problem(status, 'bad_request', 'Bad Request', error.message));
  });
}

const PROBLEM_TYPE = 'application/problem+json';

function problem(status: number, code: string, title: string, detail?: string): Static<typeof Problem> {
  return { type: 'about:blank', title, status, code, ...(detail === undefined ? {} : { detail }) };
}
