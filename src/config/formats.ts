/**
 * How the text of an environment variable becomes a value. Each format carries the TypeBox schema of what it yields, the
 * words that tell a person what to write, and a reader that finds every fault in a text instead of stopping at the first.
 *
 * Faults are phrases without the variable's name; the caller adds it, and the advice. Formats for secrets, and for URLs
 * (where people paste passwords), never repeat any part of the text: they speak of "entry 2" instead.
 */
import { validate as isCron } from 'node-cron';
import { type Static, type TSchema, Type } from 'typebox';
import Value from 'typebox/value';

export type Reading<T> = { readonly value: T } | { readonly faults: readonly string[] };

export interface Format<T extends TSchema = TSchema> {
  readonly type: T;
  /** A noun phrase that continues "write …". */
  readonly expects: string;
  read(text: string): Reading<Static<T>>;
}

// ---- plain values

/** A whole number; `unit` is a plural noun, or empty for a bare number. */
export function integer(unit: string, minimum: number, maximum: number) {
  const type = Type.Integer({ minimum, maximum });
  const expects = `a whole number ${unit === '' ? '' : `of ${unit} `}from ${minimum} to ${maximum}`;
  return format(type, expects, (text) => {
    const value = wholeNumber(text);
    if (value === undefined) return fault(`${quoted(text)} is not a whole number`);
    if (!Value.Check(type, value)) return fault(`${quoted(text)} is too ${value < minimum ? 'small' : 'large'}`);
    return { value };
  });
}

export const yesOrNo = format(Type.Boolean(), 'true or false', (text) => {
  const word = text.toLowerCase();
  if (['true', '1', 'yes'].includes(word)) return { value: true };
  if (['false', '0', 'no'].includes(word)) return { value: false };
  return fault(`${quoted(text)} is neither true nor false`);
});

export function choice<const V extends readonly string[]>(...values: V) {
  const type = Type.Unsafe<V[number]>(Type.Enum([...values]));
  return format(type, `one of ${values.join(', ')}`, (text) =>
    Value.Check(type, text) ? { value: text } : fault(`${quoted(text)} is not one of the possible values`),
  );
}

/** A plain identifier, so that it needs no quotes in SQL. */
export const schemaName = format(
  Type.String({ pattern: '^(?!pg_)[a-z_][a-z0-9_]{0,62}$' }),
  'a name of a-z, 0-9 and _ (at most 63, no digit first) that does not begin with pg_',
  matching,
);

export const host = format(
  Type.String({ pattern: '^[A-Za-z0-9.:_%-]{1,253}$' }),
  'a host name or IP address without scheme and port',
  matching,
);

export const timeZone = format(Type.String(), 'a zone of the IANA database', (text) => {
  try {
    // Newer versions of Node also take offsets here, such as +02:00, which know nothing of summer time.
    if (/^[A-Za-z]/.test(text)) {
      new Intl.DateTimeFormat('en', { timeZone: text });
      return { value: text };
    }
  } catch {
    // RangeError: falls through to the fault.
  }
  return fault(`${quoted(text)} is not a known time zone`);
});

export const cron = format(
  Type.String(),
  'a cron expression of five fields, or six beginning with seconds, or nothing to switch it off',
  (text) => {
    if (![5, 6].includes(text.split(/\s+/).length)) return fault(`${quoted(text)} does not have five or six fields`);
    // node-cron expands ranges before it checks them: one like 1-999999999 would end the process for lack of memory.
    const tooLarge = (text.match(/\d+/g) ?? []).find((digits) => Number(digits) > 59);
    if (tooLarge !== undefined) return fault(`${quoted(text)} has a number above 59`);
    return isCron(text) ? { value: text } : fault(`${quoted(text)} is not a valid cron expression`);
  },
);

// ---- addresses

export const httpUrl = format(
  Type.String(),
  'an http:// or https:// address without user name, password, query and fragment',
  (text) => {
    if (!/^https?:\/\//i.test(text)) return fault('it does not begin with http:// or https://');
    if (!URL.canParse(text)) return fault('it cannot be read as an address');
    const url = new URL(text);
    const faults = [];
    if (url.username !== '' || url.password !== '') faults.push('it contains a user name or a password');
    if (text.includes('?')) faults.push('it has a query (from the ? on)');
    if (text.includes('#')) faults.push('it has a fragment (from the # on)');
    return faults.length > 0 ? { faults } : { value: url.href.replace(/\/+$/, '') };
  },
);

export const postgresUrl = format(Type.String(), 'a postgres:// or postgresql:// address', (text) => {
  const encode = 'characters such as @ : / ? # and spaces in a password must be written percent-encoded (# is %23)';
  if (!/^postgres(ql)?:\/\//i.test(text)) return fault('it does not begin with postgres:// or postgresql://');
  // An empty host after a password (a Unix socket) is fine for Postgres but not for URL.
  const address = text.replace('@/', '@socket/');
  if (/\s/.test(text) || !URL.canParse(address)) return fault(`it cannot be read as an address; ${encode}`);
  const url = new URL(address);
  // A raw # or / ends the password early, and what follows it is taken for a fragment or for the database's name.
  if (text.includes('#') || url.pathname.includes('@')) return fault(`its password seems to be cut short; ${encode}`);
  return { value: text };
});

// ---- secrets

/** Goes into an HTTP header: visible ASCII only. */
export function token(minimumLength: number) {
  const type = Type.String({ pattern: `^[\\x21-\\x7e]{${minimumLength},4096}$` });
  const least = minimumLength > 1 ? `at least ${minimumLength} ` : '';
  return format(type, `${least}printable ASCII characters without spaces`, (text) => {
    if (text.length < minimumLength) return fault(`it is shorter than ${minimumLength} characters`);
    if (Value.Check(type, text)) return { value: text };
    return fault('it is too long, or has spaces, line breaks or characters beyond ASCII');
  });
}

export const webhookSecrets = format(
  Type.Array(Type.String()),
  'whsec_ and 24 to 64 random bytes in Base64; a comma between two secrets while rotating',
  (text) =>
    entries(text, (secret, nth, earlier) => {
      const encoded = /^whsec_(.*)$/.exec(secret)?.[1];
      if (encoded === undefined) return fault(`entry ${nth} does not begin with whsec_`);
      const bytes = Buffer.from(encoded, 'base64');
      if (bytes.toString('base64') !== encoded) return fault(`entry ${nth} is not Base64 after whsec_`);
      if (bytes.length < 24 || bytes.length > 64) return fault(`entry ${nth} holds ${bytes.length} bytes`);
      if (earlier.includes(secret)) return fault(`entry ${nth} repeats an earlier one`);
      return { value: secret };
    }),
);

const AdminToken = Type.Object({
  name: Type.String({ pattern: '^[A-Za-z][A-Za-z0-9_.-]{0,49}$' }),
  role: Type.Enum(['viewer', 'operator', 'admin']),
  secret: Type.String({ pattern: '^[\\x21-\\x7e]{24,4096}$' }),
});

export const adminTokens = format(
  Type.Array(AdminToken),
  'name:role:secret, separated by commas, with the role viewer, operator or admin and a secret of 24 characters or more',
  (text) =>
    entries<Static<typeof AdminToken>>(text, (entry, nth, earlier) => {
      const [name, role, ...rest] = entry.split(':');
      const secret = rest.join(':');
      if (name === undefined || role === undefined || rest.length === 0) {
        return fault(`entry ${nth} is not name:role:secret (a secret can hold no comma)`);
      }
      const { properties } = AdminToken;
      const faults = [];
      if (!Value.Check(properties.name, name)) faults.push(`the name of entry ${nth} is not a plain name`);
      if (earlier.some((one) => one.name === name)) faults.push(`the name of entry ${nth} is taken already`);
      if (!Value.Check(properties.secret, secret)) {
        faults.push(`the secret of entry ${nth} is not 24 or more printable ASCII characters without spaces`);
      } else if (earlier.some((one) => one.secret === secret)) {
        faults.push(`the secret of entry ${nth} is taken already`);
      }
      if (!Value.Check(properties.role, role)) {
        return { faults: [...faults, `the role of entry ${nth} is not viewer, operator or admin`] };
      }
      return faults.length > 0 ? { faults } : { value: { name, role, secret } };
    }),
);

// ---- lists

const queueName = '[a-z][a-z0-9_-]{0,49}';
const Slots = Type.Integer({ minimum: 0, maximum: 1000 });

/** Slots per queue; `others` is null when no `*` was written. */
export const concurrency = format(
  Type.Object({ named: Type.Record(Type.String(), Slots), others: Type.Union([Slots, Type.Null()]) }),
  'queue=slots pairs separated by commas, 0 to 1000 slots each, with * for each queue not named',
  (text) => {
    const pairs = numbersByName(text, new RegExp(`^(${queueName}|\\*)$`), 'queue', (number) => {
      const slots = wholeNumber(number);
      return slots !== undefined && Value.Check(Slots, slots)
        ? { value: slots }
        : fault('does not give a whole number of slots from 0 to 1000');
    });
    if ('faults' in pairs) return pairs;
    const { '*': others = null, ...named } = Object.fromEntries(pairs.value);
    return { value: { named: dictionary(Object.entries(named)), others } };
  },
);

const PerSecond = Type.Number({ minimum: 0.001, maximum: 1_000_000 });

/** Messages a second by limit key. */
export const rateLimits = format(
  Type.Record(Type.String(), PerSecond),
  'key=messages-a-second pairs separated by commas, with keys queue:<queue> and bot:<bot id>',
  (text) => {
    const pairs = numbersByName(text, new RegExp(`^(queue:${queueName}|bot:[^\\s=]{1,100})$`), 'key', (number) => {
      const perSecond = /^\d+(\.\d+)?$/.test(number) ? Number(number) : Number.NaN;
      return Value.Check(PerSecond, perSecond)
        ? { value: perSecond }
        : fault('does not give a number from 0.001 to 1000000');
    });
    return 'faults' in pairs ? pairs : { value: dictionary(pairs.value) };
  },
);

const builtInJobTypes = ['send_broadcast', 'send_segment_broadcast', 'process_retries', 'cleanup_queue'];
const JobType = Type.String({ pattern: '^[a-z][a-z0-9_]{0,49}$' });

export const jobTypes = format(
  Type.Array(JobType),
  'job types separated by commas, each of a-z, 0-9 and _ (at most 50, a letter first)',
  (text) =>
    entries<string>(text, (jobType, _nth, earlier) => {
      if (builtInJobTypes.includes(jobType)) return fault(`${quoted(jobType)} is built in and always known`);
      if (earlier.includes(jobType)) return fault(`${quoted(jobType)} is given twice`);
      return Value.Check(JobType, jobType) ? { value: jobType } : fault(`${quoted(jobType)} is not a job type's name`);
    }),
);

const MemberName = Type.String({ pattern: '^[A-Za-z_][A-Za-z0-9_]{0,49}$' });

export const memberNames = format(
  Type.Array(MemberName),
  'names of members separated by commas, each of A-Z, a-z, 0-9 and _ (at most 50, no digit first)',
  (text) =>
    entries<string>(text, (name, _nth, earlier) => {
      if (earlier.includes(name)) return fault(`${quoted(name)} is given twice`);
      return Value.Check(MemberName, name) ? { value: name } : fault(`${quoted(name)} is not a plain name`);
    }),
);

// ---- what the formats above are made of

function format<T extends TSchema>(
  type: T,
  expects: string,
  read: (this: void, text: string, type: T) => Reading<Static<T>>,
): Format<T> {
  return { type, expects, read: (text) => read(text, type) };
}

function fault(words: string): { faults: readonly string[] } {
  return { faults: [words] };
}

/** Quoted like JSON, so that control characters show, and cut: a fault is one readable line. */
function quoted(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);
}

function matching(text: string, type: TSchema): Reading<string> {
  return Value.Check(type, text) ? { value: text } : fault(`${quoted(text)} cannot be used`);
}

function wholeNumber(text: string): number | undefined {
  return /^[+-]?\d{1,15}$/.test(text) ? Number(text) : undefined;
}

/** Reads each part of a comma-separated list and gathers the faults of all. `earlier`: the values read so far. */
function entries<T>(
  text: string,
  read: (entry: string, nth: number, earlier: readonly T[]) => Reading<T>,
): Reading<T[]> {
  const value: T[] = [];
  const faults: string[] = [];
  for (const [index, entry] of text.split(',').entries()) {
    const nth = index + 1;
    const reading = entry.trim() === '' ? fault(`entry ${nth} is empty`) : read(entry.trim(), nth, value);
    if ('faults' in reading) faults.push(...reading.faults);
    else value.push(reading.value);
  }
  return faults.length > 0 ? { faults } : { value };
}

/** Reads `name=number` pairs with unique names; the last = separates, since a bot's id may hold one. */
function numbersByName(
  text: string,
  name: RegExp,
  noun: string,
  read: (number: string) => Reading<number>,
): Reading<[string, number][]> {
  return entries<[string, number]>(text, (entry, _nth, earlier) => {
    const cut = entry.lastIndexOf('=');
    if (cut === -1) return fault(`${quoted(entry)} has no =`);
    const key = entry.slice(0, cut).trim();
    if (!name.test(key)) return fault(`${quoted(key)} is not a valid ${noun}`);
    if (earlier.some(([taken]) => taken === key)) return fault(`the ${noun} ${quoted(key)} is given twice`);
    const reading = read(entry.slice(cut + 1).trim());
    return 'faults' in reading ? fault(`${quoted(entry)} ${reading.faults.join()}`) : { value: [key, reading.value] };
  });
}

/** Without a prototype: `constructor` is a valid queue name, and must not be found unless it was given. */
function dictionary(pairs: readonly [string, number][]): Record<string, number> {
  return Object.assign(Object.create(null), Object.fromEntries(pairs));
}
