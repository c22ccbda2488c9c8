/**
 * The one line above the conversation. Conditions hold until they are over; what merely happened
 * is shown for a while over them, and goes by itself.
 */
import { setText } from './dom.js';

export type Tone = 'calm' | 'cut';

interface Notice {
  readonly text: string;
  readonly tone: Tone;
}

/** How long something that happened is told, ms. */
const FLASH_MS = 10_000;

export class Notices {
  /** The youngest last; that one is shown. */
  readonly #held = new Map<string, Notice>();
  #flash: Notice | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly box: HTMLElement) {}

  /** Something is so, from now until `release`. */
  hold(what: string, text: string, tone: Tone = 'cut'): void {
    if (this.#held.get(what)?.text === text) return;
    this.#held.delete(what);
    this.#held.set(what, { text, tone });
    this.#flash = undefined;
    this.#draw();
  }

  release(what: string): void {
    if (this.#held.delete(what)) this.#draw();
  }

  /** Something happened. */
  flash(text: string, tone: Tone = 'calm', forMs = FLASH_MS): void {
    clearTimeout(this.#timer);
    this.#flash = { text, tone };
    this.#timer = setTimeout(() => {
      this.#flash = undefined;
      this.#draw();
    }, forMs);
    this.#draw();
  }

  #draw(): void {
    const shown = this.#flash ?? [...this.#held.values()].at(-1);
    this.box.dataset['tone'] = shown?.tone ?? 'calm';
    setText(this.box, shown?.text ?? '');
  }
}
