/** Who is measured: broadcastd, and its peers at the settings that suit them best and at more usual ones. */
import { broadcastd } from './broadcastd.ts';
import type { Queue } from './contestant.ts';
import { graphileBatched, graphilePlain } from './graphile-worker.ts';
import { pgBoss, pgBossSmall } from './pg-boss.ts';

/** Where the size of batches makes no difference. */
export const QUEUES: readonly Queue[] = [broadcastd, graphileBatched, graphilePlain, pgBoss];

export const ALL_QUEUES: readonly Queue[] = [...QUEUES, pgBossSmall];
