/**
 * Where a reader stands, and how that survives a reload of the page.
 * In comes each taken event's cursor; out goes one small item in a storage of the caller.
 */
import { isOffset, type Cursor } from './protocol.js';

/** `<session_epoch>.<offset>`: the form of SSE's `id:` and of `?from=`. */
export function formatCursor(cursor: Cursor): string {
  return `${cursor.session_epoch}.${cursor.offset}`;
}

/** Reads `<session_epoch>.<offset>`; undefined if the text is something else. */
export function parseCursor(text: string): Cursor | undefined {
  const dot = text.lastIndexOf('.');
  const offset = Number(text.slice(dot + 1));
  if (dot < 1 || dot === text.length - 1 || !isOffset(offset)) return undefined;
  return { session_epoch: text.slice(0, dot), offset };
}

/** What of `sessionStorage` and `localStorage` is needed here. */
export interface CursorStorage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

/**
 * What the caller has made of the events so far. It is stored in the same item as the cursor, so
 * after a reload both are of the same moment: nothing is missing, nothing counts twice.
 */
export interface ReaderState {
  /** The state as a JSON value. Called now and then, and when the page is hidden. */
  save(): unknown;
  /** Takes back what `save` gave; called before the session asks for anything. */
  load(saved: unknown): void;
}

/** How long a state may be older than the page; the cursor stored with it is exactly as old. */
const STATE_SAVED_EVERY_MS = 250;

/** Keeps a cursor (and the caller's state) in one item of a storage. */
export class CursorKeeper {
  #timer: ReturnType<typeof setTimeout> | undefined;
  #cursor: Cursor | undefined;
  #listening = false;
  #busy = false;
  #closed = false;
  #overdue = false;
  readonly #flushNow = (): void => this.flush();

  constructor(
    private readonly storage: CursorStorage,
    private readonly key: string,
    private readonly state: ReaderState | undefined,
    private readonly failed: (thrown: unknown) => void,
  ) {}

  /** The stored cursor; the caller's state is loaded first. An unreadable item counts as none. */
  load(): Cursor | undefined {
    try {
      const text = this.storage.getItem(this.key);
      if (text === null) return undefined;
      const item = JSON.parse(text) as { cursor?: Partial<Cursor>; state?: unknown };
      const { session_epoch, offset } = item.cursor ?? {};
      if (typeof session_epoch !== 'string' || !isOffset(offset)) return undefined;
      // A cursor without the state that belongs to it would leave a hole in what is shown.
      if (this.state !== undefined) {
        if (item.state === undefined) return undefined;
        this.state.load(item.state);
      }
      return { session_epoch, offset };
    } catch (thrown) {
      this.failed(thrown);
      return undefined;
    }
  }

  /** Notes that the caller works on an event: its state belongs to no cursor just now. */
  handed(): void {
    this.#busy = true;
  }

  /**
   * Notes that the caller has taken everything up to the cursor. Without a state it is written at
   * once; with one at most every 250 ms, and when the page is hidden.
   */
  note(cursor: Cursor): void {
    this.#cursor = cursor;
    this.#busy = false;
    if (this.state === undefined || this.#overdue || this.#closed) return this.flush();
    this.#listen(true);
    this.#timer ??= setTimeout(() => this.flush(), STATE_SAVED_EVERY_MS);
  }

  /** Writes what was noted. A full storage leaves the older item, which is still consistent. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const cursor = this.#cursor;
    if (cursor === undefined) return;
    // While an event is in the caller's hands, its state may hold a part of it: wait for `note`.
    this.#overdue = this.#busy && this.state !== undefined;
    if (this.#overdue) return;
    this.#cursor = undefined;
    try {
      const item = this.state === undefined ? { cursor } : { cursor, state: this.state.save() };
      this.storage.setItem(this.key, JSON.stringify(item));
    } catch (thrown) {
      this.failed(thrown);
    }
  }

  /** Removes the item: the history that it points into is over. */
  forget(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#cursor = undefined;
    try {
      this.storage.removeItem(this.key);
    } catch (thrown) {
      this.failed(thrown);
    }
  }

  /** Writes what was noted and stops listening to the page. */
  close(): void {
    this.#closed = true;
    this.flush();
    this.#listen(false);
  }

  #listen(on: boolean): void {
    if (on === this.#listening || typeof globalThis.addEventListener !== 'function') return;
    this.#listening = on;
    const change = on ? 'addEventListener' : 'removeEventListener';
    globalThis[change]('pagehide', this.#flushNow);
    globalThis.document?.[change]('visibilitychange', this.#flushNow);
  }
}
