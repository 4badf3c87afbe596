/** The sandbox's remote control, for the demo and the tests: no part of the protocol. */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox';
import { Type } from 'typebox';
import { problem, send } from './answer.js';
import { type Faults, readFault } from './faults.js';
import { countUsers, declareBroadcast, listRequests, type Pools, reportBroadcast } from './store.js';

const BroadcastId = Type.Object({ id: Type.String({ minLength: 1, maxLength: 200 }) });
const Limit = Type.Object(
  { limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 500 })) },
  { additionalProperties: false },
);
const Declaration = Type.Object({ unknown: Type.Boolean() }, { additionalProperties: false });

export function control(pools: Pools, faults: Faults): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.get('/sandbox/health', async () => ({ status: 'healthy', ...(await countUsers(pools)) }));

    app.get('/sandbox/requests', { schema: { querystring: Limit } }, async (request) => ({
      requests: await listRequests(pools, request.query.limit ?? 100),
    }));

    app.get('/sandbox/broadcasts/:id', { schema: { params: BroadcastId } }, async (request) => ({
      broadcast_id: request.params.id,
      ...(await reportBroadcast(pools, request.params.id)),
    }));

    app.put(
      '/sandbox/broadcasts/:id',
      { schema: { params: BroadcastId, body: Declaration } },
      async (request, reply) => {
        await declareBroadcast(pools, request.params.id, request.body.unknown);
        return reply.code(204).send();
      },
    );

    app.get('/sandbox/faults', async () => ({ faults: faults.list() }));

    app.post('/sandbox/faults', async (request, reply) => {
      const fault = readFault(request.body);
      if (!faults.add(fault)) return send(reply, problem(409, 'too_many_faults', 'Clear some first (DELETE).'));
      return reply.code(201).send(fault);
    });

    app.delete('/sandbox/faults', async (_request, reply) => {
      faults.clear();
      return reply.code(204).send();
    });
  };
}
