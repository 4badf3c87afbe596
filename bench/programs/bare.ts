/** The HTTP client with no queue: as many calls as it is told, so many at a time, and nothing else. */
import { caller } from './call.ts';

const { serviceUrl, slots } = JSON.parse(process.argv[2] ?? '{}');
const call = caller(serviceUrl, slots);

// Each call is for a job of its own, from one order to the next.
let called = 0;

process.on('message', async ({ payloads }: { payloads: readonly object[] }) => {
  let next = 0;
  const line = async () => {
    while (next < payloads.length) await call(called++, payloads[next++]);
  };
  await Promise.all(Array.from({ length: slots }, line));
  process.send?.({ kind: 'done' });
});
process.on('disconnect', () => process.exit());
process.send?.({ kind: 'ready' });
