/**
 * A link without a socket: each attached session is one SSE response, read with `fetch`; publishes
 * and signals are HTTP requests. To the rest of the client it looks like a socket that speaks the
 * frames of the edge protocol. It is what Node 20 uses, which has no WebSocket of its own.
 */
import { EverwireError } from './errors.js';
import { formatCursor, parseCursor } from './cursor.js';
import { httpBase, type Link, type LinkHooks, type OpenLink } from './link.js';
import { httpPublish, httpSignal, readJson, type Fetch, type HttpCall } from './http.js';
import { SseParser, type SseRecord } from './sse-parser.js';
import type { AttachedFrame, ClientFrame, Cursor, ServerFrame, SessionEvent } from './protocol.js';

type Attach = Extract<ClientFrame, { t: 'attach' }>;
type Call = Extract<ClientFrame, { t: 'publish' | 'signal' }>;

/** A response that brings no byte for so long is gone; edges send a sign of life every 10 s. */
const LOST_AFTER_MS = 25_000;
const HEARTBEAT_MS = 10_000;

/** A way to open links over SSE and HTTP. */
export function sseLinks(fetch: Fetch, lostAfterMs = LOST_AFTER_MS): OpenLink {
  return (url, hooks) => new SseLink(httpBase(url), fetch, lostAfterMs, hooks);
}

class SseLink implements Link {
  #over = false;
  #token = '';
  readonly #streams = new Map<string, AbortController>();
  /** Ends the HTTP requests that wait for their answer. */
  readonly #calls = new AbortController();

  constructor(
    private readonly base: string,
    private readonly fetch: Fetch,
    private readonly lostAfterMs: number,
    private readonly hooks: LinkHooks,
  ) {
    this.#later(() => hooks.opened());
  }

  send(frame: ClientFrame): void {
    if (this.#over) return;
    switch (frame.t) {
      case 'auth':
      case 'refresh':
        this.#token = frame.token;
        return this.#answer(this.#welcome(frame.t === 'refresh' ? frame.id : undefined));
      case 'ping':
        return this.#answer({ t: 'pong' });
      case 'detach':
        this.#streams.get(frame.session)?.abort();
        this.#streams.delete(frame.session);
        return;
      case 'attach':
        void this.#stream(frame);
        return;
      case 'publish':
      case 'signal':
        void this.#call(frame);
        return;
    }
  }

  drop(): void {
    this.#over = true;
    this.#calls.abort();
    for (const stream of this.#streams.values()) stream.abort();
    this.#streams.clear();
  }

  #welcome(id: string | undefined): ServerFrame {
    return {
      t: 'welcome',
      ...(id !== undefined && { id }),
      participant: '',
      edge: this.base,
      heartbeat_ms: HEARTBEAT_MS,
      lost_after_ms: this.lostAfterMs,
    };
  }

  /** As a socket does it: an answer never comes before `send` has returned. */
  #later(task: () => void): void {
    queueMicrotask(() => {
      if (!this.#over) task();
    });
  }

  #answer(frame: ServerFrame): void {
    this.#later(() => this.hooks.frame(frame, 0));
  }

  #emit(frame: ServerFrame, bytes = 0): void {
    if (!this.#over) this.hooks.frame(frame, bytes);
  }

  #close(why: EverwireError): void {
    if (this.#over) return;
    this.drop();
    this.hooks.closed(why);
  }

  async #call(frame: Call): Promise<void> {
    const { id, session, key } = frame;
    const signal = this.#calls.signal;
    const call: HttpCall = { url: this.base, token: this.#token, session, key, signal };
    try {
      if (frame.t === 'publish') {
        this.#emit({
          t: 'ack',
          id,
          session,
          ...(await httpPublish(this.fetch, call, frame.event)),
        });
      } else {
        this.#emit({
          t: 'outcome',
          id,
          session,
          ...(await httpSignal(this.fetch, call, frame)),
        });
      }
    } catch (thrown) {
      const why = EverwireError.lost(thrown);
      // A request that got lost is sent again, under its key, on the next link.
      if (why.code === 'LOST') return this.#close(why);
      this.#refuse(why, session, id);
    }
  }

  #refuse(why: EverwireError, session: string, id?: string): void {
    const { code, message, advice, details } = why;
    this.#emit({
      t: 'error',
      session,
      code,
      message,
      advice,
      details,
      ...(id !== undefined && { id }),
    });
  }

  async #stream(frame: Attach): Promise<void> {
    this.#streams.get(frame.session)?.abort();
    const abort = new AbortController();
    this.#streams.set(frame.session, abort);
    const current = (): boolean => !this.#over && this.#streams.get(frame.session) === abort;
    let response: Response;
    try {
      response = await withTimeout(this.#request(frame, abort), this.lostAfterMs, abort);
    } catch (thrown) {
      if (current()) this.#close(EverwireError.lost(thrown));
      return;
    }
    if (!current()) return;
    if (response.status !== 200 || response.body === null) {
      const why = EverwireError.fromHttp(
        response.status,
        await readJson(response).catch(() => undefined),
      );
      if (current()) this.#refuseAttach(frame, why);
      return;
    }
    const reader = new StreamReader(frame, (made, bytes) => {
      if (current()) this.#emit(made, bytes);
    });
    const ended = await reader.read(response.body, this.lostAfterMs, abort);
    if (!current()) return;
    this.#streams.delete(frame.session);
    if (ended !== undefined) this.#refuse(ended, frame.session);
  }

  #request(frame: Attach, abort: AbortController): Promise<Response> {
    const address = new URL(`${this.base}/v1/sessions/${encodeURIComponent(frame.session)}/events`);
    if (frame.create === true) address.searchParams.set('create', 'true');
    const headers: Record<string, string> = {
      authorization: `Bearer ${this.#token}`,
      accept: 'text/event-stream',
    };
    if (frame.cursor !== undefined) headers['last-event-id'] = formatCursor(frame.cursor);
    return this.fetch(address, { headers, signal: abort.signal, cache: 'no-store' });
  }

  #refuseAttach(frame: Attach, why: EverwireError): void {
    this.#streams.delete(frame.session);
    const { id, session } = frame;
    if (why.code === 'UNKNOWN_SESSION')
      return this.#emit({ t: 'attached', id, session, answer: 'not_found' });
    if (why.code === 'GONE') return this.#emit(goneFrom(frame, why.details));
    this.#refuse(why, session, id);
  }
}

function goneFrom(frame: Attach, details: Readonly<Record<string, unknown>>): AttachedFrame {
  const { session_epoch, earliest, from, tail } = details;
  return {
    t: 'attached',
    id: frame.id,
    session: frame.session,
    answer: 'gone',
    ...(typeof session_epoch === 'string' && { session_epoch }),
    ...(typeof (from ?? earliest) === 'number' && { from: (from ?? earliest) as number }),
    ...(typeof tail === 'number' && { tail }),
  };
}

/** Reads one SSE response and makes frames of it. */
class StreamReader {
  #attached = false;
  #last: Cursor | undefined;

  constructor(
    private readonly frame: Attach,
    private readonly emit: (frame: ServerFrame, bytes: number) => void,
  ) {
    this.#last = frame.cursor;
  }

  /** Reads to the end; answers why it ended, or undefined if a frame has said so. */
  async read(
    body: ReadableStream<Uint8Array>,
    lostAfterMs: number,
    abort: AbortController,
  ): Promise<EverwireError | undefined> {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    const parser = new SseParser();
    this.#attach(this.#last?.session_epoch, this.#last && this.#last.offset + 1);
    try {
      for (;;) {
        const { done, value } = await withTimeout(reader.read(), lostAfterMs, abort);
        if (done) return new EverwireError('LOST', 'the event stream ended');
        for (const record of parser.push(decoder.decode(value, { stream: true }))) {
          if (this.#record(record) === 'over') {
            abort.abort();
            return undefined;
          }
        }
      }
    } catch (thrown) {
      abort.abort();
      return EverwireError.lost(thrown);
    }
  }

  #attach(session_epoch: string | undefined, from: number | undefined): void {
    const { id, session } = this.frame;
    const known = session_epoch !== undefined && from !== undefined && { session_epoch, from };
    this.#attached = true;
    this.emit({ t: 'attached', id, session, answer: 'resumed', ...known }, 0);
  }

  #record(record: SseRecord): 'over' | undefined {
    const { session } = this.frame;
    if (record.event === 'gone') {
      const { from, session_epoch, tail } = JSON.parse(record.data) as Partial<AttachedFrame>;
      const details = { from, session_epoch, tail };
      const gone = goneFrom(this.frame, details);
      // The attach was answered already, so this one is not the answer of a request.
      if (this.#attached) delete gone.id;
      this.emit(gone, record.data.length);
      return 'over';
    }
    if (record.event === 'bye') {
      const fields = JSON.parse(record.data) as Parameters<typeof EverwireError.from>[0];
      const { code, message, advice, details } = EverwireError.from(fields);
      this.emit({ t: 'error', session, code, message, advice, details }, record.data.length);
      return 'over';
    }
    const place = record.id === undefined ? undefined : parseCursor(record.id);
    if (place === undefined) return undefined;
    const event = JSON.parse(record.data) as SessionEvent;
    // An id is the reader's place after the event, so the record covers all from the last one on.
    const same = this.#last?.session_epoch === place.session_epoch;
    const from = same && this.#last ? this.#last.offset + 1 : place.offset;
    this.#last = place;
    const { session_epoch, offset: to } = place;
    this.emit(
      { t: 'events', session, session_epoch, from, to, events: [event] },
      record.data.length,
    );
    return undefined;
  }
}

/** The promise, or LOST (and the abort) when it takes too long. */
async function withTimeout<T>(promise: Promise<T>, ms: number, abort: AbortController): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new EverwireError('LOST', `nothing came for ${ms} ms`));
      abort.abort();
    }, ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
