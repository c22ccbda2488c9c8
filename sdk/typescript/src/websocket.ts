/** A link over WebSocket, JSON subprotocol: one text frame, one object. */
import { EverwireError } from './errors.js';
import { httpBase, type Link, type LinkHooks, type OpenLink } from './link.js';
import { SUBPROTOCOL, type ServerFrame } from './protocol.js';

/** What is needed of a WebSocket: that of browsers, of Node 22, or of a package such as `ws`. */
export interface WebSocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
  /** Only packages have it: ends the connection without a closing handshake. */
  terminate?(): void;
}

export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocketLike;

/** A way to open links with this implementation of WebSocket. */
export function webSocketLinks(implementation: WebSocketConstructor): OpenLink {
  return (url, hooks) => openWebSocket(implementation, url, hooks);
}

function openWebSocket(implementation: WebSocketConstructor, url: string, hooks: LinkHooks): Link {
  const socket = new implementation(`${httpBase(url).replace(/^http/, 'ws')}/v1/ws`, [SUBPROTOCOL]);
  let over = false;
  const end = (why: EverwireError): void => {
    if (over) return;
    drop();
    hooks.closed(why);
  };
  const drop = (): void => {
    over = true;
    // A stalled socket answers no closing handshake, so nobody waits for `onclose`.
    if (socket.terminate !== undefined) socket.terminate();
    else socket.close();
  };
  socket.onopen = () => {
    if (!over) hooks.opened();
  };
  socket.onmessage = (event: { data: unknown }) => {
    if (over) return;
    const frame = typeof event.data === 'string' ? parseFrame(event.data) : undefined;
    if (frame === undefined) return end(new EverwireError('LOST', 'a frame could not be read'));
    hooks.frame(frame, (event.data as string).length);
  };
  socket.onclose = (event: { code: number; reason: string }) => {
    end(EverwireError.fromClose(event.code, event.reason));
  };
  // `onclose` follows and says more; without a handler some packages end the process.
  socket.onerror = () => {};
  return {
    send: (frame) => {
      if (!over) socket.send(JSON.stringify(frame));
    },
    drop: () => {
      if (!over) drop();
    },
  };
}

function parseFrame(text: string): ServerFrame | undefined {
  try {
    const frame = JSON.parse(text) as ServerFrame | null;
    return typeof frame?.t === 'string' ? frame : undefined;
  } catch {
    return undefined;
  }
}
