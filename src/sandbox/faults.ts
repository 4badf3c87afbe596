/**
 * Ways to misbehave, on request: what a network, a proxy or a service under strain does to the daemon, for the demo
 * and the tests. A fault waits in line until a call comes that it is meant for.
 */
import { once } from 'node:events';
import { Readable } from 'node:stream';
import type { FastifyReply } from 'fastify';
import { type Static, type TSchema, Type } from 'typebox';
import { Value } from 'typebox/value';
import { type Answer, problem, Refusal, send } from './answer.js';
import { pause } from './pace.js';

/** Which calls a fault is meant for, and how many of them; each member left out means any, or all until it is cleared. */
const For = {
  job_type: Type.Optional(Type.String({ maxLength: 200 })),
  broadcast_id: Type.Optional(Type.String({ maxLength: 200 })),
  times: Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000_000 })),
};
const strictly = { additionalProperties: false };

const Fault = Type.Union([
  /** Does the work, then takes `delay_ms` more before it is done. */
  Type.Object(
    { fault: Type.Literal('slow'), delay_ms: Type.Integer({ minimum: 0, maximum: 3_600_000 }), ...For },
    strictly,
  ),
  /** Does nothing and answers this status, as a problem. */
  Type.Object(
    {
      fault: Type.Literal('status'),
      status: Type.Integer({ minimum: 300, maximum: 599 }),
      /** Whole seconds. */
      retry_after: Type.Optional(Type.Integer({ minimum: 0, maximum: 86_400 })),
      code: Type.Optional(Type.String({ maxLength: 100 })),
      retriable: Type.Optional(Type.Boolean()),
      ...For,
    },
    strictly,
  ),
  /** Reads the request, does nothing and never answers. */
  Type.Object({ fault: Type.Literal('hang'), ...For }, strictly),
  /** Does nothing and resets the connection. */
  Type.Object({ fault: Type.Literal('reset_before'), ...For }, strictly),
  /** Does all the work, stores the answer, and resets the connection. */
  Type.Object({ fault: Type.Literal('reset_after'), ...For }, strictly),
  /** Does all the work and sends the answer's body at one byte a second. */
  Type.Object({ fault: Type.Literal('drip'), ...For }, strictly),
]);
export type Fault = Static<typeof Fault>;

/** Such as `status (status, retry_after?)`: what each fault can be told, a question mark after what may be left out. */
const known = Fault.anyOf.map(({ properties, required }) => {
  const own = Object.keys(properties).filter((name) => name !== 'fault' && !(name in For));
  const members = own.map((name) => (required.some((one) => one === name) ? name : `${name}?`));
  return properties.fault.const + (members.length > 0 ? ` (${members.join(', ')})` : '');
});

/** @throws Refusal, which says what is wrong and what there is */
export function readFault(body: unknown): Fault {
  if (Value.Check(Fault, body)) return body;
  const { fault } = Object(body);
  const kind = Fault.anyOf.find(({ properties }) => properties.fault.const === fault);
  const wrong = kind === undefined ? [unknownFault(fault)] : errorsIn(kind, body);
  const detail = `${wrong.join('; ')}. There are ${known.join(', ')}; each with job_type?, broadcast_id?, times?.`;
  throw new Refusal(problem(400, 'no_such_fault', detail, { retriable: false }));
}

function unknownFault(fault: unknown): string {
  return fault === undefined ? '"fault" must say which' : `there is no fault ${JSON.stringify(fault).slice(0, 100)}`;
}

function errorsIn(kind: TSchema, body: unknown): string[] {
  return Value.Errors(kind, body).flatMap(({ keyword, instancePath, message }) => {
    // Said of the member already.
    if (keyword === 'additionalProperties') return [];
    const member = instancePath.slice(1);
    return keyword === 'boolean' ? `it knows no ${member}` : `${member} ${message}`.trim();
  });
}

const MOST_FAULTS = 100;

export class Faults {
  readonly #waiting: Fault[] = [];

  list(): readonly Fault[] {
    return this.#waiting;
  }

  /** False when there are too many already. */
  add(fault: Fault): boolean {
    if (this.#waiting.length >= MOST_FAULTS) return false;
    this.#waiting.push({ ...fault });
    return true;
  }

  clear(): void {
    this.#waiting.length = 0;
  }

  /** The oldest fault that is meant for this call. It is used up when its `times` are. */
  take(jobType: string, broadcastId: string | null): Fault | null {
    const index = this.#waiting.findIndex(
      (fault) =>
        (fault.job_type === undefined || fault.job_type === jobType) &&
        (fault.broadcast_id === undefined || fault.broadcast_id === broadcastId),
    );
    const fault = this.#waiting[index];
    if (fault === undefined) return null;
    if (fault.times !== undefined && --fault.times === 0) this.#waiting.splice(index, 1);
    return fault;
  }
}

/** Stands in for the work: with an answer, or with `gone` when there is nobody left to answer. Null: do the work. */
export async function insteadOfWork(
  fault: Fault | null,
  reply: FastifyReply,
  closing: AbortSignal,
): Promise<Answer | 'gone' | null> {
  switch (fault?.fault) {
    case 'status': {
      const { status, code = 'fault', retry_after, retriable } = fault;
      const members = {
        ...(retriable !== undefined && { retriable }),
        ...(retry_after !== undefined && { retry_after }),
      };
      return problem(status, code, 'The sandbox was asked for this fault.', members);
    }
    case 'hang':
      await untilGone(reply, closing);
      return reset(reply);
    case 'reset_before':
      return reset(reply);
    default:
      return null;
  }
}

/** A part of the work: while it lasts the call counts as running. */
export async function afterWork(fault: Fault | null, closing: AbortSignal): Promise<void> {
  if (fault?.fault === 'slow') await pause(fault.delay_ms, closing);
}

/** Sends the answer as the fault would have it; `gone` when it was not sent. */
export function sendDespite(
  fault: Fault | null,
  reply: FastifyReply,
  answer: Answer,
  closing: AbortSignal,
): FastifyReply {
  if (fault?.fault === 'reset_after') {
    reset(reply);
    return reply;
  }
  if (fault?.fault !== 'drip') return send(reply, answer);
  return reply
    .code(answer.status)
    .headers(answer.headers)
    .send(Readable.from(drip(answer.body, closing)));
}

function reset(reply: FastifyReply): 'gone' {
  reply.hijack();
  reply.raw.socket?.resetAndDestroy();
  return 'gone';
}

async function untilGone(reply: FastifyReply, closing: AbortSignal): Promise<void> {
  const { socket } = reply.raw;
  if (socket === null || socket.destroyed || closing.aborted) return;
  await once(socket, 'close', { signal: closing }).catch(() => {}); // It rejects when the sandbox closes.
}

async function* drip(text: string, closing: AbortSignal): AsyncGenerator<Buffer> {
  for (const byte of Buffer.from(text)) {
    yield Buffer.of(byte);
    await pause(1000, closing);
  }
}
