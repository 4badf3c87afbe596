/** Errors in one line. */
export function errorWords(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // What several addresses of one host refused has no message of its own.
  if (error instanceof AggregateError) return error.errors.map(errorWords).join(', ');
  return error.message || error.name;
}
