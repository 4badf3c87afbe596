/** Checks of what goes on in the database beside the queue, and slows it: old transactions, dead rows, other pollers. */
import { queueMeasures } from '../../db/measures.js';
import { connected } from '../../db/migrate.js';
import { findOldPollers } from '../../db/old-pollers.js';
import type { Database } from '../../db/pool.js';
import { duration } from '../table.js';
import { one } from './connection.js';
import { type Check, type Finding, failed, ok, warning } from './finding.js';

export function serverChecks(database: Database, url: string | null): Check[] {
  return [
    { name: 'transactions', run: () => transactions(database) },
    { name: 'dead rows', run: () => deadRows(database) },
    {
      name: 'notification queue',
      async run() {
        const [row] = await queueMeasures(database).notificationQueue();
        const usage = row?.usage ?? 0;
        const words = `${(usage * 100).toFixed(1)} % of the server's notification queue is in use`;
        const mend = 'Some session listens inside an open transaction: end it. When the queue is full, commits fail.';
        if (usage > 0.5) return failed(words, mend);
        return usage > 0.1 ? warning(words, mend) : ok(words);
      },
    },
    {
      name: 'old poller',
      async run() {
        const { pollers, hiddenSessions } = await connected(url, findOldPollers);
        if (pollers.length > 0) {
          return pollers.map(({ pid, user, applicationName, clientAddress, query }) =>
            failed(
              `session ${pid} (${user}, ${applicationName || 'no name'}, ${clientAddress}) polls the table itself: ${query}`,
              'Stop that program: it sends what the daemon sends as well, and people get messages twice.',
            ),
          );
        }
        const unseen =
          hiddenSessions === 0 ? '' : ` (${hiddenSessions} sessions may only be read with pg_read_all_stats)`;
        return ok(`no other program was seen polling the table${unseen}`);
      },
    },
  ];
}

const IDLE_WARNING_S = 10;
const LONG_WARNING_S = 300;
/** Transactions since, that no vacuum may clean up after. */
const XMIN_WARNING = 1_000_000;

async function transactions(database: Database): Promise<Finding> {
  const [oldest] = await database.query<Transaction>(
    `select pid, usename::text as role, coalesce(application_name, '') as program, state,
            extract(epoch from clock_timestamp() - xact_start)::float8 as seconds
     from pg_stat_activity
     where datname = current_database() and xact_start is not null and pid <> pg_backend_pid()
       and backend_type = 'client backend'
       and extract(epoch from clock_timestamp() - xact_start)
           > case when state like 'idle in transaction%' then ${IDLE_WARNING_S} else ${LONG_WARNING_S} end
     order by xact_start limit 1`,
  );
  const mend =
    'While it is open, dead rows pile up before every claim. End it (pg_terminate_backend), and set ' +
    'idle_in_transaction_session_timeout.';
  if (oldest) {
    const { pid, role, program, state, seconds } = oldest;
    const words = `session ${pid} (${role}, ${program || 'no name'}) is ${state} for ${duration(seconds * 1000)}`;
    return seconds > 3600 ? failed(words, mend) : warning(words, mend);
  }
  const [held] = await queueMeasures(database).xmin();
  if ((held?.age ?? 0) > XMIN_WARNING) {
    return warning(
      `vacuum is held back by ${held?.age} transactions: an old session, replication slot or prepared transaction`,
      'SELECT * FROM pg_replication_slots and pg_prepared_xacts tell which: drop what nobody uses any more.',
    );
  }
  return ok('no transaction is old');
}

interface Transaction {
  readonly [column: string]: unknown;
  readonly pid: number;
  readonly role: string;
  readonly program: string;
  readonly state: string;
  readonly seconds: number;
}

const DEAD_WARNING = 50_000;

async function deadRows(database: Database): Promise<Finding> {
  const [rows] = await queueMeasures(database).rows();
  const { on, disabled } = await one<{ on: boolean; disabled: boolean }>(
    database,
    `select current_setting('autovacuum')::boolean as on,
       exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace, pg_options_to_table(c.reloptions) o
               where n.nspname = $1 and c.relname like 'broadcast\\_queue\\_%' and o.option_name = 'autovacuum_enabled'
                 and o.option_value in ('false', 'off', 'no', '0')) as disabled`,
    [database.schema],
  );
  if (!on)
    return failed('autovacuum is off on this server', 'Set autovacuum = on: without it every claim becomes slower.');
  if (disabled) {
    return failed(
      'autovacuum is off for a table of the queue',
      `ALTER TABLE ${database.schema}.broadcast_queue_jobs RESET (autovacuum_enabled); the same for the others.`,
    );
  }
  const { live = 0, dead = 0 } = rows ?? {};
  const words = `${dead} dead rows beside ${live}`;
  if (dead < DEAD_WARNING || dead < live / 2) return ok(words);
  return warning(words, 'Look for an old transaction, then VACUUM broadcast_queue_jobs; does autovacuum keep up?');
}
