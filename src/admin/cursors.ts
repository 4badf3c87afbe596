/** Where a list goes on, as an opaque text: which list it belongs to, and the key of its last row. */
import { Refusal } from './problems.js';

export function cursorOf(list: string, key: string | null): string | null {
  return key === null ? null : Buffer.from(`${list} ${key}`).toString('base64url');
}

/** @throws Refusal when it is not one of this list's */
export function keyOf(list: string, cursor: string | undefined): string | null {
  if (cursor === undefined) return null;
  const text = Buffer.from(cursor, 'base64url').toString();
  const key = text.slice(list.length + 1);
  if (cursorOf(list, key) !== cursor || key === '')
    throw new Refusal('invalid_cursor', 'the cursor is not of this list');
  return key;
}

/** The same for lists whose key is a row's id. */
export function idOf(list: string, cursor: string | undefined): string | null {
  const key = keyOf(list, cursor);
  if (key !== null && !/^[1-9]\d{0,17}$/.test(key)) {
    throw new Refusal('invalid_cursor', 'the cursor is not of this list');
  }
  return key;
}
