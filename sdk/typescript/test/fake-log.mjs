// One session of the fake edge: events with dense offsets, runs, keys, cancel with its fence.
// Only as much of the rules as a client can see.

const MESSAGE_KINDS = /^(message|part)\./;

export class FakeLog {
  constructor(name, epoch) {
    this.name = name;
    this.epoch = epoch;
    this.events = [];
    this.trimmed = 0;
    this.runs = new Map();
    this.keys = new Map();
    this.readers = new Set();
  }

  get tail() {
    return this.events.length;
  }

  /** Appends one event and tells the readers. */
  append(kind, author, body, run) {
    const offset = this.tail + 1;
    const event = {
      offset,
      time: new Date().toISOString(),
      kind,
      author,
      ...(run && { run: run.run, run_epoch: run.run_epoch, ...(run.seq && { seq: run.seq }) }),
      visibility: 'all',
      codec: 'plain',
      body,
    };
    this.events.push(event);
    for (const reader of [...this.readers]) reader();
    return offset;
  }

  /** An input or app event of a client. */
  post(author, draft, key) {
    const body = JSON.stringify(draft);
    const known = key && this.keys.get(`${author.participant} ${key}`);
    if (known) {
      if (known.body !== body) return { refused: 'KEY_REUSED', details: { offset: known.offset } };
      return { session_epoch: this.epoch, offset: known.offset, duplicate: true };
    }
    const offset = this.append(draft.kind, author, draft.body);
    if (key) this.keys.set(`${author.participant} ${key}`, { body, offset });
    return { session_epoch: this.epoch, offset, duplicate: false };
  }

  startRun(run, author, input) {
    const state = { run, run_epoch: 1, seq: 0, author, live: true, open: new Set() };
    this.runs.set(run, state);
    state.started = this.append('run.started', author, input ? { input } : {}, {
      run,
      run_epoch: 1,
    });
    return state;
  }

  /** An event of a run; false when the run is fenced. */
  output(run, kind, body) {
    const state = this.runs.get(run);
    if (!state.live) return false;
    state.seq += 1;
    if (kind === 'message.start') state.open.add(body.message);
    if (kind === 'message.end') state.open.delete(body.message);
    this.append(kind, state.author, body, { run, run_epoch: 1, seq: state.seq });
    if (!MESSAGE_KINDS.test(kind)) this.#end(state, state.author, 'incomplete', this.tail);
    return true;
  }

  cancel(run, author, key) {
    const known = this.keys.get(`${author.participant} ${key}`);
    if (known) return { ...known.outcome, duplicate: true };
    const state = this.runs.get(run);
    const base = { session_epoch: this.epoch, duplicate: false };
    let outcome;
    if (!state) outcome = { ...base, outcome: 'unknown_run' };
    else if (!state.live)
      outcome = { ...base, outcome: 'already_terminal', offset: state.ended, state: state.end };
    else {
      const stamp = { run, run_epoch: 1 };
      const offset = this.append('signal.cancel', author, { run }, stamp);
      this.append('run.cancelled', author, { cancel_offset: offset }, stamp);
      this.#end(state, author, 'cancelled', offset);
      outcome = { ...base, outcome: 'applied', offset };
    }
    this.keys.set(`${author.participant} ${key}`, { outcome });
    return outcome;
  }

  #end(state, author, status, offset) {
    state.live = false;
    state.ended = offset;
    state.end = status === 'cancelled' ? 'cancelled' : 'completed';
    const stamp = { run: state.run, run_epoch: 1 };
    for (const message of state.open)
      this.append('message.end', author, { message, status }, stamp);
    state.open.clear();
  }

  /** The attach table of docs/protocol/edge.md. */
  resolve(cursor) {
    const { epoch: session_epoch, tail } = this;
    const earliest = this.trimmed + 1;
    if (!cursor) return { answer: 'resumed', session_epoch, from: earliest, tail };
    const { offset } = cursor;
    const foreign = cursor.session_epoch !== undefined && cursor.session_epoch !== session_epoch;
    if (foreign || offset < this.trimmed || offset > tail) {
      return { answer: 'gone', session_epoch, from: earliest, tail };
    }
    return { answer: 'resumed', session_epoch, from: offset + 1, tail };
  }
}
