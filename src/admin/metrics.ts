/** GET /metrics, for Prometheus: behind a token of its own, which opens nothing else, or open where none is set. */
import type { FastifyInstance } from 'fastify';
import { authenticator } from './auth.js';
import { Refusal } from './problems.js';

export interface MetricsSettings {
  /** null: whoever reaches the port may read. */
  readonly token: string | null;
  scrape(): Promise<{ readonly contentType: string; readonly body: string }>;
}

export function metricsRoute({ token, scrape }: MetricsSettings) {
  const whoAsks = authenticator(token === null ? [] : [{ name: 'metrics', role: 'viewer', secret: token }]);

  return async (app: FastifyInstance): Promise<void> => {
    app.get('/metrics', async (request, reply) => {
      if (token !== null && whoAsks(request.headers.authorization) === null) {
        const detail = 'send "Authorization: Bearer" and the value of METRICS_TOKEN';
        throw new Refusal('not_authenticated', detail, { 'www-authenticate': 'Bearer realm="broadcastd metrics"' });
      }
      const { contentType, body } = await scrape();
      return reply.type(contentType).send(body);
    });
  };
}
