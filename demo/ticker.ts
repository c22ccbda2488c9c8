/** The latest events as they come: offset, kind, and a glimpse of what is in them. */
import type { SessionEvent } from '@everwire/client';
import { element } from './dom.js';

/** Besides signals: what was done to a run, not by it. */
const CONTROL: readonly string[] = [
  'run.cancelled',
  'run.orphaned',
  'run.claimed',
  'run.suspended',
  'run.resumed',
  'approval.resolved',
];

/** Rows that are kept; more than any screen shows. */
const ROWS_MAX = 60;

export class Ticker {
  constructor(private readonly list: HTMLElement) {}

  add(event: SessionEvent): void {
    const control = event.kind.startsWith('signal.') || CONTROL.includes(event.kind);
    const row = element('li', control ? 'control' : '');
    row.append(
      element('span', 'of', String(event.offset)),
      ' ',
      element('span', 'kind', event.kind),
      ' ',
      element('span', 'what', glimpse(event)),
    );
    this.#put(row);
  }

  /** A line between two events: something happened to this tab, not to the log. */
  mark(text: string): void {
    this.#put(element('li', 'mark', text));
  }

  #put(row: HTMLElement): void {
    this.list.prepend(row);
    if (this.list.childElementCount > ROWS_MAX) this.list.lastElementChild?.remove();
  }
}

function glimpse(event: SessionEvent): string {
  switch (event.kind) {
    case 'part.delta':
      // What cannot be seen is shown: blanks at the ends, and breaks.
      return JSON.stringify(event.body.text).slice(1, -1).replace(/^ | $/g, '·');
    case 'input':
      return event.body.text;
    case 'run.cancelled':
      return `at ${event.body.cancel_offset}`;
    case 'signal.observed':
      return `${event.author.participant} saw the stop at ${event.body.signal_offset}`;
    case 'run.orphaned':
      return 'its agent is silent';
    case 'run.claimed':
    case 'run.resumed':
      return `by ${event.author.participant}`;
    case 'run.suspended':
      return `${event.body.reason}, by ${event.author.participant}`;
    case 'approval.requested':
      return event.body.action;
    case 'approval.resolved':
      return `${event.body.outcome}, by ${event.author.participant}`;
    case 'run.epilogue':
      return JSON.stringify(event.body.data ?? event.body.data_base64 ?? null);
    case 'step.start':
      return `${event.body.name ?? event.body.step}, attempt ${event.body.attempt}`;
    case 'step.end':
      return `${event.body.step} ${event.body.status}`;
    case 'message.end':
      return event.body.status;
    case 'message.start':
      return event.body.role;
    case 'part.start':
      return event.body.part_kind;
    case 'run.failed':
      return event.body.reason;
    default:
      return event.author.participant;
  }
}
