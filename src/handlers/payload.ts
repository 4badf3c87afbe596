/**
 * Reads a job's payload by its type's schema. Both spellings of the known members are accepted (`broadcast_id`,
 * `broadcastId`), and unknown members are left alone: the service gets the row's own JSON, not what is read here.
 */
import { type Static, type TObject, type TSchema, Type } from 'typebox';
import { Compile } from 'typebox/compile';
import { PermanentError } from '../errors.js';
import type { Job } from '../job.js';

/** An id as bots have them. */
export const Id = Type.Union([Type.String({ minLength: 1, maxLength: 200 }), Type.Integer()], {
  description: 'a string or an integer',
});

/**
 * @returns a reader that gives the payload under its schema's names
 * @throws (the reader) PermanentError `invalid_data`, saying which member is wrong and how
 */
export function payloadReader<S extends TObject>(schema: S): (job: Job) => Static<S> {
  const compiled = Compile(schema);
  const names = Object.keys(schema.properties).map((name) => ({ name, camel: inCamelCase(name) }));
  return (job) => {
    const value = withKnownNames(parse(job), names);
    // The check makes it so: TypeScript cannot follow the schema through the generic parameter.
    if (compiled.Check(value)) return value as Static<S>;
    throw invalid(job, faultOf(value, schema));
  };
}

function parse(job: Job): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(job.payload);
  } catch (error) {
    throw invalid(job, `it cannot be read as JSON (${error instanceof Error ? error.message : String(error)})`);
  }
  // JSON.parse makes plain objects, whose members have names.
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw invalid(job, `it must be a JSON object, not ${Array.isArray(value) ? 'an array' : JSON.stringify(value)}`);
}

interface Name {
  readonly name: string;
  readonly camel: string;
}

function inCamelCase(name: string): string {
  return name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function withKnownNames(given: Record<string, unknown>, names: readonly Name[]): Record<string, unknown> {
  const known: Record<string, unknown> = {};
  for (const { name, camel } of names) {
    const value = Object.hasOwn(given, name) ? given[name] : Object.hasOwn(given, camel) ? given[camel] : undefined;
    if (value !== undefined) known[name] = value;
  }
  return known;
}

function faultOf(value: Record<string, unknown>, schema: TObject): string {
  for (const [name, property] of Object.entries<TSchema & { description?: string }>(schema.properties)) {
    const isRequired = schema.required?.includes(name) ?? false;
    if (value[name] === undefined && isRequired) return `${name} is missing (${property.description})`;
    if (value[name] !== undefined && !Compile(property).Check(value[name])) {
      return `${name} must be ${property.description}, not ${JSON.stringify(value[name]).slice(0, 100)}`;
    }
  }
  return 'it does not fit its schema';
}

function invalid(job: Job, fault: string): PermanentError {
  return new PermanentError(`Invalid data for ${job.type}: ${fault}`, { code: 'invalid_data' });
}
