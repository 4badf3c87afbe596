/**
 * A call that got no answer. Whether the request had been written decides: before, the service certainly did nothing;
 * after, it may have done everything, and the repetition may be a duplicate.
 */
import { errors } from 'undici';
import { TransientError } from '../errors.js';
import type { NoReply } from './exchange.js';

/**
 * @param where method and path of the call
 * @param isTls the service is spoken to over TLS
 * @returns what to throw; undici's own error where it refused the request itself, which is a bug of ours
 */
export function readNoAnswer(why: NoReply, where: string, timeoutMs: number, isTls: boolean): unknown {
  const errorCode = codeOf(why.cause);
  if (errorCode === 'UND_ERR_INVALID_ARG') return why.cause;
  if (why.requestWritten) return afterWriting(why, where, timeoutMs, errorCode);
  return beforeWriting(why, where, timeoutMs, errorCode, isTls);
}

function afterWriting(why: NoReply, where: string, timeoutMs: number, errorCode: string): TransientError {
  if (why.ending === 'timeout') {
    const message = `${where}: no complete answer within ${timeoutMs} ms; the request had been sent`;
    return new TransientError(message, { code: 'timeout', ambiguous: true });
  }
  if (why.cause instanceof errors.HTTPParserError || errorCode === 'UND_ERR_HEADERS_OVERFLOW') {
    const message = `${where}: the answer is not HTTP, or its headers are too large; the request had been sent`;
    return new TransientError(message, { code: 'bad_response', ambiguous: true });
  }
  const message = `${where}: the connection was lost (${errorCode}) after the request had been sent`;
  return new TransientError(message, { code: 'connection_lost', ambiguous: true });
}

function beforeWriting(
  why: NoReply,
  where: string,
  timeoutMs: number,
  errorCode: string,
  isTls: boolean,
): TransientError {
  if (why.ending === 'timeout') {
    const message = `${where}: not sent within ${timeoutMs} ms, for want of a connection`;
    return new TransientError(message, { code: 'timeout', cost: 'never_last' });
  }
  const [code, what] = obstacle(errorCode, isTls);
  return new TransientError(`${where}: ${what} (${errorCode}); nothing was sent`, { code, cost: 'never_last' });
}

/** Errors of the TCP connection, also under TLS. UND_ERR_CONNECT_TIMEOUT covers the TLS handshake as well. */
const UNREACHABLE = new Set([
  'ECONNREFUSED',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ETIMEDOUT',
  'EADDRNOTAVAIL',
  'EACCES',
  'EPERM',
  'EMFILE',
  'UND_ERR_CONNECT_TIMEOUT',
]);

const UNTRUSTED_CERTIFICATE = /^(SELF_SIGNED_CERT_IN_CHAIN|DEPTH_ZERO_SELF_SIGNED_CERT|UNABLE_TO_)/;

function obstacle(errorCode: string, isTls: boolean): [code: string, what: string] {
  if (errorCode === 'ENOTFOUND' || errorCode.startsWith('EAI_')) return ['dns', 'the host name was not found'];
  if (UNREACHABLE.has(errorCode) || !isTls) return ['connection_refused', 'no connection'];
  if (UNTRUSTED_CERTIFICATE.test(errorCode)) {
    return ['tls', "the service's certificate is not trusted: name the file of its CA in NODE_EXTRA_CA_CERTS"];
  }
  return ['tls', 'no secure connection'];
}

/** Errors of sockets and of undici carry a `code`. */
function codeOf(cause: unknown): string {
  const hasCode = typeof cause === 'object' && cause !== null && 'code' in cause && typeof cause.code === 'string';
  return hasCode ? String(cause.code) : 'unknown error';
}
