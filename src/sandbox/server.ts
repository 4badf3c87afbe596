/**
 * The sandbox: a small but whole broadcast service that keeps every promise of the service protocol up to its level.
 * The demo's partner, the tests' partner, and the example for the bot's team to write their own by.
 *
 * Level 3 runs a broadcast by itself and says how far it is; level 2 works in slices that can be resumed, paused and
 * cancelled; level 1 does all in one call. All three answer each Idempotency-Key once and send to each person at most
 * once, whatever is killed and whenever. Level 0 remembers nothing, for showing what that costs.
 */
import { timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';
import {
  type FastifyPluginAsyncTypebox,
  type TypeBoxTypeProvider,
  TypeBoxValidatorCompiler,
} from '@fastify/type-provider-typebox';
import Fastify, { type FastifyBaseLogger, type FastifyRequest } from 'fastify';
import { Webhook } from 'standardwebhooks';
import { Type } from 'typebox';
import { ConfigError } from '../errors.js';
import { problem, problemFrom, Refusal, send } from './answer.js';
import { control } from './control.js';
import { Faults } from './faults.js';
import type { Flaw, Flaws } from './flaws.js';
import { Body, type Level, readCall } from './request.js';
import { prepareSchema } from './schema.js';
import { Service } from './service.js';
import { openPools } from './store.js';

export interface SandboxOptions {
  /** Postgres, reached directly and not through a transaction pooler. */
  readonly databaseUrl: string;
  /** Default 127.0.0.1. */
  readonly host?: string | undefined;
  /** Default 0: any free port. */
  readonly port?: number | undefined;
  /** Standard Webhooks secrets (`whsec_…`); a request must be signed with one of them. None: no signature needed. */
  readonly secrets?: readonly string[] | undefined;
  /** The bearer token that a call must carry. */
  readonly token?: string | null | undefined;
  /** Users to make when there are none; default 1000. */
  readonly recipients?: number | undefined;
  /** Default 2. */
  readonly level?: Level | undefined;
  /** Messages a second of each call; default null, as fast as possible. The daemon may ask for less. */
  readonly perSecond?: number | null | undefined;
  /** Broadcasts that one person may be sent on one day; default 100. */
  readonly dailyLimit?: number | undefined;
  /** Rules of the contract to break; default none. */
  readonly flaws?: readonly Flaw[] | undefined;
  /** A pino logger; default none. */
  readonly logger?: FastifyBaseLogger | false | undefined;
}

export interface Sandbox {
  readonly url: string;
  /** Finishes the batches in hand, answers the calls in flight with 503, and leaves nothing open. */
  close(): Promise<void>;
}

const BODY_LIMIT_BYTES = 2 * 1024 * 1024;
const CLOSE_GRACE_MS = 5_000;

/** @throws ConfigError for a malformed secret, DatabaseUnavailable, or the operating system's error when the port is taken */
export async function startSandbox(options: SandboxOptions): Promise<Sandbox> {
  const signatures = (options.secrets ?? []).map(readSecret);
  await prepareSchema(options.databaseUrl, options.recipients ?? 1000);
  const app = Fastify({
    ...(options.logger ? { loggerInstance: options.logger } : { logger: false }),
    bodyLimit: BODY_LIMIT_BYTES,
    requestTimeout: 30_000,
    routerOptions: { maxParamLength: 600 },
  }).withTypeProvider<TypeBoxTypeProvider>();
  const pools = openPools(options.databaseUrl, (error) => app.log.warn({ err: error }, 'a connection was lost'));
  const faults = new Faults();
  const closing = new AbortController();
  const { level = 2, perSecond = null, dailyLimit = 100 } = options;
  const flaws = new Set(options.flaws);
  const service = new Service({ level, perSecond, dailyLimit, flaws }, pools, faults, closing.signal, app.log);

  app.setValidatorCompiler(TypeBoxValidatorCompiler);
  app.addHook('onRequest', async (_request, reply) => {
    if (!flaws.has('says-no-level')) reply.header('x-broadcast-level', String(level));
  });
  app.addHook('onSend', async (_request, reply) => {
    // A connection that was busy when the sandbox began to close would be kept alive, and keep it from closing.
    if (closing.signal.aborted) reply.header('connection', 'close');
  });
  app.setNotFoundHandler((_request, reply) => send(reply, problem(404, 'not_found', 'There is no such route.')));
  app.setErrorHandler((error, request, reply) => {
    const answer = problemFrom(error);
    if (answer.status >= 500) request.log.error({ err: error }, 'a request failed');
    return send(reply, answer);
  });
  await app.register(protocol(options.token ?? null, signatures, service, flaws));
  await app.register(control(pools, faults));

  const shut = async () => {
    closing.abort();
    const impatience = setTimeout(() => app.server.closeAllConnections(), CLOSE_GRACE_MS);
    await app.close();
    clearTimeout(impatience);
    await service.idle();
    await Promise.all([pools.runs.end(), pools.statements.end()]);
  };
  try {
    if (level === 3) await service.operations.goOn();
    await app.listen({ host: options.host ?? '127.0.0.1', port: options.port ?? 0 });
  } catch (error) {
    await shut();
    throw error;
  }
  let shutting: Promise<void> | undefined;
  return {
    url: urlOf(app.server.address()),
    close: () => {
      shutting ??= shut();
      return shutting;
    },
  };
}

/** The endpoint of the protocol, and what becomes of its calls at level 3. */
function protocol(
  token: string | null,
  signatures: readonly Webhook[],
  service: Service,
  flaws: Flaws,
): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.addHook('onRequest', async (request, reply) => {
      if (flaws.has('redirects') && !request.url.endsWith('?moved')) {
        return reply.redirect(`${request.url}?moved`, 307);
      }
      if (token && !flaws.has('any-token') && !isSame(request.headers.authorization ?? '', `Bearer ${token}`)) {
        reply.header('www-authenticate', 'Bearer');
        throw new Refusal(problem(401, 'bad_token', 'The bearer token is missing or wrong.'));
      }
    });
    // The signature is of the bytes, so it is checked before anything reads them.
    app.removeContentTypeParser('application/json');
    app.addContentTypeParser(
      'application/json',
      { parseAs: 'buffer' },
      async (request: FastifyRequest, raw: Buffer) => {
        const isKnown = signatures.some((signature) => isSigned(signature, raw, request.headers));
        if (signatures.length > 0 && !isKnown && !flaws.has('any-signature')) {
          throw new Refusal(problem(401, 'bad_signature', 'The signature is missing, wrong or too old.'));
        }
        return parse(raw);
      },
    );
    const Params = Type.Object({ type: Type.String({ minLength: 1, maxLength: 200 }) });
    app.post('/jobs/:type', { schema: { params: Params, body: Body } }, async (request, reply) => {
      const call = readCall(request.params.type, request.headers, request.body, flaws);
      return await service.answer(call, reply);
    });

    const Operation = Type.Object({ id: Type.String({ maxLength: 200, pattern: '^[^\\u0000]+$' }) });
    app.get('/operations/:id', { schema: { params: Operation } }, async (request, reply) =>
      send(reply, await service.operations.look(request.params.id)),
    );
    app.delete('/operations/:id', { schema: { params: Operation } }, async (request, reply) =>
      send(reply, await service.operations.cancel(request.params.id)),
    );
  };
}

function readSecret(secret: string): Webhook {
  try {
    return new Webhook(secret);
  } catch {
    // Without its value: it may be a real secret with a slip in it.
    throw new ConfigError(['A signing secret is not of the form whsec_ and base64.']);
  }
}

function isSigned(signature: Webhook, raw: Buffer, headers: IncomingHttpHeaders): boolean {
  const signed: Record<string, string> = {};
  for (const name of ['webhook-id', 'webhook-timestamp', 'webhook-signature'])
    signed[name] = String(headers[name] ?? '');
  try {
    signature.verify(raw, signed, { jsonParse: false });
    return true;
  } catch {
    return false;
  }
}

function parse(raw: Buffer): unknown {
  try {
    return JSON.parse(raw.toString());
  } catch {
    throw new Refusal(problem(400, 'invalid_json', 'The body is not JSON.', { retriable: false }));
  }
}

function isSame(given: string, wanted: string): boolean {
  const [one, other] = [Buffer.from(given), Buffer.from(wanted)];
  return one.length === other.length && timingSafeEqual(one, other);
}

function urlOf(address: AddressInfo | string | null): string {
  if (address === null || typeof address === 'string') return String(address);
  const everywhere = address.address === '0.0.0.0' || address.address === '::';
  const host = everywhere ? '127.0.0.1' : address.family === 'IPv6' ? `[${address.address}]` : address.address;
  return `http://${host}:${address.port}`;
}
