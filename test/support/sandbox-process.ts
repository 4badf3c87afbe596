/**
 * The sandbox as a process of its own, for tests that kill it. Its first argument is the command's options as JSON; its
 * environment, the command's. SIGTERM ends it in order.
 */
import { sandbox } from '../../src/cli/sandbox.js';

const stop = new AbortController();
process.once('SIGTERM', () => stop.abort());
await sandbox(process.env, {
  ...JSON.parse(process.argv[2] ?? '{}'),
  signal: stop.signal,
  print: (line: string) => process.stdout.write(`${line}\n`),
});
