/** How far a job is, in words and as a bar. */
import type { JsonText, Reports } from '../db/reports.js';
import { duration } from './table.js';
import { bar } from './terminal.js';

type Shown = NonNullable<Awaited<ReturnType<Reports['job']>>>;

/** How far it is; nothing where the service has not said. */
export function progressLines(job: Pick<Shown, 'progress' | 'progress_rate' | 'status'>): string[] {
  const { total, processed, sent, skipped, failed, unknown } = countersOf(job.progress);
  if (processed === null) return [];
  const counts = `sent ${sent ?? 0}, skipped ${skipped ?? 0}, failed ${failed ?? 0}, unknown ${unknown ?? 0}`;
  if (total === null) return [`${processed} handled: ${counts}`];
  const rate = ['pending', 'processing', 'retry'].includes(job.status) ? job.progress_rate : null;
  const pace = rate ? `, ${rate.toFixed(1)} a second, ${duration(((total - processed) / rate) * 1000)} left` : '';
  return [`${bar(processed, total)}  ${processed} of ${total}: ${counts}${pace}`];
}

type Counters = Record<'total' | 'processed' | 'sent' | 'skipped' | 'failed' | 'unknown', number | null>;

export function countersOf(progress: JsonText | null): Counters {
  const known: unknown = progress === null ? {} : JSON.parse(progress.text);
  const count = (name: string) => {
    const value: unknown = typeof known === 'object' && known !== null ? Reflect.get(known, name) : null;
    return typeof value === 'number' ? value : null;
  };
  return {
    total: count('total'),
    processed: count('processed'),
    sent: count('sent'),
    skipped: count('skipped'),
    failed: count('failed'),
    unknown: count('unknown'),
  };
}
