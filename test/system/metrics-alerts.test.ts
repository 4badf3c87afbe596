/**
 * The alert rules, the dashboard and the runbook, held against what a real daemon tells after real work: a metric or a
 * label that is named there and nowhere else would be an alert that never fires.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { expect, test } from '@jest/globals';
import { parse } from 'yaml';
import { letEverythingHappen } from '../support/eventful.js';
import { type Expression, readPromql } from '../support/promql.js';
import { type Scrape, scrape } from '../support/scrape.js';
import { setStage } from '../support/stage.js';
import { until } from '../support/until.js';

interface Rule {
  readonly record?: string;
  readonly alert?: string;
  readonly expr: string;
  readonly labels?: { readonly severity?: string };
  readonly annotations?: { readonly summary?: string; readonly runbook_url?: string };
}

interface Panel {
  readonly title: string;
  readonly type: string;
  readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[];
}

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');
const RULES_PATH = 'deploy/prometheus/alerts.yml';
const rules: Rule[] = parse(read(RULES_PATH)).groups.flatMap(({ rules }: { rules: Rule[] }) => rules);
const panels: Panel[] = JSON.parse(read('deploy/grafana/broadcastd.json')).panels;
const queries = panels.flatMap(({ title, targets = [] }) => targets.map((target) => ({ title, ...target })));

/** Prometheus adds these to each series. */
const OF_TARGET = ['job', 'instance'];

const stage = setStage({ RETRY_BASE_DELAY_MS: '300', RETRIES_CRON: '*/5 * * * *' });
let told: Scrape;
/** Label values by label, by metric: of the scrape, and of the recording rules. */
let known: Map<string, Map<string, Set<string>>>;

async function scrapeAfterWork(): Promise<void> {
  if (told) return;
  const daemon = await stage.start();
  await letEverythingHappen(stage);
  told = await until('the figures of the queue are read anew', async () => {
    const now = await scrape(daemon);
    return now.value('broadcastd_jobs', { status: 'failed' }) === 1 && now;
  });
  known = new Map();
  for (const { name, labels } of told.series) {
    const values = known.get(name) ?? new Map(OF_TARGET.map((label) => [label, new Set<string>()]));
    known.set(name, values);
    for (const [label, value] of Object.entries(labels)) {
      values.set(label, (values.get(label) ?? new Set()).add(value));
    }
  }
  for (const { record, expr } of rules) {
    if (record === undefined) continue;
    known.set(record, new Map(readPromql(expr).by.map((label) => [label, new Set()])));
  }
}

/** What an expression names that nobody tells. */
function unknownIn({ selected, by }: Expression): string[] {
  const faults: string[] = [];
  const everyLabel = new Set<string>();
  for (const { metric, matchers } of selected) {
    const labels = known.get(metric);
    if (!labels) {
      faults.push(`no metric ${metric}`);
      continue;
    }
    for (const label of labels.keys()) everyLabel.add(label);
    for (const { label, op, value } of matchers) {
      if (!labels.has(label)) faults.push(`${metric} has no label ${label}`);
      else if (op === '=' && !labels.get(label)?.has(value)) faults.push(`${metric} has no ${label} "${value}"`);
    }
  }
  faults.push(...by.filter((label) => !everyLabel.has(label)).map((label) => `nothing there has a label ${label}`));
  return faults;
}

/** The labels that a text fills in, such as `{{ $labels.queue }}` or, in a legend, `{{queue}}`. */
const filledIn = (text: string) =>
  [...text.matchAll(/\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}/g)].map(([, label]) => label ?? '');

test('every metric and label that the rules name is told by a daemon that did real work', async () => {
  await scrapeAfterWork();
  const faults = rules.flatMap(({ record, alert, expr, annotations = {} }) => {
    const expression = readPromql(expr);
    const all = expression.selected.flatMap(({ metric }) => [...(known.get(metric)?.keys() ?? [])]);
    const labels = new Set([...OF_TARGET, ...(expression.by.length > 0 ? expression.by : all)]);
    const missing = filledIn(annotations.summary ?? '').filter((label) => !labels.has(label));
    return [...unknownIn(expression), ...missing.map((label) => `its text names ${label}`)].map(
      (fault) => `${record ?? alert}: ${fault}`,
    );
  });
  expect(faults).toEqual([]);
  expect(rules.filter(({ alert }) => alert).length).toBeGreaterThanOrEqual(12);
}, 40_000);

test('every metric and label that the dashboard names is told as well', async () => {
  await scrapeAfterWork();
  const faults = queries.flatMap(({ title, expr, legendFormat }) => {
    const expression = readPromql(expr);
    const missing = filledIn(legendFormat).filter((label) => !expression.by.includes(label));
    return [...unknownIn(expression), ...missing.map((label) => `its legend names ${label}`)].map(
      (fault) => `${title}: ${fault}`,
    );
  });
  expect(faults).toEqual([]);
  expect(queries.length).toBeGreaterThanOrEqual(30);
  const shown = queries.flatMap(({ expr }) => readPromql(expr).selected.map(({ metric }) => metric));
  const ours = new Set([...known.keys()].filter((name) => name.startsWith('broadcastd_')));
  const bases = new Set([...ours].map((name) => name.replace(/_(bucket|sum|count)$/, '')));
  const unseen = [...bases].filter((base) => !shown.some((name) => name.startsWith(base)));
  expect(unseen).toEqual(['broadcastd_queue_paused']);
}, 40_000);

test('the check sees a metric, a label and a value that nobody tells', async () => {
  await scrapeAfterWork();
  const faultsOf = (expr: string) => unknownIn(readPromql(expr));
  expect(faultsOf('rate(broadcastd_no_such_total[5m])')).toEqual(['no metric broadcastd_no_such_total']);
  expect(faultsOf('broadcastd_ready_jobs{bot="x"}')).toEqual(['broadcastd_ready_jobs has no label bot']);
  expect(faultsOf('broadcastd_jobs{status="lost"}')).toEqual(['broadcastd_jobs has no status "lost"']);
  expect(faultsOf('sum by (bot) (broadcastd_jobs)')).toEqual(['nothing there has a label bot']);
  expect(() => readPromql('sum by (bot (x)')).toThrow('no PromQL');
}, 40_000);

test('every alert has a severity, a summary and its own paragraph in the runbook', () => {
  const anchors = [...read('docs/runbook.md').matchAll(/^## (.+)$/gm)].map(([, title]) => title);
  const alerts = rules.filter(({ alert }) => alert !== undefined);
  for (const { alert, labels, annotations } of alerts) {
    expect(labels?.severity).toMatch(/^(critical|warning|info)$/);
    expect(annotations?.summary).toBeTruthy();
    expect(annotations?.runbook_url).toBe(`docs/runbook.md#${alert?.toLowerCase()}`);
  }
  expect([...anchors].sort()).toEqual(alerts.map(({ alert }) => alert).sort());
});

const withPromtool = spawnSync('promtool', ['--version']).status === 0 ? test : test.skip;

withPromtool('promtool accepts the rules, and each alert rises at its trouble and none at a pause', () => {
  for (const what of [
    ['check', RULES_PATH],
    ['test', 'test/support/alerts.promtool.yml'],
  ]) {
    const [verb = '', file = ''] = what;
    const { stdout, stderr } = spawnSync('promtool', [verb, 'rules', file], { encoding: 'utf8' });
    expect(stderr).toBe('');
    expect(stdout).toContain('SUCCESS');
  }
});
