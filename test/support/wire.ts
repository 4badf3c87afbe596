/** A wire between a daemon and PostgreSQL that counts what is asked over it. */
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

export interface Wire {
  /** The database's address, by way of the wire. */
  readonly url: string;
  /** Statements so far: simple queries, and extended ones by the Sync that ends each. */
  readonly statements: number;
  close(): Promise<void>;
}

/** @param url of a database on 127.0.0.1, without TLS */
export async function openWire(url: string): Promise<Wire> {
  const target = new URL(url);
  const sockets = new Set<Socket>();
  let statements = 0;

  const server = createServer((client) => {
    const postgres = connect(Number(target.port), '127.0.0.1');
    const count = messageReader((type) => {
      if (type === 'Q' || type === 'S') statements++;
    });
    client.on('data', count);
    for (const [one, other] of [
      [client, postgres],
      [postgres, client],
    ] as const) {
      sockets.add(one);
      one.pipe(other);
      one.on('error', () => other.destroy());
      one.on('close', () => other.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo; // It listens on TCP.
  const through = new URL(url);
  through.hostname = '127.0.0.1';
  through.port = String(port);

  return {
    url: through.href,
    get statements() {
      return statements;
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** The frontend's messages (PostgreSQL manual, 53.7): a type and a length each, but for the first, which has no type. */
function messageReader(onMessage: (type: string) => void): (chunk: Buffer) => void {
  let rest = Buffer.alloc(0);
  let started = false;
  return (chunk) => {
    rest = Buffer.concat([rest, chunk]);
    while (true) {
      const head = started ? 1 : 0;
      if (rest.length < head + 4) return;
      const end = head + rest.readUInt32BE(head);
      if (rest.length < end) return;
      if (started) onMessage(String.fromCharCode(rest[0] ?? 0));
      started = true;
      rest = rest.subarray(end);
    }
  };
}
