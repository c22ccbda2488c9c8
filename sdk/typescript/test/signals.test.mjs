// Pauses, resumes and answers to approvals: what goes over the wire, on both roads, what comes
// back, and what is refused here.
import assert from 'node:assert/strict';
import test from 'node:test';
import { Transcript } from '../dist/index.js';
import { AGENT, client, edge, take, until } from './help.mjs';

const OTHER = { participant: 'helper', kind: 'agent' };
const MAIL = { approval: 'a1', action: 'Send the mail', action_hash: 'h1' };
const SEEN = { approval: 'a1', action_hash: 'h1' };

/** plan ─ search, one that is paused, and those that wait for an approval and for an input. */
function family(fake) {
  const log = fake.log('s');
  log.startRun('plan', AGENT);
  log.startRun('search', OTHER, { parent: 'plan' });
  log.startRun('paused', AGENT);
  log.signal({ signal: 'pause', run: 'paused' }, OTHER, 'k');
  log.startRun('asking', AGENT);
  log.request('asking', MAIL);
  log.suspend('asking', 'approval');
  log.startRun('waiting', AGENT);
  log.suspend('waiting', 'input');
  return log;
}

const running = (log) =>
  [...log.runs.values()].filter(({ state }) => state === 'running').map(({ run }) => run);
const signals = (fake) =>
  fake.received.map(({ frame }) => frame).filter(({ t }) => t === 'signal');
const posts = (fake) => fake.httpRequests.filter(({ method }) => method === 'POST');

/** Each signal: as a caller says it, as the wire has it, and which of the family run then. */
const SIGNALS = [
  ['pause', ['search'], { run: 'search' }, ['plan']],
  ['pause', [{ run: 'search' }], { run: 'search' }, ['plan']],
  ['pause', [{ subtree: 'plan' }], { subtree: 'plan' }, []],
  ['pause', [{ all: true }], { all: true }, []],
  ['resume', ['paused'], { run: 'paused' }, ['plan', 'search', 'paused']],
  ['resume', ['waiting'], { run: 'waiting' }, ['plan', 'search', 'waiting']],
  ['resume', [{ subtree: 'paused' }], { subtree: 'paused' }, ['plan', 'search', 'paused']],
  ['resume', [{ all: true }], { all: true }, ['plan', 'search', 'paused']],
  ['approve', [SEEN], SEEN, ['plan', 'search', 'asking']],
  ['approve', [SEEN, { note: 'go' }], { ...SEEN, note: 'go' }, ['plan', 'search', 'asking']],
  // What else an approval has is for people, and stays here.
  ['deny', [MAIL], SEEN, ['plan', 'search', 'asking']],
  ['deny', [MAIL, { note: 'nö' }], { ...SEEN, note: 'nö' }, ['plan', 'search', 'asking']],
];

for (const [signal, [what, options], wire, runs] of SIGNALS) {
  const said = `${signal} ${JSON.stringify(what)} ${JSON.stringify(options ?? {})}`;

  test(`${said} says so in its frame`, async (t) => {
    const fake = await edge(t);
    const log = family(fake);
    const session = client(t, fake.url).attach('s');
    await until(() => session.state === 'live', 'live');
    const { tail } = log;
    const outcome = await session[signal](what, { ...options, key: 'k' });
    const { epoch: session_epoch } = log;
    const applied = { outcome: 'applied', session_epoch, offset: tail + 1, duplicate: false };
    assert.deepEqual(outcome, applied);
    const [{ id: _id, ...frame }, ...more] = signals(fake);
    assert.deepEqual(frame, { t: 'signal', session: 's', signal, key: 'k', ...wire });
    assert.deepEqual([more, posts(fake)], [[], []]);
    assert.deepEqual(running(log), runs);
  });

  test(`${said} goes over HTTP while the socket is not open, once`, async (t) => {
    const fake = await edge(t);
    const log = family(fake);
    const one = client(t, fake.url);
    const session = one.attach('s');
    await until(() => session.state === 'live', 'live');
    one.disconnect();
    const outcome = await session[signal](what, { ...options, key: 'k' });
    assert.equal(outcome.outcome, 'applied');
    const [request, ...more] = posts(fake);
    assert.deepEqual([request.path, more], ['/v1/sessions/s/signal', []]);
    assert.deepEqual(request.body, { signal, key: 'k', ...wire });
    assert.equal(request.headers['idempotency-key'], 'k');
    assert.deepEqual(running(log), runs);
    one.reconnect();
    await until(() => session.state === 'live', 'live');
    assert.deepEqual(signals(fake), []);
  });

  test(`${said} goes over HTTP where there is no WebSocket`, async (t) => {
    const fake = await edge(t);
    const log = family(fake);
    const session = client(t, fake.url, { transport: 'sse' }).attach('s');
    assert.equal((await session[signal](what, options)).outcome, 'applied');
    assert.deepEqual(running(log), runs);
  });
}

test('one minted key goes over both roads when the socket is stalled', async (t) => {
  const fake = await edge(t, { swallow: (frame) => frame.t === 'signal' });
  const log = family(fake);
  const session = client(t, fake.url).attach('s');
  await until(() => session.state === 'live', 'live');
  const from = Date.now();
  assert.equal((await session.approve(SEEN)).outcome, 'applied');
  assert.ok(Date.now() - from < 4_000);
  const [{ t: _t, id: _id, session: _session, ...frame }] = signals(fake);
  const [request] = posts(fake);
  assert.deepEqual(request.body, frame);
  assert.equal(request.headers['idempotency-key'], frame.key);
  assert.equal(log.approvals.get('a1').resolved.state, 'approved');
});

const LOST = [
  ['pause', { all: true }],
  ['resume', 'paused'],
  ['deny', SEEN],
];
for (const [signal, what] of LOST) {
  test(`a ${signal} whose answer is lost on both roads is committed once`, async (t) => {
    const fake = await edge(t);
    const log = family(fake);
    const session = client(t, fake.url).attach('s');
    await until(() => session.state === 'live', 'live');
    let cut = 2;
    const press = log.signal.bind(log);
    log.signal = (...asked) => {
      const outcome = press(...asked);
      if ((cut -= 1) >= 0) fake.dropAll();
      return outcome;
    };
    const { tail } = log;
    const outcome = await session[signal](what);
    const { offset, duplicate } = outcome;
    assert.deepEqual([outcome.outcome, offset, duplicate], ['applied', tail + 1, true]);
    const { kind } = log.events[tail];
    assert.equal(log.events.slice(tail).filter((event) => event.kind === kind).length, 1);
  });
}

test('what a transcript shows is what is answered', async (t) => {
  const fake = await edge(t);
  const log = family(fake);
  const session = client(t, fake.url).attach('s');
  const transcript = new Transcript();
  for (const event of await take(session, log.tail)) transcript.apply(event);
  const [approval] = transcript.openApprovals;
  const { offset } = await session.approve(approval, { note: 'go' });
  for (const event of await take(session, 2)) transcript.apply(event);
  const { outcome, resolved, note } = approval;
  assert.deepEqual([outcome, resolved, note], ['approved', offset, 'go']);
  assert.deepEqual(approval.by, { participant: 'ann', kind: 'user' });
  assert.equal(transcript.run('asking').state, 'running');
});

test('a run that has ended or was never there is an outcome', async (t) => {
  const fake = await edge(t);
  const log = family(fake);
  log.output('plan', 'run.completed', {});
  const one = client(t, fake.url);
  const session = one.attach('s');
  await until(() => session.state === 'live', 'live');
  for (const cut of [false, true]) {
    if (cut) one.disconnect();
    for (const signal of ['pause', 'resume']) {
      const { outcome, offset, state } = await session[signal]('plan');
      assert.deepEqual([outcome, offset, state], ['already_terminal', log.tail, 'completed']);
      assert.equal((await session[signal]('other')).outcome, 'unknown_run');
    }
  }
});

test('what the log cannot do is a refusal, over the socket and over HTTP', async (t) => {
  const fake = await edge(t);
  const log = family(fake);
  const ask = (approval, more) => log.request('plan', { ...MAIL, approval, ...more });
  ask('hers', { approvers: ['eve'] });
  ask('late');
  log.expire('late');
  ask('done');
  log.signal({ ...SEEN, signal: 'deny', approval: 'done' }, OTHER, 'k2');
  const { tail } = log;
  const one = client(t, fake.url);
  const session = one.attach('s');
  await until(() => session.state === 'live', 'live');
  const wrong = (state) => ({ code: 'WRONG_STATE', advice: 'stop', details: { state } });
  const refusals = [
    [session.pause, 'paused', wrong('suspended')],
    [session.resume, 'plan', wrong('running')],
    [session.resume, 'asking', wrong('suspended')],
    [session.approve, { ...SEEN, approval: 'other' }, { code: 'UNKNOWN_APPROVAL', advice: 'stop' }],
    [session.approve, { ...SEEN, approval: 'hers' }, { code: 'DENIED', advice: 'stop' }],
    [
      session.deny,
      { ...SEEN, approval: 'late' },
      { code: 'EXPIRED', advice: 'stop', details: { offset: tail - 2 } },
    ],
    [
      session.approve,
      { ...SEEN, approval: 'done' },
      { code: 'ALREADY_RESOLVED', details: { by: 'helper', offset: tail, state: 'denied' } },
    ],
    [session.approve, { ...SEEN, action_hash: 'h2' }, { code: 'WRONG_STATE', advice: 'stop' }],
  ];
  for (const cut of [false, true]) {
    if (cut) one.disconnect();
    for (const [signal, what, refused] of refusals)
      await assert.rejects(signal.call(session, what), refused);
  }
  assert.equal(log.tail, tail);
});

test('a stop may be meant for a run that waits', async (t) => {
  const fake = await edge(t);
  const log = family(fake);
  const session = client(t, fake.url).attach('s');
  const expect = 'suspended';
  await assert.rejects(session.cancel('plan', { expect }), { code: 'WRONG_STATE' });
  assert.equal((await session.cancel('asking', { expect })).outcome, 'applied');
  assert.equal(log.approvals.get('a1').resolved.state, 'withdrawn');
});

test('what names nothing, two things or nonsense is refused here', async (t) => {
  const fake = await edge(t);
  const { tail } = family(fake);
  const session = client(t, fake.url).attach('s');
  await until(() => session.state === 'live', 'live');
  const targets = [
    [{}],
    [null],
    [undefined],
    [{ run: 'a', all: true }],
    [{ run: 'a', subtree: 'a' }],
    [{ run: '../r' }],
    [{ subtree: '' }],
    [{ input: 'i' }],
    [{ all: false }],
    ['a b'],
    ['a', { key: 'k k' }],
  ];
  const answers = [
    ['a1'],
    [null],
    [undefined],
    [{}],
    [{ approval: 'a1' }],
    [{ action_hash: 'h1' }],
    [{ approval: 'a 1', action_hash: 'h1' }],
    [{ approval: 'a1', action_hash: '' }],
    [SEEN, { note: 7 }],
    [SEEN, { note: null }],
    [SEEN, { key: 'k k' }],
  ];
  const refuse = (signal, asked, code) =>
    assert.rejects(session[signal](...asked), { code }, `${signal} ${JSON.stringify(asked)}`);
  for (const asked of targets) {
    await refuse('pause', asked, 'MALFORMED');
    await refuse('resume', asked, 'MALFORMED');
  }
  for (const asked of answers) {
    await refuse('approve', asked, 'MALFORMED');
    await refuse('deny', asked, 'MALFORMED');
  }
  await refuse('approve', [SEEN, { note: 'é'.repeat(129) }], 'TOO_LARGE');
  assert.deepEqual([signals(fake), posts(fake), fake.log('s').tail], [[], [], tail]);
  assert.equal((await session.deny(SEEN, { note: 'é'.repeat(128) })).outcome, 'applied');
});
