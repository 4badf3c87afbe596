/** The plots of the report, as SVG drawn without a browser. */
import { distribution, mid, shown, subjects } from './figures.ts';
import type { Results } from './targets.ts';

const WIDTH = 760;
/** Without a browser the width of a text is only guessed, and too small: hence the gaps, and the grids' fixed margins. */
const LEGEND = { left: 60, top: 34, itemGap: 48 };

/** By file name, without its ending; only of what was measured. */
export async function plots(results: Results): Promise<Map<string, string>> {
  const { init } = await import('echarts');
  const drawn = new Map<string, string>();
  const draw = (name: string, height: number, option: object | null) => {
    if (option === null) return;
    const chart = init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height });
    chart.setOption({
      animation: false,
      backgroundColor: '#ffffff',
      textStyle: { fontFamily: 'sans-serif' },
      ...option,
    });
    drawn.set(name, `${chart.renderToSVGString()}\n`);
    chart.dispose();
  };
  draw('drain', 300, bars(results, 'drain', 'jobs a second', [['jobsPerSecond', 'jobs a second']]));
  draw(
    'cpu',
    300,
    bars(results, 'drain', 'CPU per job, µs', [
      ['workerCpuMicros', 'worker'],
      ['postgresCpuMicros', 'PostgreSQL'],
    ]),
  );
  draw('latency', 360, curves(results, 'latency', 'milliseconds from INSERT to call'));
  draw('backlog', 240, bars(results, 'backlog', 'jobs a second', [['jobsPerSecond', 'jobs a second']]));
  draw('scaling', 360, scaling(results));
  return drawn;
}

/** Horizontal bars, a subject each; several figures stand one upon the other. */
function bars(
  results: Results,
  scenario: string,
  title: string,
  figures: readonly (readonly [string, string])[],
): object | null {
  const result = results[scenario];
  if (!result) return null;
  const names = subjects(result);
  return {
    title: { text: title, left: 0, textStyle: { fontSize: 14, fontWeight: 'normal' } },
    ...(figures.length > 1 ? { legend: { ...LEGEND, left: 210, top: 4 } } : {}),
    grid: { left: 210, right: 64, top: 40, bottom: 32 },
    xAxis: { type: 'value' },
    yAxis: { type: 'category', inverse: true, data: names },
    series: figures.map(([figure, name]) => ({
      name,
      type: 'bar',
      stack: 'all',
      data: names.map((subject) => mid(result, subject, figure)),
      label: labelled(figures.length > 1 ? 'inside' : 'right'),
    })),
  };
}

function labelled(position: string) {
  return {
    show: true,
    position,
    formatter: ({ value }: { value: number | null }) => (value === null ? '' : shown(value)),
  };
}

/** How many of a hundred wait at most so long. */
function curves(results: Results, scenario: string, title: string): object | null {
  const result = results[scenario];
  if (!result) return null;
  const lines = subjects(result).flatMap((name) => {
    const values = distribution(result, name);
    // The slowest one of all is chance.
    return values
      ? [{ name, type: 'line', showSymbol: false, data: values.slice(0, 100).map((ms, share) => [ms, share]) }]
      : [];
  });
  return {
    title: { text: title, left: 0, textStyle: { fontSize: 14, fontWeight: 'normal' } },
    legend: LEGEND,
    grid: { left: 60, right: 24, top: 84, bottom: 32 },
    xAxis: { type: 'log', min: 1 },
    yAxis: { type: 'value', max: 100, name: '% within' },
    series: lines,
  };
}

function scaling(results: Results): object | null {
  const result = results.scaling;
  if (!result) return null;
  const names = [...new Set(subjects(result).map((subject) => subject.replace(/ × \d+$/, '')))];
  const counts = [...new Set(subjects(result).map((subject) => Number(/\d+$/.exec(subject)?.[0])))].sort(
    (a, b) => a - b,
  );
  return {
    title: {
      text: 'jobs a second, by the number of daemons',
      left: 0,
      textStyle: { fontSize: 14, fontWeight: 'normal' },
    },
    legend: LEGEND,
    grid: { left: 60, right: 24, top: 84, bottom: 32 },
    xAxis: { type: 'category', data: counts.map(String) },
    yAxis: { type: 'value' },
    series: names.map((name) => ({
      name,
      type: 'bar',
      data: counts.map((count) => mid(result, `${name} × ${count}`, 'jobsPerSecond')),
      label: labelled('top'),
    })),
  };
}
