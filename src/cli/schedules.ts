/** The two schedules of the configuration. */
import cron from 'node-cron';
import type { Config } from '../config.js';
import type { Schedule } from '../queue/maintenance.js';

export function schedulesOf({ schedules }: Config): Schedule[] {
  const all = [
    { name: 'process_retries', cron: schedules.retriesCron, type: 'process_retries' },
    { name: 'cleanup_queue', cron: schedules.cleanupCron, type: 'cleanup_queue' },
  ];
  return all.flatMap(({ cron, ...rest }) => (cron === null ? [] : [{ ...rest, cron, data: '{}' }]));
}

/** The schedules, and when each ticks next. */
export function ticks(schedules: readonly Schedule[], timeZone: string) {
  const tasks = schedules.map(({ name, cron: expression }) => {
    const task = cron.createTask(expression, () => {}, { timezone: timeZone });
    return { name, cron: expression, timeZone, task };
  });
  return () => tasks.map(({ task, ...facts }) => ({ ...facts, nextTick: task.getNextRuns(1)[0] ?? null }));
}
