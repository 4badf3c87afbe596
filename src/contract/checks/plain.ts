/** Level 0: the service can be reached, says what it did, and lets nobody in who does not know the secrets. */

import { MAX_TEXT_BYTES } from '../../broadcast/protocol.js';
import { headerOf } from '../../broadcast/reply.js';
import { type Answer, type Call, NoAnswer } from '../call.js';
import type { Check } from '../check.js';
import type { Trial } from '../trial.js';
import { type Advice, Breach, isSuccess, Skipped } from '../verdict.js';

export const plainChecks: readonly Check[] = [
  {
    id: 'reachable',
    level: 0,
    title: 'the service answers, and not with a redirect',
    why: 'Where no call gets through, no job is done, and nothing else can be told.',
    mend: 'Give the base URL itself (BROADCAST_SERVICE_URL): its scheme, host, port and path up to /jobs.',
    needs: [],
    async run(trial) {
      const call = trial.fresh();
      const answer = await trial.once(call).catch((error: unknown) => {
        if (!(error instanceof NoAnswer) || trial.signal.aborted) throw error;
        throw new Breach(call, error.message, reasonOf(error));
      });
      if (answer.status >= 300 && answer.status < 400) {
        throw new Breach(call, answer, 'a redirect is never followed', REDIRECTED);
      }
      if (answer.status === 401 || answer.status === 403) {
        const given = trial.settings.hasSecret || trial.settings.hasToken;
        const wrong = given
          ? 'the call is refused with the credentials given'
          : 'the call is refused: no credentials were given';
        throw new Breach(call, answer, wrong, REFUSED);
      }
      return undefined;
    },
  },
  {
    id: 'answer',
    level: 0,
    title: 'a good call gets a 2xx answer that can be read',
    why: 'A page instead of an answer, or a 202 that says neither what was done nor where it goes on, leaves nobody knowing whether the broadcast was sent; it is either sent again or never looked after.',
    mend: 'Answer 200 when all is sent: with an empty body, a short text such as OK, or JSON such as {"status":"completed","progress":{…}}, of at most 256 KiB. 202 is for "continue" and for a Location.',
    needs: ['reachable'],
    async run(trial) {
      let call = trial.fresh();
      for (let step = 0; step < MOST_SLICES; step++) {
        const answer = await trial.post(call);
        mustBeReadable(call, answer);
        noteAudience(trial, answer);
        if (answer.json?.status !== 'continue') return undefined;
        call = trial.next(call, answer);
      }
      return `its end, after more than ${MOST_SLICES} slices, was not awaited`;
    },
  },
  {
    id: 'large-numbers',
    level: 0,
    title: 'a payload with an unknown member and an integer beyond 2^53 is taken',
    why: 'Payloads are passed on as they were inserted, with all that the bot has put in; a service that refuses what it does not know fails with the next release of the bot.',
    mend: 'Ignore members that you do not know. Ids beyond 2^53 are better sent as text: JSON.parse rounds them.',
    needs: ['answer'],
    async run(trial) {
      const known = trial.payload(trial.freshBroadcast()).slice(0, -1);
      // Written by hand: a JavaScript number could not hold it.
      const call = trial.fresh({ payload: `${known},"contract_test":{"large":9007199254740993123,"list":[null]}}` });
      const answer = await trial.post(call);
      if (!isSuccess(answer)) throw new Breach(call, answer, 'what the service does not know is no reason to refuse');
      return undefined;
    },
  },
  {
    id: 'bad-token',
    level: 0,
    title: 'a call without the bearer token, or with a wrong one, is refused',
    why: 'Whoever reaches the port could send broadcasts to everybody.',
    mend: 'Compare the Authorization header with "Bearer <token>" in constant time, and answer 401 as application/problem+json.',
    needs: ['answer'],
    async run(trial) {
      if (!trial.settings.hasToken) throw new Skipped('no --token was given');
      for (const [how, token] of [
        ['without a token', null],
        ['with a wrong token', 'not-the-token'],
      ] as const) {
        const call = trial.fresh();
        mustRefuse(call, how, await trial.post(call, { token }));
      }
      return undefined;
    },
  },
  {
    id: 'bad-signature',
    level: 0,
    title: 'a call that is not signed, signed with another secret or an hour ago is refused',
    why: 'Without the signature anybody can send broadcasts; without the time in it, a call that was overheard can be played again.',
    mend: 'Verify the raw bytes of the body by Standard Webhooks (any of its libraries; tolerance five minutes) before you parse them, and answer 401.',
    needs: ['answer'],
    async run(trial) {
      if (!trial.settings.hasSecret) throw new Skipped('no --secret was given');
      const other = `whsec_${Buffer.from('another secret of the kit').toString('base64')}`;
      for (const [how, deviation] of [
        ['without a signature', { secret: null }],
        ['signed with another secret', { secret: other }],
        ['signed an hour ago', { signedAt: Date.now() - 3_600_000 }],
      ] as const) {
        const call = trial.fresh();
        mustRefuse(call, how, await trial.post(call, deviation));
      }
      return undefined;
    },
  },
];

const REDIRECTED: Advice = {
  why: 'It could lead the payload and the credentials anywhere.',
  mend: 'Give the base URL itself (BROADCAST_SERVICE_URL), the one that the redirect leads to: its scheme, host and path up to /jobs.',
};
const REFUSED: Advice = {
  why: 'A daemon with these credentials gets no job done: its breaker opens, and all jobs wait.',
  mend: 'Give the secret and the token of the service, as the daemon has them: in BROADCAST_SERVICE_SECRET and BROADCAST_SERVICE_TOKEN, or by --secret and --token.',
};

/** By the operating system's and Node's codes. */
const REASONS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'nothing listens there: is it started, is the port right?',
  ENOTFOUND: 'there is no host of that name',
  EAI_AGAIN: 'the name of the host cannot be looked up: is there a network?',
  EHOSTUNREACH: 'no way leads to that host from here',
  ENETUNREACH: 'no way leads to that host from here',
  ECONNRESET: 'it closes the connection without an answer: is it an HTTP service, and http or https right?',
  EPROTO: 'it speaks no TLS: is it http instead of https?',
  ERR_SSL_WRONG_VERSION_NUMBER: 'it speaks no TLS: is it http instead of https?',
  ERR_SSL_PACKET_LENGTH_TOO_LONG: 'it speaks no TLS: is it http instead of https?',
  HPE_INVALID_CONSTANT: 'what listens there speaks no HTTP: is the port right?',
};

function reasonOf({ code, message }: NoAnswer): string {
  return REASONS[code ?? ''] ?? `there was no answer: ${message}`;
}

const MOST_SLICES = 100;

function mustBeReadable(call: Call, answer: Answer): void {
  const text = answer.body.trim();
  const wrong = (what: string) => new Breach(call, answer, what);
  if (answer.bodyTooLarge) throw wrong('the body is beyond 256 KiB');
  if (!isSuccess(answer)) throw wrong(`the answer is ${answer.status} instead of 2xx`);
  if (text.startsWith('<')) throw wrong('the body is markup: a login page, a proxy, an error page?');
  if (/^[[{]/.test(text) && !isJson(text)) throw wrong('the body begins as JSON and is none');
  if (!/^[[{]/.test(text) && Buffer.byteLength(text) > MAX_TEXT_BYTES) throw wrong('the body is a text beyond 1 KiB');
  const { ok, success, status } = answer.json ?? {};
  if (ok === false || success === false) throw wrong('the service says that it failed, with a status of 2xx');
  const says = ['completed', 'done', 'continue', 'hold'].includes(String(status));
  if (answer.status === 202 && !says && headerOf(answer, 'location') === undefined) {
    throw wrong('202 with neither a status nor a Location: accepted, and nobody will know what became of it');
  }
}

/** Every other check that plans by the number of people has it from here. */
function noteAudience(trial: Trial, answer: Answer): void {
  const { progress } = answer.json ?? {};
  if (typeof progress !== 'object' || progress === null || !('total' in progress)) return;
  if (typeof progress.total === 'number') trial.facts.audience = progress.total;
}

function mustRefuse(call: Call, how: string, answer: Answer): void {
  if (answer.status === 401 || answer.status === 403) return;
  throw new Breach(call, answer, `a call ${how} must get 401 or 403`);
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
