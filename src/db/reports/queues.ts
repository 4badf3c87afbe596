/** How the queues stand: exact counts, read from the few rows that sql/005_counts.sql keeps, and what is paused. */
import { type Database, identifier, type Row } from '../pool.js';

/** By status; `active`: held by some daemon just now. */
export type QueueCounts = ReturnType<typeof noJobs>;

export interface Pause {
  readonly paused_at: Date;
  readonly paused_by: string;
  readonly reason: string | null;
}

interface QueueState {
  readonly counts: QueueCounts;
  readonly paused: Pause | null;
}

export interface Standing {
  readonly queues: ReadonlyMap<string, QueueState>;
  /** All of them, by one word. */
  readonly allPaused: Pause | null;
  /** From the first call to the end, over all completed jobs. */
  readonly averageSeconds: number | null;
}

export interface WorkerRow extends Row {
  readonly id: string;
  readonly version: string;
  readonly host: string;
  readonly pid: number;
  readonly slots: unknown;
  readonly started_at: Date;
  readonly last_seen_at: Date;
  readonly alive: boolean;
  readonly active_jobs: number;
  readonly jobs: string[];
}

export interface AuditRow extends Row {
  readonly id: string;
  readonly at: Date;
  readonly actor: string;
  readonly role: string;
  readonly action: string;
  readonly target: string;
  readonly before: unknown;
  readonly after: unknown;
  readonly request_id: string;
}

export function queueReports(database: Database) {
  const at = (name: string) => `${identifier(database.schema)}.${name}`;

  const sql = {
    standing: `
      with totals as materialized (select * from ${at('broadcast_queue_totals')}),
      held as materialized (
        select j.queue_name, count(*) as jobs
        from ${at('broadcast_queue_leases')} l cross join unnest(l.job_ids) held (id)
        join ${at('broadcast_queue_jobs')} j on j.id = held.id and j.lease_id = l.lease_id
        where j.status = 'processing' and j.id = any(array(select unnest(b.job_ids) from ${at('broadcast_queue_leases')} b))
        group by j.queue_name)
      select 'count' as kind, queue_name, status, jobs::float8, processing_ms::float8 as ms,
             null::timestamptz as paused_at, null as paused_by, null as reason from totals
      union all select 'count', queue_name, 'active', jobs::float8, 0, null, null, null from held
      union all select 'pause', queue_name, null, null, null, paused_at, paused_by, reason
                from ${at('broadcast_queue_pauses')}`,
    ends: `
      select (select created_at from ${at('broadcast_queue_jobs')} order by id limit 1) as oldest,
             (select created_at from ${at('broadcast_queue_jobs')} order by id desc limit 1) as newest`,
    workers: `
      select w.worker_id as id, w.version, w.host, w.pid, w.slots, w.started_at, w.last_seen_at,
             w.last_seen_at > now() - interval '30 seconds' as alive, held.active_jobs, held.jobs
      from ${at('broadcast_queue_workers')} w cross join lateral (
        select count(j.id)::integer as active_jobs, coalesce((array_agg(j.job_id::text order by j.id))[:100], '{}') as jobs
        from ${at('broadcast_queue_leases')} l cross join unnest(l.job_ids) held (id)
        join ${at('broadcast_queue_jobs')} j on j.id = held.id and j.lease_id = l.lease_id and j.status = 'processing'
        where l.worker_id = w.worker_id) held
      order by w.last_seen_at desc limit 500`,
    known: `
      select exists (select from ${at('broadcast_queue_counts')} c where c.queue_name = $1)
          or exists (select from ${at('broadcast_queue_differences')} d where d.queue_name = $1)
          or exists (select from ${at('broadcast_queue_workers')} w where w.slots ? $1
                     and w.last_seen_at > clock_timestamp() - interval '30 seconds') as known`,
    ticks: `select name, last_tick from ${at('broadcast_queue_schedules')} order by name limit 500`,
    audit: `
      select id, at, actor, role, action, target, before, after, request_id from ${at('broadcast_queue_audit')}
      where id < $1::bigint and ($2::text is null or actor = $2) and ($3::text is null or target = $3)
      order by id desc limit $4`,
  };

  return {
    async standing(): Promise<Standing> {
      const rows = await database.query<StandingRow>(sql.standing, [], 'standing');
      const queues = new Map<string, { counts: QueueCounts; paused: Pause | null }>();
      const queue = (name: string) => {
        const known = queues.get(name) ?? { counts: noJobs(), paused: null };
        queues.set(name, known);
        return known;
      };
      for (const name of USUAL_QUEUES) queue(name);
      let allPaused: Pause | null = null;
      const done = { jobs: 0, ms: 0 };
      for (const row of rows) {
        if (row.kind === 'pause') {
          const pause = { paused_at: row.paused_at, paused_by: row.paused_by, reason: row.reason };
          if (row.queue_name === '*') allPaused = pause;
          else queue(row.queue_name).paused = pause;
          continue;
        }
        queue(row.queue_name).counts[row.status] = row.jobs;
        if (row.status !== 'completed') continue;
        done.jobs += row.jobs;
        done.ms += row.ms;
      }
      return { queues, allPaused, averageSeconds: done.jobs > 0 ? done.ms / done.jobs / 1000 : null };
    },

    async ends(): Promise<{ oldest: Date | null; newest: Date | null }> {
      const [row] = await database.query<{ oldest: Date | null; newest: Date | null }>(sql.ends);
      return row ?? { oldest: null, newest: null };
    },

    /** Whether it is a usual queue, or a job ever named it, or a daemon that runs has slots for it by name. */
    async isKnownQueue(name: string): Promise<boolean> {
      const [row] = await database.query<{ known: boolean }>(sql.known, [name]);
      return USUAL_QUEUES.includes(name) || (row?.known ?? false);
    },

    workers: () => database.query<WorkerRow>(sql.workers),

    /** The last tick of each schedule that ever ticked. */
    async lastTicks(): Promise<Map<string, Date>> {
      const rows = await database.query<{ name: string; last_tick: Date }>(sql.ticks);
      return new Map(rows.map(({ name, last_tick }) => [name, last_tick]));
    },

    audit: (page: { before: string; actor: string | null; target: string | null; limit: number }) =>
      database.query<AuditRow>(sql.audit, [page.before, page.actor, page.target, page.limit]),
  };
}

/** Those that the built-in job types go to: shown also while they are empty. */
const USUAL_QUEUES = ['broadcasts', 'segment-broadcasts', 'retries', 'cleanup'];

export function noJobs() {
  return { pending: 0, processing: 0, completed: 0, failed: 0, retry: 0, paused: 0, cancelled: 0, active: 0 };
}

type StandingRow = Row &
  (
    | { kind: 'count'; queue_name: string; status: keyof QueueCounts; jobs: number; ms: number }
    | { kind: 'pause'; queue_name: string; paused_at: Date; paused_by: string; reason: string | null }
  );
