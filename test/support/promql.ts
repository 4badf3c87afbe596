/** What a PromQL expression names: its metrics and their labels, read out of Prometheus' own grammar. */
import { parser } from '@prometheus-io/lezer-promql';

interface Selected {
  readonly metric: string;
  readonly matchers: readonly { label: string; op: string; value: string }[];
}

export interface Expression {
  readonly selected: readonly Selected[];
  /** Labels that it groups or joins by. */
  readonly by: readonly string[];
}

/** @throws Error for what is no PromQL; Grafana's variables are put in first */
export function readPromql(text: string): Expression {
  const expr = text.replaceAll('$__rate_interval', '5m');
  const selected: { metric: string; matchers: { label: string; op: string; value: string }[] }[] = [];
  const by = new Set<string>();
  const textOf = ({ from, to }: { from: number; to: number }) => expr.slice(from, to);
  parser.parse(expr).iterate({
    enter({ name, type, node }) {
      if (type.isError) throw new Error(`no PromQL at character ${node.from}: ${expr}`);
      if (name === 'VectorSelector') {
        const metric = node.getChild('Identifier');
        selected.push({ metric: metric ? textOf(metric) : '', matchers: [] });
      } else if (name === 'UnquotedLabelMatcher') {
        const [label, op, value] = ['LabelName', 'MatchOp', 'StringLiteral'].map((part) => {
          const child = node.getChild(part);
          return child ? textOf(child) : '';
        });
        selected.at(-1)?.matchers.push({ label: label ?? '', op: op ?? '', value: (value ?? '').slice(1, -1) });
      } else if (name === 'LabelName' && node.parent?.name === 'GroupingLabels') {
        by.add(textOf(node));
      }
    },
  });
  return { selected, by: [...by] };
}
