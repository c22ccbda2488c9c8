// Cancels of more than one run: what goes over the wire, on both roads, and what is refused here.
import assert from 'node:assert/strict';
import test from 'node:test';
import { AGENT, client, edge, until } from './help.mjs';

const OTHER = { participant: 'helper', kind: 'agent' };

/** plan ─ search ─ read, and beside them one that answers an input. */
function family(fake) {
  const log = fake.log('s');
  log.startRun('plan', AGENT);
  log.startRun('search', OTHER, { parent: 'plan' });
  log.startRun('read', OTHER, { parent: 'search' });
  log.startRun('answer', AGENT, { input: 'i1', input_by: 'ann' });
  return log;
}

const live = (log) => [...log.runs.values()].filter(({ live }) => live).map(({ run }) => run);
const signals = (fake) =>
  fake.received.map(({ frame }) => frame).filter(({ t }) => t === 'signal');
const posts = (fake) => fake.httpRequests.filter(({ method }) => method === 'POST');

/** Each target: as a caller says it, as the wire has it, and what of the family it leaves. */
const TARGETS = [
  ['search', { run: 'search' }, ['plan', 'read', 'answer']],
  [{ run: 'search' }, { run: 'search' }, ['plan', 'read', 'answer']],
  [{ subtree: 'search' }, { subtree: 'search' }, ['plan', 'answer']],
  [{ input: 'i1' }, { input: 'i1' }, ['plan', 'search', 'read']],
  [
    { input: 'i1', by: 'ann@example.org' },
    { input: 'i1', input_by: 'ann@example.org' },
    ['plan', 'search', 'read'],
  ],
  [{ all: true }, { all: true }, []],
];

for (const [target, wire, left] of TARGETS) {
  const said = JSON.stringify(target);

  test(`cancel ${said} says so in its frame, and stops no other`, async (t) => {
    const fake = await edge(t);
    const log = family(fake);
    const session = client(t, fake.url).attach('s');
    await until(() => session.state === 'live', 'live');
    const outcome = await session.cancel(target, { key: 'k' });
    assert.deepEqual([outcome.outcome, outcome.offset], ['applied', 5]);
    const [{ id: _id, ...frame }] = signals(fake);
    assert.deepEqual(frame, { t: 'signal', session: 's', signal: 'cancel', key: 'k', ...wire });
    assert.deepEqual(live(log), left);
    assert.deepEqual(posts(fake), []);
  });

  test(`cancel ${said} goes over HTTP while the socket is not open, once`, async (t) => {
    const fake = await edge(t);
    const log = family(fake);
    const one = client(t, fake.url);
    await until(() => one.state === 'open', 'open');
    one.disconnect();
    const outcome = await one.cancel('s', target, { key: 'k' });
    assert.equal(outcome.outcome, 'applied');
    const [request, ...more] = posts(fake);
    const isRun = wire.run !== undefined;
    const path = isRun ? '/v1/sessions/s/runs/search/cancel' : '/v1/sessions/s/cancel';
    assert.deepEqual([request.path, request.body, more], [path, isRun ? {} : wire, []]);
    assert.equal(request.headers['idempotency-key'], 'k');
    assert.deepEqual(live(log), left);
    one.reconnect();
    await until(() => one.state === 'open', 'open');
    assert.deepEqual(signals(fake), []);
  });

  test(`cancel ${said} goes over HTTP where there is no WebSocket`, async (t) => {
    const fake = await edge(t);
    const log = family(fake);
    const outcome = await client(t, fake.url, { transport: 'sse' }).cancel('s', target);
    assert.equal(outcome.outcome, 'applied');
    assert.deepEqual(live(log), left);
  });
}

test('options go along on both roads, and the key stands for all of it', async (t) => {
  const fake = await edge(t, { swallow: (frame) => frame.t === 'signal' });
  family(fake);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  const options = { gracefulMs: 2_000, expect: 'running', asOf: 4, key: 'k' };
  const outcome = await one.cancel('s', 'search', options);
  assert.equal(outcome.outcome, 'applied');
  const fields = { run: 'search', graceful_ms: 2_000, expect: 'running', as_of: 4 };
  const [{ t: _t, id: _id, session: _session, signal: _signal, key, ...frame }] = signals(fake);
  assert.deepEqual(frame, fields);
  // The stalled socket owes the outcome, so the hedge has asked for it.
  const [request] = posts(fake);
  assert.deepEqual([request.path, request.body], ['/v1/sessions/s/cancel', fields]);
  assert.equal(request.headers['idempotency-key'], key);
  const signal = fake.log('s').events.find(({ kind }) => kind === 'signal.cancel');
  assert.deepEqual(signal.body, { run: 'search', graceful_ms: 2_000 });
});

test('a stop of everything whose answer is lost on both roads is committed once', async (t) => {
  const fake = await edge(t);
  const log = family(fake);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  let cut = 2;
  const cancel = log.cancel.bind(log);
  log.cancel = (...asked) => {
    const outcome = cancel(...asked);
    if ((cut -= 1) >= 0) fake.dropAll();
    return outcome;
  };
  const outcome = await one.cancel('s', { all: true });
  assert.deepEqual([outcome.outcome, outcome.offset, outcome.duplicate], ['applied', 5, true]);
  const kinds = log.events.slice(4).map(({ kind, body }) => [kind, body.cancel_offset]);
  const hit = ['run.cancelled', 5];
  assert.deepEqual(kinds, [['signal.cancel', undefined], hit, hit, hit, hit]);
});

test('what has not begun can be stopped, and what came later be spared', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const one = client(t, fake.url);
  const early = await one.cancel('s', { input: 'i1' });
  assert.deepEqual([early.outcome, early.offset], ['applied', 1]);
  log.startRun('born', AGENT, { input: 'i1', input_by: 'ann' });
  assert.deepEqual(log.events.at(-1).body, { cancel_offset: 1 });
  const { tail } = log;
  log.startRun('later', AGENT);
  assert.equal((await one.cancel('s', { all: true }, { asOf: tail })).outcome, 'applied');
  assert.deepEqual(live(log), ['later']);
});

test('a guard that does not hold is a refusal, over the socket and over HTTP', async (t) => {
  const fake = await edge(t);
  const log = family(fake);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  const refused = { code: 'WRONG_STATE', advice: 'stop', details: { state: 'running' } };
  for (const cut of [false, true]) {
    if (cut) one.disconnect();
    await assert.rejects(one.cancel('s', { run: 'plan' }, { expect: 'orphaned' }), refused);
    await assert.rejects(one.cancel('s', { subtree: 'search' }, { asOf: 1 }), refused);
  }
  assert.equal(log.tail, 4);
});

test('a bound that stays reached is told, also over HTTP', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  log.cancel = () => ({ refused: 'TOO_MANY_PENDING', details: { limit: 8 } });
  const one = client(t, fake.url);
  one.disconnect();
  const refused = { code: 'TOO_MANY_PENDING', advice: 'retry', details: { limit: 8 } };
  await assert.rejects(one.cancel('s', { input: 'i' }), refused);
  assert.equal(posts(fake).length, 9);
});

test('what names nothing, two things or nonsense is refused here', async (t) => {
  const fake = await edge(t);
  family(fake);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  const bad = [
    [{}],
    [null],
    [undefined],
    [{ run: 'a', all: true }],
    [{ run: 'a', subtree: 'a' }],
    [{ run: '../r' }],
    [{ subtree: '' }],
    [{ input: 'i 1' }],
    [{ input: 'i', by: 'two words' }],
    [{ by: 'ann' }],
    [{ all: false }],
    [{ all: 1 }],
    [{ all: true }, { expect: 'running' }],
    [{ input: 'i' }, { expect: 'running' }],
    ['a', { expect: 'walking' }],
    ['a', { gracefulMs: 0 }],
    ['a', { gracefulMs: 30_001 }],
    ['a', { gracefulMs: 1.5 }],
    ['a', { asOf: -1 }],
    [{ input: 'i' }, { asOf: 1 }],
    ['a', { asOf: NaN }],
    ['a', { key: 'k k' }],
  ];
  for (const asked of bad) {
    await assert.rejects(one.cancel('s', ...asked), { code: 'MALFORMED' }, JSON.stringify(asked));
  }
  assert.deepEqual([signals(fake), posts(fake), fake.log('s').tail], [[], [], 4]);
});
