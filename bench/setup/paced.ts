/** Jobs one at a time, each met again where its call arrives. */
import type { Arrival, NotingService } from './service.ts';
import { until } from './waiting.ts';

/** Every arrival by its job, once all have come; no job may arrive twice. */
export async function allArrived(service: NotingService, jobs: number, ms: number): Promise<Map<number, Arrival>> {
  const arrived = new Map<number, Arrival>();
  let calls = 0;
  const look = async () => {
    for (const arrival of await service.arrivals()) {
      arrived.set(arrival.id, arrival);
      calls += 1;
    }
    return arrived.size >= jobs;
  };
  await until(`${jobs} jobs arrive at the service`, look, ms, 50);
  if (calls !== jobs) throw new Error(`${calls} calls arrived for ${jobs} jobs`);
  return arrived;
}
