/** Every route of the API, in one table. */
import type { Route } from './route.js';
import { bulkRoutes } from './routes/bulk.js';
import { flowRoutes } from './routes/flow.js';
import { jobRoutes } from './routes/jobs.js';
import { queueRoutes } from './routes/queues.js';
import { recordRoutes } from './routes/records.js';
import { documentRoutes, systemRoutes } from './routes/system.js';

export function allRoutes(version: string): readonly Route[] {
  const routes: Route[] = [
    ...systemRoutes,
    ...queueRoutes,
    ...jobRoutes,
    ...bulkRoutes,
    ...flowRoutes,
    ...recordRoutes,
    ...documentRoutes(() => routes, version),
  ];
  return routes;
}
