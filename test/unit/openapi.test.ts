/** docs/openapi.json: valid, complete, and without a reference that leads nowhere. */
import { readFileSync } from 'node:fs';
import { expect, test } from '@jest/globals';
import { Validator } from '@seriousme/openapi-schema-validator';
import { catalogue } from '../../src/admin/problems.js';
import { allRoutes } from '../../src/admin/routes.js';
import { RESERVED_QUEUE_NAMES } from '../../src/job.js';

const text = readFileSync(new URL('../../docs/openapi.json', import.meta.url), 'utf8');
const document = JSON.parse(text);

const validated = async (specification: object) => (await new Validator().validate({ ...specification })).valid;

test('it is valid OpenAPI 3.1, and the validator finds a slip', async () => {
  expect(document.openapi).toMatch(/^3\.1\./);
  expect(await validated(document)).toBe(true);
  const slip = JSON.parse(text);
  slip.paths['/livez'].get.responses['200'].description = 1;
  expect(await validated(slip)).toBe(false);
});

test('it has every route, and no operation by the same name twice', () => {
  const operations = Object.values<Record<string, { operationId: string }>>(document.paths).flatMap((one) =>
    Object.values(one),
  );
  expect(operations).toHaveLength(allRoutes('0').length);
  expect(new Set(operations.map(({ operationId }) => operationId)).size).toBe(operations.length);
});

test('every reference in it leads somewhere', () => {
  const references = [...text.matchAll(/"\$ref": "#\/([^"]+)"/g)].map(([, path = '']) => path);
  expect(references.length).toBeGreaterThan(100);
  const lost = references.filter(
    (path) => path.split('/').reduce((place, name) => place?.[name], document) === undefined,
  );
  expect(lost).toEqual([]);
});

test('every word that begins a path with a queue’s name beside it is reserved', () => {
  // GET /limits/:key is a path that a queue called "limits" would stand in.
  const words = allRoutes('0').flatMap(({ url }) => /^\/api\/admin\/queue\/([a-z]+)\/[^/]+$/.exec(url)?.[1] ?? []);
  expect([...new Set(words)].filter((word) => !RESERVED_QUEUE_NAMES.includes(word))).toEqual([]);
});

test('every problem has a word for machines, a cause and advice', () => {
  for (const [code, { status, title, cause, advice }] of Object.entries(catalogue)) {
    expect([code, status >= 400, title.length > 5, cause.length > 10, advice.length > 10]).toEqual([
      code,
      true,
      true,
      true,
      true,
    ]);
  }
});
