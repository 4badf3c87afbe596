/** docs/performance.md: what was aimed at, how it was measured, the figures, and what limits them (bench/notes.md). */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { scenarios } from '../scenarios/index.ts';
import { type Result, readResult } from '../setup/results.ts';
import { chapters } from './chapters.ts';
import { method, places } from './method.ts';
import { plots } from './plots.ts';
import { figureTable, targetTable } from './tables.ts';
import { type Results, targets } from './targets.ts';

/** @param out the folder of the documents */
export async function writeReport(from: string, out: string): Promise<void> {
  const results: Results = Object.fromEntries(Object.keys(scenarios).map((name) => [name, readResult(from, name)]));
  const pictures = join(out, 'performance');
  rmSync(pictures, { recursive: true, force: true });
  mkdirSync(pictures, { recursive: true });
  const drawn = await plots(results);
  for (const [name, svg] of drawn) writeFileSync(join(pictures, `${name}.svg`), svg);
  writeFileSync(join(out, 'performance.md'), page(results, new Set(drawn.keys())));
}

function page(results: Results, drawn: ReadonlySet<string>): string {
  const notes = readFileSync(join(import.meta.dirname, '../notes.md'), 'utf8');
  const parts = [
    `# Performance

How fast broadcastd is, beside the two other queues in PostgreSQL that Node has and beside no queue at all, and what it
costs. \`npm run bench\` measures all of it and writes this page; \`npm run bench -- --help\` tells how to measure a part.
This page is generated from the figures in [bench/results](../bench/results); do not edit it.

${targetTable(targets(results))}`,
    notes.trim(),
    method(results),
    ...chapters.map((chapter) => chapterText(chapter, results[chapter.scenario] ?? null, drawn)),
    places(results),
  ];
  return `${parts
    .join('\n\n')
    .replaceAll(/\n{3,}/g, '\n\n')
    .trim()}\n`;
}

function chapterText(chapter: (typeof chapters)[number], result: Result | null, drawn: ReadonlySet<string>): string {
  const { title, words, tables, pictures } = chapter;
  if (result === null)
    return `## ${title}\n\n${words({})}\n\nNot measured yet: \`npm run bench -- ${chapter.scenario}\`.`;
  const shownTables = tables.map(({ columns, heading }) => figureTable(result, columns, heading));
  const images = pictures.filter((name) => drawn.has(name)).map((name) => `![${title}](performance/${name}.svg)`);
  return [`## ${title}`, words(result.options), ...shownTables, ...images].join('\n\n');
}
