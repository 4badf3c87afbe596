/**
 * The API by its production factory on a real queue, asked without a socket. Every answer is held against the OpenAPI
 * document before a test sees it: a status that the document lacks, a member it does not name or a wrong type is an error.
 */
import { readFileSync } from 'node:fs';
import type { FastifyInstance } from 'fastify';
import { Compile } from 'typebox/schema';
import type { Role } from '../../src/admin/auth.js';
import { buildAdmin, type DaemonState } from '../../src/admin/server.js';
import { type Database, openDatabase } from '../../src/db/pool.js';
import { openReports } from '../../src/db/reports.js';
import { openQueue, type TestQueue } from './store.js';

export const TOKENS = (['viewer', 'operator', 'admin'] as const).map((role) => ({
  name: `the-${role}`,
  role,
  secret: `secret-of-the-${role}-0123456789`,
}));

export function secretOf(role: Role): string {
  return TOKENS.find((token) => token.role === role)?.secret ?? '';
}

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, unknown>>;
  // What a test expects of an answer's members is its own affair: any.
  // biome-ignore lint/suspicious/noExplicitAny: as said above
  readonly body: any;
  readonly text: string;
}

interface Ask {
  /** Whose token; null: none. The admin's if left out. */
  readonly as?: Role | null;
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface TestApi {
  readonly queue: TestQueue;
  readonly app: FastifyInstance;
  /** Faults of ours that the API has told of. */
  readonly faults: readonly Error[];
  state: DaemonState;
  /** `path` is below /api/admin/queue, unless it begins with two slashes, one of which then goes. */
  ask(method: string, path: string, ask?: Ask): Promise<Answer>;
  close(): Promise<void>;
}

export interface ApiSettings {
  readonly tokens?: typeof TOKENS;
  readonly redacted?: readonly string[];
  readonly statementTimeoutMs?: number;
}

export async function openApi(settings: ApiSettings = {}): Promise<TestApi> {
  const queue = await openQueue();
  const database = openDatabase({
    url: queue.url,
    schema: 'public',
    pooled: false,
    applicationName: 'broadcastd api test',
    connectionsMax: 3,
    statementTimeoutMs: settings.statementTimeoutMs ?? 5000,
  });
  const faults: Error[] = [];
  const api = { state: { ...WELL } };
  const app = buildApi(database, { ...settings, state: () => api.state, onError: (error) => faults.push(error) });

  const ask = async (method: string, path: string, { as = 'admin', body, headers = {} }: Ask = {}): Promise<Answer> => {
    const token = as === null ? undefined : secretOf(as);
    const response = await app.inject({
      // Methods that Fastify does not know are asked for as well.
      method: method as 'GET',
      url: path.startsWith('//') ? path.slice(1) : `/api/admin/queue${path}`,
      headers: {
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { payload: typeof body === 'string' ? body : JSON.stringify(body) }),
    });
    const isJson = /json/.test(String(response.headers['content-type']));
    const answer = {
      status: response.statusCode,
      headers: response.headers,
      body: isJson ? JSON.parse(response.body) : undefined,
      text: response.body,
    };
    const fault = documented(method, path, answer);
    if (fault !== null) throw new Error(`${method} ${path} answered ${answer.status} ${answer.text}: ${fault}`);
    return answer;
  };

  return {
    ...{ queue, app, faults, ask },
    get state() {
      return api.state;
    },
    set state(state: DaemonState) {
      api.state = state;
    },
    async close() {
      await app.close();
      await database.close();
      await queue.close();
    },
  };
}

const WELL: DaemonState = { running: true, draining: false, activeJobs: 0, listening: true, databaseDownMs: 0 };

export function buildApi(
  database: Database,
  settings: ApiSettings & { state?: () => DaemonState; onError?: (error: Error) => void },
): FastifyInstance {
  const redacted = settings.redacted ?? [];
  return buildAdmin({
    tokens: settings.tokens ?? TOKENS,
    reports: openReports(database, redacted),
    redacted,
    maxPayloadBytes: 1024 * 1024,
    version: '0.0.0',
    metrics: { token: null, scrape: async () => ({ contentType: 'text/plain', body: '' }) },
    state: settings.state ?? (() => WELL),
    schedules: () => [{ name: 'cleanup_queue', cron: '0 2 * * *', timeZone: 'UTC', nextTick: new Date() }],
    onError: settings.onError ?? (() => {}),
  });
}

// ---- held against the document

const document = JSON.parse(readFileSync(new URL('../../docs/openapi.json', import.meta.url), 'utf8'));
const strictDocument = closed(document);

/** What is wrong with an answer by the document, or null. */
function documented(method: string, path: string, { status, headers, body }: Omit<Answer, 'text'>): string | null {
  const pathname = (path.startsWith('//') ? path.slice(1) : `/api/admin/queue${path}`).split('?')[0] ?? '';
  const operation = operationOf(method, pathname);
  if (operation === null) {
    const isProblem = [400, 401, 403, 404, 429, 503].includes(status);
    return isProblem ? faultsIn({ $ref: '#/components/schemas/Problem' }, body) : 'the document has no such route';
  }
  const response = operation.responses[status];
  if (!response) return 'the document has no such status';
  const type = String(headers['content-type']).split(';')[0] ?? '';
  const media = response.content[type];
  if (!media) return `the document has no ${type} there`;
  return body === undefined ? null : faultsIn(media.schema, body);
}

interface Operation {
  readonly responses: Readonly<Record<string, { content: Readonly<Record<string, { schema: object }>> }>>;
}

/** As routers do: a path of plain words goes before one with a parameter. */
function operationOf(method: string, pathname: string): Operation | null {
  const templates = Object.keys(strictDocument.paths).filter((template) => {
    const pattern = template.replace(/[.]/g, '\\.').replace(/\{\w+\}/g, '[^/]+');
    return new RegExp(`^${pattern}$`).test(pathname) && strictDocument.paths[template][method.toLowerCase()];
  });
  const [best] = templates.sort((a, b) => a.split('{').length - b.split('{').length || a.indexOf('{') - b.indexOf('{'));
  return best === undefined ? null : strictDocument.paths[best][method.toLowerCase()];
}

const compiled = new Map<string, ReturnType<typeof Compile>>();

function faultsIn(schema: object, value: unknown): string | null {
  const key = JSON.stringify(schema);
  const check = compiled.get(key) ?? Compile({ components: strictDocument.components, allOf: [schema] });
  compiled.set(key, check);
  const [isValid, errors] = check.Errors(value);
  return isValid ? null : JSON.stringify(errors).slice(0, 1000);
}

/** The document with every object closed: a member that it does not name is a fault. */
// biome-ignore lint/suspicious/noExplicitAny: it is JSON of our own
function closed(value: any): any {
  if (Array.isArray(value)) return value.map(closed);
  if (typeof value !== 'object' || value === null) return value;
  const members = Object.fromEntries(Object.entries(value).map(([name, member]) => [name, closed(member)]));
  const isObject =
    value.type === 'object' && value.properties !== undefined && value.additionalProperties === undefined;
  return isObject ? { ...members, additionalProperties: false } : members;
}
