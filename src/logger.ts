/** Log lines on standard output: JSON, or pretty on a terminal. Every line passes the mask, whatever wrote it. */
import { type Logger, pino } from 'pino';
import pretty from 'pino-pretty';
import type { Config } from './config.js';

/** A reader that stopped reading must not stop the daemon, nor fill its memory: beyond this, lines are dropped. */
const BUFFER_MAX_BYTES = 8 * 1024 * 1024;

export function createLogger(settings: { level: string; pretty: boolean; masked: (text: string) => string }): {
  logger: Logger;
  /** Writes out what is still buffered; for the last moment. */
  flush: () => void;
} {
  const options = {
    level: settings.level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
    hooks: { streamWrite: settings.masked },
  };
  if (settings.pretty) {
    const stream = pretty({ sync: true, ignore: 'pid,hostname', translateTime: 'SYS:HH:MM:ss.l' });
    return { logger: pino(options, stream), flush: () => {} };
  }
  const destination = pino.destination({ dest: 1, sync: false, maxLength: BUFFER_MAX_BYTES });
  // Without this a closed pipe would end the process.
  destination.on('error', () => {});
  return {
    logger: pino(options, destination),
    flush: () => {
      try {
        destination.flushSync();
      } catch {
        // The destination never opened or is gone: there is nobody to tell.
      }
    },
  };
}

/** @returns a function that replaces every configured secret in a text, also as JSON spells it */
export function maskOf(config: Config): (text: string) => string {
  const { service, api, database } = config;
  const urls = [database.url, database.listenUrl, database.migrateUrl];
  const secrets = [
    ...service.secrets,
    service.token,
    api.metricsToken,
    ...api.adminTokens.map(({ secret }) => secret),
    ...urls.flatMap((url) => (url === null ? [] : passwordsIn(url))),
  ];
  const spellings = secrets.flatMap((secret) => {
    if (secret === null || secret.length < MASKED_MIN_LENGTH) return [];
    return [...new Set([secret, JSON.stringify(secret).slice(1, -1)])];
  });
  if (spellings.length === 0) return (text) => text;
  return (text) => {
    let masked = text;
    for (const spelling of spellings) {
      if (masked.includes(spelling)) masked = masked.replaceAll(spelling, '[secret]');
    }
    return masked;
  };
}

/** Shorter ones would make ordinary words unreadable, and hide nothing. */
const MASKED_MIN_LENGTH = 6;

function passwordsIn(url: string): string[] {
  const { password } = new URL(url);
  return password === '' ? [] : [...new Set([password, decodeURIComponent(password)])];
}
