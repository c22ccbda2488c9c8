/** `@everwire/client`: everything that a caller may use. */
export {
  connect,
  type AttachOptions,
  type Client,
  type ClientEvents,
  type ConnectOptions,
} from './client.js';
export type { ConnectionState } from './connection.js';
export { formatCursor, parseCursor, type CursorStorage, type ReaderState } from './cursor.js';
export { EverwireError, type Advice, type Code } from './errors.js';
export type {
  ApprovalOutcome,
  Author,
  Bodies,
  CancelOutcome,
  Cursor,
  DataFields,
  EventDraft,
  EventFields,
  EventOf,
  Json,
  Kind,
  PartKind,
  Published,
  Raw,
  Role,
  RunsTarget,
  RunState,
  SessionEvent,
  SignalOutcome,
  StopTarget,
  SuspendReason,
  Verdict,
} from './protocol.js';
export type { Attached, Gone, ReaderCounts, SessionState } from './reader.js';
export type {
  AnswerOptions,
  CancelOptions,
  CancelRunOptions,
  CancelTarget,
  InputDraft,
  RequestOptions,
  RunTarget,
  SeenApproval,
  Session,
  SessionEvents,
} from './session.js';
export {
  textOf,
  Transcript,
  type TranscriptApproval,
  type TranscriptMessage,
  type TranscriptPart,
  type TranscriptRun,
  type TranscriptStep,
  type TranscriptStop,
  type TranscriptSuspension,
} from './transcript.js';
export type { WebSocketConstructor, WebSocketLike } from './websocket.js';
