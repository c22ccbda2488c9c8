/**
 * `connect`: one connection, many sessions, and the requests of all of them.
 * This file only ties the parts together: `Connection` comes back after losses, `Requests` repeat
 * themselves, each session's `Reader` keeps its place.
 */
import { BACKOFF_DEFAULT, type BackoffOptions } from './backoff.js';
import { Connection, type ConnectionState } from './connection.js';
import { CursorKeeper, type CursorStorage, type ReaderState } from './cursor.js';
import { Emitter } from './emitter.js';
import { EverwireError } from './errors.js';
import type { Fetch } from './http.js';
import { httpBase, type OpenLink } from './link.js';
import { isName, isOffset, SESSIONS_MAX } from './protocol.js';
import type {
  CancelOutcome,
  Cursor,
  EventDraft,
  Published,
  ServerFrame,
  SignalFields,
  SignalOutcome,
} from './protocol.js';
import { Reader, type ReaderDoor } from './reader.js';
import { Requests } from './requests.js';
import {
  Session,
  type CancelOptions,
  type CancelRunOptions,
  type CancelTarget,
  type InputDraft,
  type RequestOptions,
  type RunTarget,
  type SessionDoor,
} from './session.js';
import { cancelFields } from './signals.js';
import { sseLinks } from './sse.js';
import { webSocketLinks, type WebSocketConstructor } from './websocket.js';

/** Where to connect, as whom, and by what means. */
export interface ConnectOptions {
  /** Addresses of edges, http(s) or ws(s); tried in turn. */
  readonly urls: string | readonly string[];
  /**
   * Gives a token. Asked before each connection and before the token in use expires. What it
   * throws counts as a failure of the moment, unless it is an EverwireError with advice `stop`.
   */
  readonly auth: () => string | Promise<string>;
  /** An implementation of WebSocket, where there is no global one. */
  readonly WebSocket?: WebSocketConstructor;
  /** Instead of the global one. */
  readonly fetch?: Fetch;
  /** `auto`: WebSocket if there is one, given or global; else SSE and HTTP. */
  readonly transport?: 'auto' | 'websocket' | 'sse';
  /** Bounds of the pauses between tries; full jitter. */
  readonly backoff?: Partial<BackoffOptions>;
  /** Numbers in [0, 1); tests pass a seeded one. */
  readonly random?: () => number;
  /** How long one try to connect may take, ms. */
  readonly connectTimeoutMs?: number;
  /** What one session may hold that you have not taken yet, bytes; one frame more at most. */
  readonly bufferBytes?: number;
}

/** Where reading begins, and what survives a reload. */
export interface AttachOptions {
  /** Goes on after this event; else from the stored cursor, else from the earliest event. */
  readonly cursor?: Cursor;
  /** Makes the session if there is none (and the token allows it). */
  readonly create?: boolean;
  /** Keeps the cursor over a reload: `sessionStorage` (one tab) or `localStorage`. */
  readonly storage?: CursorStorage;
  /** The item's name in the storage; default `everwire:<session>`. */
  readonly storageKey?: string;
  /** Kept in one item with the cursor; see `ReaderState`. */
  readonly state?: ReaderState;
  /**
   * When the cursor leads nowhere. `error` (default): the loop throws GONE with the facts in
   * `details`. `restart`: listeners of `gone` are told, and reading starts at the earliest event.
   */
  readonly onGone?: 'error' | 'restart';
}

/** What a client tells of its connection. */
export interface ClientEvents extends Record<string, unknown> {
  state: { readonly state: ConnectionState; readonly why: EverwireError | undefined };
}

const CONNECT_TIMEOUT_MS = 10_000;
const BUFFER_BYTES = 1 << 20;

/** Connects to Everwire. Answers at once; the connection comes, and comes back, by itself. */
export function connect(options: ConnectOptions): Client {
  return new Client(options);
}

/** One connection, and the sessions and requests that it carries. Made by `connect`. */
export class Client {
  readonly #emitter = new Emitter<ClientEvents>();
  readonly #sessions = new Map<string, { session: Session; reader: Reader }>();
  readonly #connection: Connection;
  readonly #requests: Requests;
  readonly #backoff: BackoffOptions;
  readonly #random: () => number;
  readonly #bufferBytes: number;
  readonly #door: SessionDoor;
  readonly #wake = (): void => this.wake();
  readonly #seen = (): void => {
    if (globalThis.document.visibilityState === 'visible') this.wake();
  };

  /** @internal Use `connect`. */
  constructor(options: ConnectOptions) {
    const urls = (typeof options.urls === 'string' ? [options.urls] : options.urls).map(httpBase);
    if (urls.length === 0) throw new TypeError('connect needs at least one url');
    const fetch = options.fetch ?? ((input, init) => globalThis.fetch(input, init));
    this.#backoff = { ...BACKOFF_DEFAULT, ...options.backoff };
    this.#random = options.random ?? Math.random;
    this.#bufferBytes = options.bufferBytes ?? BUFFER_BYTES;
    this.#connection = new Connection(
      {
        urls,
        auth: options.auth,
        open: pickLinks(options, fetch),
        backoff: this.#backoff,
        random: this.#random,
        connectTimeoutMs: options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS,
      },
      {
        up: () => this.#up(),
        down: () => this.#down(),
        moved: () => this.#moved(),
        frame: (frame, bytes) => this.#frame(frame, bytes),
        state: (state, why) => this.#emitter.emit('state', { state, why }),
        failed: (why) => this.#fail(why),
      },
    );
    this.#requests = new Requests({
      send: (frame) => this.#connection.send(frame),
      token: (fresh) => this.#connection.token(fresh),
      refresh: () => this.#connection.refresh(),
      elsewhere: (why) => this.#connection.elsewhere(why),
      urls,
      fetch,
      backoff: this.#backoff,
      random: this.#random,
    });
    this.#door = {
      publish: (session, draft, request) => this.publish(session, draft, request),
      signal: (session, fields, request) => this.#signal(session, fields, request),
      closed: (session) => this.#forget(session),
    };
    this.#watchPage('addEventListener');
    this.#connection.connect();
  }

  /** What the connection does right now. */
  get state(): ConnectionState {
    return this.#connection.state;
  }

  /** The edge's name for itself; undefined before the first welcome. */
  get edge(): string | undefined {
    return this.#connection.welcome?.edge;
  }

  /** Our name as the edge knows us; undefined before the first welcome, and over SSE. */
  get participant(): string | undefined {
    return this.#connection.welcome?.participant || undefined;
  }

  /** How many connections this client has had. */
  get connects(): number {
    return this.#connection.connects;
  }

  /** Calls the listener at each event of the type; the answer takes it off again. */
  on<T extends keyof ClientEvents & string>(
    type: T,
    listener: (value: ClientEvents[T]) => void,
  ): () => void {
    return this.#emitter.on(type, listener);
  }

  /** Attaches to a session. One client attaches to a session once; ask the Session for more. */
  attach(name: string, options: AttachOptions = {}): Session {
    if (!isName(name)) throw new EverwireError('MALFORMED', 'this cannot be the name of a session');
    if (this.#sessions.has(name)) throw new TypeError(`session ${name} is attached on this client`);
    if (this.#sessions.size >= SESSIONS_MAX) {
      const details = { limit: SESSIONS_MAX };
      throw new EverwireError('TOO_MANY_PENDING', 'too many sessions on one client', details);
    }
    if (options.cursor !== undefined && !isOffset(options.cursor.offset)) {
      throw new EverwireError('MALFORMED', 'this cannot be a cursor');
    }
    const keeper = this.#keeper(name, options, (why) => session.trouble(why));
    const start = options.cursor ?? keeper?.load();
    const session = new Session(name, this.#door, start);
    const reader = new Reader(
      {
        session: name,
        create: options.create === true,
        restartWhenGone: options.onGone === 'restart',
        bufferBytes: this.#bufferBytes,
        backoff: this.#backoff,
        random: this.#random,
      },
      start,
      this.#readerDoor(name),
      session.hooks(),
    );
    session.wire(reader, keeper);
    this.#sessions.set(name, { session, reader });
    if (this.#connection.state === 'closed') {
      reader.end(new EverwireError('CLOSED', 'the client is closed'));
    } else if (this.#connection.state === 'open') {
      reader.up();
    }
    return session;
  }

  /** Publishes to a session without attaching to it; see `Session.publish`. */
  async publish(
    session: string,
    draft: InputDraft | EventDraft,
    options: RequestOptions = {},
  ): Promise<Published> {
    const key = this.#name(options.key ?? mint());
    const event = 'kind' in draft ? draft : inputFrom(draft);
    const id = this.#requests.id();
    const frame = { t: 'publish', id, session: this.#name(session), key, event } as const;
    return this.#requests.ask<Published>(frame, options.signal);
  }

  /** Stops runs of a session without attaching to it; see `Session.cancel`. */
  cancel(
    session: string,
    target: string | RunTarget,
    options?: CancelRunOptions,
  ): Promise<CancelOutcome>;
  /** The same for any target: also an input, or the whole session. */
  cancel(
    session: string,
    target: string | CancelTarget,
    options?: CancelOptions,
  ): Promise<CancelOutcome>;
  async cancel(
    session: string,
    target: string | CancelTarget,
    options: CancelRunOptions = {},
  ): Promise<CancelOutcome> {
    return this.#signal(session, cancelFields(target, options), options);
  }

  async #signal(
    session: string,
    fields: SignalFields,
    options: RequestOptions,
  ): Promise<SignalOutcome> {
    const key = this.#name(options.key ?? mint());
    const id = this.#requests.id();
    const frame = { t: 'signal', id, session: this.#name(session), key, ...fields } as const;
    return this.#requests.ask<SignalOutcome>(frame, options.signal);
  }

  /** Says that now is a good moment to be connected. In browsers the client sees that itself. */
  wake(): void {
    this.#connection.wake();
  }

  /** Cuts the connection and keeps it cut until `reconnect`. Nothing is signalled to any run. */
  disconnect(): void {
    this.#connection.disconnect();
  }

  /** Ends what `disconnect` began; connects at once. */
  reconnect(): void {
    this.#connection.reconnect();
  }

  /** Ends everything on this side: loops end, requests that wait are refused with CLOSED. */
  close(): void {
    this.#watchPage('removeEventListener');
    for (const { session } of [...this.#sessions.values()]) session.close();
    this.#connection.close();
    this.#requests.close(new EverwireError('CLOSED', 'the client was closed'));
  }

  #keeper(
    name: string,
    options: AttachOptions,
    trouble: (why: EverwireError) => void,
  ): CursorKeeper | undefined {
    if (options.storage === undefined) return undefined;
    const key = options.storageKey ?? `everwire:${name}`;
    // While `attach` itself runs there is no session yet that could tell.
    const failed = (thrown: unknown): void =>
      queueMicrotask(() => trouble(EverwireError.lost(thrown)));
    return new CursorKeeper(options.storage, key, options.state, failed);
  }

  #readerDoor(session: string): ReaderDoor {
    return {
      id: () => this.#requests.id(),
      attach: (frame, answered, refused) => this.#requests.attach(frame, answered, refused),
      detach: () => void this.#connection.send({ t: 'detach', session }),
      refresh: () => this.#connection.refresh(),
      elsewhere: (why) => this.#connection.elsewhere(why),
    };
  }

  #up(): void {
    for (const { reader } of this.#sessions.values()) reader.up();
    this.#requests.up();
  }

  #down(): void {
    for (const { reader } of this.#sessions.values()) reader.down();
    this.#requests.down();
  }

  #moved(): void {
    for (const { reader } of this.#sessions.values()) reader.moved();
    this.#requests.moved();
    this.#leave();
  }

  /** Lets go of the link before this one, once every session goes on over this one. */
  #leave(): void {
    if (!this.#connection.leaving) return;
    const moving = [...this.#sessions.values()].some(({ reader }) => reader.moving);
    if (!moving) this.#connection.left();
  }

  #frame(frame: ServerFrame, bytes: number): void {
    this.#dispatch(frame, bytes);
    this.#leave();
  }

  #dispatch(frame: ServerFrame, bytes: number): void {
    if (this.#requests.answer(frame)) return;
    if (!('session' in frame) || frame.session === undefined) return;
    const reader = this.#sessions.get(frame.session)?.reader;
    if (frame.t === 'events') reader?.events(frame, bytes);
    // With an id it answers a question that was taken back.
    else if (frame.t === 'attached' && frame.id === undefined) reader?.answered(frame);
    else if (frame.t === 'error' && frame.id === undefined)
      reader?.refused(EverwireError.from(frame));
  }

  #fail(why: EverwireError): void {
    this.#watchPage('removeEventListener');
    for (const { reader } of [...this.#sessions.values()]) reader.end(why);
    this.#requests.close(why);
  }

  #forget(session: Session): void {
    if (this.#sessions.get(session.name)?.session === session) this.#sessions.delete(session.name);
  }

  #name(text: string): string {
    if (isName(text)) return text;
    throw new EverwireError('MALFORMED', 'names are 1 to 128 of letters, digits and . _ : ~ -');
  }

  #watchPage(change: 'addEventListener' | 'removeEventListener'): void {
    if (typeof globalThis[change] !== 'function') return;
    globalThis[change]('online', this.#wake);
    globalThis[change]('pageshow', this.#wake);
    globalThis.document?.[change]('resume', this.#wake);
    globalThis.document?.[change]('visibilitychange', this.#seen);
  }
}

function pickLinks(options: ConnectOptions, fetch: Fetch): OpenLink {
  const implementation =
    options.WebSocket ?? (globalThis.WebSocket as unknown as WebSocketConstructor | undefined);
  const transport = options.transport ?? 'auto';
  if (transport === 'sse' || (transport === 'auto' && implementation === undefined))
    return sseLinks(fetch);
  if (implementation === undefined)
    throw new TypeError('there is no WebSocket here: pass one in options');
  return webSocketLinks(implementation);
}

function inputFrom(draft: InputDraft): EventDraft {
  const { text, input = mint(), data } = draft;
  return { kind: 'input', body: { input, text, ...(data !== undefined && { data }) } };
}

/** A fresh name. Not `crypto.randomUUID`, which pages without TLS do not have. */
function mint(): string {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
