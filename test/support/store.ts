/** A queue in a database of its own, for tests of its statements: the daemon's store, and plain SQL beside it. */
import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { jobStore, type StoreSettings } from '../../src/db/jobs.js';
import { type Database, openDatabase, type Row } from '../../src/db/pool.js';
import type { Claim, Settlement, Store } from '../../src/queue/ports.js';
import { createDatabase } from './postgres.js';

export interface JobRow extends Row {
  readonly id: string;
  readonly job_id: string;
  readonly queue_name: string;
  readonly job_type: string;
  readonly job_data: unknown;
  readonly status: string;
  readonly attempts: number;
  readonly max_attempts: number;
  readonly error_message: string | null;
  readonly error_code: string | null;
  readonly result: unknown;
  readonly scheduled_at: Date;
  readonly started_at: Date | null;
  readonly completed_at: Date | null;
  readonly next_retry_at: Date | null;
  readonly created_at: Date;
  readonly updated_at: Date;
  readonly priority: number;
  readonly unique_key: string | null;
  readonly lease_id: string | null;
  readonly epoch: number;
  readonly stalled_calls: number;
  readonly stalled_since: Date | null;
  readonly step_seq: number;
  readonly step_cursor: string | null;
  readonly progress: unknown;
  readonly hold_reason: string | null;
  readonly paused_from: string | null;
  readonly pause_requested_at: Date | null;
  readonly flags: string[];
  readonly due_at: Date | null;
}

/** Stands for a moment counted from the database's now, such as `-1 second`. */
export interface FromNow {
  readonly fromNow: string;
}

export const fromNow = (interval: string): FromNow => ({ fromNow: interval });

export interface TestQueue {
  readonly url: string;
  /** As in the daemon. */
  readonly database: Database;
  query<R extends Row>(text: string, values?: readonly unknown[]): Promise<R[]>;
  /** What a daemon sees, under a worker's name. */
  store(workerId?: string, settings?: Partial<StoreSettings>): Store;
  /** One that takes expired leases at once, however short the server has been up. */
  reaper(settings?: Partial<StoreSettings>): Store;
  /** A plain INSERT: a due send_broadcast unless the columns say otherwise. */
  insert(columns?: Readonly<Record<string, unknown>>): Promise<JobRow>;
  job(id: string): Promise<JobRow>;
  jobs(): Promise<JobRow[]>;
  /** The history, oldest first. */
  attempts(): Promise<Row[]>;
  leases(): Promise<Row[]>;
  /** Makes every lease look as if nobody had renewed it in time. */
  expireLeases(): Promise<void>;
  /** A connection of its own, for transactions that stay open; ends with the queue. */
  session(): Promise<pg.Client>;
  /** Empties every table. */
  clear(): Promise<void>;
  close(): Promise<void>;
}

const TABLES = [
  'broadcast_queue_jobs',
  'broadcast_queue_leases',
  'broadcast_queue_attempts',
  'broadcast_queue_workers',
  'broadcast_queue_schedules',
  'broadcast_queue_pauses',
  'broadcast_queue_abandoned',
  'broadcast_queue_limits',
  'broadcast_queue_gates',
  'broadcast_queue_windows',
  'broadcast_queue_differences',
  'broadcast_queue_counts',
  'broadcast_queue_retention',
];

export async function openQueue(): Promise<TestQueue> {
  const made = await createDatabase();
  const database = openDatabase({
    pooled: false,
    url: made.url,
    schema: 'public',
    applicationName: 'broadcastd test',
    connectionsMax: 10,
    statementTimeoutMs: 15_000,
  });
  const sessions: pg.Client[] = [];

  const store = (workerId = 'worker', settings: Partial<StoreSettings> = {}) =>
    jobStore(database, worker(workerId), { ...SETTINGS, ...settings });

  async function one(rows: Promise<JobRow[]>): Promise<JobRow> {
    const [row] = await rows;
    if (!row) throw new Error('there is no such job');
    return row;
  }

  return {
    url: made.url,
    database,
    query: (text, values) => database.query(text, values),
    store,
    reaper: (settings) => store('reaper', { leaseMs: 1, ...settings }),
    insert(columns = {}) {
      const { text, values } = insertion({ job_type: 'send_broadcast', job_data: { broadcast_id: '1' }, ...columns });
      return one(database.query<JobRow>(text, values));
    },
    job: (id) => one(database.query<JobRow>('select * from broadcast_queue_jobs where id = $1', [id])),
    jobs: () => database.query<JobRow>('select * from broadcast_queue_jobs order by id'),
    attempts: () => database.query('select * from broadcast_queue_attempts order by id'),
    leases: () => database.query('select * from broadcast_queue_leases order by created_at, lease_id'),
    async expireLeases() {
      await database.query("update broadcast_queue_leases set expires_at = now() - interval '1 second'");
    },
    async session() {
      const client = new pg.Client({ connectionString: made.url });
      client.on('error', () => {});
      await client.connect();
      sessions.push(client);
      return client;
    },
    async clear() {
      // What a failed test left open must not stand in the way of the next one.
      await Promise.all(sessions.map((client) => client.query('rollback')));
      await database.query(TABLES.map((table) => `delete from ${table}`).join('; '));
    },
    async close() {
      await Promise.all(sessions.map((client) => client.end()));
      await database.close();
      await made.drop();
    },
  };
}

export const SETTINGS: StoreSettings = {
  leaseMs: 60_000,
  maxPayloadBytes: 1_048_576,
  ambiguous: 'retry',
  slots: { '*': 10 },
  masked: (text) => text,
};

export function worker(id: string) {
  return { id, version: '0.0.0', host: 'test', pid: 1 };
}

/** The statement of a plain INSERT, and its values; moments from now become expressions. */
function insertion(columns: Readonly<Record<string, unknown>>): { text: string; values: unknown[] } {
  const values: unknown[] = [];
  const expressions = Object.values(columns).map((value) => {
    if (isFromNow(value)) return `now() + interval '${value.fromNow}'`;
    values.push(value);
    return `$${values.length}`;
  });
  const names = Object.keys(columns).join(', ');
  return { text: `insert into broadcast_queue_jobs (${names}) values (${expressions.join(', ')}) returning *`, values };
}

function isFromNow(value: unknown): value is FromNow {
  return typeof value === 'object' && value !== null && 'fromNow' in value;
}

/** Claims under a fresh lease, from any queue. */
export async function claim(store: Store, slots = 10): Promise<Claim[]> {
  return (await store.claim(randomUUID(), new Map(), slots)).claims;
}

export async function claimOne(store: Store): Promise<Claim> {
  const [first] = await claim(store, 1);
  if (!first) throw new Error('there was nothing to claim');
  return first;
}

/** A completed job, with nothing to say about it but what `change` says. */
export function settlement(claim: Claim, change: Partial<Settlement> = {}): Settlement {
  return {
    id: claim.job.id,
    leaseId: claim.leaseId,
    status: 'completed',
    dueInMs: null,
    attempts: 'keep',
    errorCode: null,
    errorMessage: null,
    httpStatus: null,
    result: null,
    progress: null,
    gained: 0,
    nextCursor: null,
    holdReason: null,
    pausedFrom: null,
    previousFailure: null,
    flags: [],
    operation: null,
    stalled: null,
    unstarted: false,
    raiseEpochAbove: null,
    record: null,
    ranMs: 1,
    ...change,
  };
}

/** The milliseconds between two of a row's times; NaN when one is null. */
export function msBetween(from: Date | null, to: Date | null): number {
  return from && to ? to.getTime() - from.getTime() : Number.NaN;
}

/** The SQLSTATE that a statement fails with, also when the daemon's pool has translated it; null when it succeeds. */
export async function sqlState(statement: Promise<unknown>): Promise<string | null> {
  try {
    await statement;
    return null;
  } catch (error) {
    const driver = error instanceof Error && error.cause !== undefined ? error.cause : error;
    return driver instanceof pg.DatabaseError ? (driver.code ?? '') : String(driver);
  }
}
