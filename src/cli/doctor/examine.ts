/** The whole examination: first what needs nobody, then the database, then what only makes sense with the tables in it. */
import { type Config, loadConfig } from '../../config.js';
import { openDatabase } from '../../db/pool.js';
import { openReports } from '../../db/reports.js';
import { ConfigError } from '../../errors.js';
import { maskOf } from '../../logger.js';
import { queuesOwn, type Surroundings } from '../commands.js';
import { plain } from '../terminal.js';
import { connectionChecks } from './connection.js';
import { type Check, failed, type NamedFinding, ok, runChecks } from './finding.js';
import { checkSchema, schemaChecks } from './schema.js';
import { serverChecks } from './server.js';
import { levelCheck, serviceCheck } from './service.js';
import { setupChecks } from './setup.js';
import { errorWords } from './words.js';
import { workChecks } from './work.js';

export async function examine({ env, read, version, nodeVersion }: Surroundings): Promise<NamedFinding[]> {
  const config = configOf(env, read);
  // The daemon's other settings may be at fault, and the database still worth a look.
  const queue = config ?? configOf(queuesOwn(env), read);
  const masked = queue === null ? (text: string) => text : maskOf(queue);
  const alone = [...setupChecks(env, read, config, nodeVersion), serviceCheck(config)];
  const findings = await Promise.all([
    runChecks(alone),
    queue === null ? unreached('there is no valid address of it') : examineDatabase(queue, config, version),
  ]);
  return findings.flat().map((finding) => ({
    ...finding,
    found: plain(masked(finding.found)),
    mend: finding.mend === null ? null : plain(masked(finding.mend)),
  }));
}

async function examineDatabase(queue: Config, config: Config | null, version: string): Promise<NamedFinding[]> {
  const { url, listenUrl, schema } = queue.database;
  let pooler: string | null = null;
  const database = openDatabase({
    url,
    schema,
    applicationName: 'broadcastd doctor',
    pooled: listenUrl !== null,
    onPooled: (how) => {
      pooler = how;
    },
    connectionsMax: 4,
    statementTimeoutMs: 8000,
  });
  try {
    try {
      await database.query('select 1');
    } catch (error) {
      return await unreached(errorWords(error));
    }
    const through = pooler === null ? '' : ', through a pooler: statements are planned anew each time';
    const reached: Check = { name: 'database', run: async () => ok(`it answers${through}`) };
    const schemaFinding = await runChecks([{ name: 'schema', run: () => checkSchema(queue.database) }]);
    const tablesAreThere = schemaFinding.every(({ outcome }) => outcome === 'ok');
    const rest = [
      ...schemaChecks(database),
      ...serverChecks(database, url),
      ...workChecks(database, openReports(database, []), version, queue.jobs.stuckAfterMs),
      levelCheck(config, database),
    ];
    return [
      ...(await runChecks([reached])),
      ...schemaFinding,
      ...(await runChecks([...connectionChecks(database, { url, listenUrl }), ...(tablesAreThere ? rest : [])])),
      ...(tablesAreThere ? [] : skip(rest, 'the schema is not as it should be')),
    ];
  } finally {
    await database.close();
  }
}

function configOf(env: Surroundings['env'], read: Surroundings['read']): Config | null {
  try {
    return loadConfig(env, read).config;
  } catch (error) {
    if (error instanceof ConfigError) return null;
    throw error;
  }
}

function unreached(why: string): Promise<NamedFinding[]> {
  const mend = 'Check DATABASE_URL (or PGHOST, PGUSER, …), and that PostgreSQL accepts connections from here.';
  return runChecks([{ name: 'database', run: async () => failed(`it cannot be reached: ${why}`, mend) }]);
}

function skip(checks: readonly Check[], why: string): NamedFinding[] {
  return checks.map(({ name }) => ({ check: name, outcome: 'skipped', found: why, mend: null }));
}
