/** What most system tests play on: a queue's database of the file's own, and a scripted service for each test. */
import { afterAll, afterEach, beforeAll, beforeEach } from '@jest/globals';
import { type Environment, killPrograms, type Program, startProgram } from './daemon.js';
import { type ScriptedServer, startHttpServer } from './http-server.js';
import { createDatabase, type TestDatabase } from './postgres.js';

export interface Stage {
  readonly database: TestDatabase;
  readonly service: ScriptedServer;
  /** A daemon between the two; it ends with the test. */
  start(env?: Environment): Promise<Program>;
}

/** @param usual what every daemon of this file is started with */
export function setStage(usual: Environment = {}): Stage {
  let database: TestDatabase;
  let service: ScriptedServer;

  beforeAll(async () => {
    database = await createDatabase();
  });
  afterAll(() => database.drop());
  beforeEach(async () => {
    service = await startHttpServer();
    await database.query(`
      truncate broadcast_queue_jobs, broadcast_queue_attempts, broadcast_queue_schedules, broadcast_queue_limits,
        broadcast_queue_gates, broadcast_queue_windows, broadcast_queue_abandoned, broadcast_queue_services;
      insert into broadcast_queue_services (name) values ('default')`);
  });
  afterEach(async () => {
    await killPrograms();
    await service.close();
  });

  return {
    get database() {
      return database;
    },
    get service() {
      return service;
    },
    start: (env = {}) =>
      startProgram({ DATABASE_URL: database.url, BROADCAST_SERVICE_URL: service.url, ...usual, ...env }),
  };
}
