/**
 * Reading `Retry-After` (RFC 9110, 10.2.3): whole seconds or an HTTP date. Date.parse would take `-5` for the year
 * 2001, and Number would take `1e309` for a wait without end; so both forms are read strictly here. A value that is
 * negative, past or senseless counts as absent.
 */

/** The longest wait a service may ask for: 24 hours, in milliseconds. */
export const MAX_RETRY_AFTER_MS = 24 * 3_600_000;

/**
 * @param value the header `Retry-After`
 * @param date the same answer's `Date`, by whose clock an HTTP date is measured where it is valid
 * @param nowMs our clock, milliseconds since 1970, for answers without a valid `Date`
 * @returns milliseconds from 0 to MAX_RETRY_AFTER_MS, or undefined when there is nothing to obey
 */
export function readRetryAfter(value: string | undefined, date: string | undefined, nowMs: number): number | undefined {
  if (value === undefined) return undefined;
  const text = value.trim();
  if (/^\d+$/.test(text)) return waitOfSeconds(Number(text));
  const until = readHttpDate(text, nowMs);
  if (until === undefined) return undefined;
  const from = (date === undefined ? undefined : readHttpDate(date.trim(), nowMs)) ?? nowMs;
  return waitOfSeconds((until - from) / 1000);
}

/** @returns the wait in whole milliseconds, or undefined for a number of seconds that is negative or none at all */
export function waitOfSeconds(seconds: number): number | undefined {
  if (Number.isNaN(seconds) || seconds < 0) return undefined;
  return Math.min(Math.ceil(seconds * 1000), MAX_RETRY_AFTER_MS);
}

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
const MONTH = `(?<month>${MONTHS.join('|')})`;
const TIME = String.raw`(?<hour>\d{2}):(?<minute>\d{2}):(?<second>\d{2})`;
const SHORT_DAY = '(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)';
const LONG_DAY = '(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day';

/** The three forms of RFC 9110, 5.6.7: the fixed one, and the two obsolete ones that must still be read. */
const HTTP_DATES = [
  new RegExp(String.raw`^${SHORT_DAY}, (?<day>\d{2}) ${MONTH} (?<year>\d{4}) ${TIME} GMT$`),
  new RegExp(String.raw`^${LONG_DAY}, (?<day>\d{2})-${MONTH}-(?<year>\d{2}) ${TIME} GMT$`),
  new RegExp(String.raw`^${SHORT_DAY} ${MONTH} (?<day>[ \d]\d) ${TIME} (?<year>\d{4})$`),
];

/** @returns milliseconds since 1970, or undefined for what is no HTTP date or no day of the calendar */
function readHttpDate(text: string, nowMs: number): number | undefined {
  const parts = HTTP_DATES.map((form) => form.exec(text)?.groups).find((groups) => groups !== undefined);
  if (parts === undefined) return undefined;
  const month = MONTHS.indexOf(parts.month ?? '');
  const day = Number(parts.day);
  const [hour, minute, second] = [Number(parts.hour), Number(parts.minute), Number(parts.second)];
  // A leap second is written :60 and is the next minute's first.
  if (hour > 23 || minute > 59 || second > 60) return undefined;
  const instant = Date.UTC(fullYear(parts.year ?? '', nowMs), month, day, hour, minute, second);
  const isOnCalendar =
    day >= 1 && day <= new Date(Date.UTC(fullYear(parts.year ?? '', nowMs), month + 1, 0)).getUTCDate();
  return isOnCalendar ? instant : undefined;
}

/** Two digits that would lie more than fifty years ahead mean the past century (RFC 9110, 5.6.7). */
function fullYear(digits: string, nowMs: number): number {
  if (digits.length === 4) return Number(digits);
  const thisYear = new Date(nowMs).getUTCFullYear();
  const year = thisYear - (thisYear % 100) + Number(digits);
  return year > thisYear + 50 ? year - 100 : year;
}
