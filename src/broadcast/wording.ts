/**
 * What a service says is kept in error messages and in jsonb columns. Here it is made fit for both: short, in one
 * line, without our own secrets echoed back, and without what Postgres refuses.
 */

/** Characters of a service's text that an error message may hold. */
const MAX_QUOTE_LENGTH = 500;

/** Control characters, lone surrogates, line separators, blanks, and what reverses the direction of writing. */
const NOT_PRINTED = /[\p{Cc}\p{Cs}\p{Z}\u202a-\u202e\u2066-\u2069]+/gu;

/**
 * @param hidden secrets that a service may echo, such as the bearer token
 * @returns one line of at most MAX_QUOTE_LENGTH characters
 */
export function quote(text: string, hidden: readonly string[] = []): string {
  const open = hidden.reduce((shown, secret) => shown.replaceAll(secret, '[hidden]'), text);
  const line = open
    .slice(0, 8 * MAX_QUOTE_LENGTH)
    .replace(NOT_PRINTED, ' ')
    .trim();
  if (line.length <= MAX_QUOTE_LENGTH) return line;
  return `${line.slice(0, MAX_QUOTE_LENGTH - 1).replace(/\p{Cs}$/u, '')}…`;
}

/** An escaped NUL; a surrogate pair; a lone surrogate; any other escape (so that `\\u0000` stays what it is). */
const ESCAPE =
  /\\(?:(u0000)|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)/g;

/**
 * jsonb refuses `\u0000` and lone surrogates; the first is dropped, the second becomes U+FFFD.
 * @param json valid JSON text, which stays as it is otherwise: no number passes through JavaScript
 */
export function fitForJsonb(json: string): string {
  if (!json.includes('\\u')) return json;
  return json.replace(ESCAPE, (written, nul?: string, loneSurrogate?: string) => {
    if (nul !== undefined) return '';
    return loneSurrogate === undefined ? written : '\\ufffd';
  });
}
