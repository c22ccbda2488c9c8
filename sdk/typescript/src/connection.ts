/**
 * The client's one connection: it opens links, proves who we are, listens to the heartbeat, and
 * comes back after every loss. When an edge asks it to move, it opens the next link first and lets
 * go of the old one last, so that nobody waits in between.
 * In come frames of a link and the wishes of the client; out go `up`, `down`, `moved` and frames.
 * It knows nothing of sessions or requests, and a loss here never signals anything to a run.
 */
import { backoffMs, type BackoffOptions } from './backoff.js';
import { EverwireError } from './errors.js';
import type { Link, OpenLink } from './link.js';
import type { ClientFrame, ServerFrame, WelcomeFrame } from './protocol.js';

/**
 * `connecting` → `open` → (`waiting` → `connecting` …); `disconnected` after `disconnect()` until
 * `reconnect()`; `closed` for ever.
 */
export type ConnectionState = 'connecting' | 'open' | 'waiting' | 'disconnected' | 'closed';

export interface ConnectionOptions {
  readonly urls: readonly string[];
  readonly auth: () => string | Promise<string>;
  readonly open: OpenLink;
  readonly backoff: BackoffOptions;
  readonly random: () => number;
  readonly connectTimeoutMs: number;
}

export interface ConnectionHooks {
  /** A link is open and we are known there. */
  up(): void;
  /** The open link is lost. */
  down(): void;
  /** Another link took the place of the open one, which still delivers until `left` is called. */
  moved(): void;
  frame(frame: ServerFrame, bytes: number): void;
  state(state: ConnectionState, why: EverwireError | undefined): void;
  /** No later try would help. */
  failed(why: EverwireError): void;
}

/** A link that was open for so long starts the backoff from the beginning when it is lost. */
const STABLE_AFTER_MS = 5_000;
/** Refused tokens in a row before the client gives up. */
const AUTH_ATTEMPTS_MAX = 3;
/** How long a link that was replaced may still deliver, ms. */
const LEAVE_WITHIN_MS = 5_000;
/** A client that is told to move does it within this part of the time, so that it can try again. */
const MOVE_WITHIN = 0.75;
/** After a wake-up, how long an open link may take to show that it lives, ms. */
const PROBE_MS = 5_000;

type Timer = ReturnType<typeof setTimeout>;

/** A link and the clock of its opening. What it tells counts by the place that it holds. */
interface Held {
  link: Link | undefined;
  timer: Timer | undefined;
}

export class Connection {
  #state: ConnectionState = 'waiting';
  /** The link in use, or on its way to be. */
  #current: Held | undefined;
  /** The link that is to replace it. */
  #next: Held | undefined;
  /** The link that it replaced. */
  #old: Held | undefined;
  #welcome: WelcomeFrame | undefined;
  #token: string | undefined;
  #asking: Promise<string> | undefined;
  /** Counts tries; what an older try still brings is ignored. */
  #try = 0;
  #attempt = 0;
  #urlAt: number;
  #authRefused = 0;
  #openedAt = 0;
  #heardAt = 0;
  #pingedAt = 0;
  #bye: EverwireError | undefined;
  #waitTimer: Timer | undefined;
  #pingTimer: Timer | undefined;
  #lostTimer: Timer | undefined;
  #moveTimer: Timer | undefined;
  #moveTries = 0;
  #refreshTimer: Timer | undefined;
  /** Links that got as far as a welcome. */
  connects = 0;

  constructor(
    private readonly options: ConnectionOptions,
    private readonly hooks: ConnectionHooks,
  ) {
    // Clients of one list start at different edges.
    this.#urlAt = Math.floor(options.random() * options.urls.length);
  }

  get state(): ConnectionState {
    return this.#state;
  }

  get welcome(): WelcomeFrame | undefined {
    return this.#welcome;
  }

  get #heartbeatMs(): number {
    return this.#welcome?.heartbeat_ms ?? Infinity;
  }

  /** The address in use, or the next one. */
  get url(): string {
    return this.options.urls[this.#urlAt % this.options.urls.length] as string;
  }

  /** Connects now; does nothing if that is under way, or closed. */
  connect(): void {
    if (this.#state === 'closed' || this.#state === 'open' || this.#state === 'connecting') return;
    void this.#connect();
  }

  /** Cuts the link and keeps it cut until `reconnect`. */
  disconnect(): void {
    if (this.#state === 'closed') return;
    this.#end();
    this.#set('disconnected');
  }

  reconnect(): void {
    if (this.#state === 'disconnected') this.#state = 'waiting';
    this.#attempt = 0;
    this.connect();
  }

  close(): void {
    if (this.#state === 'closed') return;
    this.#end();
    this.#set('closed');
  }

  /** A good moment to be connected: the network is back, or somebody looks at the page again. */
  wake(): void {
    if (this.#state === 'waiting') {
      this.#attempt = 0;
      this.connect();
    } else if (this.#state === 'open') {
      const { lost_after_ms } = this.#welcome as WelcomeFrame;
      this.#listen(Math.min(PROBE_MS, lost_after_ms));
      this.#ping();
    }
  }

  /** Sends a frame if the link is open. */
  send(frame: ClientFrame): boolean {
    if (this.#state !== 'open') return false;
    this.#current?.link?.send(frame);
    return true;
  }

  /** Whether a link that was replaced still delivers. */
  get leaving(): boolean {
    return this.#old !== undefined;
  }

  /** Everything goes on over the link in use: the one before it is not needed any more. */
  left(): void {
    letGo(this.#old);
    this.#old = undefined;
  }

  /** Leaves this edge for the next one, if there is one; answers whether there is. */
  elsewhere(why: EverwireError): boolean {
    if (this.options.urls.length < 2 || this.#state !== 'open') return false;
    this.#lost(why);
    return true;
  }

  /** The token in hand, or a new one. One question at a time goes to `auth`. */
  token(fresh: boolean): Promise<string> {
    if (!fresh && this.#token !== undefined) return Promise.resolve(this.#token);
    this.#asking ??= this.#ask().finally(() => {
      this.#asking = undefined;
    });
    return this.#asking;
  }

  /** Proves anew who we are, on the open link. */
  async refresh(): Promise<void> {
    const mine = this.#try;
    const token = await this.token(true);
    if (mine === this.#try) this.send({ t: 'refresh', id: 'refresh', token });
  }

  async #ask(): Promise<string> {
    let timer: Timer | undefined;
    const late = new Promise<never>((_, reject) => {
      const why = new EverwireError('LOST', 'auth() gave no token in time');
      timer = setTimeout(() => reject(why), this.options.connectTimeoutMs);
    });
    try {
      const token = await Promise.race([this.options.auth(), late]);
      if (typeof token !== 'string' || token === '') {
        throw new EverwireError('UNAUTHENTICATED', 'auth() gave no token');
      }
      this.#token = token;
      return token;
    } finally {
      clearTimeout(timer);
    }
  }

  async #connect(): Promise<void> {
    clearTimeout(this.#waitTimer);
    const mine = ++this.#try;
    this.#bye = undefined;
    this.#set('connecting');
    let token: string;
    try {
      token = await this.token(true);
    } catch (thrown) {
      if (mine === this.#try) this.#lost(EverwireError.lost(thrown));
      return;
    }
    if (mine !== this.#try) return;
    const held: Held = { link: undefined, timer: undefined };
    this.#current = held;
    this.#open(held, token);
  }

  /** Opens a link; what comes of it goes by the place that it holds when it comes. */
  #open(held: Held, token: string): void {
    const within = this.options.connectTimeoutMs;
    held.timer = setTimeout(() => {
      this.#closed(held, new EverwireError('LOST', `no welcome within ${within} ms`));
    }, within);
    try {
      held.link = this.options.open(this.url, {
        opened: () => held.link?.send({ t: 'auth', token }),
        frame: (frame, bytes) => this.#came(held, frame, bytes),
        closed: (why) => this.#closed(held, why),
      });
    } catch (thrown) {
      // An address that no link can be made of: trying it again would not help.
      const message = thrown instanceof Error ? thrown.message : String(thrown);
      const why = new EverwireError('MALFORMED', message);
      if (held === this.#current) this.#fail(why);
      else this.#closed(held, why);
    }
  }

  #came(held: Held, frame: ServerFrame, bytes: number): void {
    if (held === this.#current) return this.#frame(frame, bytes);
    if (held === this.#next) {
      if (frame.t === 'welcome') this.#replace(held, frame);
      else if (frame.t === 'bye') this.#closed(held, EverwireError.from(frame));
    } else if (held === this.#old) {
      // Its events go on until the new link has them. Its troubles are not ours any more.
      const wanted = frame.t === 'events' || frame.t === 'ack' || frame.t === 'outcome';
      if (wanted) this.hooks.frame(frame, bytes);
    }
  }

  #closed(held: Held, why: EverwireError): void {
    if (held === this.#current) return this.#lost(this.#bye ?? why);
    letGo(held);
    if (held === this.#old) this.#old = undefined;
    if (held === this.#next) {
      this.#next = undefined;
      this.#moveAgain();
    }
  }

  #frame(frame: ServerFrame, bytes: number): void {
    this.#heardAt = Date.now();
    switch (frame.t) {
      case 'welcome':
        return this.#welcomed(frame);
      case 'bye':
        this.#bye = EverwireError.from(frame);
        return this.#lost(this.#bye);
      case 'moving':
        return this.#move(frame.within_ms);
      case 'expiring':
        return this.#expiring(0);
      case 'pong':
        return;
      default:
        if (this.#state !== 'open') return;
        // Browsers slow the timers of hidden pages down to one a minute; frames come as they come.
        if (this.#heardAt - this.#pingedAt >= this.#heartbeatMs) this.#ping();
        this.hooks.frame(frame, bytes);
    }
  }

  #welcomed(frame: WelcomeFrame): void {
    this.#welcome = frame;
    this.#authRefused = 0;
    if (this.#state !== 'connecting') return;
    this.#opened(frame);
    this.#set('open');
    this.hooks.up();
  }

  /** The link in use got its welcome: from here on it must show that it lives. */
  #opened(frame: WelcomeFrame): void {
    clearTimeout(this.#current?.timer);
    this.#openedAt = Date.now();
    this.connects += 1;
    this.#pingedAt = Date.now();
    clearInterval(this.#pingTimer);
    this.#pingTimer = setInterval(() => this.#ping(), frame.heartbeat_ms);
    this.#listen(frame.lost_after_ms);
  }

  #ping(): void {
    this.#pingedAt = Date.now();
    this.#current?.link?.send({ t: 'ping' });
  }

  /** Ends the link unless a frame comes within so many ms; then listens on. */
  #listen(within: number): void {
    clearTimeout(this.#lostTimer);
    const asked = Date.now();
    const { lost_after_ms } = this.#welcome as WelcomeFrame;
    this.#lostTimer = setTimeout(() => {
      if (this.#heardAt < asked) {
        return this.#lost(new EverwireError('LOST', `nothing was heard for ${lost_after_ms} ms`));
      }
      const left = lost_after_ms - (Date.now() - this.#heardAt);
      this.#listen(Math.min(Math.max(left, 1), lost_after_ms));
    }, within);
  }

  #move(withinMs: number): void {
    if (this.#moveTimer !== undefined || this.#next !== undefined || this.#state !== 'open') return;
    // Each client at its own moment, and before the edge stops.
    const wait = Math.floor(this.options.random() * withinMs * MOVE_WITHIN);
    this.#moveTries = 0;
    this.#moveTimer = setTimeout(() => void this.#openNext(), wait);
  }

  /** Opens a link to the next address, while the one in use goes on. */
  async #openNext(): Promise<void> {
    this.#moveTimer = undefined;
    const mine = this.#try;
    const held: Held = { link: undefined, timer: undefined };
    this.#next = held;
    this.#urlAt += 1;
    let token: string;
    try {
      token = await this.token(true);
    } catch (thrown) {
      if (held === this.#next) this.#closed(held, EverwireError.lost(thrown));
      return;
    }
    if (mine === this.#try && held === this.#next) this.#open(held, token);
  }

  #moveAgain(): void {
    if (this.#state !== 'open') return;
    const wait = backoffMs(this.options.backoff, this.#moveTries, this.options.random);
    this.#moveTries += 1;
    this.#moveTimer = setTimeout(() => void this.#openNext(), wait);
  }

  /** The next link is known at its edge: it takes over. */
  #replace(held: Held, frame: WelcomeFrame): void {
    this.left();
    const old = this.#current;
    this.#current = held;
    this.#next = undefined;
    // What the old link still asked of us is over; so is its clock.
    this.#try += 1;
    clearTimeout(this.#refreshTimer);
    this.#welcome = frame;
    this.#authRefused = 0;
    this.#heardAt = Date.now();
    this.#opened(frame);
    if (old !== undefined) {
      this.#old = old;
      old.timer = setTimeout(() => this.left(), LEAVE_WITHIN_MS);
    }
    this.#set('open');
    this.hooks.moved();
  }

  #expiring(attempt: number): void {
    clearTimeout(this.#refreshTimer);
    const mine = this.#try;
    this.refresh().catch(() => {
      // The link lives until the token's last moment; a new one then starts with a new token.
      if (mine !== this.#try) return;
      const wait = backoffMs(this.options.backoff, attempt + 1, this.options.random);
      this.#refreshTimer = setTimeout(() => this.#expiring(attempt + 1), wait);
    });
  }

  /** The try in hand is over: forget it, and decide by the advice what follows. */
  #lost(why: EverwireError): void {
    const wasOpenFor = this.#state === 'open' ? Date.now() - this.#openedAt : 0;
    this.#end();
    if (why.advice === 'stop') return this.#fail(why);
    if (why.advice === 'reauthenticate') {
      this.#authRefused += 1;
      if (this.#authRefused >= AUTH_ATTEMPTS_MAX) return this.#fail(why);
    }
    if (wasOpenFor >= STABLE_AFTER_MS) this.#attempt = 0;
    // Any loss may be the edge's: the next try goes to the next address.
    this.#urlAt += 1;
    const wait = backoffMs(this.options.backoff, this.#attempt, this.options.random);
    this.#attempt += 1;
    this.#waitTimer = setTimeout(() => void this.#connect(), wait);
    this.#set('waiting', why);
  }

  #fail(why: EverwireError): void {
    this.#end();
    this.#set('closed', why);
    this.hooks.failed(why);
  }

  /** Lets go of the link and of every timer that belongs to it. */
  #end(): void {
    this.#try += 1;
    const wasOpen = this.#state === 'open';
    const links = [this.#current, this.#next, this.#old];
    this.#current = this.#next = this.#old = undefined;
    for (const timer of [
      this.#waitTimer,
      this.#lostTimer,
      this.#moveTimer,
      this.#refreshTimer,
    ]) {
      clearTimeout(timer);
    }
    clearInterval(this.#pingTimer);
    this.#moveTimer = undefined;
    if (wasOpen) this.#state = 'waiting';
    links.forEach(letGo);
    if (wasOpen) this.hooks.down();
  }

  #set(state: ConnectionState, why?: EverwireError): void {
    this.#state = state;
    this.hooks.state(state, why);
  }
}

function letGo(held: Held | undefined): void {
  clearTimeout(held?.timer);
  held?.link?.drop();
}
