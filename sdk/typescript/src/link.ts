/**
 * One connection to one edge, whatever carries it. A link moves frames and knows nothing of what
 * they mean; it never reconnects.
 */
import type { ClientFrame, ServerFrame } from './protocol.js';
import type { EverwireError } from './errors.js';

/** What a link tells. After `closed`, or after `drop` was called, it tells nothing any more. */
export interface LinkHooks {
  /** Frames can be sent. */
  opened(): void;
  /** A frame came; `bytes` is about its size. */
  frame(frame: ServerFrame, bytes: number): void;
  /** The connection is over, for this reason. */
  closed(why: EverwireError): void;
}

/** A connection in use. */
export interface Link {
  send(frame: ClientFrame): void;
  /** Ends the connection at once, without waiting for the other side: it may be gone. */
  drop(): void;
}

export type OpenLink = (url: string, hooks: LinkHooks) => Link;

/** `http://host` for any of http, https, ws, wss, with or without a path; no slash at the end. */
export function httpBase(url: string): string {
  const base = new URL(url);
  base.protocol = base.protocol.replace(/^ws/, 'http');
  if (!/^https?:$/.test(base.protocol))
    throw new TypeError(`not an http(s) or ws(s) address: ${url}`);
  base.search = '';
  base.hash = '';
  return base.href.replace(/\/+$/, '');
}
