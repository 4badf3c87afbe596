/**
 * How far a walk through an audience has come. To the daemon a cursor is opaque; here it is two numbers: the step that
 * the walk began with, and the last user id it handled (of a job without an audience: how many people it has taken).
 * User ids are unique and in order, so nobody stands on the edge of two slices.
 */
export interface Position {
  /** Rows that this walk claimed itself bear this step or a later one, and are not claimed by it again. */
  readonly firstStep: number;
  /** Decimal text: an id may exceed what a JavaScript number can hold. */
  readonly after: string;
}

export function writeCursor({ firstStep, after }: Position): string {
  return Buffer.from(`${firstStep}:${after}`).toString('base64url');
}

/** @returns null for what this service never wrote */
export function readCursor(cursor: string): Position | null {
  const parts = /^(\d{1,15}):(\d{1,18})$/.exec(Buffer.from(cursor, 'base64url').toString());
  if (parts === null) return null;
  const [, firstStep = '', after = ''] = parts;
  return { firstStep: Number(firstStep), after };
}
