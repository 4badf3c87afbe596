/**
 * A program of before broadcastd that still polls the table: it takes rows by a plain SELECT, knows nothing of leases,
 * and would send what the daemon sends as well. Nothing in the table betrays it, so it is looked for among the server's
 * sessions: twice, for one that has moved on in between is a loop and not somebody's forgotten prompt.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type pg from 'pg';
import { TABLE } from './legacy-shape.js';

interface OldPoller {
  readonly pid: number;
  readonly user: string;
  /** Empty when the program gave none. */
  readonly applicationName: string;
  /** `local` for a Unix socket. */
  readonly clientAddress: string;
  /** The first 100 characters of its last query, on one line. */
  readonly query: string;
}

export interface PollersFound {
  readonly pollers: readonly OldPoller[];
  /** Sessions of other roles whose queries we may not read (that takes pg_read_all_stats). */
  readonly hiddenSessions: number;
}

const BETWEEN_LOOKS_MS = 2000;

/** Takes two seconds. Not inside a transaction: there every look would see the same. */
export async function findOldPollers(client: pg.Client): Promise<PollersFound> {
  const first = new Map((await look(client)).map((session) => [session.pid, session]));
  await pause(BETWEEN_LOOKS_MS);
  const second = await look(client);
  const pollers = second.flatMap(({ started, polls, hidden: _, ...session }) => {
    const before = first.get(session.pid);
    // Between two polls it may have said something else: the match may be in either look.
    const polling = before?.polls ? before : session;
    return before && (before.polls || polls) && before.started !== started
      ? [{ ...session, query: polling.query }]
      : [];
  });
  return { pollers, hiddenSessions: second.filter(({ hidden }) => hidden).length };
}

interface Session extends OldPoller {
  readonly started: string;
  readonly polls: boolean;
  readonly hidden: boolean;
}

/** Statements that look for rows by status, or take one into work; other changes of a status may be the bot's own. */
async function look(client: pg.Client): Promise<Session[]> {
  const { rows } = await client.query<Session>(
    `select pid, usename::text as user, coalesce(application_name, '') as "applicationName",
       coalesce(host(client_addr), 'local') as "clientAddress",
       left(regexp_replace(btrim(query, E' \\t\\r\\n'), '\\s+', ' ', 'g'), 100) as query,
       coalesce(query_start::text, '') as started,
       query ~* $1 and (query ~* '\\mselect\\M.*\\mstatus\\M"?\\s*(=|in\\M)'
         or query ~* '\\mupdate\\M.*\\mstatus\\M"?\\s*=\\s*''processing''') as polls,
       query = '<insufficient privilege>' as hidden
     from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid() and coalesce(backend_type, 'client backend') = 'client backend'
       and application_name not like 'broadcastd%'`,
    [`\\m${TABLE}\\M`],
  );
  return rows;
}
