/** What the table of routes and the catalogue of problems say for people: docs/openapi.json, and the tables of docs/api.md. */
import { readFileSync } from 'node:fs';
import { openapi } from '../src/admin/openapi.js';
import { catalogue } from '../src/admin/problems.js';
import { allRoutes } from '../src/admin/routes.js';

const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
const routes = allRoutes(version);

export function apiOpenapi(): string {
  return `${JSON.stringify(openapi(routes, version), null, 2)}\n`;
}

export function routeTable(): string {
  const rows = routes.map(({ method, url, role, summary }) => {
    const path = url.replace('/api/admin/queue/', '');
    return `| ${method} | \`${path}\` | ${role ?? '–'} | ${summary} |\n`;
  });
  return `| method | path | role | what it does |\n|---|---|---|---|\n${rows.join('')}`;
}

export function problemTable(): string {
  const rows = Object.entries(catalogue).map(
    ([code, { status, cause, advice }]) => `| ${status} | \`${code}\` | ${cause} | ${advice} |\n`,
  );
  return `| status | code | what happened | what to do |\n|---|---|---|---|\n${rows.join('')}`;
}
