// An edge in this process: docs/protocol/edge.md over WebSocket, SSE and HTTP, with its own little
// log, and with handles to make it misbehave. It is what the client's tests and the browser tests
// talk to when there is no real edge.
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';
import { FakeLog } from './fake-log.mjs';

const ADVICE = {
  UNAUTHENTICATED: ['reauthenticate', 4001, 401],
  TOKEN_EXPIRED: ['reauthenticate', 4002, 401],
  TOKEN_REVOKED: ['stop', 4003, 401],
  DENIED: ['stop', 4004, 403],
  UNKNOWN_SESSION: ['stop', 4005, 404],
  WRONG_STATE: ['stop', 4014, 409],
  ALREADY_RESOLVED: ['stop', 4015, 409],
  EXPIRED: ['stop', 4016, 409],
  KEY_REUSED: ['stop', 4017, 422],
  GONE: ['reattach', 4018, 410],
  TOO_LARGE: ['stop', 4019, 413],
  MALFORMED: ['stop', 4020, 400],
  TOO_MANY_PENDING: ['retry', 4022, 429],
  QUOTA: ['retry', 4023, 429],
  OVERLOADED: ['retry', 4024, 503],
  DRAINING: ['retry_elsewhere', 4030, 503],
  SLOW_READER: ['reattach', 4031, 503],
  INTERNAL: ['retry', 4033, 500],
  UNKNOWN_APPROVAL: ['stop', 4034, 404],
};

export function refusal(code, details = {}) {
  return { code, message: `the fake edge says ${code}`, advice: ADVICE[code][0], details };
}

export class FakeEdge {
  logs = new Map();
  sockets = new Set();
  /** Every frame that came, as {socket, frame}. */
  received = [];
  httpRequests = [];
  /** Sockets that got as far as a welcome. */
  welcomes = 0;
  heartbeatMs = 10_000;
  lostAfterMs = 25_000;
  /** Token → participant, or undefined to refuse. */
  accept = (token) => (token.startsWith('bad') ? undefined : token.split(':')[0]);
  /** Sees every frame before it goes out; answers the frames that go out instead. */
  mangle = (frame) => [frame];
  /** Sees every frame that comes in; true means: it never arrived. */
  swallow = () => false;
  /** Sees every HTTP request; true means: its connection breaks. */
  swallowHttp = () => false;
  /** Most events of one frame. */
  pack = () => 64;
  stalled = false;
  #epochs = 0;

  async start(port = 0) {
    this.http = createServer((request, response) => this.#http(request, response));
    this.ws = new WebSocketServer({ server: this.http, path: '/v1/ws' });
    this.ws.on('connection', (socket) => this.#socket(socket));
    await new Promise((resolve) => this.http.listen(port, '127.0.0.1', resolve));
    this.port = this.http.address().port;
    this.url = `http://127.0.0.1:${this.port}`;
    return this;
  }

  async stop() {
    this.ws.close();
    for (const socket of this.ws.clients) socket.terminate();
    this.http.closeAllConnections();
    await new Promise((resolve) => this.http.close(resolve));
  }

  log(name, create = true) {
    if (!this.logs.has(name) && create) {
      this.#epochs += 1;
      this.logs.set(name, new FakeLog(name, `1-${this.#epochs}`));
    }
    return this.logs.get(name);
  }

  /** Breaks every connection, as a crash of the edge does. */
  dropAll() {
    for (const socket of this.ws.clients) socket.terminate();
    this.http.closeAllConnections();
  }

  /** Says goodbye to every socket. */
  bye(code, details) {
    for (const socket of this.ws.clients) {
      socket.send(JSON.stringify({ t: 'bye', ...refusal(code, details) }));
      socket.close(ADVICE[code][1], code);
    }
  }

  /** Sends a frame on every socket. */
  tell(frame) {
    for (const socket of this.ws.clients) socket.send(JSON.stringify(frame));
  }

  #socket(socket) {
    const state = { socket, participant: undefined, attached: new Map() };
    this.sockets.add(state);
    const send = (frame) => {
      if (this.stalled || socket.readyState !== 1) return;
      for (const out of this.mangle(frame)) socket.send(JSON.stringify(out));
    };
    const end = () => {
      for (const detach of state.attached.values()) detach();
      this.sockets.delete(state);
    };
    socket.on('close', end);
    socket.on('message', (data) => {
      const frame = JSON.parse(data.toString());
      if (this.stalled) return;
      this.received.push({ socket, frame });
      if (this.swallow(frame)) return;
      if (frame.t !== 'auth' && state.participant === undefined) return socket.close(4001);
      this.#frame(state, frame, send);
    });
  }

  #frame(state, frame, send) {
    const error = (code, details) => {
      send({ t: 'error', id: frame.id, session: frame.session, ...refusal(code, details) });
    };
    const author = { participant: state.participant, kind: 'user' };
    switch (frame.t) {
      case 'auth':
      case 'refresh': {
        const participant = this.accept(frame.token);
        if (participant === undefined) {
          if (frame.t === 'refresh') return error('UNAUTHENTICATED');
          send({ t: 'bye', ...refusal('UNAUTHENTICATED') });
          return state.socket.close(4001, 'UNAUTHENTICATED');
        }
        state.participant = participant;
        if (frame.t === 'auth') this.welcomes += 1;
        const { heartbeatMs: heartbeat_ms, lostAfterMs: lost_after_ms } = this;
        const token_expires = new Date(Date.now() + 3_600_000).toISOString();
        return send({
          t: 'welcome',
          id: frame.id,
          participant,
          edge: 'fake',
          heartbeat_ms,
          lost_after_ms,
          token_expires,
        });
      }
      case 'ping':
        return send({ t: 'pong', id: frame.id });
      case 'detach':
        state.attached.get(frame.session)?.();
        state.attached.delete(frame.session);
        return;
      case 'attach': {
        const log = this.log(frame.session, frame.create === true);
        const base = { t: 'attached', id: frame.id, session: frame.session };
        if (log === undefined) return send({ ...base, answer: 'not_found' });
        const answer = log.resolve(frame.cursor);
        send({ ...base, ...answer });
        state.attached.get(frame.session)?.();
        if (answer.answer === 'resumed')
          state.attached.set(frame.session, this.#follow(log, answer.from, send));
        return;
      }
      case 'publish': {
        const answer = this.log(frame.session).post(author, frame.event, frame.key);
        if (answer.refused) return error(answer.refused, answer.details);
        return send({ t: 'ack', id: frame.id, session: frame.session, ...answer });
      }
      case 'signal': {
        const { t: _t, id: _id, session, key, ...signal } = frame;
        const answer = this.log(session).signal(signal, author, key);
        if (answer.refused) return error(answer.refused, answer.details);
        return send({ t: 'outcome', id: frame.id, session: frame.session, ...answer });
      }
      default:
        return error('MALFORMED');
    }
  }

  /** Sends a session's events from an offset on, packed; answers how to stop it. */
  #follow(log, from, send) {
    let next = from;
    let over = false;
    const push = () => {
      while (!over && next <= log.tail) {
        const to = Math.min(log.tail, next + this.pack() - 1);
        const events = log.events.slice(next - 1, to);
        const { name: session, tail } = log;
        send({ t: 'events', session, from: next, to, tail, events, leader_seen_ms: 0 });
        next = to + 1;
      }
    };
    log.readers.add(push);
    setImmediate(push);
    return () => {
      over = true;
      log.readers.delete(push);
    };
  }

  async #http(request, response) {
    const url = new URL(request.url, this.url);
    const seen = { method: request.method, path: url.pathname, headers: request.headers };
    this.httpRequests.push(seen);
    // Pages of another origin ask before they send a token.
    response.setHeader('access-control-allow-origin', request.headers.origin ?? '*');
    response.setHeader(
      'access-control-allow-headers',
      'authorization, content-type, idempotency-key, last-event-id',
    );
    response.setHeader('access-control-allow-methods', 'GET, POST');
    if (request.method === 'OPTIONS') return response.writeHead(204).end();
    if (this.stalled) return;
    if (this.swallowHttp(request)) return request.destroy();
    const refuse = (code, details) => {
      response.writeHead(ADVICE[code][2], { 'content-type': 'application/json' });
      response.end(JSON.stringify(refusal(code, details)));
    };
    const participant = this.accept(
      (request.headers.authorization ?? 'bad').replace('Bearer ', ''),
    );
    if (participant === undefined) return refuse('UNAUTHENTICATED');
    const author = { participant, kind: 'user' };
    const [, session, rest] = /^\/v1\/sessions\/([^/]+)\/(.+)$/.exec(url.pathname) ?? [];
    if (session === undefined) return refuse('MALFORMED');
    if (request.method === 'GET' && rest === 'events')
      return this.#sse(url, request, response, session, refuse);
    const body = JSON.parse((await text(request)) || '{}');
    seen.body = body;
    const key = request.headers['idempotency-key'];
    const signal = signalOf(rest, body);
    const answer = signal
      ? this.log(session).signal(signal, author, key)
      : this.log(session).post(author, body, key);
    if (answer.refused) return refuse(answer.refused, answer.details);
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answer));
  }

  #sse(url, request, response, session, refuse) {
    const log = this.log(session, url.searchParams.get('create') === 'true');
    if (log === undefined) return refuse('UNKNOWN_SESSION');
    const [, epoch, offset] = /^(.+)\.(\d+)$/.exec(request.headers['last-event-id'] ?? '') ?? [];
    const answer = log.resolve(epoch && { session_epoch: epoch, offset: Number(offset) });
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    if (answer.answer === 'gone') {
      return response.end(`event: gone\ndata: ${JSON.stringify({ session, ...answer })}\n\n`);
    }
    response.write(':\n\n');
    const stop = this.#follow(log, answer.from, (frame) => {
      if (this.stalled) return;
      for (const { events } of this.mangle(frame)) {
        for (const event of events) {
          response.write(
            `id: ${log.epoch}.${event.offset}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`,
          );
        }
      }
    });
    response.on('close', stop);
  }
}

/** What a request signals: the fields of the frame that would say the same. */
function signalOf(path, body) {
  const plain = /^runs\/([^/]+)\/cancel$/.exec(path);
  if (plain) return { signal: 'cancel', run: plain[1] };
  if (path === 'cancel') return { signal: 'cancel', ...body };
  if (path !== 'signal') return undefined;
  const { key: _key, ...signal } = body;
  return signal;
}

async function text(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}
