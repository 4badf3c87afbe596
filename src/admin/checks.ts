/** Holds a request against its route's schemas. What does not fit is told in words, and never dropped or bent. */
import type { TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { Refusal } from './problems.js';
import { Nothing, type Route } from './route.js';

export interface Parts {
  readonly params: unknown;
  readonly query: unknown;
  readonly body: unknown;
}

/** @returns a check that gives the parts back, numbers of path and query as numbers @throws (the check) Refusal */
export function checkOf(route: Route): (given: Parts) => Parts {
  const { method, params = Nothing, query = Nothing, body = Nothing } = route;
  const checkParams = checkPart('the path', params);
  const checkQuery = checkPart('the query', query);
  const checkBody = checkPart('the body', body);
  const mayLackBody = route.body === undefined || route.bodyIsOptional === true;
  return (given) => ({
    params: checkParams(given.params),
    query: checkQuery(withNumbers(given.query, query)),
    body: method === 'GET' ? {} : checkBody(given.body ?? (mayLackBody ? {} : undefined)),
  });
}

function checkPart(part: string, schema: TSchema): (value: unknown) => unknown {
  const compiled = Compile(schema);
  return (value) => {
    if (compiled.Check(value)) return value;
    if (value === undefined) throw new Refusal('invalid_request', `${part} is missing: ${wanted(schema)}`);
    throw new Refusal('invalid_request', faultIn(part, schema, compiled.Errors(value)));
  };
}

interface Fault {
  readonly keyword: string;
  readonly instancePath: string;
  readonly message: string;
  readonly params: object;
}

function faultIn(part: string, schema: TSchema, faults: readonly Fault[]): string {
  const unknown = faults.find(({ keyword }) => keyword === 'additionalProperties');
  if (unknown && 'additionalProperties' in unknown.params) {
    const names = [unknown.params.additionalProperties]
      .flat()
      .slice(0, 5)
      .map((name) => JSON.stringify(name).slice(0, 60));
    return `${part} has an unknown member: ${names.join(', ')}; known are ${known(schema)}`;
  }
  const [first] = faults;
  if (!first) return `${part} does not fit its schema`;
  const where = `${part}${first.instancePath.slice(0, 100).replaceAll('/', ' / ')}`;
  const ways = faults.filter(({ instancePath, keyword }) => instancePath === first.instancePath && keyword !== 'anyOf');
  const description = descriptionOf(schema, first.instancePath.split('/')[1] ?? '');
  // Where there are words for it, nobody has to read a regular expression.
  const told = ways.map(({ keyword, message }) => (keyword === 'pattern' && description ? 'does not fit' : message));
  const words = [...new Set(told)].slice(0, 4).join(', or ');
  return `${where} ${words}${description === '' ? '' : ` (${description})`}`;
}

function known(schema: TSchema): string {
  // The only members without a name of their own are those of job_data, in a query.
  const names = [...Object.keys(propertiesOf(schema)), ...('patternProperties' in schema ? ['data.<name>'] : [])];
  return names.length === 0 ? 'none' : names.join(', ');
}

/** What to send instead of nothing. */
function wanted(schema: TSchema): string {
  const { required = [] } = schema as { required?: readonly string[] }; // schemas of objects have it or lack it
  if (required.length === 0) return `send a JSON object with some of ${known(schema)}`;
  const described = required.map((name) => {
    const description = descriptionOf(schema, name);
    return description === '' ? `"${name}"` : `"${name}" (${description.replace(/\.$/, '')})`;
  });
  return `send a JSON object with ${described.join(', ')}`;
}

function descriptionOf(schema: TSchema, name: string): string {
  return propertiesOf(schema)[name]?.description ?? '';
}

function propertiesOf(
  schema: TSchema,
): Readonly<Record<string, { readonly type?: string; readonly description?: string }>> {
  // Schemas of objects have them; those of anything else have none.
  return (
    (schema as { properties?: Readonly<Record<string, { type?: string; description?: string }>> }).properties ?? {}
  );
}

/** A query is all text: where the schema wants a number and the text is one, it becomes it. */
function withNumbers(query: unknown, schema: TSchema): unknown {
  if (typeof query !== 'object' || query === null) return query;
  const properties = propertiesOf(schema);
  const entries = Object.entries(query).map(([name, value]) => {
    const isNumber = properties[name]?.type === 'integer' && typeof value === 'string' && /^-?\d{1,15}$/.test(value);
    return [name, isNumber ? Number(value) : value];
  });
  return Object.fromEntries(entries);
}
