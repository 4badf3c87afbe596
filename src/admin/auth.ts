/**
 * Who is asking, and may they: named tokens, kept only as hashes and compared in constant time, each with a role. Wrong
 * tokens are counted by address, so that guessing is slow; a right one is let in whatever came before it.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { catalogue, Refusal } from './problems.js';

/** Each may do what those before it may. */
export const ROLES = ['viewer', 'operator', 'admin'] as const;
export type Role = (typeof ROLES)[number];

export interface Caller {
  readonly name: string;
  readonly role: Role;
}

export interface Token extends Caller {
  readonly secret: string;
}

/** @returns who a request's Authorization header belongs to (RFC 6750, section 2.1); null: nobody */
export function authenticator(tokens: readonly Token[]): (authorization: string | undefined) => Caller | null {
  const hashed = tokens.map(({ name, role, secret }) => ({ caller: { name, role }, hash: sha256(secret) }));
  return (authorization) => {
    const secret = bearer(authorization);
    if (secret === undefined) return null;
    const hash = sha256(secret);
    // Every token is compared, whichever fits, so that the time taken tells nothing.
    let caller: Caller | null = null;
    for (const token of hashed) if (timingSafeEqual(token.hash, hash)) caller = token.caller;
    return caller;
  };
}

export interface Gatekeeper {
  /** Who asks where nobody has to say; null: nobody known. */
  known(authorization: string | undefined, address: string): Caller | null;
  /** @throws Refusal unless the caller has this role or a higher one */
  admit(authorization: string | undefined, address: string, least: Role): Caller;
}

export function gatekeeper(tokens: readonly Token[]): Gatekeeper {
  const whoAsks = authenticator(tokens);
  const wrong = new WrongTokens();

  return {
    known(authorization, address) {
      const caller = whoAsks(authorization);
      if (!caller && bearer(authorization) !== undefined) wrong.add(address);
      return caller;
    },

    admit(authorization, address, least) {
      if (tokens.length === 0) throw new Refusal('no_tokens', catalogue.no_tokens.advice);
      if (bearer(authorization) === undefined) {
        const how = authorization === undefined ? 'the request has no Authorization header' : 'it is no bearer token';
        throw new Refusal('not_authenticated', `${how}; send Authorization: Bearer <secret>`, CHALLENGE);
      }
      const caller = whoAsks(authorization);
      if (!caller) {
        const seconds = wrong.add(address);
        if (seconds > 0) {
          const detail = `too many wrong tokens came from this address; try again in ${seconds} s`;
          throw new Refusal('too_many_failed_sign_ins', detail, { 'retry-after': String(seconds) });
        }
        throw new Refusal('not_authenticated', 'the token is none of ADMIN_TOKENS', WRONG);
      }
      if (ROLES.indexOf(caller.role) < ROLES.indexOf(least)) {
        throw new Refusal('role_too_low', `${caller.name} is ${article(caller.role)}; this needs ${article(least)}`);
      }
      return caller;
    },
  };
}

const CHALLENGE = { 'www-authenticate': 'Bearer realm="broadcastd"' };
const WRONG = { 'www-authenticate': 'Bearer realm="broadcastd", error="invalid_token"' };

function bearer(authorization: string | undefined): string | undefined {
  return /^Bearer +(\S+) *$/i.exec(authorization ?? '')?.[1];
}

function article(role: Role): string {
  return role === 'viewer' ? 'a viewer' : `an ${role}`;
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

const WRONG_PER_MINUTE = 10;
const ADDRESSES_MAX = 10_000;

/** Wrong tokens of the last minute, by address: of so many addresses at most, the oldest being forgotten first. */
class WrongTokens {
  readonly #minutes = new Map<string, { endsAt: number; count: number }>();

  /** @returns for how many seconds nothing more is taken from there; 0: go on */
  add(address: string): number {
    const now = performance.now();
    const network = networkOf(address);
    let minute = this.#minutes.get(network);
    if (!minute || minute.endsAt <= now) {
      this.#minutes.delete(network);
      if (this.#minutes.size >= ADDRESSES_MAX) {
        for (const oldest of this.#minutes.keys()) {
          this.#minutes.delete(oldest);
          break;
        }
      }
      minute = { endsAt: now + 60_000, count: 0 };
      this.#minutes.set(network, minute);
    }
    minute.count++;
    return minute.count > WRONG_PER_MINUTE ? Math.ceil((minute.endsAt - now) / 1000) : 0;
  }
}

/** One customer of a provider has a whole /64 of IPv6 addresses. */
function networkOf(address: string): string {
  if (!address.includes(':') || address.startsWith('::ffff:')) return address;
  return address.split(':').slice(0, 4).join(':');
}
