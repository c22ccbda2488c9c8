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
  SessionEvent,
} from './protocol.js';
export type { Attached, Gone, ReaderCounts, SessionState } from './reader.js';
export type { InputDraft, RequestOptions, Session, SessionEvents } from './session.js';
export {
  textOf,
  Transcript,
  type TranscriptMessage,
  type TranscriptPart,
  type TranscriptRun,
} from './transcript.js';
export type { WebSocketConstructor, WebSocketLike } from './websocket.js';
