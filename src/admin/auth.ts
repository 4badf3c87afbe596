/** Who is asking: named tokens, kept only as hashes and compared in constant time. */
import { createHash, timingSafeEqual } from 'node:crypto';

export type Role = 'viewer' | 'operator' | 'admin';

export interface Actor {
  readonly name: string;
  readonly role: Role;
}

/** @returns who a request's Authorization header belongs to (RFC 6750, section 2.1); null: nobody */
export function authenticator(
  tokens: readonly { readonly name: string; readonly role: Role; readonly secret: string }[],
): (authorization: string | undefined) => Actor | null {
  const known = tokens.map(({ name, role, secret }) => ({ actor: { name, role }, hash: sha256(secret) }));
  return (authorization) => {
    const given = /^Bearer +(\S+) *$/i.exec(authorization ?? '')?.[1];
    if (given === undefined) return null;
    const hash = sha256(given);
    // Every token is compared, whichever fits, so that the time taken tells nothing.
    let actor: Actor | null = null;
    for (const token of known) if (timingSafeEqual(token.hash, hash)) actor = token.actor;
    return actor;
  };
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
