/**
 * Test files run side by side, but those that measure time run alone: each file holds a lock of the server's for as long
 * as it runs, shared by all, or to itself where its name ends in .timing.test.ts.
 */
import { afterAll, beforeAll, expect } from '@jest/globals';
import pg from 'pg';
import { SERVER_VARIABLE } from './postgres.js';

const KEY = 7_114_400;
/** A file may have to wait for the longest of the others. */
const PATIENCE_MS = 300_000;

const client = new pg.Client({ connectionString: process.env[SERVER_VARIABLE] });

beforeAll(async () => {
  const isTiming = expect.getState().testPath?.endsWith('.timing.test.ts') ?? false;
  client.on('error', () => {});
  await client.connect();
  await client.query(`select ${isTiming ? 'pg_advisory_lock' : 'pg_advisory_lock_shared'}(${KEY})`);
}, PATIENCE_MS);
afterAll(() => client.end());
