/** DATABASE_SCHEMA: a queue beside another in one database. */
import { afterAll, afterEach, beforeAll, expect, test } from '@jest/globals';
import { killPrograms, startProgram } from '../support/daemon.js';
import { type ScriptedServer, startHttpServer } from '../support/http-server.js';
import { createEmptyDatabase, type TestDatabase } from '../support/postgres.js';
import { until } from '../support/until.js';

let database: TestDatabase;
const services = new Map<string, ScriptedServer>();
const SCHEMAS = ['queue_a', 'queue_b'];

beforeAll(async () => {
  database = await createEmptyDatabase();
  for (const schema of SCHEMAS) services.set(schema, await startHttpServer());
});
afterEach(killPrograms);
afterAll(async () => {
  for (const service of services.values()) await service.close();
  await database.drop();
});

const payloadsAt = (schema: string) =>
  services.get(schema)?.requests.map(({ body }) => JSON.parse(body).payload.broadcast_id) ?? [];

test('daemons of two schemas in one database each send their own jobs and never see the other ones', async () => {
  for (const schema of SCHEMAS) {
    await startProgram({
      DATABASE_URL: database.url,
      DATABASE_SCHEMA: schema,
      BROADCAST_SERVICE_URL: services.get(schema)?.url ?? '',
    });
  }
  const expected: Record<string, string[]> = { queue_a: [], queue_b: [] };
  for (let n = 1; n <= 20; n++) {
    for (const schema of SCHEMAS) {
      const id = `${schema}-${n}`;
      expected[schema]?.push(id);
      const sql =
        n % 2 === 0
          ? `select ${schema}.broadcast_enqueue('send_broadcast', jsonb_build_object('broadcast_id', $1::text))`
          : `insert into ${schema}.broadcast_queue_jobs (job_type, job_data)
             values ('send_broadcast', jsonb_build_object('broadcast_id', $1::text))`;
      await database.query(sql, [id]);
    }
  }
  await until('all are sent', async () => {
    const rows = await database.query(
      `select 1 from (select status from queue_a.broadcast_queue_jobs
                      union all select status from queue_b.broadcast_queue_jobs) jobs where status = 'completed'`,
    );
    return rows.length === 40;
  });
  for (const schema of SCHEMAS) expect(payloadsAt(schema).sort()).toEqual(expected[schema]?.sort());
  expect(await database.query(`select to_regclass('public.broadcast_queue_jobs') as leftover`)).toEqual([
    { leftover: null },
  ]);
});

test('a paused queue is paused in its own schema only', async () => {
  const [a, b] = SCHEMAS.map((schema) => services.get(schema)?.requests.length ?? 0);
  for (const schema of SCHEMAS) {
    const daemon = await startProgram({
      DATABASE_URL: database.url,
      DATABASE_SCHEMA: schema,
      BROADCAST_SERVICE_URL: services.get(schema)?.url ?? '',
      ...(schema === 'queue_a' ? { START_PAUSED: 'true' } : {}),
    });
    if (schema === 'queue_a') {
      await daemon.line(({ msg }) => msg.includes('SELECT queue_a.broadcast_resume_queue() lets them go'));
    }
  }
  for (const schema of SCHEMAS) {
    await database.query(`select ${schema}.broadcast_enqueue('send_broadcast', '{"broadcast_id": "paused"}')`);
  }
  await services.get('queue_b')?.received((b ?? 0) + 1);
  expect(services.get('queue_a')?.requests).toHaveLength(a ?? 0);
  await database.query('select queue_a.broadcast_resume_queue()');
  await services.get('queue_a')?.received((a ?? 0) + 1);
});
