/**
 * A signal in the words of a caller, as the fields of the wire. Pure.
 * What the server would refuse for its shape is refused here, with the name of the field.
 */
import { EverwireError } from './errors.js';
import {
  GRACE_MS_MAX,
  isName,
  isOffset,
  isParticipant,
  isRunState,
  NOTE_BYTES_MAX,
  type CancelFields,
  type RunsTarget,
  type SignalFields,
  type Verdict,
} from './protocol.js';
import type { AnswerOptions, CancelRunOptions, CancelTarget, SeenApproval } from './session.js';
import { utf8Length } from './utf8.js';

/** The wire's fields of a cancel; throws MALFORMED. */
export function cancelFields(
  target: string | CancelTarget,
  options: CancelRunOptions,
): SignalFields {
  const aimed = targetFields(target);
  const { gracefulMs: graceful_ms, expect, asOf: as_of } = options;
  if (graceful_ms !== undefined && !isGrace(graceful_ms)) {
    throw malformed(`gracefulMs is a whole number from 1 to ${GRACE_MS_MAX}`);
  }
  if (expect !== undefined && !isRunState(expect)) {
    throw malformed('expect is a state of a run');
  }
  if (expect !== undefined && aimed.run === undefined && aimed.subtree === undefined) {
    throw malformed('expect is said of a run, and the target names none');
  }
  if (as_of !== undefined && !isOffset(as_of)) throw malformed('asOf is an offset');
  if (as_of !== undefined && aimed.input !== undefined) {
    throw malformed('asOf would spare the very runs that a stop of an input means');
  }
  return {
    signal: 'cancel',
    ...aimed,
    ...(graceful_ms !== undefined && { graceful_ms }),
    ...(expect !== undefined && { expect }),
    ...(as_of !== undefined && { as_of }),
  };
}

/** The wire's fields of a pause or a resume; throws MALFORMED. */
export function pauseFields(
  signal: 'pause' | 'resume',
  target: string | RunsTarget,
): SignalFields {
  const aimed = targetFields(target);
  if (aimed.input !== undefined) throw malformed('an input can be neither paused nor resumed');
  return { signal, ...aimed };
}

/** The wire's fields of an answer to a request for an approval; throws MALFORMED or TOO_LARGE. */
export function answerFields(
  signal: Verdict,
  seen: SeenApproval,
  options: AnswerOptions,
): SignalFields {
  const approval = name('approval', seen?.approval);
  const action_hash = name('action_hash', seen.action_hash);
  const { note } = options;
  if (note !== undefined && typeof note !== 'string') throw malformed('note is a text');
  if (note !== undefined && utf8Length(note) > NOTE_BYTES_MAX) {
    const message = `the note is longer than ${NOTE_BYTES_MAX} bytes`;
    throw new EverwireError('TOO_LARGE', message, { limit: NOTE_BYTES_MAX });
  }
  return { signal, approval, action_hash, ...(note !== undefined && { note }) };
}

function targetFields(target: string | CancelTarget): CancelFields {
  if (typeof target === 'string') return { run: name('run', target) };
  // Callers without types may name two, and whoever stops too much cannot take it back.
  const named = (['run', 'subtree', 'input', 'all'] as const).filter(
    (field) => target?.[field] !== undefined,
  );
  if (named.length !== 1) throw malformed('a target names one thing, and no other');
  if (target.run !== undefined) return { run: name('run', target.run) };
  if (target.subtree !== undefined) return { subtree: name('subtree', target.subtree) };
  if (target.input === undefined) {
    if (target.all === true) return { all: true };
    throw malformed('all is true, or left out');
  }
  const input = name('input', target.input);
  if (target.by === undefined) return { input };
  if (!isParticipant(target.by)) throw malformed('by is not the name of a participant');
  return { input, input_by: target.by };
}

function name(field: string, text: string): string {
  if (isName(text)) return text;
  throw malformed(`${field}: names are 1 to 128 of letters, digits and . _ : ~ -`);
}

function isGrace(ms: unknown): boolean {
  return Number.isInteger(ms) && (ms as number) >= 1 && (ms as number) <= GRACE_MS_MAX;
}

function malformed(message: string): EverwireError {
  return new EverwireError('MALFORMED', message);
}
