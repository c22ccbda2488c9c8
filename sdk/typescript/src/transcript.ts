/**
 * Events → what a person sees: messages with their parts, and runs with their state.
 * Pure: `apply` reads the event and nothing else. Positions in a text are bytes of UTF-8.
 */
import type { Author, Json, PartKind, Role, SessionEvent } from './protocol.js';
import { utf8Length, utf8SkipStart } from './utf8.js';

export interface TranscriptPart {
  readonly part: string;
  part_kind: PartKind;
  name?: string;
  text: string;
  /** Length of the text in the log, bytes of UTF-8. */
  bytes: number;
  /** Bytes that this reader has not seen, because it joined behind them. 0 for a whole text. */
  missing: number;
  open: boolean;
  data?: Json;
}

export interface TranscriptMessage {
  readonly message: string;
  role: Role;
  author: Author;
  /** The run that writes it; inputs have none. */
  run?: string;
  status: 'open' | 'complete' | 'cancelled' | 'incomplete';
  time: string;
  /** First and last offset that belong to it. */
  from: number;
  to: number;
  parts: TranscriptPart[];
}

export interface TranscriptRun {
  readonly run: string;
  run_epoch: number;
  state: 'running' | 'completed' | 'failed' | 'cancelled';
  author: Author;
  /** The input that it answers. */
  input?: string;
  started: number;
  /** Offset of the terminal event. */
  ended?: number;
  /** Where the stop is committed, if it was stopped. */
  cancel_offset?: number;
  /** Who stopped it. */
  cancelled_by?: Author;
  reason?: string;
}

interface Saved {
  offset: number;
  messages: TranscriptMessage[];
  runs: TranscriptRun[];
}

/** The texts of a message's text parts, one after the other. */
export function textOf(message: TranscriptMessage): string {
  return message.parts
    .filter((part) => part.part_kind === 'text')
    .map((part) => part.text)
    .join('\n\n');
}

export class Transcript {
  #offset = 0;
  #messages: TranscriptMessage[] = [];
  #byId = new Map<string, TranscriptMessage>();
  #runs = new Map<string, TranscriptRun>();

  /** The last event applied. */
  get offset(): number {
    return this.#offset;
  }

  /** In the order in which they began. */
  get messages(): readonly TranscriptMessage[] {
    return this.#messages;
  }

  /** In the order in which they were first seen. */
  get runs(): TranscriptRun[] {
    return [...this.#runs.values()];
  }

  run(run: string): TranscriptRun | undefined {
    return this.#runs.get(run);
  }

  /** The youngest run that still writes. */
  get liveRun(): TranscriptRun | undefined {
    return this.runs.findLast((run) => run.state === 'running');
  }

  /**
   * Takes the next event; answers the message that it changed, if any. An event at or below
   * `offset` changes nothing.
   */
  apply(event: SessionEvent): TranscriptMessage | undefined {
    if (event.offset <= this.#offset) return undefined;
    this.#offset = event.offset;
    if (event.kind.startsWith('run.')) this.#run(event);
    switch (event.kind) {
      case 'input':
        return this.#input(event.offset, event.time, event.author, event.body);
      case 'message.start':
        return this.#start(event, event.body.message, event.body.role);
      case 'message.end': {
        const message = this.#message(event, event.body.message);
        message.status = event.body.status;
        for (const part of message.parts) part.open = false;
        return message;
      }
      case 'part.start': {
        const { message, part: id, part_kind, name, data } = event.body;
        const part = this.#part(this.#message(event, message), id);
        part.part_kind = part_kind;
        if (name !== undefined) part.name = name;
        if (data !== undefined) part.data = data;
        return this.#byId.get(message);
      }
      case 'part.delta': {
        const message = this.#message(event, event.body.message);
        append(this.#part(message, event.body.part), event.body.position, event.body.text);
        return message;
      }
      case 'part.end': {
        const message = this.#message(event, event.body.message);
        const part = this.#part(message, event.body.part);
        part.open = false;
        if (event.body.data !== undefined) part.data = event.body.data;
        return message;
      }
      default:
        return undefined;
    }
  }

  /** Back to the beginning. */
  clear(): void {
    this.load({ offset: 0, messages: [], runs: [] });
  }

  /** All of it as a JSON value, not a copy: make text of it before the next `apply`. */
  save(): unknown {
    return { offset: this.#offset, messages: this.#messages, runs: this.runs } satisfies Saved;
  }

  /** Takes back what `save` gave. */
  load(saved: unknown): void {
    const { offset, messages, runs } = structuredClone(saved) as Saved;
    this.#offset = offset;
    this.#messages = messages;
    this.#byId = new Map(messages.map((message) => [message.message, message]));
    this.#runs = new Map(runs.map((run) => [run.run, run]));
  }

  #run(event: SessionEvent): void {
    const id = event.run;
    if (id === undefined) return;
    const run = this.#runs.get(id) ?? {
      run: id,
      run_epoch: event.run_epoch ?? 1,
      state: 'running' as const,
      author: event.author,
      started: event.offset,
    };
    this.#runs.set(id, run);
    run.run_epoch = event.run_epoch ?? run.run_epoch;
    switch (event.kind) {
      case 'run.started':
        run.author = event.author;
        if (event.body.input !== undefined) run.input = event.body.input;
        return;
      case 'run.completed':
        run.state = 'completed';
        run.ended = event.offset;
        return;
      case 'run.failed':
        run.state = 'failed';
        run.ended = event.offset;
        run.reason = event.body.reason;
        return;
      case 'run.cancelled':
        run.state = 'cancelled';
        run.ended = event.offset;
        run.cancel_offset = event.body.cancel_offset;
        run.cancelled_by = event.author;
    }
  }

  #input(
    offset: number,
    time: string,
    author: Author,
    body: { input: string; text: string },
  ): TranscriptMessage {
    const part = { part: 'text', part_kind: 'text', missing: 0, open: false } as const;
    return this.#add({
      // Inputs and messages are named by different people: their ids must not meet.
      message: `input:${body.input}`,
      role: 'user',
      author,
      status: 'complete',
      time,
      from: offset,
      to: offset,
      parts: [{ ...part, text: body.text, bytes: utf8Length(body.text) }],
    });
  }

  #start(event: SessionEvent, id: string, role: Role): TranscriptMessage {
    const { offset, time, author, run } = event;
    const place = { time, from: offset, to: offset, parts: [] };
    return this.#add({
      message: id,
      role,
      author,
      status: 'open',
      ...place,
      ...(run !== undefined && { run }),
    });
  }

  #add(message: TranscriptMessage): TranscriptMessage {
    this.#messages.push(message);
    this.#byId.set(message.message, message);
    return message;
  }

  /** The message that an event belongs to; one that began before our first event is made up. */
  #message(event: SessionEvent, id: string): TranscriptMessage {
    const message = this.#byId.get(id) ?? this.#start(event, id, 'assistant');
    message.to = event.offset;
    return message;
  }

  #part(message: TranscriptMessage, id: string): TranscriptPart {
    const known = message.parts.find((part) => part.part === id);
    if (known !== undefined) return known;
    const part: TranscriptPart = {
      part: id,
      part_kind: 'text',
      text: '',
      bytes: 0,
      missing: 0,
      open: true,
    };
    message.parts.push(part);
    return part;
  }
}

function append(part: TranscriptPart, position: number, text: string): void {
  // Behind what we have: we joined in the middle. Before it: we have that much of it already.
  const ahead = position - part.bytes;
  if (ahead > 0) {
    part.missing += ahead;
    part.bytes = position;
  }
  const fresh = ahead < 0 ? utf8SkipStart(text, -ahead) : text;
  part.text += fresh;
  part.bytes += utf8Length(fresh);
}
