/**
 * What a scenario asks of every queue that it measures: its tables, a worker as a process of its own, and jobs. All jobs
 * carry the same payload, and every worker makes the same call for each.
 */
import type pg from 'pg';

export interface Queue {
  readonly name: string;
  /** How it was set up, for the report. */
  readonly settings: string;
  /** Its tables, in an empty database. */
  prepare(databaseUrl: string): Promise<void>;
  /** Resolves when it listens, on a queue in which nothing is due. */
  start(at: Place): Promise<Worker>;
  /** How many are not settled yet. */
  unsettled(client: pg.Client): Promise<number>;
  /** Enqueues through this connection, in whatever transaction is open there, as an application would. */
  producer(client: pg.Client): Promise<Producer>;
}

export interface Place {
  readonly databaseUrl: string;
  readonly serviceUrl: string;
  /** How many jobs at a time. */
  readonly slots: number;
  /** For logs. */
  readonly scratch: string;
}

export interface Worker {
  readonly pid: number;
  readonly running: boolean;
  /** Its log; broadcastd's says where its API is. */
  log(): string;
  stop(): Promise<void>;
}

export interface Producer {
  enqueue(id: number): Promise<void>;
  /** Due at this moment, in milliseconds since 1970. */
  enqueueAt(id: number, due: number): Promise<void>;
  /** In one statement. */
  enqueueMany(ids: readonly number[]): Promise<void>;
  /** The same without a key for each job, where the queue knows keys; for a backlog. */
  fill?(ids: readonly number[]): Promise<void>;
  close(): Promise<void>;
}

/** Rows that one statement enqueues when there are many. */
const BATCH = 1000;

/** A payload of some hundred bytes, told from the others by its number. */
export function payload(id: number): { broadcast_id: number; segment: string; text: string } {
  return { broadcast_id: id, segment: 'everybody', text: 'a message of middling length, as they are usually sent' };
}

/** The numbers from 1 on, a batch at a time. */
export function* batches(jobs: number, size = BATCH): Generator<number[]> {
  for (let done = 0; done < jobs; done += size) {
    yield Array.from({ length: Math.min(size, jobs - done) }, (_, i) => done + i + 1);
  }
}
