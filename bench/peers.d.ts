/**
 * What is used of the packages that bench/package.json brings, so that the types can be checked where only the project
 * itself is installed.
 */
declare module 'graphile-worker' {
  interface Preset {
    readonly worker: {
      readonly connectionString: string;
      readonly concurrentJobs: number;
      readonly localQueue?: { readonly size: number };
      readonly completeJobBatchDelay?: number;
      readonly failJobBatchDelay?: number;
      readonly logger?: Logger;
      readonly events?: NodeJS.EventEmitter;
    };
  }
  type LogLevel = 'error' | 'warning' | 'info' | 'debug';
  export class Logger {
    constructor(factory: () => (level: LogLevel, message: string) => void);
  }
  export function run(options: {
    readonly preset: Preset;
    readonly taskList: Readonly<Record<string, (payload: unknown, about: { job: { id: string } }) => Promise<void>>>;
  }): Promise<unknown>;
  export function runMigrations(options: { readonly connectionString: string }): Promise<void>;
}

declare module 'pg-boss' {
  interface Job {
    readonly id: string;
    readonly data: object;
  }
  interface SqlDatabase {
    executeSql(text: string, values?: unknown[]): Promise<{ rows: unknown[] }>;
  }
  export class PgBoss {
    constructor(options: {
      readonly connectionString: string;
      readonly max?: number;
      readonly useListenNotify?: boolean;
      readonly supervise?: boolean;
      readonly schedule?: boolean;
      readonly migrate?: boolean;
      readonly registerInstance?: boolean;
    });
    on(event: 'error', heard: (error: Error) => void): void;
    on(event: 'warning', heard: (warning: { message: string }) => void): void;
    start(): Promise<PgBoss>;
    stop(options?: { readonly graceful?: boolean; readonly timeout?: number }): Promise<void>;
    createQueue(name: string, options?: { readonly notify?: boolean }): Promise<void>;
    insert(
      name: string,
      jobs: readonly { readonly data: object; readonly startAfter?: Date }[],
      options?: { readonly db?: SqlDatabase },
    ): Promise<unknown>;
    send(
      name: string,
      data: object,
      options?: { readonly db?: SqlDatabase; readonly startAfter?: Date },
    ): Promise<unknown>;
    work(
      name: string,
      options: {
        readonly batchSize?: number;
        readonly localConcurrency?: number;
        readonly burstWhenBatchFull?: boolean;
        readonly notifyPollingIntervalSeconds?: number;
      },
      handler: (jobs: readonly Job[]) => Promise<void>,
    ): Promise<string>;
  }
}

declare module 'echarts' {
  interface Chart {
    setOption(option: object): void;
    renderToSVGString(): string;
    dispose(): void;
  }
  export function init(
    element: null,
    theme: null,
    options: { readonly renderer: 'svg'; readonly ssr: true; readonly width: number; readonly height: number },
  ): Chart;
}
