// One session of the fake edge: events with dense offsets, runs, keys, cancel with its fence.
// Only as much of the rules as a client can see.

const MESSAGE_KINDS = /^(step|message|part)\./;
const SERVER = { participant: 'everwire', kind: 'server' };

export class FakeLog {
  constructor(name, epoch) {
    this.name = name;
    this.epoch = epoch;
    this.events = [];
    this.trimmed = 0;
    this.runs = new Map();
    this.keys = new Map();
    this.readers = new Set();
    /** Inputs that were stopped before their run began: where. */
    this.tombstones = new Map();
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

  /** `of` is the run's input, or the whole body of `run.started`. */
  startRun(run, author, of = {}) {
    const body = typeof of === 'string' ? { input: of } : of;
    const state = { run, run_epoch: 1, seq: 0, author, body, open: new Set() };
    Object.assign(state, { live: true, state: 'running' });
    this.runs.set(run, state);
    state.started = this.append('run.started', author, body, { run, run_epoch: 1 });
    const stopped = this.tombstones.get(body.input);
    if (stopped !== undefined) this.#cancelled(state, author, stopped);
    return state;
  }

  /** An event of a run; false when the run is fenced. */
  output(run, kind, body) {
    const state = this.runs.get(run);
    if (state.state !== 'running') return false;
    state.seq += 1;
    if (kind === 'message.start') state.open.add(body.message);
    if (kind === 'message.end') state.open.delete(body.message);
    this.append(kind, state.author, body, { ...stamp(state), seq: state.seq });
    if (!MESSAGE_KINDS.test(kind)) {
      state.state = kind.replace('run.', '');
      this.#end(state, state.author, 'incomplete', this.tail);
    }
    return true;
  }

  /** The writer of a run was silent for its whole lease. */
  orphan(run) {
    const state = this.runs.get(run);
    state.state = 'orphaned';
    this.append('run.orphaned', SERVER, {}, stamp(state));
  }

  /** Nobody has claimed an orphan in time. */
  giveUp(run) {
    const state = this.runs.get(run);
    state.state = 'failed';
    const at = this.append('run.failed', SERVER, { reason: 'lost' }, stamp(state));
    this.#end(state, SERVER, 'incomplete', at);
  }

  claim(run, author) {
    const state = this.runs.get(run);
    Object.assign(state, { author, state: 'running', run_epoch: state.run_epoch + 1, seq: 0 });
    this.append('run.claimed', author, {}, stamp(state));
  }

  /** The writer tells that it has seen the stop of its run. */
  observe(run) {
    const state = this.runs.get(run);
    const body = { signal_offset: state.ended };
    return this.append('signal.observed', state.author, body, stamp(state));
  }

  /** What a run still has to say after a graceful stop, under an epoch of its own. */
  epilogue(run, body) {
    const state = this.runs.get(run);
    state.said = (state.said ?? 0) + 1;
    const of = { run, run_epoch: state.run_epoch + 1, seq: state.said };
    this.append('run.epilogue', state.author, body, of);
  }

  /** `asked` is a run, or the fields of a `signal` frame. */
  cancel(asked, author, key) {
    const { graceful_ms, expect, as_of, ...target } =
      typeof asked === 'string' ? { run: asked } : asked;
    const body = JSON.stringify({ ...target, graceful_ms, expect, as_of });
    const known = this.keys.get(`${author.participant} ${key}`);
    if (known && known.body !== body) return { refused: 'KEY_REUSED', details: {} };
    if (known) return { ...known.outcome, duplicate: true };
    const base = { session_epoch: this.epoch, duplicate: false };
    const over = (outcome) => ({ ...base, ...outcome });
    const name = target.run ?? target.subtree;
    const state = name && this.runs.get(name);
    if (name && !state) return over({ outcome: 'unknown_run' });
    if (target.run && !state.live) return over(ended(state));
    if (state && expect && state.state !== expect)
      return { refused: 'WRONG_STATE', details: { state: state.state } };
    if (state && state.started > as_of)
      return { refused: 'WRONG_STATE', details: { state: state.state } };
    const hit = [...this.runs.values()].filter(
      (run) => run.live && !(run.started > as_of) && this.#isMeant(run, target),
    );
    if (target.subtree && hit.length === 0) return over(ended(state));
    const shown = target.input ? { input_by: author.participant, ...target } : target;
    const signal = { ...shown, ...(graceful_ms && { graceful_ms }) };
    const offset = this.append('signal.cancel', author, signal, state && stamp(state));
    for (const run of hit) this.#cancelled(run, author, offset);
    if (target.input && hit.length === 0) this.tombstones.set(target.input, offset);
    const outcome = over({ outcome: 'applied', offset });
    this.keys.set(`${author.participant} ${key}`, { body, outcome });
    return outcome;
  }

  #isMeant(run, { run: alone, subtree, input }) {
    if (alone) return run.run === alone;
    if (input) return run.body.input === input;
    if (!subtree) return true;
    for (let at = run; at; at = this.runs.get(at.body.parent)) if (at.run === subtree) return true;
    return false;
  }

  #cancelled(state, author, offset) {
    state.state = 'cancelled';
    this.append('run.cancelled', author, { cancel_offset: offset }, stamp(state));
    this.#end(state, author, 'cancelled', offset);
  }

  #end(state, author, status, offset) {
    state.live = false;
    state.ended = offset;
    for (const message of state.open)
      this.append('message.end', author, { message, status }, stamp(state));
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

function stamp({ run, run_epoch }) {
  return { run, run_epoch };
}

function ended({ ended: offset, state }) {
  return { outcome: 'already_terminal', offset, state };
}
