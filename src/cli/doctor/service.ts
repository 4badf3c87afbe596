/** Checks of the broadcast service: does anybody answer there, and what may be expected of it. Nothing is ever sent. */
import { request } from 'undici';
import type { Config } from '../../config.js';
import { serviceLevel } from '../../db/flow.js';
import type { Database } from '../../db/pool.js';
import { type Check, type Finding, failed, ok, skipped, warning } from './finding.js';
import { errorWords } from './words.js';

export function serviceCheck(config: Config | null): Check {
  return {
    name: 'service',
    run: async () => (config === null ? skipped('the configuration is not valid') : reach(config.service.url)),
  };
}

export function levelCheck(config: Config | null, database: Database): Check {
  return {
    name: 'service level',
    async run() {
      const level = config?.service.level ?? (await serviceLevel(database));
      const words = level === null ? 'the level of the service is not known yet' : `the service is at level ${level}`;
      if ((level ?? 0) >= 1) return ok(words);
      if (config?.jobs.ambiguousPolicy === 'pause') return ok(`${words}; jobs whose answer is lost wait for a person`);
      return warning(
        `${words}: where an answer is lost, its repetition may reach people twice`,
        'Let the service remember Idempotency-Key and answer with X-Broadcast-Level: 1 (docs/service-guide.md; ' +
          '"broadcastd contract-test URL" tries it); if it does already, set BROADCAST_SERVICE_LEVEL=1. Or set ' +
          'AMBIGUOUS_POLICY=pause.',
      );
    },
  };
}

const ANSWERS_WITHIN_MS = 5000;

/** A GET of the base URL, without credentials: whatever is answered, somebody is there. */
async function reach(url: string): Promise<Finding> {
  const began = performance.now();
  try {
    const { statusCode, body } = await request(url, {
      method: 'GET',
      headers: { 'user-agent': 'broadcastd doctor' },
      headersTimeout: ANSWERS_WITHIN_MS,
      bodyTimeout: ANSWERS_WITHIN_MS,
      signal: AbortSignal.timeout(ANSWERS_WITHIN_MS),
    });
    body.on('error', () => {});
    body.destroy();
    const words = `the service answers (${statusCode} in ${Math.round(performance.now() - began)} ms)`;
    if (statusCode < 300 || statusCode > 399) return ok(words);
    return warning(
      `${words}, but with a redirect`,
      'Redirects are never followed: set BROADCAST_SERVICE_URL to where it leads.',
    );
  } catch (error) {
    return failed(`the service cannot be reached: ${errorWords(error)}`, mendOf(error));
  }
}

function mendOf(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  if (code === 'ENOTFOUND' || code.startsWith('EAI_')) return 'Check the host name in BROADCAST_SERVICE_URL, and DNS.';
  if (/CERT|SELF_SIGNED|UNABLE_TO|SSL|TLS/.test(code)) {
    return 'Name the file of its CA in NODE_EXTRA_CA_CERTS, and write the host as the certificate names it.';
  }
  return 'Start the service, or check BROADCAST_SERVICE_URL as seen from here (in a container localhost is the container).';
}
