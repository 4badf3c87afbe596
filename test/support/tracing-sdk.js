/** A real OpenTelemetry SDK, as an operator registers one by --import: it writes each finished span to SPANS_FILE. */
import { appendFileSync } from 'node:fs';
import { NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node';

const exporter = {
  export(spans, done) {
    for (const span of spans) {
      const { traceId, spanId } = span.spanContext();
      const { name, attributes, status, parentSpanContext } = span;
      const line = { name, traceId, spanId, parent: parentSpanContext?.spanId ?? null, attributes, status };
      appendFileSync(process.env.SPANS_FILE, `${JSON.stringify(line)}\n`);
    }
    done({ code: 0 });
  },
  async shutdown() {},
};

new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }).register();
