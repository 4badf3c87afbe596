/** The description of the service's side: valid OpenAPI, examples that fit their schemas, and what the daemon sends. */
import { readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import { Validator } from '@seriousme/openapi-schema-validator';
import { Compile } from 'typebox/schema';
import { createRequestWriter } from '../../src/broadcast/request.js';
import { aJob } from '../support/broadcast-call.js';

const text = readFileSync(new URL('../../docs/service-openapi.json', import.meta.url), 'utf8');
const document = JSON.parse(text);

/** What one kind of body of the document may be, and its examples by name. */
interface Media {
  readonly schema: object;
  readonly example?: unknown;
  readonly examples?: Readonly<Record<string, { value: unknown }>>;
}

const medias = mediasIn(document.paths, 'paths');

test('it is valid OpenAPI 3.1', async () => {
  expect(document.openapi).toMatch(/^3\.1\./);
  expect(await validated(document)).toEqual({ valid: true });
});

test('the validator finds a slip', async () => {
  const slip = JSON.parse(text);
  slip.paths['/jobs/{job_type}'].post.responses['200'].description = 1;
  expect(await validated(slip)).toMatchObject({ valid: false });
});

test('every reference in it leads somewhere', () => {
  const references = [...text.matchAll(/"\$ref": "#\/([^"]+)"/g)].map(([, path = '']) => path);
  expect(references.length).toBeGreaterThan(20);
  const lost = references.filter(
    (path) => path.split('/').reduce((place, name) => place?.[name], document) === undefined,
  );
  expect(lost).toEqual([]);
});

describe('its examples', () => {
  const cases = medias.flatMap(([where, { schema, example, examples = {} }]) => {
    const named = Object.entries(examples).map(([name, { value }]) => ({ where: `${where}, ${name}`, schema, value }));
    return example === undefined ? named : [...named, { where, schema, value: example }];
  });

  test('are many', () => expect(cases.length).toBeGreaterThan(15));

  test.each(cases)('fit their schemas: $where', ({ schema, value }) => {
    expect(errorsOf(schema, value)).toEqual([]);
  });

  test('would not fit them with a slip', () => {
    expect(errorsOf({ $ref: '#/components/schemas/Continue' }, { status: 'continue' })).not.toEqual([]);
    expect(errorsOf({ $ref: '#/components/schemas/Operation' }, { status: 'asleep' })).not.toEqual([]);
    const miscounted = { status: 'completed', progress: { sent: -1 } };
    expect(errorsOf({ $ref: '#/components/schemas/Completed' }, miscounted)).not.toEqual([]);
  });
});

test('what the daemon sends is as it says: the envelope, and each header', () => {
  const write = createRequestWriter({
    ...{ baseUrl: 'http://service', version: '1.2.3', token: 'a-token', waitSeconds: 25, maxItems: 600 },
    secrets: [`whsec_${Buffer.from('a secret of the description').toString('base64')}`],
  });
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
  const { path, headers, body } = write(aJob({ traceparent }));
  expect(errorsOf({ $ref: '#/components/schemas/Envelope' }, JSON.parse(body))).toEqual([]);
  expect(Object.keys(document.paths)).toContain(path.replace('send_broadcast', '{job_type}'));

  const { parameters } = document.paths['/jobs/{job_type}'].post;
  const described = parameters.flatMap((one: { in: string; name: string }) =>
    one.in === 'header' ? [one.name.toLowerCase()] : [],
  );
  // OpenAPI has other places for these, or none.
  const elsewhere = ['accept', 'authorization', 'content-type', 'user-agent'];
  const sent = headers.filter((_, i) => i % 2 === 0);
  expect(sent.sort()).toEqual([...described, ...elsewhere].sort());
});

async function validated(specification: object) {
  const { valid, errors } = await new Validator().validate({ ...specification });
  return errors === undefined ? { valid } : { valid, errors };
}

/** The document itself is the schema's root, so that its references are found. */
function errorsOf(schema: object, value: unknown): unknown[] {
  const { components } = document;
  const [isValid, errors] = Compile({ components, allOf: [schema] }).Errors(value);
  return isValid ? [] : errors;
}

function mediasIn(place: unknown, path: string): [where: string, media: Media][] {
  if (typeof place !== 'object' || place === null) return [];
  return Object.entries(place).flatMap(([name, member]): [string, Media][] => {
    if (name !== 'content') return mediasIn(member, `${path} ${name}`);
    return Object.entries<Media>(member).map(([type, media]) => [`${path} ${type}`, media]);
  });
}
