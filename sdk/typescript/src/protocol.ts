/**
 * The words on the wire: events and the JSON frames of docs/protocol/edge.md, as types.
 * Nothing happens here. Field names are those of the wire (snake_case); a server may add fields,
 * kinds and frame types, and nobody may rely on their absence.
 */

/** A reader's place: the last event that it has taken, in one history of the session. */
export interface Cursor {
  readonly session_epoch: string;
  readonly offset: number;
}

/**
 * Who wrote an event; stamped by the server. Kind `server` (participant `everwire`) is the server
 * itself: nobody asked for that event.
 */
export interface Author {
  readonly participant: string;
  readonly kind: 'user' | 'agent' | 'operator' | 'edge' | 'server';
}

/** A provider's chunk, kept byte for byte: `bytes` is base64. */
export interface Raw {
  readonly format: string;
  readonly bytes: string;
}

/** Any JSON value. */
export type Json =
  null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json };

/** Data of an application: JSON, or bytes in base64. */
export interface DataFields {
  readonly data?: Json;
  readonly data_base64?: string;
}

/** What a part of a message is. */
export type PartKind = 'text' | 'reasoning' | 'tool_call' | 'tool_result' | 'data' | 'file';
/** Who speaks in a message. */
export type Role = 'assistant' | 'user' | 'tool' | 'system';

/**
 * How a run stands. `running`, `suspended` and `orphaned` are live: a suspended run waits until it
 * is resumed, an orphaned one has lost its writer and goes on when somebody claims it. The others
 * never change again.
 */
export type RunState =
  'running' | 'suspended' | 'orphaned' | 'completed' | 'failed' | 'cancelled';

/** What a suspended run waits for; `paused`: until whoever has the right says that it may go on. */
export type SuspendReason = 'approval' | 'input' | 'auth' | 'paused';

/** Yes or no. */
export type Verdict = 'approve' | 'deny';

/**
 * What became of a request for an approval. `expired`: nobody answered in time. `withdrawn`: its
 * run took it back, or has ended.
 */
export type ApprovalOutcome = 'approved' | 'denied' | 'expired' | 'withdrawn';

/** These fields and no other of `All`, so that no literal can name two targets. */
export type Only<All extends string, Fields> = Fields & {
  readonly [Other in Exclude<All, keyof Fields>]?: never;
};

type TargetField = 'run' | 'subtree' | 'input' | 'input_by' | 'all';

/**
 * What a committed stop is aimed at: one run, a run and all that work for it, the runs that
 * answer an input, or every live run.
 */
export type StopTarget =
  | Only<TargetField, { readonly run: string }>
  | Only<TargetField, { readonly subtree: string }>
  | Only<TargetField, { readonly input: string; readonly input_by: string }>
  | Only<TargetField, { readonly all: true }>;

/** What is to pause or to go on: one run, a run and all that work for it, or every live run. */
export type RunsTarget =
  | Only<TargetField, { readonly run: string }>
  | Only<TargetField, { readonly subtree: string }>
  | Only<TargetField, { readonly all: true }>;

/** The body of each kind of event. */
export interface Bodies {
  'run.started': {
    /** The input that it answers. */
    readonly input?: string;
    /** The author of that input, if the agent said so. */
    readonly input_by?: string;
    /** The run that it works for. Not the event's own `parent`, which is a message. */
    readonly parent?: string;
    /** What the application says about it: JSON, or bytes in base64. */
    readonly meta?: Json;
    readonly meta_base64?: string;
  };
  /** Its author writes the run from here on; it may be another one than before. */
  'run.claimed': object;
  /** Its writer was silent for its whole lease. */
  'run.orphaned': object;
  /**
   * It waits, and holds no lease while it does. `note` says what for, for people. The author of
   * `paused` is whoever pressed; of the others its writer.
   */
  'run.suspended': { readonly reason: SuspendReason; readonly note?: string };
  /** It goes on. From its writer, or in the name of whoever pressed or gave the last answer. */
  'run.resumed': object;
  'run.completed': object;
  /** `lost`, from the server: an orphaned run that nobody claimed in time. */
  'run.failed': { readonly reason: string };
  /**
   * `cancel_offset` is where the stop stands: the same for all runs that it hit, and before
   * `run.started` for a run whose input was stopped before it began.
   */
  'run.cancelled': { readonly cancel_offset: number };
  /** What a run that was stopped gracefully still had to say; never part of its text. */
  'run.epilogue': DataFields;
  /**
   * What the run writes from here to the step's end is one attempt at it. What the attempt before
   * it wrote does not count any more. `attempt` counts from 1; the server stamps it.
   */
  'step.start': { readonly step: string; readonly attempt: number; readonly name?: string };
  /** Ends the open messages that began in the attempt, as complete or as incomplete. */
  'step.end': {
    readonly step: string;
    readonly status: 'complete' | 'failed';
    readonly reason?: string;
  };
  'message.start': { readonly message: string; readonly role: Role };
  'message.end': {
    readonly message: string;
    readonly status: 'complete' | 'cancelled' | 'incomplete';
  };
  'part.start': {
    readonly message: string;
    readonly part: string;
    readonly part_kind: PartKind;
    readonly name?: string;
  } & DataFields;
  'part.delta': {
    readonly message: string;
    readonly part: string;
    /** Bytes of UTF-8 that stand before this text in the part. */
    readonly position: number;
    readonly text: string;
  };
  'part.end': { readonly message: string; readonly part: string } & DataFields;
  input: { readonly input: string; readonly text: string } & DataFields;
  /** `graceful_ms`: for how long `run.epilogue` may follow; absent: not at all. */
  'signal.cancel': StopTarget & { readonly graceful_ms?: number };
  /** The writer of the event's run has seen the stop that stands at `signal_offset`. */
  'signal.observed': { readonly signal_offset: number };
  'signal.pause': RunsTarget;
  'signal.resume': RunsTarget;
  /** The writer of the event's run asks people for their yes. */
  'approval.requested': {
    readonly approval: string;
    /** What is to be done, for people; `data` is the same for programs. */
    readonly action: string;
    /** What the action comes to: whoever answers says it again, and so answers what was seen. */
    readonly action_hash: string;
    /** Who may answer; absent: anybody who has the right. */
    readonly approvers?: readonly string[];
    readonly within_ms: number;
    /** RFC 3339, as `time`. */
    readonly deadline: string;
    /** What it stands for when nobody answers in time. */
    readonly on_expiry: Verdict;
  } & DataFields;
  /** The author is who answered; the server if it expired. */
  'approval.resolved': {
    readonly approval: string;
    readonly outcome: ApprovalOutcome;
    readonly note?: string;
    /** Only with `expired`: what that stands for. */
    readonly on_expiry?: Verdict;
  };
  app: { readonly name: string } & DataFields;
}

/** The word by which events are told apart. */
export type Kind = keyof Bodies;

/** What every event carries besides its body. */
export interface EventFields {
  /** Its place in the session: dense, from 1. */
  readonly offset: number;
  /** RFC 3339, UTC, milliseconds. */
  readonly time: string;
  readonly author: Author;
  readonly visibility: string;
  readonly codec: string;
  readonly format?: string;
  readonly parent?: string;
  readonly run?: string;
  readonly run_epoch?: number;
  readonly seq?: number;
}

/** An event of one kind. */
export type EventOf<K extends Kind> = EventFields & {
  readonly kind: K;
  readonly body: Bodies[K] & { readonly raw?: Raw };
};

/**
 * One entry of a session's log. Newer servers may send kinds that are not listed here: leave a
 * `default` in your `switch`.
 */
export type SessionEvent = { [K in Kind]: EventOf<K> }[Kind];

/** What a client may write: an input or an app event. */
export interface EventDraft {
  readonly kind: 'input' | 'app';
  readonly body: { readonly [name: string]: unknown };
  readonly visibility?: string;
  readonly format?: string;
  readonly parent?: string;
}

/** Where a published event stands. `duplicate`: the key was known, this is its first place. */
export interface Published {
  readonly session_epoch: string;
  readonly offset: number;
  readonly duplicate: boolean;
}

/** What became of a signal. */
export interface SignalOutcome {
  /**
   * `applied` says that the signal is in the log, not that it hit somebody: a whole session may be
   * idle, and an input may be stopped before its run begins.
   */
  readonly outcome: 'applied' | 'already_terminal' | 'denied' | 'unknown_run';
  readonly session_epoch?: string;
  /** `applied`: where the signal is committed. `already_terminal`: where the run ended. */
  readonly offset?: number;
  /** `already_terminal`: how it ended. */
  readonly state?: RunState;
  readonly duplicate?: boolean;
}

/** What became of a cancel. */
export type CancelOutcome = SignalOutcome;

/** A cancel as the wire has it. */
export type CancelFields = (
  | Only<TargetField, { readonly run: string }>
  | Only<TargetField, { readonly subtree: string }>
  | Only<TargetField, { readonly input: string; readonly input_by?: string }>
  | Only<TargetField, { readonly all: true }>
) & {
  readonly graceful_ms?: number;
  readonly expect?: RunState;
  readonly as_of?: number;
};

/** An answer to a request for an approval, with the action that was seen. */
export interface AnswerFields {
  readonly approval: string;
  readonly action_hash: string;
  readonly note?: string;
}

/**
 * A signal as the wire has it, in a `signal` frame and in the body of an HTTP request alike. The
 * key stands for all of it, so both roads must say the same.
 */
export type SignalFields =
  | ({ readonly signal: 'cancel' } & CancelFields)
  | ({ readonly signal: 'pause' | 'resume' } & RunsTarget)
  | ({ readonly signal: Verdict } & AnswerFields);

/** Asks for a signal. */
export type SignalFrame = { t: 'signal'; id: string; session: string; key: string } & SignalFields;

/** A frame from this client. */
export type ClientFrame =
  | { t: 'auth'; token: string }
  | { t: 'attach'; id: string; session: string; form: 'raw'; cursor?: Cursor; create?: boolean }
  | { t: 'detach'; session: string }
  | { t: 'publish'; id: string; session: string; key: string; event: EventDraft }
  | SignalFrame
  | { t: 'refresh'; id: string; token: string }
  | { t: 'ping' };

export interface WelcomeFrame {
  t: 'welcome';
  id?: string;
  participant: string;
  edge: string;
  heartbeat_ms: number;
  lost_after_ms: number;
  token_expires?: string;
}

/** Over SSE `session_epoch`, `from` and `tail` may not be known before the first event. */
export interface AttachedFrame {
  t: 'attached';
  id?: string;
  session: string;
  answer: 'resumed' | 'gone' | 'not_found';
  session_epoch?: string;
  from?: number;
  tail?: number;
}

export interface EventsFrame {
  t: 'events';
  session: string;
  /** First offset that the frame covers; `to + 1` when it covers none. */
  from: number;
  to: number;
  tail?: number;
  events: SessionEvent[];
  leader_seen_ms?: number;
  /** Only over SSE, where each event names it. */
  session_epoch?: string;
}

export interface ErrorFields {
  code: string;
  message: string;
  advice: string;
  details?: Record<string, unknown>;
}

/** A frame from the edge. */
export type ServerFrame =
  | WelcomeFrame
  | AttachedFrame
  | EventsFrame
  | ({ t: 'ack'; id?: string; session: string } & Published)
  | ({ t: 'outcome'; id?: string; session: string } & SignalOutcome)
  | { t: 'expiring'; token_expires?: string }
  | { t: 'moving'; within_ms: number }
  | { t: 'pong'; id?: string }
  | ({ t: 'error'; id?: string; session?: string } & ErrorFields)
  | ({ t: 'bye' } & ErrorFields);

/** The WebSocket subprotocol that this client speaks. */
export const SUBPROTOCOL = 'everwire.v1.json';
/** Largest frame that an edge takes, bytes. */
export const FRAME_BYTES_MAX = 128 << 10;
/** Most sessions attached on one socket. */
export const SESSIONS_MAX = 256;
/** Requests that this client lets wait for their answer; the edge takes 64. */
export const REQUESTS_IN_FLIGHT_MAX = 60;
/** Requests without an answer, sent or not, before `publish` and signals refuse; and their bytes. */
export const REQUESTS_MAX = 1000;
export const REQUESTS_BYTES_MAX = 4 << 20;
/** Longest time that a graceful stop leaves for an epilogue, ms. */
export const GRACE_MS_MAX = 30_000;
/** Longest note of an answer, bytes of UTF-8. */
export const NOTE_BYTES_MAX = 256;

const NAME = /^[A-Za-z0-9._:~-]{1,128}$/;
const PARTICIPANT = /^[!-~]{1,128}$/;
const RUN_STATES: readonly unknown[] = [
  'running',
  'suspended',
  'orphaned',
  'completed',
  'failed',
  'cancelled',
] satisfies RunState[];

/** Whether the text may name a session, a run, an input or a key. */
export function isName(text: unknown): text is string {
  return typeof text === 'string' && NAME.test(text);
}

/** Whether the text may name a participant: a token's subject, which may be an e-mail address. */
export function isParticipant(text: unknown): text is string {
  return typeof text === 'string' && PARTICIPANT.test(text);
}

/** Whether the word is a state of a run. */
export function isRunState(word: unknown): word is RunState {
  return RUN_STATES.includes(word);
}

/** Whether the value is an offset, or 0 for "before the first". */
export function isOffset(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
