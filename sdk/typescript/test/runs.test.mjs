// Events → runs: orphans and their new writers, children, stops and what follows them; runs that
// wait, and what they ask people to approve.
import assert from 'node:assert/strict';
import test from 'node:test';
import { textOf, Transcript } from '../dist/index.js';
import { FakeLog } from './fake-log.mjs';
import { AGENT } from './help.mjs';

const ANN = { participant: 'ann', kind: 'user' };
const OTHER = { participant: 'helper', kind: 'agent' };
const SERVER = { participant: 'everwire', kind: 'server' };
/** How a run asks for an approval in these tests, and how a transcript tells of it. */
const MAIL = { approval: 'a1', action: 'Send the mail', action_hash: 'h1' };
const ASKED = { ...MAIL, run: 'r1', deadline: '2026-08-01T12:00:00.000Z', on_expiry: 'deny' };

function read(log, { from = 1, to = log.tail } = {}) {
  const transcript = new Transcript();
  for (const event of log.events.slice(from - 1, to)) transcript.apply(event);
  return transcript;
}

/** A run with one open message of these words. */
function writing(log, run, words, of) {
  log.startRun(run, AGENT, of);
  log.output(run, 'message.start', { message: `${run}-m`, role: 'assistant' });
  log.output(run, 'part.start', { message: `${run}-m`, part: 'p', part_kind: 'text' });
  write(log, run, 0, words);
}

function write(log, run, position, text) {
  log.output(run, 'part.delta', { message: `${run}-m`, part: 'p', position, text });
}

/** Whatever is open and should not be: the words of the message, and of its parts. */
function open(transcript) {
  const live = ['running', 'suspended', 'orphaned'];
  const isOver = ({ run }) => !live.includes(transcript.run(run)?.state);
  return transcript.messages
    .filter(isOver)
    .flatMap(({ message, status, parts }) => [
      ...(status === 'open' ? [message] : []),
      ...parts.filter((part) => part.open).map(({ part }) => `${message}/${part}`),
    ]);
}

test('an orphan goes on under whoever claims it, and its message with it', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'half ');
  log.orphan('r1');
  const lost = read(log);
  const run = { run: 'r1', run_epoch: 1, author: AGENT, started: 1 };
  assert.deepEqual(lost.run('r1'), { ...run, state: 'orphaned', orphaned: 5 });
  assert.equal(lost.liveRun.run, 'r1');
  assert.equal(lost.messages[0].status, 'open');
  log.claim('r1', OTHER);
  write(log, 'r1', 5, 'and half');
  const found = read(log);
  const adopted = { ...run, run_epoch: 2, author: OTHER };
  assert.deepEqual(found.run('r1'), { ...adopted, state: 'running' });
  log.output('r1', 'run.completed', {});
  const done = read(log);
  assert.deepEqual(done.run('r1'), { ...adopted, state: 'completed', ended: 8 });
  const [message] = done.messages;
  assert.deepEqual([textOf(message), message.status], ['half and half', 'incomplete']);
  assert.equal(message.author, AGENT);
});

test('an orphan that nobody claims has failed, by the server', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'half');
  log.orphan('r1');
  log.giveUp('r1');
  const { state, reason, ended, author, orphaned } = read(log).run('r1');
  assert.deepEqual([state, reason, ended, author], ['failed', 'lost', 6, AGENT]);
  assert.equal(orphaned, undefined);
});

test('a run that ended has nothing open, at whatever event one looks', () => {
  const ends = [
    (log) => log.cancel('r1', ANN, 'k'),
    (log) => log.cancel({ all: true, graceful_ms: 500 }, ANN, 'k'),
    (log) => log.output('r1', 'run.completed', {}),
    (log) => log.output('r1', 'run.failed', { reason: 'x' }),
    (log) => (log.orphan('r1'), log.giveUp('r1')),
  ];
  for (const end of ends) {
    const log = new FakeLog('s', '1-1');
    writing(log, 'r1', 'one');
    writing(log, 'r2', 'two');
    end(log);
    const transcript = new Transcript();
    for (const event of log.events) {
      transcript.apply(event);
      assert.deepEqual(open(transcript), [], `${end} at ${event.offset} ${event.kind}`);
      const copy = new Transcript();
      copy.load(transcript.save());
      assert.deepEqual(copy.save(), transcript.save());
    }
    // Cut off between the end of a run and that of its message, a copy is none the worse.
    for (let to = 1; to < log.tail; to += 1) {
      const copy = new Transcript();
      copy.load(read(log, { to }).save());
      for (const event of log.events) copy.apply(event);
      assert.deepEqual(copy.save(), read(log).save(), `${end} from ${to}`);
    }
  }
});

test('one stop of a family: each run has its offset, and says when it saw it', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'plan', 'a', { meta: { title: 'Plan' } });
  writing(log, 'search', 'b', { parent: 'plan', meta_base64: 'AAE=' });
  writing(log, 'aside', 'c');
  const { offset } = log.cancel({ subtree: 'plan', graceful_ms: 2_000 }, ANN, 'k');
  const seen = log.observe('search');
  log.epilogue('search', { data: { tokens: 7 } });
  log.epilogue('search', { data_base64: 'AAE=' });
  log.epilogue('search', {});
  const transcript = read(log);
  const [plan, search, aside] = transcript.runs;
  assert.deepEqual([plan.state, search.state, aside.state], ['cancelled', 'cancelled', 'running']);
  for (const run of [plan, search]) {
    assert.deepEqual([run.cancel_offset, run.cancelled_by], [offset, ANN]);
    assert.equal(run.author, AGENT);
    assert.equal(run.run_epoch, 1);
  }
  assert.deepEqual([plan.observed_offset, search.observed_offset], [undefined, seen]);
  assert.deepEqual([plan.parent, search.parent], [undefined, 'plan']);
  assert.deepEqual([plan.meta, search.meta_base64], [{ title: 'Plan' }, 'AAE=']);
  assert.equal(plan.epilogue, undefined);
  assert.deepEqual(search.epilogue, [{ data: { tokens: 7 } }, { data_base64: 'AAE=' }, {}]);
  assert.deepEqual(transcript.messages.map(textOf), ['a', 'b', 'c']);
  assert.deepEqual(transcript.stops, [
    { offset, author: ANN, target: { subtree: 'plan' }, graceful_ms: 2_000 },
  ]);
  assert.equal(transcript.liveRun, aside);
});

test('a run that was stopped before it began was stopped by whoever pressed', () => {
  const log = new FakeLog('s', '1-1');
  log.cancel({ input: 'i1' }, ANN, 'k');
  log.startRun('r1', AGENT, { input: 'i1', input_by: 'ann' });
  const transcript = read(log);
  const target = { input: 'i1', input_by: 'ann' };
  assert.deepEqual(transcript.stops, [{ offset: 1, author: ANN, target }]);
  assert.deepEqual(transcript.run('r1'), {
    run: 'r1',
    run_epoch: 1,
    state: 'cancelled',
    author: AGENT,
    input: 'i1',
    input_by: 'ann',
    started: 2,
    ended: 3,
    cancel_offset: 1,
    cancelled_by: ANN,
  });
  // Whoever joined behind the stop knows that it was none of the starter's.
  assert.equal(read(log, { from: 2 }).run('r1').cancelled_by, undefined);
});

test('a reader that joins late takes no bystander for the writer', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'x');
  log.orphan('r1');
  const { run_epoch } = read(log, { from: 5 }).run('r1');
  assert.equal(run_epoch, 1);
  assert.equal(read(log, { from: 5 }).run('r1').author, undefined);
  log.claim('r1', OTHER);
  assert.deepEqual(read(log, { from: 5 }).run('r1').author, OTHER);
  log.cancel({ run: 'r1', graceful_ms: 500 }, ANN, 'k');
  const stopped = read(log, { from: 8 }).run('r1');
  assert.deepEqual([stopped.author, stopped.cancelled_by], [undefined, ANN]);
  log.epilogue('r1', { data: 1 });
  const told = read(log, { from: log.tail }).run('r1');
  assert.deepEqual([told.state, told.author, told.epilogue], ['cancelled', OTHER, [{ data: 1 }]]);
});

test('what an older client has saved is taken back', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'x');
  const saved = read(log).save();
  delete saved.stops;
  delete saved.approvals;
  const transcript = new Transcript();
  transcript.load(saved);
  log.cancel('r1', ANN, 'k');
  for (const event of log.events) transcript.apply(event);
  assert.deepEqual(transcript.save(), read(log).save());
});

/** The transcript, also when it was saved and loaded at every event. */
function readSaved(log) {
  let transcript = new Transcript();
  for (const event of log.events) {
    transcript.apply(event);
    const copy = new Transcript();
    copy.load(JSON.parse(JSON.stringify(transcript.save())));
    transcript = copy;
  }
  assert.deepEqual(transcript.save(), read(log).save());
  return transcript;
}

test('a paused run waits with its message open, and goes on when it is resumed', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'half ');
  log.signal({ signal: 'pause', run: 'r1' }, ANN, 'k1');
  const paused = readSaved(log);
  const run = { run: 'r1', run_epoch: 1, author: AGENT, started: 1 };
  const suspended = { reason: 'paused', offset: 6, by: ANN };
  assert.deepEqual(paused.run('r1'), { ...run, state: 'suspended', suspended });
  assert.equal(paused.liveRun.run, 'r1');
  assert.equal(paused.messages[0].status, 'open');
  log.signal({ signal: 'resume', all: true }, ANN, 'k2');
  write(log, 'r1', 5, 'and half');
  const resumed = readSaved(log);
  assert.deepEqual(resumed.run('r1'), { ...run, state: 'running' });
  assert.equal(textOf(resumed.messages[0]), 'half and half');
});

test('a run says itself what it waits for, and who claims it waits with it', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'x');
  log.suspend('r1', 'auth', 'sign in to the shop');
  const suspended = { reason: 'auth', note: 'sign in to the shop', offset: 5, by: AGENT };
  assert.deepEqual(readSaved(log).run('r1').suspended, suspended);
  log.claim('r1', OTHER);
  const claimed = readSaved(log).run('r1');
  assert.deepEqual([claimed.state, claimed.suspended], ['suspended', suspended]);
  assert.deepEqual([claimed.author, claimed.run_epoch], [OTHER, 2]);
  log.goOn('r1');
  const { state, suspended: none } = readSaved(log).run('r1');
  assert.deepEqual([state, none], ['running', undefined]);
});

test('a run that ends while it waits, waits no more', () => {
  const ends = [
    (log) => log.cancel('r1', ANN, 'k'),
    (log) => log.giveUp('r1'),
    (log) => (log.goOn('r1'), log.output('r1', 'run.completed', {})),
  ];
  for (const end of ends) {
    const log = new FakeLog('s', '1-1');
    writing(log, 'r1', 'x');
    log.suspend('r1', 'input');
    end(log);
    const transcript = readSaved(log);
    assert.equal('suspended' in transcript.run('r1'), false, `${end}`);
    assert.equal(transcript.liveRun, undefined, `${end}`);
  }
});

test('an orphan that is paused waits, and is none any more', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'x');
  log.orphan('r1');
  log.signal({ signal: 'pause', run: 'r1' }, ANN, 'k');
  const { state, orphaned, suspended } = readSaved(log).run('r1');
  assert.deepEqual([state, orphaned, suspended.offset], ['suspended', undefined, 7]);
});

test('an approval is open until somebody answers, and says who did', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'x');
  const data = { to: 'bob' };
  log.request('r1', { ...MAIL, approvers: ['ann'], data });
  log.request('r1', { approval: 'a2', action: 'b', action_hash: 'h2', data_base64: 'AAE=' });
  log.suspend('r1', 'approval');
  const asked = readSaved(log);
  const first = { ...ASKED, approvers: ['ann'], data, requested: 5 };
  const b = { ...ASKED, approval: 'a2', action: 'b', action_hash: 'h2', data_base64: 'AAE=' };
  const second = { ...b, requested: 6 };
  assert.deepEqual(asked.approvals, [first, second]);
  assert.deepEqual(asked.openApprovals, [first, second]);
  assert.equal(asked.run('r1').suspended.reason, 'approval');
  const yes = { signal: 'approve', approval: 'a1', action_hash: 'h1', note: 'go' };
  log.signal(yes, ANN, 'k1');
  const half = readSaved(log);
  assert.deepEqual(half.openApprovals, [second]);
  assert.equal(half.run('r1').state, 'suspended');
  log.signal({ signal: 'deny', approval: 'a2', action_hash: 'h2' }, ANN, 'k2');
  const done = readSaved(log);
  assert.deepEqual(done.approvals, [
    { ...first, outcome: 'approved', by: ANN, resolved: 8, note: 'go' },
    { ...second, outcome: 'denied', by: ANN, resolved: 9 },
  ]);
  assert.deepEqual(done.openApprovals, []);
  assert.equal(done.run('r1').state, 'running');
  assert.deepEqual(done.run('r1').author, AGENT);
});

test('an approval may run out, or be taken back', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'x');
  log.request('r1', { ...MAIL, on_expiry: 'approve' });
  log.request('r1', { ...MAIL, approval: 'a2' });
  log.expire('a1');
  log.withdraw('a2');
  assert.deepEqual(readSaved(log).approvals, [
    { ...ASKED, on_expiry: 'approve', requested: 5, outcome: 'expired', by: SERVER, resolved: 7 },
    { ...ASKED, approval: 'a2', requested: 6, outcome: 'withdrawn', by: AGENT, resolved: 8 },
  ]);
});

test('the end of a run withdraws what it asked, and nobody sees it open behind that', () => {
  const ends = [
    (log) => log.cancel('r1', ANN, 'k'),
    (log) => log.output('r1', 'run.failed', { reason: 'x' }),
  ];
  for (const end of ends) {
    const log = new FakeLog('s', '1-1');
    writing(log, 'r1', 'x');
    writing(log, 'r2', 'y');
    log.request('r1', MAIL);
    log.request('r2', { ...MAIL, approval: 'a2' });
    end(log);
    const transcript = new Transcript();
    for (const event of log.events) {
      transcript.apply(event);
      const isOver = transcript.run('r1').ended !== undefined;
      const open = transcript.openApprovals.filter(({ run }) => run === 'r1');
      if (isOver) assert.deepEqual(open, [], `${end} at ${event.offset} ${event.kind}`);
    }
    const [mine, other] = transcript.approvals;
    assert.equal(mine.outcome, 'withdrawn');
    assert.ok(mine.resolved > transcript.run('r1').ended);
    assert.deepEqual(transcript.openApprovals, [other]);
  }
});

test('an answer to what was asked before one joined changes nothing', () => {
  const log = new FakeLog('s', '1-1');
  writing(log, 'r1', 'x');
  log.request('r1', MAIL);
  log.signal({ signal: 'approve', approval: 'a1', action_hash: 'h1' }, ANN, 'k');
  const late = read(log, { from: 6 });
  assert.deepEqual([late.approvals, late.offset], [[], 6]);
  // Its request alone is enough, although nobody has seen its run begin.
  assert.equal(read(log, { from: 5, to: 5 }).openApprovals.length, 1);
});
