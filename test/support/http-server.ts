/**
 * A real HTTP server whose every answer a test scripts: replies, silence, resets, drips, floods. Nothing is mocked, so
 * what holds here holds on a socket. Answers are taken from a queue, one a request; with the queue empty the server
 * replies 200 without a body, or whatever `otherwise` was given.
 */
import { EventEmitter, once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

export interface RecordedRequest {
  readonly method: string;
  /** Path and query. */
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  /** As it came; empty where the script did not read it. */
  readonly body: string;
  /** Counts the server's connections from 1: the same number means the same socket. */
  readonly connection: number;
}

/** What the server does with one request. */
export type Script =
  | { kind: 'reply'; status: number; headers: Record<string, string | string[]>; body: string }
  | { kind: 'hang'; when: 'before headers' | 'after headers' }
  | { kind: 'reset'; when: 'before body is read' | 'after body is read' }
  | { kind: 'drip'; text: string; everyMs: number }
  | { kind: 'flood' }
  | { kind: 'raw'; text: string }
  | { kind: 'held'; until: Promise<unknown>; then: Script };

export const reply = (status: number, body = '', headers: Record<string, string | string[]> = {}): Script => ({
  kind: 'reply',
  status,
  headers,
  body,
});

export const replyJson = (status: number, body: unknown, headers: Record<string, string | string[]> = {}): Script =>
  reply(status, JSON.stringify(body), { 'content-type': 'application/json', ...headers });

/** Never answers, or never ends its answer. */
export const hang = (when: 'before headers' | 'after headers' = 'before headers'): Script => ({ kind: 'hang', when });

/** Cuts the connection with a TCP reset. */
export const reset = (when: 'before body is read' | 'after body is read'): Script => ({ kind: 'reset', when });

/** A 200 whose body comes one byte at a time; after the text it begins anew, so it never ends. */
export const drip = (text: string, everyMs: number): Script => ({ kind: 'drip', text, everyMs });

/** A 200 whose chunked body never ends and comes as fast as it is read. */
export const flood = (): Script => ({ kind: 'flood' });

/** Bytes instead of HTTP; then the connection is closed. */
export const raw = (text: string): Script => ({ kind: 'raw', text });

/** Answers by `then`, once the promise resolves. */
export const held = (until: Promise<unknown>, then: Script): Script => ({ kind: 'held', until, then });

export interface ScriptedServer {
  /** `http://127.0.0.1:<port>`, without a slash at its end. */
  readonly url: string;
  readonly port: number;
  /** All requests so far, oldest first. */
  readonly requests: readonly RecordedRequest[];
  /** Connections accepted so far. */
  connections(): number;
  /** Queues what to do with the next requests. */
  next(...scripts: Script[]): void;
  /** What to do with a request when the queue is empty; a function decides by the request. */
  otherwise(script: Script | ((request: RecordedRequest) => Script)): void;
  /** Resolves when this many requests have arrived in all. */
  received(count: number): Promise<void>;
  /** Closes the connections on which nothing is under way, and resolves when they are gone. */
  closeIdle(): Promise<void>;
  /** Resolves when this connection is gone. */
  disconnected(connection: number): Promise<void>;
  /** Cuts all connections and frees the port. */
  close(): Promise<void>;
}

export async function startHttpServer(): Promise<ScriptedServer> {
  const requests: RecordedRequest[] = [];
  const queue: Script[] = [];
  const sockets = new Map<Socket, number>();
  const happenings = new EventEmitter();
  const drips = new Set<NodeJS.Timeout>();
  const server = createServer({ keepAliveTimeout: 60_000 });
  let accepted = 0;
  let fallback: Script | ((request: RecordedRequest) => Script) = reply(200);

  server.on('connection', (socket: Socket) => {
    accepted += 1;
    sockets.set(socket, accepted);
    socket.on('close', () => {
      sockets.delete(socket);
      happenings.emit('closed');
    });
    // A connection that the test cuts fails on this side as well.
    socket.on('error', () => {});
  });
  server.on('request', (message, response) => void serve(message, response));

  async function serve(message: IncomingMessage, response: ServerResponse): Promise<void> {
    const queued = queue.shift();
    const isUnread = queued?.kind === 'reset' && queued.when === 'before body is read';
    const body = isUnread ? '' : await readBody(message);
    if (body === null) return;
    const { method = '', url = '', headers, socket } = message;
    const request = { method, url, headers, body, connection: sockets.get(socket) ?? 0 };
    requests.push(request);
    happenings.emit('request');
    perform(queued ?? (typeof fallback === 'function' ? fallback(request) : fallback), response, socket);
  }

  function perform(script: Script, response: ServerResponse, socket: Socket): void {
    switch (script.kind) {
      case 'reply':
        response.writeHead(script.status, script.headers).end(script.body);
        return;
      case 'hang':
        if (script.when === 'after headers') response.writeHead(200).write('{');
        return;
      case 'reset':
        socket.resetAndDestroy();
        return;
      case 'drip':
        startDrip(script, response);
        return;
      case 'flood':
        startFlood(response);
        return;
      case 'raw':
        socket.end(script.text);
        return;
      case 'held':
        void script.until.then(() => perform(script.then, response, socket));
    }
  }

  function startDrip({ text, everyMs }: Script & { kind: 'drip' }, response: ServerResponse): void {
    let sent = 0;
    const timer = setInterval(() => {
      response.write(text.charAt(sent % text.length));
      sent += 1;
    }, everyMs);
    drips.add(timer);
    response.on('close', () => {
      clearInterval(timer);
      drips.delete(timer);
    });
  }

  async function until(event: string, isReached: () => boolean): Promise<void> {
    while (!isReached()) await once(happenings, event);
  }

  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  // A server that listens on a TCP port has an address of this shape.
  const { port } = server.address() as AddressInfo;

  return {
    url: `http://127.0.0.1:${port}`,
    port,
    requests,
    connections: () => accepted,
    next: (...scripts) => void queue.push(...scripts),
    otherwise: (script) => {
      fallback = script;
    },
    received: (count) => until('request', () => requests.length >= count),
    disconnected: (connection) => until('closed', () => ![...sockets.values()].includes(connection)),
    async closeIdle() {
      server.closeIdleConnections();
      await until('closed', () => sockets.size === 0);
    },
    async close() {
      for (const timer of drips) clearInterval(timer);
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

/** @returns null when the client went away in the middle of its body */
async function readBody(message: IncomingMessage): Promise<string | null> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of message) chunks.push(chunk);
  } catch {
    return null;
  }
  return Buffer.concat(chunks).toString('utf8');
}

function startFlood(response: ServerResponse): void {
  const chunk = 'x'.repeat(16 * 1024);
  const pour = () => {
    while (!response.destroyed && response.write(chunk));
  };
  response.on('drain', pour);
  pour();
}
