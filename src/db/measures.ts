/**
 * Figures of the whole queue, for /metrics. Each is one short statement that goes by an index or reads a small table,
 * and never counts further than it says. None needs more than the worker's role.
 */
import { lanes } from './claim.js';
import { type Database, identifier } from './pool.js';

export type Measures = ReturnType<typeof queueMeasures>;

export function queueMeasures(database: Database) {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;
  const jobs = at('broadcast_queue_jobs');

  return {
    totals: () =>
      database.query<{ queue: string; status: string; jobs: number }>(
        `select queue_name as queue, status, jobs::float8 as jobs from ${at('broadcast_queue_totals')}
         order by 1, 2 limit 5000`,
        [],
        'measure_totals',
      ),

    ready: () =>
      database.query<{ queue: string; jobs: number; oldest_s: number }>(
        `with recursive ${lanes(jobs)}
         select lane.queue_name as queue, sum(due.jobs)::float8 as jobs,
                extract(epoch from now() - min(due.oldest))::float8 as oldest_s
         from lane cross join unnest(array[false, true]) names (bot) cross join lateral (
           select count(*) as jobs, min(j.due_at) as oldest from (
             select due_at from ${jobs}
             where queue_name = lane.queue_name and priority = lane.priority and names_bot = names.bot
               and due_at <= now()
             order by due_at limit ${READY_MAX}) j) due
         group by 1 having sum(due.jobs) > 0`,
        [],
        'measure_ready',
      ),

    paused: () =>
      database.query<{ queue: string }>(
        `select queue_name as queue from ${at('broadcast_queue_pauses')} limit 500`,
        [],
        'measure_paused',
      ),

    gates: () =>
      database.query<{ gate: string; closed: boolean }>(
        `select key as gate, closed_until > now() as closed from ${at('broadcast_queue_gates')}
         where closed_until > now() - interval '1 hour' order by closed_until desc limit 100`,
        [],
        'measure_gates',
      ),

    breaker: () =>
      database.query<{ open_s: number | null }>(
        `select extract(epoch from now() - opened_at)::float8 as open_s from ${at('broadcast_queue_services')}
         where name = 'default'`,
        [],
        'measure_breaker',
      ),

    limits: () =>
      database.query<{ key: string; per_second: number; taken_s: number }>(
        `select key, per_second, greatest(extract(epoch from next_free_at - now()), 0)::float8 as taken_s
         from ${at('broadcast_queue_limits')} where per_second is not null order by key limit 100`,
        [],
        'measure_limits',
      ),

    daemons: () =>
      database.query<{ daemons: number }>(
        `select count(*)::integer as daemons from ${at('broadcast_queue_workers')}
         where last_seen_at > now() - interval '1 minute'`,
        [],
        'measure_daemons',
      ),

    // Whose transactions they are is hidden from a role without pg_read_all_stats; that they are there is not. What a
    // vacuum itself holds keeps no other from its work.
    xmin: () =>
      database.query<{ xmin: string; age: number }>(
        `select xmin::text, age(xmin) as age from (
           select backend_xmin as xmin from pg_stat_activity a
           where pid <> pg_backend_pid() and (datname = current_database() or datname is null)
             and not exists (select from pg_stat_progress_vacuum v where v.pid = a.pid)
           union all select xmin from pg_replication_slots
           union all select transaction from pg_prepared_xacts where database = current_database()) held
         where xmin is not null order by age(xmin) desc limit 1`,
        [],
        'measure_xmin',
      ),

    rows: () =>
      database.query<{ live: number; dead: number }>(
        `select n_live_tup::float8 as live, n_dead_tup::float8 as dead from pg_stat_user_tables
         where schemaname = $1 and relname = 'broadcast_queue_jobs'`,
        [database.schema],
        'measure_rows',
      ),

    notificationQueue: () =>
      database.query<{ usage: number }>(
        'select pg_notification_queue_usage() as usage',
        [],
        'measure_notification_queue',
      ),
  };
}

/** Of one queue and priority. */
const READY_MAX = 1000;
