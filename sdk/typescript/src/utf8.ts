/** Lengths and cuts of text in bytes of UTF-8, which is how positions in a part are counted. Pure. */

/** Bytes of the text in UTF-8. A lone surrogate counts 3, as its replacement does. */
export function utf8Length(text: string): number {
  let bytes = text.length;
  for (let at = 0; at < text.length; at += 1) {
    const unit = text.charCodeAt(at);
    if (unit < 0x80) continue;
    bytes += unit < 0x800 ? 1 : 2;
    // A pair is two units and four bytes: its second half adds nothing more.
    if (unit >= 0xd800 && unit < 0xdc00 && isLow(text.charCodeAt(at + 1))) at += 1;
  }
  return bytes;
}

/** The text without its first `bytes` bytes; a character that the cut would split is left out. */
export function utf8SkipStart(text: string, bytes: number): string {
  let at = 0;
  for (let skipped = 0; skipped < bytes && at < text.length;) {
    const width = (text.codePointAt(at) as number) > 0xffff ? 2 : 1;
    skipped += utf8Length(text.slice(at, at + width));
    at += width;
  }
  return text.slice(at);
}

function isLow(unit: number): boolean {
  return unit >= 0xdc00 && unit < 0xe000;
}
