/** `broadcastd sandbox`: the reference broadcast service, for trying the daemon without a bot. */
import { ConfigError } from '../errors.js';
import { type SandboxOptions, startSandbox } from '../sandbox/server.js';

export interface SandboxCommandOptions {
  /** Default 4000; 0 for any free port. */
  port?: number | undefined;
  /** Default 127.0.0.1. */
  host?: string | undefined;
  /** Sample users to make when there are none; default 1000. */
  recipients?: number | undefined;
  /** Of the service protocol; default 2. */
  level?: SandboxOptions['level'];
  /** Rules of the contract to break, each a word of flaws.ts; default none. */
  flaws?: SandboxOptions['flaws'];
  /** Messages a second of each call; default as fast as possible. */
  perSecond?: number | null | undefined;
  /** Broadcasts that one person may be sent on one day; default 100. */
  dailyLimit?: number | undefined;
  /** Ends the command when it fires. */
  signal: AbortSignal;
  /** Where the one line about its address goes. */
  print: (line: string) => void;
}

/**
 * Runs until the signal fires; resolves when everything is closed.
 * @throws ConfigError, DatabaseUnavailable, or the operating system's error when the port is taken
 */
export async function sandbox(env: NodeJS.ProcessEnv, options: SandboxCommandOptions): Promise<void> {
  const { signal, print, port = 4000, ...rest } = options;
  const { DATABASE_URL, BROADCAST_SERVICE_SECRET, BROADCAST_SERVICE_TOKEN } = env;
  if (!DATABASE_URL) throw new ConfigError(['DATABASE_URL is not set: the sandbox keeps its users and ledger there.']);
  const service = await startSandbox({
    ...rest,
    port,
    databaseUrl: DATABASE_URL,
    secrets: (BROADCAST_SERVICE_SECRET ?? '').split(',').flatMap((secret) => secret.trim() || []),
    token: BROADCAST_SERVICE_TOKEN || null,
  });
  print(`The sandbox broadcast service listens on ${service.url}`);
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
  await service.close();
}
