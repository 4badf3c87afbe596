/**
 * What a route is: its method and path, who may use it, the schemas of what it takes and of what it answers by status
 * code, and the function that answers. Routes are values, so that the server, the OpenAPI document and the tests read
 * the same table.
 */
import { type Static, type TSchema, Type } from 'typebox';
import type { Reports } from '../db/reports.js';
import type { Caller, Role } from './auth.js';
import type { EventFeed } from './feed.js';
import type { Code } from './problems.js';

/** What the API must know of the running daemon. Durations in milliseconds. */
export interface DaemonState {
  readonly running: boolean;
  readonly draining: boolean;
  readonly activeJobs: number;
  readonly listening: boolean;
  readonly databaseDownMs: number;
}

/** A schedule of this daemon's. */
export interface ScheduleFacts {
  readonly name: string;
  readonly cron: string;
  readonly timeZone: string;
  readonly nextTick: Date | null;
}

/** What every route may look at. */
export interface Surroundings {
  readonly reports: Reports;
  readonly feed: EventFeed;
  state(): DaemonState;
  schedules(): readonly ScheduleFacts[];
  /** Members of job_data that nobody may see. */
  readonly redacted: readonly string[];
}

/** One request, checked. `caller` is null on a route that needs no token and got none. */
export interface Asked<P, Q, B> extends Surroundings {
  readonly params: P;
  readonly query: Q;
  readonly body: B;
  /** The body as it came: numbers in it may be larger than JavaScript's can hold. */
  readonly bodyText: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly caller: Caller | null;
  readonly by: { readonly name: string; readonly role: string; readonly requestId: string };
  readonly signal: AbortSignal;
}

type Answers = Readonly<Record<number, TSchema>>;

/** One status code and its body. */
type Sent<A extends Answers> = { [S in keyof A & number]: { [K in S]: Static<A[K]> } }[keyof A & number];

export interface RouteOf<P extends TSchema, Q extends TSchema, B extends TSchema, A extends Answers> {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** As Fastify writes it. */
  readonly url: string;
  /** The least role; null: no token is needed. */
  readonly role: Role | null;
  readonly summary: string;
  readonly params?: P;
  readonly query?: Q;
  readonly body?: B;
  /** A body may be left out. */
  readonly bodyIsOptional?: true;
  readonly answers: A;
  /** Beside those that every route may answer with. */
  readonly problems?: readonly Code[];
  /** application/json if not said. */
  readonly contentType?: string;
  /** The body is a job's. */
  readonly takesPayload?: true;
  run(asked: Asked<Static<P>, Static<Q>, Static<B>>): Promise<Sent<A>>;
}

/** Any of them, its schemas forgotten: the server checks a request by them before it runs the route. */
export interface Route extends Omit<RouteOf<TSchema, TSchema, TSchema, Answers>, 'run'> {
  run(asked: Asked<never, never, never>): Promise<Readonly<Record<number, unknown>>>;
}

export function route<
  A extends Answers,
  P extends TSchema = typeof Nothing,
  Q extends TSchema = typeof Nothing,
  B extends TSchema = typeof Nothing,
>(one: RouteOf<P, Q, B, A>): Route {
  return one;
}

/** An object with these members and no others. */
export function strict<const P extends Readonly<Record<string, TSchema>>>(properties: P) {
  return Type.Object(properties, { additionalProperties: false });
}

export const Nothing = strict({});
