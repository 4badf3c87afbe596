/**
 * Writes what is derived from the table of settings: `.env.example`, and the configuration section of README.md between
 * its two markers; from the schemas of the service protocol, docs/service-openapi.json; from the catalogue of metrics the
 * tables of docs/metrics.md; and from the API's routes docs/openapi.json and the tables of docs/api.md. With `--check` it
 * writes nothing, names each stale file and exits with 1.
 *
 *     npx tsx scripts/generate.ts [--check]
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Setting, settings } from '../src/config/settings.js';
import { type Definition, ofProcess, ofQueue } from '../src/metrics/catalogue.js';
import { apiOpenapi, problemTable, routeTable } from './api-docs.js';
import { serviceOpenapi } from './service-openapi.js';

/** A generated file: its path below the root, and its whole text given the present one (empty if there is none). */
export interface Generated {
  readonly path: string;
  /** @throws Error when the present text has no place for what is generated. */
  render(present: string): string;
}

export const generated: readonly Generated[] = [
  { path: '.env.example', render: () => envExample() },
  { path: 'README.md', render: (present) => withBetween('configuration', configurationTables(), present, 'README.md') },
  { path: 'docs/metrics.md', render: (present) => withBetween('metrics', metricTables(), present, 'docs/metrics.md') },
  { path: 'docs/openapi.json', render: () => apiOpenapi() },
  { path: 'docs/api.md', render: (present) => withBetween('routes', routeTable(), present, 'docs/api.md') },
  { path: 'docs/api.md', render: (present) => withBetween('problems', problemTable(), present, 'docs/api.md') },
  { path: 'docs/service-openapi.json', render: () => serviceOpenapi() },
];

function main(): void {
  const root = resolve(import.meta.dirname, '..');
  const checkOnly = process.argv.includes('--check');
  for (const { path, render } of generated) {
    const file = resolve(root, path);
    const present = existsSync(file) ? readFileSync(file, 'utf8') : '';
    const text = render(present);
    if (text === present) continue;
    if (checkOnly) {
      process.stderr.write(`${path} is stale: run npx tsx scripts/generate.ts\n`);
      process.exitCode = 1;
    } else {
      writeFileSync(file, text);
      process.stdout.write(`${path} written\n`);
    }
  }
}

/** The page with its part between the markers of this name replaced. */
function withBetween(name: string, part: string, present: string, path: string): string {
  const [start, end] = [`<!-- ${name}:start -->`, `<!-- ${name}:end -->`];
  const text = present === '' ? `${start}\n${end}\n` : present;
  const [from, to] = [text.indexOf(start), text.indexOf(end)];
  if (from === -1 || to < from) throw new Error(`${path} lacks the markers ${start} and ${end}, in this order`);
  return `${text.slice(0, from + start.length)}\n\n${part}\n${text.slice(to)}`;
}

function metricTables(): string {
  const tables: [string, Readonly<Record<string, Definition>>][] = [
    ['Of each daemon: add them up', ofProcess],
    ['Of the queue: all daemons tell the same, take the maximum', ofQueue],
  ];
  const shown = tables.map(([title, metrics]) => {
    const rows = Object.values(metrics).map(({ name, kind, labels, help }) => {
      const by = labels.map((label) => `\`${label}\``).join(', ');
      return `| \`${name}\` | ${kind} | ${by} | ${inCell(help)} |\n`;
    });
    return `### ${title}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n${rows.join('')}`;
  });
  return shown.join('\n');
}

function configurationTables(): string {
  const tables = byGroup().map(([group, members]) => {
    const rows = members.map((setting) => {
      const secret = setting.secret ? ' (or a file: `_FILE`)' : '';
      return `| \`${setting.name}\`${secret} | ${standard(setting)} | ${inCell(sentences(setting))} |\n`;
    });
    return `**${group}**\n\n| variable | default | meaning |\n|---|---|---|\n${rows.join('')}`;
  });
  return tables.join('\n');
}

function standard(setting: Setting): string {
  if (setting.required) return 'required';
  return setting.default === undefined ? '' : `\`${setting.default}\``;
}

/** A bar ends a cell, and an angle bracket begins a tag. */
function inCell(text: string): string {
  return text.replaceAll('|', '\\|').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

function envExample(): string {
  const preamble = [
    '# Copy this file to .env and fill in what is not commented out. A line that is commented out shows the default, or',
    '# an example. Values are written without quotes, so that Docker, Compose and node --env-file all read them alike.',
    '# Every secret may be a file instead: NAME_FILE=/run/secrets/name.',
  ].join('\n');
  const groups = byGroup().map(([group, members]) => {
    const lines = members.map((setting) => {
      const line = `${setting.name}=${setting.default ?? setting.example}`;
      return `${commented(sentences(setting))}\n${mustBeFilledIn(setting) ? '' : '# '}${line}\n`;
    });
    return `# ---- ${group}\n\n${lines.join('\n')}`;
  });
  return `${preamble}\n\n${groups.join('\n')}`;
}

/** DATABASE_URL is not required, since the PG* variables will do, but it is what most will set. */
function mustBeFilledIn({ name, required }: Setting): boolean {
  return required === true || name === 'DATABASE_URL';
}

function byGroup(): [Setting['group'], Setting[]][] {
  const groups = new Map<Setting['group'], Setting[]>();
  for (const setting of settings as readonly Setting[]) {
    groups.set(setting.group, [...(groups.get(setting.group) ?? []), setting]);
  }
  return [...groups];
}

function sentences({ meaning, format }: Setting): string {
  return `${meaning} Write ${format.expects}.`;
}

/** Comment lines of at most 120 characters. */
function commented(text: string): string {
  const lines = [''];
  for (const word of text.split(' ')) {
    const last = lines.length - 1;
    const longer = `${lines[last]} ${word}`;
    if (longer.length < 120) lines[last] = longer;
    else lines.push(` ${word}`);
  }
  return lines.map((line) => `#${line}`).join('\n');
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) main();
