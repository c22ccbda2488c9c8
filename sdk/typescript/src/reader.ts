/**
 * One session's reader: asks to attach, checks that the ranges follow densely, keeps a bounded
 * buffer, and asks again from where it stands whenever something is amiss.
 * In come `attached` and `events` frames; out come events, each offset once and in order.
 * It never lets the buffer grow without bound: when it is full it detaches, and comes back from
 * its place in the log when there is room.
 */
import { backoffMs, type BackoffOptions } from './backoff.js';
import { EverwireError } from './errors.js';
import {
  isOffset,
  type AttachedFrame,
  type ClientFrame,
  type Cursor,
  type EventsFrame,
  type SessionEvent,
} from './protocol.js';

/**
 * `connecting`: no answer to the attach yet. `catching_up`: attached, on the way to the tail of
 * that moment. `live`: at the tail. `full`: the buffer is full, detached until you read on.
 * `ended`: over, by `close` or by an error.
 */
export type SessionState = 'connecting' | 'catching_up' | 'live' | 'full' | 'ended';

/** An answer to an attach: reading goes on at `from`; `behind` events wait up to `tail`. */
export interface Attached {
  readonly session_epoch: string | undefined;
  readonly from: number | undefined;
  readonly tail: number | undefined;
  readonly behind: number;
}

/** The cursor leads nowhere: the session was made anew, or what follows was trimmed. */
export interface Gone {
  readonly session_epoch?: string;
  /** The first event that can still be read. */
  readonly earliest?: number;
  readonly tail?: number;
  /** The cursor that was refused. */
  readonly cursor?: Cursor;
}

export interface ReaderOptions {
  readonly session: string;
  readonly create: boolean;
  readonly restartWhenGone: boolean;
  readonly bufferBytes: number;
  readonly backoff: BackoffOptions;
  readonly random: () => number;
}

export interface ReaderDoor {
  id(): string;
  /** Asks; the answer to this call takes the question back. */
  attach(
    frame: Extract<ClientFrame, { t: 'attach' }>,
    answered: (frame: AttachedFrame) => void,
    refused: (why: EverwireError) => void,
  ): () => void;
  detach(): void;
  refresh(): Promise<void>;
  elsewhere(why: EverwireError): boolean;
}

export interface ReaderHooks {
  state(state: SessionState): void;
  attached(attached: Attached): void;
  gone(gone: Gone): void;
  /** There is something to `take`, or the end. */
  arrived(): void;
  tail(tail: number): void;
  /** Something went wrong and is being repaired. */
  trouble(why: EverwireError): void;
}

/** What a reader has met, for tests and for those who want to see it. */
export interface ReaderCounts {
  attaches: number;
  duplicates: number;
  holes: number;
}

/** Refused tokens in a row before the session gives up. */
const AUTH_REFUSED_MAX = 3;

interface Buffered {
  readonly event: SessionEvent;
  readonly bytes: number;
}

/** `idle` waits for a link, a timer or room; `asking` for an answer; `attached` for events. */
type Phase = 'idle' | 'asking' | 'attached' | 'full' | 'ended';

export class Reader {
  #phase: Phase = 'idle';
  #state: SessionState = 'connecting';
  #up = false;
  /** Counts attaches; an answer to an older one is ignored. */
  #asked = 0;
  #attempt = 0;
  #authRefused = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** How far the buffer reaches: everything up to here was handed over or waits in it. */
  #received: Cursor | undefined;
  #withdraw: () => void = () => {};
  /** Asked anew on another link while the events of the one before go on. */
  #moving = false;
  #tail = 0;
  #aim = 0;
  #buffer: Buffered[] = [];
  #first = 0;
  #bytes = 0;
  /** Why it ended; undefined while it lives, or when the caller closed it. */
  why: EverwireError | undefined;
  readonly counts: ReaderCounts = { attaches: 0, duplicates: 0, holes: 0 };

  constructor(
    private readonly options: ReaderOptions,
    start: Cursor | undefined,
    private readonly door: ReaderDoor,
    private readonly hooks: ReaderHooks,
  ) {
    this.#received = start;
  }

  get state(): SessionState {
    return this.#state;
  }

  get tail(): number {
    return this.#tail;
  }

  /** The history being read; undefined before the first answer. */
  get sessionEpoch(): string | undefined {
    return this.#received?.session_epoch;
  }

  get bufferedBytes(): number {
    return this.#bytes;
  }

  /** A link is open. */
  up(): void {
    this.#up = true;
    if (this.#phase === 'idle') this.#ask();
  }

  /** Whether it still waits for the answer of the link that took over. */
  get moving(): boolean {
    return this.#moving;
  }

  /**
   * Another link took over; the one before it delivers on for a while. Both deliver densely, each
   * from a place that was reached, so whichever comes first is taken and the other is a duplicate.
   */
  moved(): void {
    if (this.#phase === 'asking') this.#idle();
    if (this.#phase === 'idle') return this.#timer === undefined ? this.#ask() : undefined;
    if (this.#phase !== 'attached') return;
    this.#moving = true;
    this.#question();
  }

  /** The link is lost; what was asked there is void. */
  down(): void {
    this.#up = false;
    if (this.#phase === 'asking' || this.#phase === 'attached') this.#idle();
  }

  /** The next event of the buffer, if any. Reading makes room. */
  take(): SessionEvent | undefined {
    const next = this.#buffer[this.#first];
    if (next === undefined) return undefined;
    this.#first += 1;
    this.#bytes -= next.bytes;
    // Shifting one by one would copy a long buffer for each event.
    if (this.#first === this.#buffer.length || this.#first >= 1024) {
      this.#buffer.splice(0, this.#first);
      this.#first = 0;
    }
    if (this.#phase === 'full' && this.#bytes <= this.options.bufferBytes / 2) {
      this.#idle();
      this.#ask();
    }
    return next.event;
  }

  /** Ends the session here; nothing is handed over after it. */
  close(): void {
    if (this.#phase === 'attached' || this.#phase === 'asking') this.door.detach();
    this.#drain();
    this.end(undefined);
  }

  /** Ends the session for a reason; what is in the buffer can still be taken. */
  end(why: EverwireError | undefined): void {
    if (this.#phase === 'ended') return;
    this.#asked += 1;
    this.#clearTimer();
    this.#withdraw();
    this.#moving = false;
    this.#phase = 'ended';
    this.why = why;
    this.#set('ended');
    this.hooks.arrived();
  }

  /** An error of the edge about this session. */
  refused(why: EverwireError): void {
    if (this.#phase === 'asking' || this.#phase === 'attached') this.#trouble(why);
  }

  /** The edge answers an attach later than it did before: the stream ends with `gone`. */
  answered(frame: AttachedFrame): void {
    if (this.#phase !== 'asking' && this.#phase !== 'attached') return;
    if (frame.answer === 'resumed') return this.#resumed(frame);
    const cursor = this.#received;
    if (frame.answer === 'not_found') {
      return this.end(new EverwireError('UNKNOWN_SESSION', 'there is no session of this name'));
    }
    const gone: Gone = {
      ...(frame.session_epoch !== undefined && { session_epoch: frame.session_epoch }),
      ...(frame.from !== undefined && { earliest: frame.from }),
      ...(frame.tail !== undefined && { tail: frame.tail }),
      ...(cursor !== undefined && { cursor }),
    };
    const why = new EverwireError('GONE', 'the cursor leads nowhere: start anew', { ...gone });
    if (!this.options.restartWhenGone) return this.end(why);
    this.#drain();
    this.#received = undefined;
    this.hooks.gone(gone);
    this.#again(why);
  }

  /** Takes a frame of events: exactly what follows the last one, whatever the frame repeats. */
  events(frame: EventsFrame, bytes: number): void {
    if (this.#phase !== 'attached') return;
    const { from, to, events } = frame;
    if (!isRange(frame)) return this.#hole(`a frame with an unreadable range (${from}..${to})`);
    if (frame.session_epoch !== undefined) {
      // Over SSE the first event tells which history it is.
      this.#received ??= { session_epoch: frame.session_epoch, offset: from - 1 };
    }
    const received = this.#received as Cursor;
    if (frame.session_epoch !== undefined && frame.session_epoch !== received.session_epoch) {
      return this.#hole('an event of another history');
    }
    const last = received.offset;
    if (from > last + 1) return this.#hole(`expected ${last + 1}, got ${from}..${to}`);
    if (!areInside(events, from, to))
      return this.#hole(`a frame that does not hold ${from}..${to}`);
    const share = Math.ceil(bytes / Math.max(1, events.length));
    for (const event of events) {
      if (event.offset <= last) this.counts.duplicates += 1;
      else {
        this.#buffer.push({ event, bytes: share });
        this.#bytes += share;
      }
    }
    if (to > last) {
      this.#received = { session_epoch: received.session_epoch, offset: to };
      this.#attempt = 0;
      this.#authRefused = 0;
    }
    this.#reached(frame.tail);
    if (this.#bytes >= this.options.bufferBytes) this.#full();
    if (to > last) this.hooks.arrived();
  }

  #ask(): void {
    if (!this.#up || this.#phase !== 'idle') return;
    this.#phase = 'asking';
    this.#question();
  }

  #question(): void {
    this.#clearTimer();
    this.#asked += 1;
    const mine = this.#asked;
    this.#withdraw();
    this.counts.attaches += 1;
    const { session, create } = this.options;
    const cursor = this.#received;
    this.#withdraw = this.door.attach(
      {
        t: 'attach',
        id: this.door.id(),
        session,
        form: 'raw',
        ...(cursor !== undefined && { cursor }),
        ...(create && { create }),
      },
      (frame) => mine === this.#asked && this.answered(frame),
      (why) => mine === this.#asked && this.#trouble(why),
    );
  }

  #resumed(frame: AttachedFrame): void {
    const { session_epoch, from, tail } = frame;
    const received = this.#received;
    this.#moving = false;
    if (received !== undefined) {
      const other = session_epoch !== undefined && session_epoch !== received.session_epoch;
      if (other || (from !== undefined && from > received.offset + 1)) {
        return this.#hole(`resumed at ${session_epoch}.${from} after ${received.offset}`);
      }
    } else if (session_epoch !== undefined && from !== undefined) {
      this.#received = { session_epoch, offset: from - 1 };
    }
    this.#phase = 'attached';
    const next = from ?? (received && received.offset + 1);
    const behind = next === undefined || tail === undefined ? 0 : Math.max(0, tail - next + 1);
    this.#aim = tail ?? 0;
    this.hooks.attached({ session_epoch, from: next, tail, behind });
    this.#set('catching_up');
    this.#reached(tail);
  }

  #reached(tail: number | undefined): void {
    const received = this.#received?.offset ?? 0;
    const known = Math.max(tail ?? 0, received);
    if (known > this.#tail) {
      this.#tail = known;
      this.hooks.tail(known);
    }
    if (this.#state === 'catching_up' && received >= this.#aim) this.#set('live');
  }

  /** The server skipped something, or contradicts itself: go back to the last good place. */
  #hole(message: string): void {
    this.counts.holes += 1;
    this.#trouble(new EverwireError('HOLE', message));
  }

  #trouble(why: EverwireError): void {
    // Without a link, `up` asks anew; what was asked on the lost one needs no pause.
    if (!this.#up) return this.#idle();
    if (why.advice === 'stop') return this.end(why);
    if (why.advice === 'retry_elsewhere' && this.door.elsewhere(why))
      return this.hooks.trouble(why);
    if (why.advice === 'reauthenticate') {
      this.#authRefused += 1;
      if (this.#authRefused >= AUTH_REFUSED_MAX) return this.end(why);
      // If it fails, the next attach fails too, and counts.
      this.door.refresh().catch(() => {});
    }
    this.#again(why);
  }

  /** Attaches anew: at once the first time, then with growing pauses until an event came. */
  #again(why: EverwireError): void {
    if (this.#phase === 'asking' || this.#phase === 'attached') this.door.detach();
    this.#idle();
    this.hooks.trouble(why);
    const first = this.#attempt === 0 && why.advice === 'reattach';
    const wait = first ? 0 : backoffMs(this.options.backoff, this.#attempt, this.options.random);
    this.#attempt += 1;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#ask();
    }, wait);
  }

  #full(): void {
    this.door.detach();
    this.#idle('full', 'full');
  }

  #idle(phase: 'idle' | 'full' = 'idle', state: SessionState = 'connecting'): void {
    this.#asked += 1;
    this.#clearTimer();
    this.#withdraw();
    this.#moving = false;
    this.#phase = phase;
    this.#set(state);
  }

  #clearTimer(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #drain(): void {
    this.#buffer = [];
    this.#first = 0;
    this.#bytes = 0;
  }

  #set(state: SessionState): void {
    if (this.#state === state) return;
    this.#state = state;
    this.hooks.state(state);
  }
}

function isRange(frame: EventsFrame): boolean {
  const { from, to, events } = frame;
  return isOffset(from) && isOffset(to) && from >= 1 && to >= from - 1 && Array.isArray(events);
}

/** Whether the events rise strictly inside the range. */
function areInside(events: readonly SessionEvent[], from: number, to: number): boolean {
  let before = from - 1;
  for (const { offset } of events) {
    if (!isOffset(offset) || offset <= before || offset > to) return false;
    before = offset;
  }
  return true;
}
