/** Checks that need nobody else: the settings, the signing secret, the version of Node. */

import type { Config, Environment } from '../../config.js';
import { loadConfig } from '../../config.js';
import { ConfigError } from '../../errors.js';
import { type Check, failed, ok, skipped, warning } from './finding.js';

export function setupChecks(
  env: Environment,
  read: (path: string) => string,
  config: Config | null,
  nodeVersion: string,
): Check[] {
  return [
    {
      name: 'configuration',
      async run() {
        try {
          const { warnings } = loadConfig(env, read);
          if (warnings.length === 0) return ok('every setting is valid');
          return warnings.map((words) => warning(words, 'Change it, or leave it where it is meant so.'));
        } catch (error) {
          if (!(error instanceof ConfigError)) throw error;
          return error.faults.map((fault) => failed(fault, 'Until then "broadcastd start" ends with 78.'));
        }
      },
    },
    {
      name: 'node',
      async run() {
        const [major = 0, minor = 0] = nodeVersion.replace(/^v/, '').split('.').map(Number);
        if (major > 20 || (major === 20 && minor >= 19)) return ok(`Node ${nodeVersion}`);
        return failed(`Node ${nodeVersion} is too old`, 'Install Node 20.19 or newer.');
      },
    },
    {
      name: 'signing',
      async run() {
        if (config === null) return skipped('the configuration is not valid');
        const { secrets, token } = config.service;
        if (secrets.length > 2) {
          return warning(`${secrets.length} signing secrets are set`, 'Drop the ones that the service needs no more.');
        }
        if (secrets.length === 2) return ok('two signing secrets, as while rotating');
        if (secrets.length === 1) return ok('calls are signed');
        return warning(
          token === null
            ? 'calls are neither signed nor do they bear a token'
            : 'calls bear a token, but are not signed',
          'Set BROADCAST_SERVICE_SECRET to whsec_ and what "openssl rand -base64 32" prints, in the service as well.',
        );
      },
    },
  ];
}
