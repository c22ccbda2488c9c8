/** Text of an event stream in pieces → records. As the HTML standard reads it, with a bound. */

export interface SseRecord {
  /** The last id seen; undefined before the first. */
  readonly id: string | undefined;
  readonly event: string;
  readonly data: string;
}

/** Most text of one record: twice the largest event in base64, and its envelope. */
const RECORD_CHARS_MAX = 2 << 20;

export class SseParser {
  #rest = '';
  #id: string | undefined;
  #event = '';
  #data: string[] = [];
  #chars = 0;

  /** Takes the next piece; gives the records that it completes. */
  push(piece: string): SseRecord[] {
    const records: SseRecord[] = [];
    const text = this.#rest + piece;
    // A CR at the very end may be the first half of CRLF: it waits for what follows.
    const whole = text.endsWith('\r') ? text.length - 1 : text.length;
    let start = 0;
    for (let at = 0; at < whole; at += 1) {
      const char = text.charCodeAt(at);
      if (char !== 10 && char !== 13) continue;
      this.#line(text.slice(start, at), records);
      if (char === 13 && text.charCodeAt(at + 1) === 10) at += 1;
      start = at + 1;
    }
    this.#rest = text.slice(start);
    if (this.#rest.length + this.#chars > RECORD_CHARS_MAX)
      throw new Error('an SSE record is too large');
    return records;
  }

  #line(line: string, records: SseRecord[]): void {
    if (line === '') {
      if (this.#data.length > 0) {
        records.push({
          id: this.#id,
          event: this.#event || 'message',
          data: this.#data.join('\n'),
        });
      }
      this.#event = '';
      this.#data = [];
      this.#chars = 0;
      return;
    }
    const colon = line.indexOf(':');
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'id' && !value.includes('\0')) this.#id = value;
    else if (field === 'event') this.#event = value;
    else if (field === 'data') {
      this.#data.push(value);
      this.#chars += value.length;
    }
  }
}
