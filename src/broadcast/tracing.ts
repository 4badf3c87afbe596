/**
 * OpenTelemetry, by its API alone: each attempt that calls the service is a span, a child of the row's traceparent, and
 * the call goes on from it. Whoever registers an SDK gets the spans; without one the row's traceparent goes through.
 */
import {
  type Context,
  isSpanContextValid,
  ROOT_CONTEXT,
  type SpanContext,
  SpanKind,
  SpanStatusCode,
  trace,
} from '@opentelemetry/api';
import { Interrupted, PermanentError, TransientError } from '../errors.js';
import type { BroadcastService, Job } from '../job.js';

/** @param version the daemon's */
export function tracing(version: string): (service: BroadcastService) => BroadcastService {
  const tracer = trace.getTracer('broadcastd', version);
  return (service) => ({
    async call(job, signal) {
      const parent = parentOf(job.traceparent);
      const span = tracer.startSpan('broadcastd.attempt', { kind: SpanKind.CLIENT, attributes: about(job) }, parent);
      try {
        const outcome = await service.call(continuing(job, span.spanContext(), parent), signal);
        span.setAttribute('broadcastd.outcome', outcome.kind);
        return outcome;
      } catch (error) {
        // Its code alone: the message may quote the service.
        const code = codeOf(error);
        span.setAttribute('error.type', code);
        span.setStatus({ code: SpanStatusCode.ERROR, message: code });
        throw error;
      } finally {
        span.end();
      }
    },
  });
}

function about(job: Job) {
  return {
    'broadcastd.job.id': job.jobId,
    'broadcastd.job.type': job.type,
    'broadcastd.job.queue': job.queue,
    'broadcastd.job.attempt': job.attempt,
    'broadcastd.job.step': job.step.seq,
  };
}

/** W3C Trace Context, 3.2. */
const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-|$)/;

function parentOf(traceparent: string | null): Context {
  const [, traceId, spanId, flags] = TRACEPARENT.exec(traceparent ?? '') ?? [];
  if (traceId === undefined || spanId === undefined || flags === undefined) return ROOT_CONTEXT;
  return trace.setSpanContext(ROOT_CONTEXT, {
    traceId,
    spanId,
    traceFlags: Number.parseInt(flags, 16),
    isRemote: true,
  });
}

/** The job as the service is to see it: under the span, unless that is only the row's own handed through. */
function continuing(job: Job, span: SpanContext, parent: Context): Job {
  if (!isSpanContextValid(span) || span.spanId === trace.getSpanContext(parent)?.spanId) return job;
  const flags = span.traceFlags.toString(16).padStart(2, '0');
  return { ...job, traceparent: `00-${span.traceId}-${span.spanId}-${flags}` };
}

function codeOf(error: unknown): string {
  if (error instanceof TransientError || error instanceof PermanentError) return error.code;
  if (error instanceof Interrupted) return error.reason;
  return error instanceof Error ? error.name : 'unknown';
}
