/**
 * Who may import whom. The table below is the house's order; the test reads the imports out of every source file's syntax
 * tree (so strings and comments cannot deceive it) and names each one that the table does not allow.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { posix } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { parseSync } from '@swc/core';

/** An area is a file or folder right below src/. Lists of modules take `folder/*`; what a rule leaves out is free. */
interface Rule {
  /** Which of our modules it may import; its own are always allowed. */
  readonly ours: readonly string[] | 'all';
  /** Of these it may import types, by `import type` alone. */
  readonly types?: readonly string[];
  /** The only npm packages it may import; a package stands for its scope as well (fastify: @fastify/*). */
  readonly packages?: readonly string[];
  readonly neverPackages?: readonly string[];
  /** The only modules of Node it may import; each stands for those below it (timers: timers/promises). */
  readonly builtins?: readonly string[];
  /** May use `process`. */
  readonly process?: true;
}

const table: Readonly<Record<string, Rule>> = {
  main: { ours: 'all', process: true },
  cli: { ours: 'all' },
  admin: { ours: ['job', 'errors', 'db/reports'] },
  queue: {
    ours: ['job', 'errors'],
    // Schemas, and the ticks of the schedules: neither touches the world.
    packages: ['typebox', 'node-cron'],
    builtins: ['crypto', 'events', 'perf_hooks', 'timers'],
  },
  db: { ours: ['job', 'errors'], types: ['queue/ports'], neverPackages: ['fastify'] },
  handlers: { ours: ['job', 'errors'] },
  broadcast: { ours: ['job', 'errors'], neverPackages: ['pg', 'fastify'] },
  observe: { ours: [], types: ['queue/ports'], packages: ['pino'] },
  metrics: { ours: ['errors'], types: ['queue/ports', 'db/measures'], packages: ['prom-client'] },
  logger: { ours: [], types: ['config'], packages: ['pino', 'pino-pretty'] },
  config: { ours: ['job', 'errors'] },
  sandbox: { ours: ['job', 'errors', 'broadcast/protocol'] },
  // Writes requests with the daemon's own hand, and judges the answers by itself.
  contract: {
    ours: [
      'job',
      'errors',
      ...['protocol', 'progress', 'reply', 'request', 'wording'].map((name) => `broadcast/${name}`),
    ],
    neverPackages: ['pg', 'fastify', 'undici'],
  },
  job: { ours: [] },
  errors: { ours: [] },
  // What a Node bot imports never starts a worker; the page is a project of its own.
  client: { ours: ['job', 'errors', 'db/*'], neverPackages: ['fastify', 'pino', 'undici'] },
  dashboard: { ours: [] },
};

describe('the sources', () => {
  const sources = readSources(new URL('../../', import.meta.url));

  test('import only what the table allows', () => {
    expect(violations(sources)).toEqual([]);
  });

  test('are really read', () => {
    expect([...sources.keys()]).toEqual(expect.arrayContaining(['src/job.ts', 'src/errors.ts', 'src/config.ts']));
    const found = importsOf('src/config.ts', sources.get('src/config.ts') ?? '').imports.map((one) => one.from);
    expect(found).toEqual(expect.arrayContaining(['./config/settings.js', './errors.js']));
  });
});

describe('the check', () => {
  test.each<[string, string, string, string[]]>([
    ['a static import', 'admin/routes', `import { worker } from '../queue/worker.js';`, ['queue/worker']],
    ['a side effect', 'handlers/send', `import '../db/jobs.js';`, ['db/jobs']],
    ['a dynamic import', 'broadcast/client', `const queue = await import('../queue/ports.js');`, ['queue/ports']],
    ['a dynamic import in backquotes', 'broadcast/client', 'void import(`../db/pool.js`);', ['db/pool']],
    ['a re-export', 'handlers/index', `export { call } from '../broadcast/client.js';`, ['broadcast/client']],
    ['a re-export of everything', 'job', `export * from './errors.js';`, ['errors']],
    ['an import inside a type', 'errors', `export type J = import('./job.js').Job;`, ['job']],
    ['a require', 'queue/worker', `const pg = require('pg');`, ['pg']],
    ['an import-require', 'queue/worker', `import pg = require('pg');`, ['pg']],
    ['a module out of src', 'queue/worker', `import config from '../../jest.config.js';`, ['../../jest.config.js']],
    ['the package itself', 'sandbox/server', `import { BroadcastQueue } from 'broadcastd';`, ['broadcastd']],
    [
      'a package in the core',
      'queue/worker',
      `import pino from 'pino'; import { request } from 'undici';`,
      ['pino', 'undici'],
    ],
    ['a type of a package in the core', 'queue/worker', `import type { Pool } from 'pg';`, ['pg']],
    ['a scoped package', 'db/pool', `import { x } from '@fastify/sensible';`, ['@fastify/sensible']],
    [
      'a module of Node in the core',
      'queue/worker',
      `import 'http'; import 'node:fs/promises';`,
      ['http', 'fs/promises'],
    ],
    ['pg in the client', 'broadcast/client', `import pg from 'pg';`, ['pg']],
    ['another package for the observer', 'observe', `import { x } from 'typebox';`, ['typebox']],
    [
      'the client for the sandbox',
      'sandbox/server',
      `import { c } from '../broadcast/client.js';`,
      ['broadcast/client'],
    ],
    ['the database for the config', 'config', `import { p } from './db/pool.js';`, ['db/pool']],
    ['the config for the core', 'queue/worker', `import type { Config } from '../config.js';`, ['config']],
    ['process from Node', 'config', `import { env } from 'node:process';`, ['process']],
  ])('sees %s', (_what, module, text, forbidden) => {
    const file = `src/${module}.ts`;
    const found = violations(new Map([[file, text]]));
    expect(found).toEqual(forbidden.map((name) => expect.stringContaining(`${file} must not import ${name}:`)));
  });

  test('lets types through only when the whole import is one of types', () => {
    const found = violations(
      new Map([
        [
          'src/db/jobs.ts',
          `import type { Store } from '../queue/ports.js'; export type { Claim } from '../queue/ports.js';`,
        ],
        ['src/db/pool.ts', `import { type Store } from '../queue/ports.js';`],
        ['src/observe.ts', `import { Store } from './queue/ports.js';`],
      ]),
    );
    expect(found).toEqual([
      'src/db/pool.ts must not import queue/ports: only its types, by `import type`',
      'src/observe.ts must not import queue/ports: only its types, by `import type`',
    ]);
  });

  test.each([
    'process.exit();',
    'const { env } = process;',
    'export const p = { process };',
    'export const pid = globalThis.process.pid;',
    `export const pid = globalThis['process'].pid;`,
    'export type Env = typeof process.env;',
  ])('sees the use of process in: %s', (text) => {
    for (const module of ['queue/worker', 'cli/status', 'config']) {
      expect(violations(new Map([[`src/${module}.ts`, text]]))).toEqual([
        `src/${module}.ts must not use process: only src/main.ts may`,
      ]);
    }
    expect(violations(new Map([['src/main.ts', text]]))).toEqual([]);
  });

  test('sees an import that it cannot check, and a place that the table does not know', () => {
    expect(
      violations(
        new Map([
          ['src/handlers/index.ts', 'export const load = (name: string) => import(name);'],
          ['src/misc/helpers.ts', 'export {};'],
        ]),
      ),
    ).toEqual([
      'src/handlers/index.ts must not import a computed name: it cannot be checked',
      'src/misc/helpers.ts is in no area of the table',
    ]);
  });

  test('finds nothing in an orderly tree, in comments, in strings or in names of members', () => {
    const orderly = {
      'src/main.ts': `import pg from 'pg'; import { start } from './queue/worker.js'; process.exit();`,
      'src/cli/status.ts': `import { x } from '../db/reports.js'; import { loadConfig } from '../config.js';`,
      'src/admin/routes.ts': `import Fastify from 'fastify'; import { page } from '../db/reports.js'; import './auth.js';`,
      'src/queue/worker.ts': `import { setTimeout } from 'node:timers/promises'; import type { Job } from '../job.js';
        import { Type } from 'typebox'; import Value from 'typebox/value';
        // import pg from 'pg'; process.exit()
        export const text = "import pg from 'pg'; process.exit()";
        export const job = { process() {} }; job.process();`,
      'src/config.ts': `import { settings } from './config/settings.js';`,
      'src/config/settings.ts': `import { ConfigError } from '../errors.js'; import { validate } from 'node-cron';`,
      'src/sandbox/server.ts': `import { Request } from '../broadcast/protocol.js'; import pg from 'pg';`,
      'src/client/index.ts': `import type { Pool } from 'pg'; import { enqueue } from '../db/jobs.js';`,
    };
    expect(violations(new Map(Object.entries(orderly)))).toEqual([]);
  });
});

// ---- the check itself

/** One sentence for each import or use of `process` that the table does not allow. `files`: texts by path from the root. */
function violations(files: ReadonlyMap<string, string>): string[] {
  return [...files].flatMap(([file, text]) => {
    const module = file.replace(/^src\//, '').replace(/\.tsx?$/, '');
    const area = areaOf(module);
    const rule = table[area];
    if (rule === undefined) return [`${file} is in no area of the table`];
    const { imports, usesProcess } = importsOf(file, text);
    const found = imports.flatMap(({ from, typeOnly }) => {
      const refusal = refuse(rule, area, posix.dirname(module), from, typeOnly);
      return refusal === null ? [] : [`${file} must not import ${refusal}`];
    });
    if (usesProcess && !rule.process) found.push(`${file} must not use process: only src/main.ts may`);
    return found;
  });
}

function areaOf(module: string): string {
  return module.split('/')[0] ?? module;
}

/** What is wrong with an import from a module in `folder` (below src/), or null. `from` null: a computed name. */
function refuse(rule: Rule, area: string, folder: string, from: string | null, typeOnly: boolean): string | null {
  if (from === null) return 'a computed name: it cannot be checked';
  if (from.startsWith('.')) {
    const module = posix.join(folder, from).replace(/\.(js|ts|tsx)$/, '');
    if (module.startsWith('..')) return `${from}: it is not in src`;
    if (rule.ours === 'all' || areaOf(module) === area || allows(rule.ours, module)) return null;
    if (!allows(rule.types ?? [], module)) return `${module}: ${area} may not`;
    return typeOnly ? null : `${module}: only its types, by \`import type\``;
  }
  if (isBuiltin(from)) {
    const name = from.replace(/^node:/, '');
    if (name === 'process') return rule.process ? null : `${name}: only src/main.ts may`;
    return covers(rule.builtins, name) === false ? `${name}: ${area} may not` : null;
  }
  const refused = covers(rule.packages, from) === false || covers(rule.neverPackages, from) === true;
  return refused || /^broadcastd(\/|$)/.test(from) ? `${from}: ${area} may not` : null;
}

/** Whether a list of our modules has this one, by its name or by its folder's `folder/*`. */
function allows(list: readonly string[], module: string): boolean {
  return list.includes(module) || list.includes(`${areaOf(module)}/*`);
}

/** Whether a list has this name, its beginning or its scope; undefined when there is no list. */
function covers(list: readonly string[] | undefined, name: string): boolean | undefined {
  return list?.some((one) => name === one || name.startsWith(`${one}/`) || name.startsWith(`@${one}/`));
}

interface Import {
  /** As written; null when it is computed at run time. */
  readonly from: string | null;
  readonly typeOnly: boolean;
}

function importsOf(file: string, text: string): { imports: Import[]; usesProcess: boolean } {
  const tree = parseSync(text, { syntax: 'typescript', tsx: file.endsWith('x'), target: 'es2023' });
  const imports: Import[] = [];
  let usesProcess = false;
  for (const node of nodes(tree)) {
    const typeOnly = node.typeOnly === true || node.type === 'TsImportType';
    switch (node.type) {
      case 'ImportDeclaration':
      case 'ExportAllDeclaration':
      case 'ExportNamedDeclaration':
        if (node.source) imports.push({ from: literal(node.source), typeOnly });
        break;
      case 'TsImportType':
        imports.push({ from: literal(node.argument), typeOnly });
        break;
      case 'TsExternalModuleReference':
        imports.push({ from: literal(node.expression), typeOnly });
        break;
      case 'CallExpression':
        if (isNode(node.callee) && (node.callee.type === 'Import' || refersTo(node.callee, 'require'))) {
          const [first] = Array.isArray(node.arguments) ? node.arguments : [];
          imports.push({ from: literal(first?.expression), typeOnly });
        }
        break;
      case 'MemberExpression':
        usesProcess ||= refersTo(node.object, 'globalThis') && namesProcess(node.property);
        break;
      default:
        usesProcess ||= refersTo(node, 'process');
    }
  }
  return { imports, usesProcess };
}

type Node = { readonly type: string } & Readonly<Record<string, unknown>>;

function isNode(value: unknown): value is Node {
  return typeof value === 'object' && value !== null && 'type' in value && typeof value.type === 'string';
}

/** Every node of a syntax tree. */
function* nodes(value: unknown): Generator<Node> {
  if (typeof value !== 'object' || value === null) return;
  if (isNode(value)) yield value;
  for (const part of Object.values(value)) yield* nodes(part);
}

function literal(node: unknown): string | null {
  if (!isNode(node)) return null;
  if (node.type === 'StringLiteral' && typeof node.value === 'string') return node.value;
  if (node.type !== 'TemplateLiteral' || !Array.isArray(node.quasis) || node.quasis.length !== 1) return null;
  return String(node.quasis[0]?.cooked);
}

/** A variable of this name; swc gives only those an `optional`, and not the names of members. */
function refersTo(node: unknown, name: string): boolean {
  return isNode(node) && node.type === 'Identifier' && node.value === name && 'optional' in node;
}

function namesProcess(property: unknown): boolean {
  if (!isNode(property)) return false;
  return property.value === 'process' || (property.type === 'Computed' && literal(property.expression) === 'process');
}

function readSources(root: URL): Map<string, string> {
  const paths = readdirSync(new URL('src/', root), { recursive: true, encoding: 'utf8' })
    .map((path) => `src/${path.replaceAll('\\', '/')}`)
    .filter((path) => /\.tsx?$/.test(path))
    .sort();
  return new Map(paths.map((path) => [path, readFileSync(new URL(path, root), 'utf8')]));
}
