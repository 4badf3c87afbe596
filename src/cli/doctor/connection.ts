/** Checks of the way to the database: its version, encryption, clock, free connections, and whether notifications arrive. */
import { randomBytes } from 'node:crypto';
import { listen, Unheard } from '../../db/listener.js';
import type { Database } from '../../db/pool.js';
import { type Check, type Finding, failed, ok, warning } from './finding.js';

export interface Addresses {
  readonly url: string | null;
  readonly listenUrl: string | null;
}

export function connectionChecks(database: Database, { url, listenUrl }: Addresses): Check[] {
  return [
    {
      name: 'postgresql version',
      async run() {
        const row = await one<{ number: number; words: string }>(
          database,
          "select current_setting('server_version_num')::integer as number, current_setting('server_version') as words",
        );
        if (row.number < 140_000) return failed(`PostgreSQL ${row.words} is too old`, 'Upgrade it to 15 or newer.');
        if (row.number < 150_000) {
          return warning(`PostgreSQL ${row.words} is not among those that are tested`, 'Upgrade it to 15 or newer.');
        }
        return ok(`PostgreSQL ${row.words}`);
      },
    },
    {
      name: 'encryption',
      async run() {
        const row = await one<{ ssl: boolean; address: string | null }>(
          database,
          `select coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false) as ssl,
                  host(inet_server_addr()) as address`,
        );
        if (row.ssl) return ok('the connection is encrypted');
        if (row.address === null || /^(127\.|::1$)/.test(row.address)) return ok('the database is on this machine');
        return warning(
          'the connection to the database is not encrypted',
          'Add sslmode=verify-full&sslrootcert=<file of its CA> to DATABASE_URL (sslmode=require means the same here), ' +
            'or leave it where the network is yours alone.',
        );
      },
    },
    { name: 'clock', run: () => clock(database) },
    { name: 'connections', run: () => connections(database) },
    { name: 'notifications', run: () => notifications(database, { url, listenUrl }) },
  ];
}

/** Signatures are refused when five minutes off; all else goes by the database's clock. */
const CLOCK_WARNING_MS = 5000;
const CLOCK_FAILED_MS = 240_000;

async function clock(database: Database): Promise<Finding> {
  const before = Date.now();
  const { ms } = await one<{ ms: number }>(
    database,
    'select extract(epoch from clock_timestamp())::float8 * 1000 as ms',
  );
  const after = Date.now();
  const apart = Math.abs(ms - (before + after) / 2);
  // The answer's way is not the clock's fault.
  const certain = Math.max(apart - (after - before) / 2, 0);
  const words = `this machine's clock and the database's are ${(certain / 1000).toFixed(1)} s apart`;
  const mend = 'Let both machines keep time by NTP: signed calls are refused when the clock is minutes off.';
  if (certain > CLOCK_FAILED_MS) return failed(words, mend);
  return certain > CLOCK_WARNING_MS ? warning(words, mend) : ok('the clocks agree');
}

/** What one more daemon uses. */
const DAEMON_CONNECTIONS = 7;

async function connections(database: Database): Promise<Finding> {
  const row = await one<{ max: number; used: number; role_left: number | null }>(
    database,
    `select current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer as max,
       (select count(*) from pg_stat_activity where backend_type = 'client backend')::integer as used,
       (select rolconnlimit - (select count(*) from pg_stat_activity a where a.usename = current_user)::integer
        from pg_roles where rolname = current_user and rolconnlimit >= 0) as role_left`,
  );
  const left = Math.min(row.max - row.used, row.role_left ?? Number.POSITIVE_INFINITY);
  const words = `${left} connections are left of ${row.max}`;
  const mend = `A daemon uses up to ${DAEMON_CONNECTIONS}: raise max_connections (or the role's CONNECTION LIMIT), or let others use fewer.`;
  return left < DAEMON_CONNECTIONS ? warning(words, mend) : ok(words);
}

const HEARD_WITHIN_MS = 8000;

/** LISTEN on the daemon's own way, NOTIFY over the connection for statements. */
async function notifications(database: Database, { url, listenUrl }: Addresses): Promise<Finding> {
  const channel = `broadcast_queue_doctor_${randomBytes(6).toString('hex')}`;
  const began = performance.now();
  const listener = listen({
    url: listenUrl ?? url,
    channels: [channel],
    applicationName: 'broadcastd doctor',
    notify: async (to) => void (await database.query("select pg_notify($1, '')", [to])),
    watchEveryMs: 60_000,
    answerWithinMs: 3000,
    random: Math.random,
  });
  try {
    return await new Promise<Finding>((resolve) => {
      const timer = setTimeout(
        () => resolve(failed(`no notification arrived within ${HEARD_WITHIN_MS / 1000} s`, mendFor(listenUrl))),
        HEARD_WITHIN_MS,
      );
      const end = (finding: Finding) => {
        clearTimeout(timer);
        resolve(finding);
      };
      listener.events.once('listening', () =>
        end(ok(`a notification arrives (connected, sent and heard in ${Math.round(performance.now() - began)} ms)`)),
      );
      listener.events.once('deaf', (error) => {
        const words = error instanceof Unheard ? 'notifications do not arrive' : `LISTEN fails: ${error.message}`;
        end(failed(`${words}; jobs start at the next poll only`, mendFor(listenUrl)));
      });
    });
  } finally {
    await listener.close();
  }
}

function mendFor(listenUrl: string | null): string {
  return listenUrl === null
    ? 'A pooler in transaction mode swallows them: set LISTEN_DATABASE_URL to a direct connection, to the same database.'
    : 'LISTEN_DATABASE_URL must be a direct connection, past any pooler, to the very database of DATABASE_URL.';
}

/** For statements that always have a row. */
export async function one<R extends object>(database: Database, text: string, values: unknown[] = []): Promise<R> {
  const [row] = await database.query<R & { readonly [column: string]: unknown }>(text, values);
  if (!row) throw new Error('the database gave no answer');
  return row;
}
