/** The few things that the page does with its document. */

/** The element with this id; the page is ours, so it is there. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found as T;
}

export function element(tag: string, className = '', text = ''): HTMLElement {
  const made = document.createElement(tag);
  if (className !== '') made.className = className;
  if (text !== '') made.textContent = text;
  return made;
}

/** Changes a text only if it differs: screen readers and layouts are left in peace. */
export function setText(box: HTMLElement, text: string): void {
  if (box.textContent !== text) box.textContent = text;
}
