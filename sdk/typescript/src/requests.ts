/**
 * Requests that wait for their answer: attaches, publishes, signals.
 * A publish or signal outlives the connection: it is sent again, under the same key, until it is
 * answered. A signal does not even wait for a connection: it goes over HTTP when the socket is
 * not open, or when the socket owes it an answer for too long.
 */
import { backoffMs, type BackoffOptions } from './backoff.js';
import { EverwireError } from './errors.js';
import { httpSignal, type Fetch } from './http.js';
import {
  FRAME_BYTES_MAX,
  REQUESTS_IN_FLIGHT_MAX,
  REQUESTS_BYTES_MAX,
  REQUESTS_MAX,
  type AttachedFrame,
  type ClientFrame,
  type Published,
  type ServerFrame,
  type SignalOutcome,
} from './protocol.js';
import { utf8Length } from './utf8.js';

type AttachFrame = Extract<ClientFrame, { t: 'attach' }>;
type DurableFrame = Extract<ClientFrame, { t: 'publish' | 'signal' }>;
type RequestFrame = AttachFrame | DurableFrame;
type Answer = AttachedFrame | Published | SignalOutcome;

export interface RequestsDoor {
  /** Sends on the open link; false if there is none. */
  send(frame: ClientFrame): boolean;
  token(fresh: boolean): Promise<string>;
  refresh(): Promise<void>;
  elsewhere(why: EverwireError): boolean;
  readonly urls: readonly string[];
  readonly fetch: Fetch;
  readonly backoff: BackoffOptions;
  readonly random: () => number;
}

/** How long the socket may owe the outcome of a signal before HTTP is tried too, ms. */
const SIGNAL_HEDGE_MS = 2_000;
/** Refusals with an advice to retry that one request takes before its caller hears of it. */
const RETRIES_MAX = 8;
/** Refusals that last for minutes or hours: nothing is down, there is too much of something. */
const BOUNDS: readonly string[] = ['TOO_MANY_PENDING', 'QUOTA'];

interface Request {
  readonly place: number;
  readonly frame: RequestFrame;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (why: unknown) => void;
  readonly abort: AbortController;
  /** A publish or signal survives the link; an attach belongs to it. */
  readonly durable: boolean;
  readonly bytes: number;
  retries: number;
  overHttp: boolean;
  retryTimer?: ReturnType<typeof setTimeout>;
  hedgeTimer?: ReturnType<typeof setTimeout>;
}

export class Requests {
  #next = 0;
  /** Publishes and signals without an answer, wherever they stand. */
  #count = 0;
  #bytes = 0;
  #up = false;
  #closed: EverwireError | undefined;
  readonly #waiting: Request[] = [];
  readonly #inFlight = new Map<string, Request>();
  /** Refused ones that pause before their next try; neither waiting nor in flight. */
  readonly #pausing = new Set<Request>();

  constructor(private readonly door: RequestsDoor) {}

  /** A fresh id; the answer carries it back. */
  id(): string {
    this.#next += 1;
    return String(this.#next);
  }

  /** Sends a publish or signal as soon as there is a link and room; resolves with its answer. */
  ask<A extends Published | SignalOutcome>(frame: DurableFrame, signal?: AbortSignal): Promise<A> {
    return new Promise<A>((resolve, reject) => {
      if (signal?.aborted === true) return reject(signal.reason);
      // The edge would close the socket over it, and it would come again on the next one.
      const bytes = utf8Length(JSON.stringify(frame));
      if (bytes > FRAME_BYTES_MAX) {
        const message = `the request is larger than ${FRAME_BYTES_MAX} bytes`;
        return reject(new EverwireError('TOO_LARGE', message, { limit: FRAME_BYTES_MAX }));
      }
      if (this.#count >= REQUESTS_MAX || this.#bytes + bytes > REQUESTS_BYTES_MAX) {
        const details = { limit: REQUESTS_MAX };
        return reject(
          new EverwireError('TOO_MANY_PENDING', 'too many requests wait already', details),
        );
      }
      const request = this.#request(frame, (answer) => resolve(answer as A), reject, bytes);
      const aborted = (): void => this.#settle(request, () => reject(signal?.reason));
      signal?.addEventListener('abort', aborted, { signal: request.abort.signal });
      this.#enqueue(request);
    });
  }

  /**
   * Sends an attach. The answer is handed over before the next frame is looked at, which a
   * promise would not do: events may follow in the same breath. The answer to this call takes the
   * question back.
   */
  attach(
    frame: AttachFrame,
    answered: (frame: AttachedFrame) => void,
    refused: (why: EverwireError) => void,
  ): () => void {
    const reject = (why: unknown): void => refused(EverwireError.lost(why));
    const request = this.#request(frame, (answer) => answered(answer as AttachedFrame), reject);
    this.#enqueue(request);
    return () => this.#settle(request, () => {});
  }

  #request(
    frame: RequestFrame,
    resolve: Request['resolve'],
    reject: Request['reject'],
    bytes = 0,
  ): Request {
    const durable = frame.t !== 'attach';
    if (durable) this.#count += 1;
    this.#bytes += bytes;
    const place = Number(frame.id);
    const abort = new AbortController();
    return { place, frame, resolve, reject, durable, bytes, abort, retries: 0, overHttp: false };
  }

  /** A link is open: everything that waits goes out, in the order in which it was asked. */
  up(): void {
    this.#up = true;
    this.#pump();
  }

  /**
   * Another link took over: publishes and signals without an answer go out there too, in the order
   * in which they were asked. Their keys see to it that each is committed once.
   */
  moved(): void {
    const again = [...this.#inFlight.values()].filter((request) => request.durable);
    for (const request of again) this.#inFlight.delete(request.frame.id);
    for (const request of again) this.#enqueue(request);
  }

  /** The link is lost: attaches are void; publishes and signals wait for the next one. */
  down(): void {
    this.#up = false;
    const cut = [...this.#inFlight.values(), ...this.#waiting];
    this.#inFlight.clear();
    this.#waiting.length = 0;
    for (const request of cut) {
      if (request.durable) this.#enqueue(request);
      else
        this.#settle(request, () =>
          request.reject(new EverwireError('LOST', 'the connection was lost')),
        );
    }
  }

  /** Nothing will be answered any more. */
  close(why: EverwireError): void {
    this.#closed = why;
    for (const request of [...this.#inFlight.values(), ...this.#waiting, ...this.#pausing]) {
      this.#settle(request, () => request.reject(why));
    }
  }

  /** Takes an answer; false if it belongs to no request. */
  answer(frame: ServerFrame): boolean {
    const request =
      'id' in frame && frame.id !== undefined ? this.#inFlight.get(frame.id) : undefined;
    if (request === undefined) return false;
    if (frame.t === 'error') {
      this.#refused(request, EverwireError.from(frame));
    } else if (frame.t === 'attached') {
      this.#settle(request, () => request.resolve(frame));
    } else if (frame.t === 'ack' || frame.t === 'outcome') {
      const { t: _t, id: _id, session: _session, ...answer } = frame;
      this.#settle(request, () => request.resolve(answer));
    }
    this.#pump();
    return true;
  }

  #enqueue(request: Request): void {
    if (this.#closed !== undefined)
      return this.#settle(request, () => request.reject(this.#closed));
    const behind = this.#waiting.findIndex((other) => other.place > request.place);
    this.#waiting.splice(behind < 0 ? this.#waiting.length : behind, 0, request);
    this.#pump();
    if (request.frame.t !== 'signal') return;
    if (!this.#up) return void this.#signalOverHttp(request);
    request.hedgeTimer ??= setTimeout(() => void this.#signalOverHttp(request), SIGNAL_HEDGE_MS);
  }

  #pump(): void {
    while (this.#up && this.#inFlight.size < REQUESTS_IN_FLIGHT_MAX) {
      const request = this.#waiting.shift();
      if (request === undefined) return;
      if (!this.door.send(request.frame)) {
        this.#waiting.unshift(request);
        return;
      }
      this.#inFlight.set(request.frame.id, request);
    }
  }

  /** Ends a request in every place where it may stand; a second answer changes nothing. */
  #settle(request: Request, how: () => void): void {
    if (request.abort.signal.aborted) return;
    request.abort.abort();
    if (request.durable) this.#count -= 1;
    this.#bytes -= request.bytes;
    clearTimeout(request.retryTimer);
    clearTimeout(request.hedgeTimer);
    this.#inFlight.delete(request.frame.id);
    this.#pausing.delete(request);
    const at = this.#waiting.indexOf(request);
    if (at >= 0) this.#waiting.splice(at, 1);
    how();
  }

  #refused(request: Request, why: EverwireError): void {
    this.#inFlight.delete(request.frame.id);
    request.retries += 1;
    const final =
      why.advice === 'stop' || why.advice === 'reattach' || request.retries > RETRIES_MAX;
    // A session decides itself what a refused attach means.
    if (final || !request.durable) return this.#settle(request, () => request.reject(why));
    if (why.advice === 'reauthenticate') {
      this.#pausing.add(request);
      const again = (): void => this.#again(request);
      this.door.refresh().then(again, () => this.#pause(request));
      return;
    }
    if (why.advice === 'retry_elsewhere') {
      // Back in flight, so that it goes along if the connection moves.
      this.#inFlight.set(request.frame.id, request);
      if (this.door.elsewhere(why)) return;
      this.#inFlight.delete(request.frame.id);
    }
    this.#pause(request);
  }

  /** Tries the request again after a pause with jitter. */
  #pause(request: Request): void {
    this.#pausing.add(request);
    const wait = backoffMs(this.door.backoff, request.retries, this.door.random);
    request.retryTimer = setTimeout(() => this.#again(request), wait);
  }

  #again(request: Request): void {
    this.#pausing.delete(request);
    if (!request.abort.signal.aborted) this.#enqueue(request);
  }

  /**
   * Asks for the signal over HTTP until somebody has answered it, here or on the socket. Both
   * roads carry the same key, so the signal is committed once.
   */
  async #signalOverHttp(request: Request): Promise<void> {
    const { frame, abort } = request;
    if (request.overHttp || frame.t !== 'signal' || abort.signal.aborted) return;
    request.overHttp = true;
    let fresh = false;
    for (let attempt = 0; !abort.signal.aborted; attempt += 1) {
      const url = this.door.urls[attempt % this.door.urls.length] as string;
      try {
        const token = await this.door.token(fresh);
        const { session, key } = frame;
        const call = { url, token, session, key, signal: abort.signal };
        const outcome = await httpSignal(this.door.fetch, call, frame);
        return this.#settle(request, () => request.resolve(outcome));
      } catch (thrown) {
        const why = EverwireError.lost(thrown);
        // A bound that is reached passes too late for whoever waits.
        if (BOUNDS.includes(why.code)) request.retries += 1;
        const final = why.advice === 'stop' || request.retries > RETRIES_MAX;
        if (final) return this.#settle(request, () => request.reject(why));
        fresh = why.advice === 'reauthenticate';
      }
      await this.#sleep(backoffMs(this.door.backoff, attempt, this.door.random), abort.signal);
    }
  }

  #sleep(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
    });
  }
}
