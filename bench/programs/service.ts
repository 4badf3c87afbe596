/**
 * A broadcast service in a process of its own: answers every call after a while (or at once), and notes when each
 * arrived. The note is taken when the request's headers are there, before its body is read.
 */
import { createServer } from 'node:http';

const { port, delayMs, answer } = JSON.parse(process.argv[2] ?? '{}');
const HEADERS = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(answer) };

let calls = 0;
const jobs = new Set<string>();
let arrivals: [number, number, number][] = [];

const server = createServer({ keepAliveTimeout: 3_600_000, requestTimeout: 0 }, (request, response) => {
  const monotonic = Number(process.hrtime.bigint()) / 1e6;
  const wall = performance.timeOrigin + performance.now();
  if (request.method === 'GET') {
    const told = request.url === '/arrivals' ? arrivals : { calls, jobs: jobs.size };
    if (request.url === '/arrivals') arrivals = [];
    response.end(JSON.stringify(told));
    return;
  }
  calls += 1;
  jobs.add(String(request.headers['x-job-id']));
  const chunks: Buffer[] = [];
  request.on('data', (chunk: Buffer) => chunks.push(chunk));
  request.on('end', () => {
    const [, id] = /"broadcast_id":\s*(\d+)/.exec(Buffer.concat(chunks).toString()) ?? [];
    arrivals.push([Number(id), monotonic, wall]);
    const reply = () => response.writeHead(200, HEADERS).end(answer);
    if (delayMs === 0) reply();
    else setTimeout(reply, delayMs);
  });
});
server.listen(port, '127.0.0.1', () => process.send?.({ kind: 'ready' }));
// Without whoever started it there is nothing left to do.
process.on('disconnect', () => process.exit());
process.on('SIGTERM', () => process.exit());
