/** The table of routes as an OpenAPI 3.1 document. docs/openapi.json is its committed text. */
import type { TSchema } from 'typebox';
import { type Code, catalogue } from './problems.js';
import { Nothing, type Route } from './route.js';
import * as schemas from './schemas.js';

type Json = { readonly [member: string]: unknown };

export function openapi(routes: readonly Route[], version: string): Json {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const route of routes) {
    const path = route.url.replace(/:(\w+)/g, '{$1}');
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(route) };
  }
  return {
    openapi: '3.1.1',
    info: {
      title: 'broadcastd',
      version,
      summary: 'The admin API of the daemon.',
      description:
        'Every route below /api needs a bearer token of ADMIN_TOKENS. Roles: viewer, operator, admin; each may do what ' +
        'those before it may. Lists are keyset pages: hand on `nextCursor`. Errors are problem documents (RFC 9457).',
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: '/' }],
    security: [{ token: [] }],
    paths,
    components: {
      schemas: Object.fromEntries([...named].map(([schema, name]) => [name, members(schema)])),
      securitySchemes: { token: { type: 'http', scheme: 'bearer' } },
    },
  };
}

/** Which problems a route may answer with: its own, and those that any of its kind may. */
function problemsOf({ method, role, problems = [] }: Route): Code[] {
  const codes: Code[] = ['invalid_request', ...problems, 'internal'];
  if (role !== null) {
    codes.push('not_authenticated', 'too_many_failed_sign_ins', 'no_tokens', 'database_unavailable', 'took_too_long');
    codes.push('invalid_value');
    if (role !== 'viewer') codes.push('role_too_low');
  }
  if (method !== 'GET') codes.push('invalid_json', 'body_too_large', 'unsupported_media_type');
  return [...new Set(codes)];
}

function operation(route: Route): Json {
  const { method, url, role, summary, query = Nothing, params = Nothing, body, answers, contentType } = route;
  const responses: Record<string, unknown> = {};
  for (const [status, schema] of Object.entries(answers)) {
    const type = contentType?.split(';')[0] ?? 'application/json';
    responses[status] = {
      description: status < '300' ? 'done' : 'not so',
      content: { [type]: { schema: refer(schema) } },
    };
  }
  for (const code of problemsOf(route)) {
    const status = String(catalogue[code].status);
    const earlier = responses[status] as { description: string; content: Json } | undefined; // written here only
    const described = earlier?.content['application/problem+json'] ? `${earlier.description}, ${code}` : code;
    const problem = { 'application/problem+json': { schema: refer(schemas.Problem) } };
    responses[status] = { description: described, content: { ...earlier?.content, ...problem } };
  }
  return {
    operationId: `${method.toLowerCase()}${url.replace(/[^A-Za-z]+(.)?/g, (_, next?: string) => next?.toUpperCase() ?? '')}`,
    summary,
    ...(role === null ? { security: [{}, { token: [] }] } : { 'x-role': role }),
    parameters: [...parametersIn('path', params), ...parametersIn('query', query), ...headersOf(route)],
    ...(body === undefined
      ? {}
      : {
          requestBody: {
            required: !route.bodyIsOptional,
            content: { 'application/json': { schema: refer(body) } },
          },
        }),
    responses,
  };
}

function parametersIn(place: 'path' | 'query', schema: TSchema): Json[] {
  const { properties = {}, required = [], patternProperties } = schema as ObjectSchema;
  const parameters = Object.entries(properties).map(([name, property]) => ({
    ...{ name, in: place, required: required.includes(name), schema: refer(property) },
  }));
  if (!patternProperties) return parameters;
  const description = 'Any number of them, such as `data.broadcast_id=42`: a member of job_data, compared as text.';
  return [...parameters, { name: 'data.<name>', in: place, description, schema: { type: 'string', maxLength: 200 } }];
}

function headersOf({ takesPayload, contentType }: Route): Json[] {
  if (takesPayload) return [{ name: 'Idempotency-Key', in: 'header', schema: { type: 'string', maxLength: 202 } }];
  if (contentType === 'text/event-stream') return [{ name: 'Last-Event-ID', in: 'header', schema: { type: 'string' } }];
  return [];
}

/** Of the schemas that describe objects. */
interface ObjectSchema extends TSchema {
  readonly properties?: Readonly<Record<string, TSchema>>;
  readonly required?: readonly string[];
  readonly patternProperties?: unknown;
}

/** The exported object schemas have names; the rest stands where it is used. */
const named = new Map<unknown, string>(
  Object.entries(schemas)
    .filter(([, schema]) => isObject(schema) && schema.type === 'object')
    .map(([name, one]) => [one, name]),
);

function refer(schema: unknown): unknown {
  const name = named.get(schema);
  return name === undefined ? members(schema) : { $ref: `#/components/schemas/${name}` };
}

function members(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(refer);
  if (!isObject(schema)) return schema;
  return Object.fromEntries(Object.entries(schema).map(([name, member]) => [name, refer(member)]));
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
