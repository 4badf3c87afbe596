/**
 * Label values that others choose (job types, queues), kept few: each new one is a further series to hold in memory here
 * and in Prometheus.
 */
const NAMES_MAX = 100;
const PAIRS_MAX = 300;

export interface Labels {
  type(name: string): string;
  queue(name: string): string;
  code(name: string): string;
  schedule(name: string): string;
  job(job: { readonly type: string; readonly queue: string }): { job_type: string; queue: string };
  /** The queues met so far. */
  queues(): Iterable<string>;
}

/** The first hundred names of each kind stand for themselves; whatever comes later is `other`. */
export function createLabels(): Labels {
  const queues = new Set<string>();
  const type = kept(new Set());
  const queue = kept(queues);
  const pairs = new Set<string>();
  return {
    type,
    queue,
    code: kept(new Set()),
    schedule: kept(new Set()),
    job(job) {
      const labels = { job_type: type(job.type), queue: queue(job.queue) };
      const pair = `${labels.job_type} ${labels.queue}`;
      if (pairs.has(pair)) return labels;
      if (pairs.size >= PAIRS_MAX) return { job_type: OTHER, queue: labels.queue };
      pairs.add(pair);
      return labels;
    },
    queues: () => queues,
  };
}

const OTHER = 'other';

function kept(known: Set<string>): (name: string) => string {
  return (name) => {
    if (known.has(name)) return name;
    if (known.size >= NAMES_MAX) return OTHER;
    known.add(name);
    return name;
  };
}
