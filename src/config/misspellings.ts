/**
 * A misspelt variable is silently the default, and nobody notices until it matters. So those that are nearly one of ours
 * are named. Only near misses, not everything that begins with BROADCAST_: beside a service called `broadcast`,
 * Kubernetes puts BROADCAST_SERVICE_HOST and its like into every container.
 */

/** One sentence for each variable of `env` that is not among `names` but was probably meant to be. */
export function findMisspellings(
  env: Readonly<Record<string, string | undefined>>,
  names: readonly string[],
): string[] {
  // Short names such as HOST and PORT are near to too much, and a variable that is set was not misspelt.
  const missing = names.filter((name) => name.length >= 8 && !env[name]);
  const longest = Math.max(...names.map((name) => name.length));
  return Object.keys(env).flatMap((written) => {
    if (!env[written] || names.includes(written) || written.length > longest + 2) return [];
    const [nearest] = missing
      .map((name) => ({ name, edits: distance(written.toUpperCase(), name) }))
      .filter(({ edits }) => edits <= 2)
      .sort((a, b) => a.edits - b.edits);
    if (nearest === undefined) return [];
    return [`${written} is set, but the daemon does not know it. Was ${nearest.name} meant?`];
  });
}

function distance(written: string, name: string): number {
  // The likeliest slip of all is to leave out the unit.
  const forgotUnit = written.length >= 5 && /^_(MS|SECONDS|DAYS|BYTES)$/.test(name.slice(written.length));
  return forgotUnit && name.startsWith(written) ? 1 : editDistance(written, name);
}

/** The fewest insertions, deletions and substitutions that lead from one word to the other (Levenshtein's distance). */
function editDistance(from: string, to: string): number {
  // The usual table, of which only the last row is kept: row[j] is the distance from the letters so far to the first j.
  let above = Array.from({ length: to.length + 1 }, (_, j) => j);
  for (let i = 1; i <= from.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= to.length; j += 1) {
      const replaced = at(above, j - 1) + (from[i - 1] === to[j - 1] ? 0 : 1);
      row.push(Math.min(replaced, at(above, j) + 1, at(row, j - 1) + 1));
    }
    above = row;
  }
  return at(above, to.length);
}

/** Every index asked for is inside its row. */
function at(row: readonly number[], index: number): number {
  return row[index] ?? Number.POSITIVE_INFINITY;
}
