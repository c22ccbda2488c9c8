/**
 * Events → what a person sees: messages with their parts, runs with their state, and approvals.
 * Pure: `apply` reads the event and nothing else. Positions in a text are bytes of UTF-8.
 */
import type {
  ApprovalOutcome,
  Author,
  DataFields,
  Json,
  PartKind,
  Role,
  RunState,
  SessionEvent,
  StopTarget,
  SuspendReason,
  Verdict,
} from './protocol.js';
import { utf8Length, utf8SkipStart } from './utf8.js';

/** A typed piece of a message. */
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

/** What was said: by a run, or by a person in an input. */
export interface TranscriptMessage {
  readonly message: string;
  role: Role;
  author: Author;
  /** The run that writes it; inputs have none. */
  run?: string;
  /** The step of its run in which it began, and the attempt at that. */
  step?: string;
  attempt?: number;
  /** `superseded`: a later attempt at its step began, and it is no part of the transcript any more. */
  status: 'open' | 'complete' | 'cancelled' | 'incomplete' | 'superseded';
  time: string;
  /** First and last offset that belong to it. */
  from: number;
  to: number;
  parts: TranscriptPart[];
}

/** A run as it stands, with what became of it. */
export interface TranscriptRun {
  readonly run: string;
  /** Counts its writers, from 1. */
  run_epoch: number;
  /** `orphaned`: its writer is silent. Its messages stay open: whoever claims it writes on. */
  state: RunState;
  /** Its writer: who started it, or claimed it last. Absent if this reader joined behind both. */
  author?: Author;
  /** The input that it answers. */
  input?: string;
  /** The author of that input, if the agent said so. */
  input_by?: string;
  /** The run that it works for. */
  parent?: string;
  /** What the application said about it when it began. */
  meta?: Json;
  meta_base64?: string;
  /** Where it began, or where this reader saw it first. */
  started: number;
  /** While it is suspended: what it waits for. */
  suspended?: TranscriptSuspension;
  /** While it is orphaned: since which offset. */
  orphaned?: number;
  /** Offset of the terminal event. */
  ended?: number;
  /** Where the stop is committed, if it was stopped; runs that one stop hit have the same. */
  cancel_offset?: number;
  /** Who stopped it. */
  cancelled_by?: Author;
  /** Where its writer told that it has seen the stop: what it did before, it did not know. */
  observed_offset?: number;
  /** The step that it is in. */
  step?: TranscriptStep;
  /** What it had to say after a graceful stop, one entry for each event. */
  epilogue?: DataFields[];
  /** What went wrong, if it failed. */
  reason?: string;
}

/** An attempt at a step of a run. What an earlier attempt wrote is no part of the transcript. */
export interface TranscriptStep {
  readonly step: string;
  /** From 1. */
  readonly attempt: number;
  readonly name?: string;
}

/** A stop. What it hit is told by the runs with its offset as their `cancel_offset`. */
export interface TranscriptStop {
  readonly offset: number;
  readonly author: Author;
  readonly target: StopTarget;
  /** For how long epilogues may follow, ms; absent: not at all. */
  readonly graceful_ms?: number;
}

/** A run waits, since `offset`. */
export interface TranscriptSuspension {
  readonly reason: SuspendReason;
  readonly note?: string;
  readonly offset: number;
  /** Who paused it; for the other reasons its writer. */
  readonly by: Author;
}

/** A request for an approval, and what became of it. Give it to `session.approve` or `deny`. */
export interface TranscriptApproval {
  readonly approval: string;
  /** The run that asks. */
  readonly run: string;
  /** What is to be done, for people. */
  readonly action: string;
  readonly action_hash: string;
  /** Who may answer; absent: anybody who has the right. */
  readonly approvers?: readonly string[];
  /** RFC 3339. */
  readonly deadline: string;
  /** What it stands for when nobody answers in time. */
  readonly on_expiry: Verdict;
  /** What is to be done, for programs. */
  readonly data?: Json;
  readonly data_base64?: string;
  /** Where it was asked. */
  readonly requested: number;
  /** Absent as long as nobody has answered, and it has not run out. */
  outcome?: ApprovalOutcome;
  /** Who answered; the server if it expired. */
  by?: Author;
  /** Where that stands. */
  resolved?: number;
  /** What whoever answered had to say. */
  note?: string;
}

interface Saved {
  offset: number;
  messages: TranscriptMessage[];
  runs: TranscriptRun[];
  /** Absent in what older clients have saved. */
  stops?: TranscriptStop[];
  approvals?: TranscriptApproval[];
}

/** The texts of a message's text parts, one after the other. */
export function textOf(message: TranscriptMessage): string {
  return message.parts
    .filter((part) => part.part_kind === 'text')
    .map((part) => part.text)
    .join('\n\n');
}

/** What a person sees of a session, made from its events. */
export class Transcript {
  #offset = 0;
  #messages: TranscriptMessage[] = [];
  #byId = new Map<string, TranscriptMessage>();
  /** The open messages, so that the end of a run need not look at all. */
  #open = new Set<TranscriptMessage>();
  #runs = new Map<string, TranscriptRun>();
  #stops = new Map<number, TranscriptStop>();
  #approvals = new Map<string, TranscriptApproval>();

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

  /** The run of this id, if it was seen. */
  run(run: string): TranscriptRun | undefined {
    return this.#runs.get(run);
  }

  /** In the order of the log, also those that hit nothing. */
  get stops(): TranscriptStop[] {
    return [...this.#stops.values()];
  }

  /** Everything that people were asked to approve, in the order of the log. */
  get approvals(): TranscriptApproval[] {
    return [...this.#approvals.values()];
  }

  /** Those that may still be answered: the end of a run withdraws what it asked. */
  get openApprovals(): TranscriptApproval[] {
    const isOver = (run: string): boolean => !isLive(this.#runs.get(run)?.state ?? 'running');
    return this.approvals.filter(({ outcome, run }) => outcome === undefined && !isOver(run));
  }

  /** The youngest run that has not ended: it writes, or waits or is orphaned and may go on. */
  get liveRun(): TranscriptRun | undefined {
    return this.runs.findLast(({ state }) => isLive(state));
  }

  /**
   * Takes the next event; answers the messages that it changed. Those whose status is
   * `superseded` are taken out of `messages`. An event at or below `offset` changes nothing.
   */
  apply(event: SessionEvent): TranscriptMessage[] {
    if (event.offset <= this.#offset) return [];
    this.#offset = event.offset;
    if (event.kind.startsWith('run.')) return this.#run(event);
    switch (event.kind) {
      case 'input':
        return [this.#input(event.offset, event.time, event.author, event.body)];
      case 'step.start':
        return this.#attempt(event);
      case 'step.end':
        return this.#endStep(event);
      case 'message.start': {
        const message = this.#start(event, event.body.message, event.body.role);
        const open = event.run === undefined ? undefined : this.#runs.get(event.run)?.step;
        if (open !== undefined) Object.assign(message, { step: open.step, attempt: open.attempt });
        return [message];
      }
      case 'message.end': {
        const message = this.#message(event, event.body.message);
        this.#seal(message, event.body.status);
        return [message];
      }
      case 'part.start': {
        const { message, part: id, part_kind, name, data } = event.body;
        const into = this.#message(event, message);
        const part = this.#part(into, id);
        part.part_kind = part_kind;
        if (name !== undefined) part.name = name;
        if (data !== undefined) part.data = data;
        return [into];
      }
      case 'part.delta': {
        const message = this.#message(event, event.body.message);
        append(this.#part(message, event.body.part), event.body.position, event.body.text);
        return [message];
      }
      case 'part.end': {
        const message = this.#message(event, event.body.message);
        const part = this.#part(message, event.body.part);
        part.open = false;
        if (event.body.data !== undefined) part.data = event.body.data;
        return [message];
      }
      case 'signal.cancel':
        this.#stop(event);
        return [];
      case 'signal.observed': {
        const run = event.run === undefined ? undefined : this.#runs.get(event.run);
        if (run !== undefined && run.cancel_offset === event.body.signal_offset)
          run.observed_offset = event.offset;
        return [];
      }
      case 'approval.requested':
        this.#request(event);
        return [];
      case 'approval.resolved':
        this.#resolve(event);
        return [];
      default:
        return [];
    }
  }

  /** Back to the beginning. */
  clear(): void {
    this.load({ offset: 0, messages: [], runs: [] } satisfies Saved);
  }

  /** All of it as a JSON value, not a copy: make text of it before the next `apply`. */
  save(): unknown {
    const { offset, runs, stops, approvals } = this;
    return { offset, messages: this.#messages, runs, stops, approvals } satisfies Saved;
  }

  /** Takes back what `save` gave. */
  load(saved: unknown): void {
    const { offset, messages, runs, stops = [], approvals = [] } = structuredClone(saved) as Saved;
    this.#offset = offset;
    this.#messages = messages;
    this.#byId = new Map(messages.map((message) => [message.message, message]));
    this.#open = new Set(messages.filter(({ status }) => status === 'open'));
    this.#runs = new Map(runs.map((run) => [run.run, run]));
    this.#stops = new Map(stops.map((stop) => [stop.offset, stop]));
    this.#approvals = new Map(approvals.map((approval) => [approval.approval, approval]));
  }

  #run(event: SessionEvent): TranscriptMessage[] {
    const id = event.run;
    if (id === undefined) return [];
    const known = this.#runs.get(id);
    const run = known ?? this.#found(id, event);
    // Only writers count; what the server or whoever pressed has written has no seq.
    if (event.seq !== undefined) run.author = event.author;
    switch (event.kind) {
      case 'run.started': {
        const { input, input_by, parent, meta, meta_base64 } = event.body;
        run.author = event.author;
        if (input !== undefined) run.input = input;
        if (input_by !== undefined) run.input_by = input_by;
        if (parent !== undefined) run.parent = parent;
        if (meta !== undefined) run.meta = meta;
        if (meta_base64 !== undefined) run.meta_base64 = meta_base64;
        return [];
      }
      case 'run.claimed':
        run.author = event.author;
        run.run_epoch = event.run_epoch ?? run.run_epoch;
        // Whoever claims a suspended run waits with it.
        if (run.suspended === undefined) become(run, 'running');
        return [];
      case 'run.orphaned':
        become(run, 'orphaned');
        run.orphaned = event.offset;
        return [];
      case 'run.suspended': {
        const { reason, note } = event.body;
        const { offset, author: by } = event;
        become(run, 'suspended');
        run.suspended = { reason, ...(note !== undefined && { note }), offset, by };
        return [];
      }
      case 'run.resumed':
        become(run, 'running');
        return [];
      case 'run.completed':
        return this.#end(run, 'completed', event.offset);
      case 'run.failed':
        run.reason = event.body.reason;
        return this.#end(run, 'failed', event.offset);
      case 'run.cancelled': {
        const { cancel_offset } = event.body;
        run.cancel_offset = cancel_offset;
        // Of a run that was stopped before it began, the author of this event is its starter.
        const born = known !== undefined && cancel_offset < known.started;
        const by = this.#stops.get(cancel_offset)?.author ?? (born ? undefined : event.author);
        if (by !== undefined) run.cancelled_by = by;
        return this.#end(run, 'cancelled', event.offset);
      }
      case 'run.epilogue': {
        const { data, data_base64 } = event.body;
        run.epilogue ??= [];
        run.epilogue.push({
          ...(data !== undefined && { data }),
          ...(data_base64 !== undefined && { data_base64 }),
        });
        return [];
      }
      default:
        return [];
    }
  }

  /** A run that is new to this reader; an epilogue tells that it was stopped. */
  #found(id: string, event: SessionEvent): TranscriptRun {
    const run: TranscriptRun = {
      run: id,
      run_epoch: event.run_epoch ?? 1,
      state: event.kind === 'run.epilogue' ? 'cancelled' : 'running',
      started: event.offset,
    };
    this.#runs.set(id, run);
    return run;
  }

  /**
   * The run ended here. The server ends its open messages right behind; nobody shall see them
   * open until then.
   */
  #end(
    run: TranscriptRun,
    state: 'completed' | 'failed' | 'cancelled',
    offset: number,
  ): TranscriptMessage[] {
    become(run, state);
    run.ended = offset;
    delete run.step;
    const status = state === 'cancelled' ? 'cancelled' : 'incomplete';
    return this.#sealAll(status, (message) => message.run === run.run);
  }

  /** An attempt begins. Those before it, and what they wrote, do not count any more. */
  #attempt(event: Extract<SessionEvent, { kind: 'step.start' }>): TranscriptMessage[] {
    const { step, attempt, name } = event.body;
    if (event.run === undefined) return [];
    const run = this.#runs.get(event.run) ?? this.#found(event.run, event);
    run.step = { step, attempt, ...(name !== undefined && { name }) };
    const superseded = this.#messages.filter(
      (message) => message.run === run.run && message.step === step,
    );
    if (superseded.length === 0) return superseded;
    for (const message of superseded) {
      this.#seal(message, 'superseded');
      this.#byId.delete(message.message);
    }
    this.#messages = this.#messages.filter(({ status }) => status !== 'superseded');
    return superseded;
  }

  #endStep(event: Extract<SessionEvent, { kind: 'step.end' }>): TranscriptMessage[] {
    const { step, status } = event.body;
    const run = event.run === undefined ? undefined : this.#runs.get(event.run);
    if (run !== undefined) delete run.step;
    const became = status === 'complete' ? 'complete' : 'incomplete';
    const written = (message: TranscriptMessage) =>
      message.run === event.run && message.step === step;
    return this.#sealAll(became, written);
  }

  /** Ends those of the open messages that are meant. */
  #sealAll(
    status: Exclude<TranscriptMessage['status'], 'open'>,
    meant: (message: TranscriptMessage) => boolean,
  ): TranscriptMessage[] {
    const sealed = [...this.#open].filter(meant);
    for (const message of sealed) this.#seal(message, status);
    return sealed;
  }

  #seal(message: TranscriptMessage, status: Exclude<TranscriptMessage['status'], 'open'>): void {
    message.status = status;
    for (const part of message.parts) part.open = false;
    this.#open.delete(message);
  }

  #stop(event: Extract<SessionEvent, { kind: 'signal.cancel' }>): void {
    const { offset, author, body } = event;
    const { graceful_ms, raw: _raw, ...target } = body;
    const grace = graceful_ms !== undefined && { graceful_ms };
    this.#stops.set(offset, { offset, author, target, ...grace });
  }

  #request(event: Extract<SessionEvent, { kind: 'approval.requested' }>): void {
    const { offset: requested, run, body } = event;
    if (run === undefined) return;
    const { approval, within_ms: _within_ms, raw: _raw, ...asked } = body;
    this.#approvals.set(approval, { approval, run, ...asked, requested });
  }

  /** One that was asked before this reader joined is not told of. */
  #resolve(event: Extract<SessionEvent, { kind: 'approval.resolved' }>): void {
    const { outcome, note } = event.body;
    const approval = this.#approvals.get(event.body.approval);
    if (approval === undefined) return;
    approval.outcome = outcome;
    approval.by = event.author;
    approval.resolved = event.offset;
    if (note !== undefined) approval.note = note;
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
    if (message.status === 'open') this.#open.add(message);
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

function isLive(state: RunState): boolean {
  return state === 'running' || state === 'suspended' || state === 'orphaned';
}

/** Another state; what was said of the one before is over with it. */
function become(run: TranscriptRun, state: RunState): void {
  run.state = state;
  delete run.suspended;
  delete run.orphaned;
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
