/** Log lines on standard output: JSON, or pretty on a terminal. Every line passes the mask, whatever wrote it. */
import { type Logger, pino } from 'pino';
import pretty from 'pino-pretty';
import type { Config } from './config.js';

/** A reader that stopped reading must not stop the daemon, nor fill its memory: beyond this, lines are dropped. */
const BUFFER_MAX_BYTES = 8 * 1024 * 1024;

/** So many characters are written at once, and whatever is so old. */
const WRITE_AT_LENGTH = 32 * 1024;
const WRITE_WITHIN_MS = 10;

export function createLogger(settings: { level: string; pretty: boolean; masked: (text: string) => string }): {
  logger: Logger;
  /** Writes out what is still buffered; for the last moment. */
  flush: () => void;
} {
  const options = {
    level: settings.level,
    base: null,
    timestamp: isoTime(),
    formatters: { level: (label: string) => ({ level: label }) },
  };
  if (settings.pretty) {
    const stream = pretty({ sync: true, ignore: 'pid,hostname', translateTime: 'SYS:HH:MM:ss.l' });
    return { logger: pino({ ...options, hooks: { streamWrite: settings.masked } }, stream), flush: () => {} };
  }
  const destination = pino.destination({ dest: 1, sync: false, maxLength: BUFFER_MAX_BYTES });
  // Without this a closed pipe would end the process.
  destination.on('error', () => {});
  const lines = together((text) => destination.write(text));
  return {
    logger: pino({ ...options, hooks: { streamWrite: settings.masked } }, lines),
    flush: () => {
      try {
        lines.flush();
        destination.flushSync();
      } catch {
        // The destination never opened or is gone: there is nobody to tell.
      }
    },
  };
}

/** Lines that come close together are written together, since each write wakes a thread. */
function together(write: (text: string) => void): { write: (line: string) => void; flush: () => void } {
  let lines = '';
  let due: NodeJS.Timeout | null = null;
  const flush = () => {
    if (due !== null) clearTimeout(due);
    due = null;
    const text = lines;
    lines = '';
    if (text !== '') write(text);
  };
  return {
    write: (line) => {
      lines += line;
      if (lines.length >= WRITE_AT_LENGTH) flush();
      else due ??= setTimeout(flush, WRITE_WITHIN_MS);
    },
    flush,
  };
}

/** The time as pino's own `isoTime` writes it, worded once a millisecond. */
function isoTime(): () => string {
  let wordedAt = Number.NaN;
  let words = '';
  return () => {
    const now = Date.now();
    if (now !== wordedAt) {
      wordedAt = now;
      words = `,"time":"${new Date(now).toISOString()}"`;
    }
    return words;
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
  ].flatMap((secret) => (secret === null ? [] : [{ before: '', secret, after: '' }]));
  const hidden = [...secrets, ...urls.flatMap((url) => (url === null ? [] : passwordsIn(url)))];
  const spellings = hidden.flatMap(({ before, secret, after }) => {
    if (before === '' && secret.length < MASKED_MIN_LENGTH) return [];
    return [...new Set([secret, JSON.stringify(secret).slice(1, -1)])].map((spelling) => ({
      ...{ text: `${before}${spelling}${after}`, shown: `${before}[secret]${after}` },
    }));
  });
  return (text) => {
    let masked = text;
    for (const spelling of spellings) {
      if (masked.includes(spelling.text)) masked = masked.replaceAll(spelling.text, spelling.shown);
    }
    return masked;
  };
}

/** Shorter ones would make ordinary words unreadable, and hide nothing. */
const MASKED_MIN_LENGTH = 6;

/**
 * A password is hidden wherever it appears, unless it is part of a name that everybody may see, such as the role's own:
 * then only in its place within an address.
 */
function passwordsIn(url: string): { before: string; secret: string; after: string }[] {
  const { username, password, hostname, pathname } = new URL(url);
  if (password === '') return [];
  const names = ['broadcastd', ...[username, hostname, pathname].map((name) => decodeURIComponent(name))];
  const spellings = [...new Set([password, decodeURIComponent(password)])];
  return spellings.flatMap((secret) => [
    { before: ':', secret, after: '@' },
    ...(names.some((name) => name.includes(secret)) ? [] : [{ before: '', secret, after: '' }]),
  ]);
}
