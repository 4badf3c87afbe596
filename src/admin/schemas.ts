/** What the API answers, by TypeBox: the types and, later, the OpenAPI document come from here. */
import { Type } from 'typebox';

/** RFC 9457. `code` is one word for machines. */
export const Problem = Type.Object({
  type: Type.String(),
  title: Type.String(),
  status: Type.Integer(),
  code: Type.String(),
  detail: Type.Optional(Type.String()),
});

export const Alive = Type.Object({ status: Type.Literal('alive') });

export const Readiness = Type.Object({
  status: Type.Union([Type.Literal('ready'), Type.Literal('not_ready')]),
  /** What is missing, in words. */
  missing: Type.Array(Type.String()),
});

/** Everything but `status` only for those who have a token. */
export const Health = Type.Object({
  status: Type.Union([Type.Literal('healthy'), Type.Literal('unhealthy')]),
  running: Type.Optional(Type.Boolean()),
  activeJobs: Type.Optional(Type.Integer()),
  listening: Type.Optional(Type.Boolean()),
  databaseDownMs: Type.Optional(Type.Integer()),
  timestamp: Type.Optional(Type.String()),
});
