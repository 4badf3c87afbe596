/**
 * JSON as the database holds it, on its way into an answer as it is: numbers in a payload may be larger than JavaScript's
 * can hold, so it is never parsed.
 */
export class JsonText {
  constructor(readonly text: string) {}
}

export function jsonText(text: string | null): JsonText | null {
  return text === null ? null : new JsonText(text);
}
