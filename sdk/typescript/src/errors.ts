/**
 * Refusals as data: the code says why, the advice says what to do next.
 * In come frames, close codes and HTTP answers; out comes one `EverwireError`.
 */
import type { ErrorFields } from './protocol.js';

/** What to do after a refusal. */
export type Advice = 'retry' | 'retry_elsewhere' | 'reattach' | 'reauthenticate' | 'stop';

/** The codes of docs/protocol/codes.md: their advice, and their WebSocket close code. */
const CODES = {
  UNAUTHENTICATED: ['reauthenticate', 4001],
  TOKEN_EXPIRED: ['reauthenticate', 4002],
  TOKEN_REVOKED: ['stop', 4003],
  DENIED: ['stop', 4004],
  UNKNOWN_SESSION: ['stop', 4005],
  UNKNOWN_RUN: ['stop', 4006],
  RUN_FENCED: ['stop', 4007],
  RUN_ENDED: ['stop', 4008],
  STALE_EPOCH: ['stop', 4009],
  SEQ_GAP: ['retry', 4010],
  ALREADY_CLAIMED: ['stop', 4011],
  PARENT_FENCED: ['stop', 4012],
  FLOOR_HELD: ['stop', 4013],
  WRONG_STATE: ['stop', 4014],
  ALREADY_RESOLVED: ['stop', 4015],
  EXPIRED: ['stop', 4016],
  KEY_REUSED: ['stop', 4017],
  GONE: ['reattach', 4018],
  TOO_LARGE: ['stop', 4019],
  MALFORMED: ['stop', 4020],
  UNSUPPORTED_VERSION: ['stop', 4021],
  TOO_MANY_PENDING: ['retry', 4022],
  QUOTA: ['retry', 4023],
  OVERLOADED: ['retry', 4024],
  DISK_FULL: ['retry', 4025],
  NOT_LEADER: ['retry_elsewhere', 4026],
  WRONG_CLUSTER: ['stop', 4027],
  NO_QUORUM: ['retry', 4028],
  STALE: ['retry_elsewhere', 4029],
  DRAINING: ['retry_elsewhere', 4030],
  SLOW_READER: ['reattach', 4031],
  FROZEN: ['stop', 4032],
  INTERNAL: ['retry', 4033],
  UNKNOWN_APPROVAL: ['stop', 4034],
} as const satisfies Record<string, readonly [Advice, number]>;

/**
 * Codes of the server, and three of this client: `LOST` (the connection broke or fell silent),
 * `HOLE` (the server skipped offsets; the client reattaches), `CLOSED` (you closed it).
 */
export type Code = keyof typeof CODES | 'LOST' | 'HOLE' | 'CLOSED';

const ADVICE: readonly string[] = [
  'retry',
  'retry_elsewhere',
  'reattach',
  'reauthenticate',
  'stop',
];

function adviceOf(code: string): Advice {
  if (Object.hasOwn(CODES, code)) return CODES[code as keyof typeof CODES][0];
  return code === 'CLOSED' ? 'stop' : code === 'HOLE' ? 'reattach' : 'retry';
}

/** A refusal. `advice` is what the client itself follows; only what it cannot solve reaches you. */
export class EverwireError extends Error {
  /** Why: a word of `Code`, or a newer one. */
  readonly code: Code | (string & {});
  /** What helps. */
  readonly advice: Advice;
  /** Facts that belong to the code, such as `session_epoch`, `earliest` and `tail` of GONE. */
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: Code, message: string, details?: Record<string, unknown>);
  constructor(code: string, message: string, details?: Record<string, unknown>, advice?: Advice);
  constructor(
    code: string,
    message: string,
    details: Record<string, unknown> = {},
    advice?: Advice,
  ) {
    super(message);
    this.name = 'EverwireError';
    this.code = code;
    this.details = details;
    this.advice = advice ?? adviceOf(code);
  }

  /** From the error fields of a frame or an HTTP answer; what is unreadable counts as retry. */
  static from(fields: Partial<ErrorFields>): EverwireError {
    const code = typeof fields.code === 'string' ? fields.code : 'INTERNAL';
    const message = typeof fields.message === 'string' ? fields.message : code;
    const known = typeof fields.advice === 'string' && ADVICE.includes(fields.advice);
    const advice = known ? (fields.advice as Advice) : adviceOf(code);
    return new EverwireError(code, message, fields.details ?? {}, advice);
  }

  /** From the close code of a WebSocket that sent no `bye`. */
  static fromClose(close: number, reason: string): EverwireError {
    for (const [code, [, number]] of Object.entries(CODES)) {
      if (number === close) return new EverwireError(code, reason || code);
    }
    return new EverwireError(
      'LOST',
      `the connection was closed (${close}${reason && `, ${reason}`})`,
    );
  }

  /** From an HTTP answer: the refusal in its body, else the nearest meaning of its status. */
  static fromHttp(status: number, body: unknown): EverwireError {
    if (typeof body === 'object' && body !== null && 'code' in body) {
      return EverwireError.from(body as Partial<ErrorFields>);
    }
    const message = `the edge answered HTTP ${status}`;
    if (status === 401) return new EverwireError('UNAUTHENTICATED', message);
    if (status === 403) return new EverwireError('DENIED', message);
    if (status === 408 || status === 429 || status >= 500)
      return new EverwireError('OVERLOADED', message);
    return new EverwireError('MALFORMED', message);
  }

  /** From anything that was thrown on the way: a broken network is `LOST`. */
  static lost(thrown: unknown): EverwireError {
    if (thrown instanceof EverwireError) return thrown;
    const what = thrown instanceof Error ? thrown.message : String(thrown);
    return new EverwireError('LOST', what);
  }
}
