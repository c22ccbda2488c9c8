// One session of the fake edge: events with dense offsets, runs, keys, cancel with its fence,
// pauses and approvals.
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
    /** Requests for an approval, by their id. */
    this.approvals = new Map();
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
    const by = this.#next(state);
    if (kind === 'message.start') state.open.add(body.message);
    if (kind === 'message.end') state.open.delete(body.message);
    this.append(kind, state.author, body, by);
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
    const waits = state.state === 'suspended';
    Object.assign(state, { author, run_epoch: state.run_epoch + 1, seq: 0 });
    if (!waits) state.state = 'running';
    this.append('run.claimed', author, {}, stamp(state));
  }

  /** A run waits: its writer says what for. */
  suspend(run, reason, note) {
    const state = this.runs.get(run);
    this.#suspend(state, state.author, { reason, ...(note && { note }) }, this.#next(state));
  }

  /** The writer of a run waits no more. */
  goOn(run) {
    const state = this.runs.get(run);
    this.#resume(state, state.author, this.#next(state));
  }

  /** The writer of a run asks people for their yes. */
  request(run, body) {
    const state = this.runs.get(run);
    const deadline = '2026-08-01T12:00:00.000Z';
    const asked = { within_ms: 60_000, deadline, on_expiry: 'deny', ...body };
    const { approval, action_hash, approvers, on_expiry } = asked;
    this.approvals.set(approval, { approval, action_hash, approvers, on_expiry, state });
    return this.append('approval.requested', state.author, asked, this.#next(state));
  }

  /** The writer takes its request back. */
  withdraw(approval) {
    const request = this.approvals.get(approval);
    const { state } = request;
    this.#resolve(request, state.author, { outcome: 'withdrawn' }, this.#next(state));
  }

  /** Nobody has answered in time. */
  expire(approval) {
    const request = this.approvals.get(approval);
    this.#resolve(request, SERVER, { outcome: 'expired', on_expiry: request.on_expiry });
    this.#unblock(request.state, SERVER);
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

  /** `asked` is the word of a signal and its fields, as in a `signal` frame. */
  signal({ signal, ...asked }, author, key) {
    switch (signal) {
      case 'cancel':
        return this.cancel(asked, author, key);
      case 'pause':
      case 'resume':
        return this.#once({ signal, ...asked }, author, key, () =>
          this.#pause(signal, asked, author),
        );
      case 'approve':
      case 'deny':
        return this.#once({ signal, ...asked }, author, key, () =>
          this.#answer(signal, asked, author),
        );
      default:
        return { refused: 'MALFORMED', details: {} };
    }
  }

  /** `asked` is a run, or the fields of a `signal` frame. */
  cancel(asked, author, key) {
    const fields = typeof asked === 'string' ? { run: asked } : asked;
    return this.#once(fields, author, key, () => this.#cancel(fields, author));
  }

  /** What was applied under a key is not done again. */
  #once(asked, author, key, work) {
    const name = `${author.participant} ${key}`;
    const body = JSON.stringify(asked);
    const known = this.keys.get(name);
    if (known && known.body !== body) return { refused: 'KEY_REUSED', details: {} };
    if (known) return { ...known.outcome, duplicate: true };
    const done = work();
    if (done.refused) return done;
    const outcome = { session_epoch: this.epoch, duplicate: false, ...done };
    if (outcome.outcome === 'applied') this.keys.set(name, { body, outcome });
    return outcome;
  }

  #cancel({ graceful_ms, expect, as_of, ...target }, author) {
    const name = target.run ?? target.subtree;
    const state = name && this.runs.get(name);
    if (name && !state) return { outcome: 'unknown_run' };
    if (target.run && !state.live) return ended(state);
    if (state && expect && state.state !== expect)
      return { refused: 'WRONG_STATE', details: { state: state.state } };
    if (state && state.started > as_of)
      return { refused: 'WRONG_STATE', details: { state: state.state } };
    const hit = [...this.runs.values()].filter(
      (run) => run.live && !(run.started > as_of) && this.#isMeant(run, target),
    );
    if (target.subtree && hit.length === 0) return ended(state);
    const shown = target.input ? { input_by: author.participant, ...target } : target;
    const signal = { ...shown, ...(graceful_ms && { graceful_ms }) };
    const offset = this.append('signal.cancel', author, signal, state && stamp(state));
    for (const run of hit) this.#cancelled(run, author, offset);
    if (target.input && hit.length === 0) this.tombstones.set(target.input, offset);
    return { outcome: 'applied', offset };
  }

  /** Named runs that cannot wait or go on are refused; of the others those are meant that can. */
  #pause(signal, target, author) {
    const name = target.run ?? target.subtree;
    const state = name && this.runs.get(name);
    if (name && !state) return { outcome: 'unknown_run' };
    if (target.run && !state.live) return ended(state);
    const mayGoOn = ({ state: now, reason }) =>
      now === 'suspended' && (target.run ? reason !== 'approval' : reason === 'paused');
    const can = (run) => (signal === 'pause' ? run.state !== 'suspended' : mayGoOn(run));
    if (target.run && !can(state))
      return { refused: 'WRONG_STATE', details: { state: state.state } };
    const offset = this.append(`signal.${signal}`, author, target, state && stamp(state));
    for (const run of this.runs.values()) {
      if (!run.live || !can(run) || !this.#isMeant(run, target)) continue;
      if (signal === 'pause') this.#suspend(run, author, { reason: 'paused' });
      else this.#resume(run, author);
    }
    return { outcome: 'applied', offset };
  }

  #suspend(state, author, body, by = stamp(state)) {
    Object.assign(state, { state: 'suspended', reason: body.reason });
    this.append('run.suspended', author, body, by);
  }

  #resume(state, author, by = stamp(state)) {
    state.state = 'running';
    this.append('run.resumed', author, {}, by);
  }

  #answer(signal, { approval, action_hash, note }, author) {
    const request = this.approvals.get(approval);
    if (!request) return { refused: 'UNKNOWN_APPROVAL', details: {} };
    const { resolved, approvers, state } = request;
    if (resolved?.state === 'expired')
      return { refused: 'EXPIRED', details: { offset: resolved.offset } };
    if (resolved) return { refused: 'ALREADY_RESOLVED', details: resolved };
    if (approvers && !approvers.includes(author.participant))
      return { refused: 'DENIED', details: {} };
    if (request.action_hash !== action_hash) return { refused: 'WRONG_STATE', details: {} };
    const outcome = signal === 'approve' ? 'approved' : 'denied';
    const offset = this.#resolve(request, author, { outcome, ...(note && { note }) });
    this.#unblock(state, author);
    return { outcome: 'applied', offset };
  }

  #resolve(request, author, said, by = stamp(request.state)) {
    const { approval } = request;
    const offset = this.append('approval.resolved', author, { approval, ...said }, by);
    request.resolved = { by: author.participant, offset, state: said.outcome };
    return offset;
  }

  /** A run that waits for approvals goes on once none is open. */
  #unblock(state, author) {
    const isWaiting = state.state === 'suspended' && state.reason === 'approval';
    if (isWaiting && this.#openOf(state).length === 0) this.#resume(state, author);
  }

  #openOf(state) {
    return [...this.approvals.values()].filter((one) => one.state === state && !one.resolved);
  }

  /** The stamp of a writer's next event. */
  #next(state) {
    state.seq += 1;
    return { ...stamp(state), seq: state.seq };
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
    for (const request of this.#openOf(state))
      this.#resolve(request, author, { outcome: 'withdrawn' });
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
