/**
 * One session, as the caller sees it: events to iterate, inputs to publish, runs to stop or to
 * pause, approvals to give.
 *
 * Exactly once, precisely:
 * - Within the life of this object each event is handed over once, in order, whatever the
 *   connection does meanwhile.
 * - An event counts as taken when the caller comes back for the next one, or leaves the loop.
 *   `cursor` is the last taken event.
 * - With `storage`, the cursor is stored before the next event is handed over. So after a reload
 *   no event comes again, except the one whose loop body was at work when the page died: its
 *   work may be half done.
 * - With `storage` and `state`, what the caller has made of the events is stored in one item with
 *   the cursor; whatever the reload cuts off is cut off from both. Nothing counts twice in it.
 */
import type { CursorKeeper } from './cursor.js';
import { Emitter } from './emitter.js';
import { EverwireError } from './errors.js';
import type {
  CancelOutcome,
  Cursor,
  EventDraft,
  Json,
  Only,
  Published,
  RunsTarget,
  RunState,
  SessionEvent,
  SignalFields,
  SignalOutcome,
} from './protocol.js';
import type { Attached, Gone, Reader, ReaderCounts, ReaderHooks, SessionState } from './reader.js';
import { answerFields, cancelFields, pauseFields } from './signals.js';

/** What a session tells besides its events. */
export interface SessionEvents extends Record<string, unknown> {
  state: SessionState;
  attached: Attached;
  /** `onGone: 'restart'`: the history begins anew; forget what was built from the old one. */
  gone: Gone;
  tail: number;
  /** Something went wrong and is being repaired, or could not be stored; nothing to do for you. */
  trouble: EverwireError;
}

/** An input in short. `input` is its id; minted if absent. */
export interface InputDraft {
  readonly text: string;
  readonly input?: string;
  readonly data?: Json;
}

/** How a request is repeated, and until when. */
export interface RequestOptions {
  /** The idempotency key; minted if absent. The same key means: this very request, once. */
  readonly key?: string;
  /** Gives up waiting. The request may still be committed, unless it was never sent. */
  readonly signal?: AbortSignal;
}

type TargetField = 'run' | 'subtree' | 'input' | 'by' | 'all';

/**
 * A target that names a run: `run` is that run alone, never its children; `subtree` is that run,
 * which may have ended, and all that work for it, down to the last.
 */
export type RunTarget =
  | Only<TargetField, { readonly run: string }>
  | Only<TargetField, { readonly subtree: string }>;

/**
 * What a cancel is aimed at. Besides runs by name: `input`, the runs that answer an input and
 * those that begin to within ten minutes (`by` is its author, yourself if absent); and `all`,
 * every live run of the session.
 */
export type CancelTarget =
  | RunTarget
  | Only<TargetField, { readonly input: string; readonly by?: string }>
  | Only<TargetField, { readonly all: true }>;

/** How to cancel. */
export interface CancelOptions extends RequestOptions {
  /**
   * Lets the writers append `run.epilogue` for so long, ms, 1 to 30000. Their text ends at once
   * all the same. Absent: a hard stop, after which they append nothing.
   */
  readonly gracefulMs?: number;
  /**
   * Spares runs that started after this offset: say what you had seen when you pressed, and a
   * late Stop does not hit what came since. If the run that the target names started later, the
   * cancel is refused with WRONG_STATE.
   */
  readonly asOf?: number;
  /** Only with a target that names a run; see `CancelRunOptions`. */
  readonly expect?: never;
}

/** How to cancel a run, or a run and all that work for it. */
export interface CancelRunOptions extends Omit<CancelOptions, 'expect'> {
  /** The state that the named run must be in; else the cancel is refused with WRONG_STATE. */
  readonly expect?: RunState;
}

/**
 * A request for an approval that somebody has seen: one of a transcript's `approvals`, or the body
 * of an `approval.requested`.
 */
export interface SeenApproval {
  readonly approval: string;
  /** Of the action that was shown: the answer holds for that one and no other. */
  readonly action_hash: string;
}

/** How to answer a request for an approval. */
export interface AnswerOptions extends RequestOptions {
  /** What else is to be said, for people; at most 256 bytes. */
  readonly note?: string;
}

/** What a session needs of its client. */
export interface SessionDoor {
  publish(
    session: string,
    draft: InputDraft | EventDraft,
    options: RequestOptions,
  ): Promise<Published>;
  signal(session: string, fields: SignalFields, options: RequestOptions): Promise<SignalOutcome>;
  closed(session: Session): void;
}

type Waiter = {
  readonly resolve: (result: IteratorResult<SessionEvent, undefined>) => void;
  readonly reject: (why: EverwireError) => void;
};

/** One session. Made by `client.attach`. */
export class Session implements AsyncIterable<SessionEvent> {
  readonly #emitter = new Emitter<SessionEvents>();
  readonly #waiters: Waiter[] = [];
  #reader!: Reader;
  #keeper: CursorKeeper | undefined;
  #cursor: Cursor | undefined;
  /** Handed over, and the caller has not come back yet. */
  #inHand: SessionEvent | undefined;
  readonly #door: SessionDoor;
  /** Its name. */
  readonly name: string;

  /** @internal Use `client.attach`. */
  constructor(name: string, door: SessionDoor, cursor: Cursor | undefined) {
    this.name = name;
    this.#door = door;
    this.#cursor = cursor;
  }

  /** @internal */
  wire(reader: Reader, keeper: CursorKeeper | undefined): void {
    this.#reader = reader;
    this.#keeper = keeper;
  }

  /** @internal */
  hooks(): ReaderHooks {
    const emitter = this.#emitter;
    return {
      state: (state) => {
        if (state === 'ended') this.#ended();
        emitter.emit('state', state);
      },
      attached: (attached) => emitter.emit('attached', attached),
      gone: (gone) => {
        this.#forget();
        emitter.emit('gone', gone);
      },
      tail: (tail) => emitter.emit('tail', tail),
      trouble: (why) => this.trouble(why),
      arrived: () => this.#serve(),
    };
  }

  /** @internal */
  trouble(why: EverwireError): void {
    this.#emitter.emit('trouble', why);
  }

  /** Where reading stands with the edge. */
  get state(): SessionState {
    return this.#reader.state;
  }

  /** The last event that you have taken; give it to `attach` to go on from there. */
  get cursor(): Cursor | undefined {
    return this.#cursor;
  }

  /** The last committed offset that the edge has told of. */
  get tail(): number {
    return this.#reader.tail;
  }

  /** Which history is being read; undefined before the first answer. */
  get session_epoch(): string | undefined {
    return this.#reader.sessionEpoch;
  }

  /** What this session has met: attaches asked, duplicates dropped, holes repaired. */
  get counts(): Readonly<ReaderCounts> {
    return this.#reader.counts;
  }

  /** Bytes that wait for you to take them; bounded by the client's `bufferBytes` and one frame. */
  get bufferedBytes(): number {
    return this.#reader.bufferedBytes;
  }

  /** Calls the listener at each event of the type; the answer takes it off again. */
  on<T extends keyof SessionEvents & string>(
    type: T,
    listener: (value: SessionEvents[T]) => void,
  ): () => void {
    return this.#emitter.on(type, listener);
  }

  /**
   * Publishes an input, or an input or app event in full. It is sent until it is answered: after
   * a lost connection again, under the same key, so that it stands in the log once.
   * Publishes that are under way at the same time may be committed in another order.
   */
  publish(draft: InputDraft | EventDraft, options: RequestOptions = {}): Promise<Published> {
    return this.#door.publish(this.name, draft, options);
  }

  /**
   * Stops a run (a text is the run's id), or a run with all that work for it. The answer comes
   * from the log: `applied` with the offset of the stop, or what else is true. Without an open
   * socket it goes over HTTP, so a Stop works while reconnecting.
   */
  cancel(target: string | RunTarget, options?: CancelRunOptions): Promise<CancelOutcome>;
  /** The same for any target: also an input, or the whole session. */
  cancel(target: string | CancelTarget, options?: CancelOptions): Promise<CancelOutcome>;
  async cancel(
    target: string | CancelTarget,
    options: CancelRunOptions = {},
  ): Promise<CancelOutcome> {
    return this.#door.signal(this.name, cancelFields(target, options), options);
  }

  /**
   * Lets a run wait (a text is the run's id), a run with all that work for it, or every live run,
   * until it is resumed. A run that is named and waits already is refused with WRONG_STATE.
   */
  async pause(target: string | RunsTarget, options: RequestOptions = {}): Promise<SignalOutcome> {
    return this.#door.signal(this.name, pauseFields('pause', target), options);
  }

  /**
   * Lets what was paused go on, whoever paused it; a run that is named also when it waits for an
   * input or a sign-in. One that is named and does not wait, or waits for an approval, is refused
   * with WRONG_STATE.
   */
  async resume(target: string | RunsTarget, options: RequestOptions = {}): Promise<SignalOutcome> {
    return this.#door.signal(this.name, pauseFields('resume', target), options);
  }

  /**
   * Says yes to the action that was seen. The first answer counts: a later one is refused with
   * ALREADY_RESOLVED, or with EXPIRED. Without an open socket it goes over HTTP, as a Stop does.
   */
  async approve(approval: SeenApproval, options: AnswerOptions = {}): Promise<SignalOutcome> {
    return this.#door.signal(this.name, answerFields('approve', approval, options), options);
  }

  /** Says no to it. */
  async deny(approval: SeenApproval, options: AnswerOptions = {}): Promise<SignalOutcome> {
    return this.#door.signal(this.name, answerFields('deny', approval, options), options);
  }

  /** Detaches for good: loops end. The session itself, and its runs, go on without us. */
  close(): void {
    this.#reader.close();
  }

  /**
   * The events, each once. There is one reader per session: a second loop goes on where the first
   * one stands. Throws an EverwireError when the session ended with one.
   */
  [Symbol.asyncIterator](): AsyncIterator<SessionEvent, undefined> {
    return {
      next: () => this.#next(),
      return: () => {
        this.#taken();
        return Promise.resolve({ done: true, value: undefined });
      },
    };
  }

  #next(): Promise<IteratorResult<SessionEvent, undefined>> {
    this.#taken();
    return new Promise((resolve, reject) => {
      this.#waiters.push({ resolve, reject });
      this.#serve();
    });
  }

  /** Hands over to those who wait; the end only after everything before it. */
  #serve(): void {
    while (this.#waiters.length > 0) {
      const event = this.#reader.take();
      const ended = this.#reader.state === 'ended';
      if (event === undefined && !ended) return;
      const waiter = this.#waiters.shift() as Waiter;
      if (event !== undefined) {
        this.#inHand = event;
        this.#keeper?.handed();
        waiter.resolve({ done: false, value: event });
      } else if (this.#reader.why !== undefined) {
        waiter.reject(this.#reader.why);
      } else {
        waiter.resolve({ done: true, value: undefined });
      }
    }
  }

  #taken(): void {
    const event = this.#inHand;
    const session_epoch = this.#reader.sessionEpoch;
    if (event === undefined || session_epoch === undefined) return;
    this.#inHand = undefined;
    this.#cursor = { session_epoch, offset: event.offset };
    this.#keeper?.note(this.#cursor);
  }

  #forget(): void {
    this.#inHand = undefined;
    this.#cursor = undefined;
    this.#keeper?.forget();
  }

  #ended(): void {
    this.#keeper?.close();
    this.#door.closed(this);
  }
}
