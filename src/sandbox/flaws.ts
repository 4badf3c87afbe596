/**
 * Ways to break the contract, one rule each, for the whole life of a sandbox: so that whoever checks services by the
 * contract can see the check catch it. (A fault, in contrast, is what may befall a service that keeps every rule.)
 * The other files ask for a flaw at the one place where its rule is kept.
 */
import { type Answer, problem } from './answer.js';

export const FLAWS = {
  'bare-404': 'an unknown job type gets a 404 of plain text, without the code unknown_job_type',
  'bad-data-500': 'a payload that makes no sense is answered 500 instead of 422',
  'plain-errors': 'a payload that makes no sense is refused in plain text instead of application/problem+json',
  'any-signature': 'a missing or wrong signature is accepted',
  'any-token': 'a missing or wrong bearer token is accepted',
  redirects: 'every call is redirected (307) before it is answered',
  'empty-202': 'a finished broadcast is answered 202 with neither body nor Location',
  'says-no-level': 'answers carry no X-Broadcast-Level',
  'forgets-keys': 'a key that comes again does the step anew instead of getting the stored answer',
  'fingerprints-attempt': 'a repetition with another epoch, attempt or previous_failure is refused as another request',
  'runs-beside': 'a second call of a key runs beside the first one instead of being answered 409 in_progress',
  'ignores-epoch': 'an older epoch is not refused',
  'too-many-items': 'a slice does one more than max_items',
  overstays: 'a slice ignores wait_seconds',
  'ignores-pace': 'per_second is ignored',
  'delta-progress': 'progress counts the slice alone, not since the job began',
  'wrong-sum': 'processed is not sent + skipped + failed + unknown',
  'no-ledger': 'a new step sends again to people whom an earlier step of the job has sent to',
  'forgets-cut-slice': 'what a call did before its connection was cut is done again at the repetition',
  'dry-run-sends': 'a dry run sends',
  'test-sends-all': 'test_recipients is ignored: a test goes to everybody',
  'ignores-scope': 'the scopes failed and unknown send to everybody',
  'location-elsewhere': 'level 3: the Location of an operation is of another origin',
  'delete-ignored': 'level 3: DELETE is answered 204, and the sending goes on',
  'forgets-operation': 'level 3: GET of an operation is answered 404',
  'resends-unknown': 'people whose message was under way in a crash are sent to again',
} as const;

export type Flaw = keyof typeof FLAWS;
export type Flaws = ReadonlySet<Flaw>;

export function isFlaw(name: string): name is Flaw {
  return Object.hasOwn(FLAWS, name);
}

/** The table, for people to read. */
export function describeFlaws(): string {
  return Object.entries(FLAWS)
    .map(([name, meaning]) => `  ${name.padEnd(22)}${meaning}`)
    .join('\n');
}

/** Whether people are sent to whom the ledger should have protected. */
export function sendsAgain(flaws: Flaws): boolean {
  return flaws.has('no-ledger') || flaws.has('forgets-cut-slice') || flaws.has('ignores-scope');
}

/** The refusal of a call that cannot be carried out. */
export function refusal(flaws: Flaws, status: number, code: string, detail: string): Answer {
  if (code === 'unknown_job_type' && flaws.has('bare-404')) return plain(404, 'Not Found');
  if (code === 'invalid_payload' && flaws.has('bad-data-500')) return problem(500, 'internal', detail);
  if (code === 'invalid_payload' && flaws.has('plain-errors')) return plain(status, detail);
  return problem(status, code, detail, { retriable: false });
}

/** What a call is told whose work is done, or goes on without it. */
export function doneAnswer(flaws: Flaws, answer: Answer): Answer {
  return flaws.has('empty-202') ? { status: 202, headers: {}, body: '' } : answer;
}

function plain(status: number, body: string): Answer {
  return { status, headers: { 'content-type': 'text/plain' }, body };
}
