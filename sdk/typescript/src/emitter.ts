/** A typed list of listeners. A listener that throws does not disturb the others or the sender. */

export class Emitter<Events extends Record<string, unknown>> {
  readonly #listeners = new Map<keyof Events, Set<(value: never) => void>>();

  /** Calls the listener at each event of the type; the answer takes it off again. */
  on<T extends keyof Events>(type: T, listener: (value: Events[T]) => void): () => void {
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  /** @internal */
  emit<T extends keyof Events>(type: T, value: Events[T]): void {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) {
      try {
        (listener as (value: Events[T]) => void)(value);
      } catch (thrown) {
        // As an event target does it: reported to the host, not to the one who sent.
        queueMicrotask(() => {
          throw thrown;
        });
      }
    }
  }
}
