// The connection: heartbeat, tokens, advice, moving, waking up, other edges.
import assert from 'node:assert/strict';
import test from 'node:test';
import { EverwireError } from '../dist/index.js';
import { assertDense, client, edge, sleep, take, until } from './help.mjs';

const NOTE = { participant: 'bob', kind: 'user' };
const note = (log) => log.append('app', NOTE, { name: 'note' });

test('a stalled socket is dropped although it looks open', async (t) => {
  const fake = await edge(t, { heartbeatMs: 100, lostAfterMs: 400 });
  const log = fake.log('s');
  const one = client(t, fake.url);
  const why = [];
  one.on('state', ({ state, why: reason }) => state === 'waiting' && why.push(reason));
  const session = one.attach('s');
  await until(() => session.state === 'live', 'live');
  const reading = take(session, 1);
  fake.stalled = true;
  note(log);
  await until(() => one.state === 'waiting' || one.state === 'connecting', 'lost');
  assert.match(why[0].message, /nothing was heard for 400 ms/);
  fake.stalled = false;
  // The sockets of before are still open at the edge; the client has left them.
  assertDense(await reading);
  assert.ok(one.connects >= 2);
});

test('pings keep a quiet socket alive', async (t) => {
  const fake = await edge(t, { heartbeatMs: 100, lostAfterMs: 500 });
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  await sleep(1_200);
  assert.equal(one.connects, 1);
  assert.ok(fake.received.filter(({ frame }) => frame.t === 'ping').length > 5);
});

test('a hidden page, whose timers hardly run, pings when it hears something', async (t) => {
  const fake = await edge(t, { heartbeatMs: 100, lostAfterMs: 5_000 });
  const { setInterval } = globalThis;
  t.after(() => (globalThis.setInterval = setInterval));
  globalThis.setInterval = () => undefined;
  const one = client(t, fake.url);
  const session = one.attach('s', { create: true });
  await until(() => session.state === 'live', 'live');
  for (let at = 0; at < 10; at += 1) {
    await sleep(50);
    fake.tell({ t: 'events', session: 's', from: 1, to: 0, tail: 0, events: [] });
  }
  const pings = () => fake.received.filter(({ frame }) => frame.t === 'ping').length;
  await until(() => pings() >= 2, 'pings');
  assert.ok(pings() <= 6, `${pings()} pings`);
});

test('the next address is tried when one is dead', async (t) => {
  const dead = await edge(t);
  await dead.stop();
  const fake = await edge(t);
  note(fake.log('s'));
  for (const first of [0, 0.6]) {
    const one = client(t, [dead.url, fake.url], { random: () => first });
    assertDense(await take(one.attach('s'), 1));
  }
  dead.stop = async () => {};
});

test('auth is asked anew for each connection', async (t) => {
  const fake = await edge(t);
  let asked = 0;
  const one = client(t, fake.url, { auth: async () => `ann:${(asked += 1)}` });
  await until(() => one.state === 'open', 'open');
  fake.dropAll();
  await until(() => one.connects === 2, 'second connection');
  const tokens = fake.received
    .filter(({ frame }) => frame.t === 'auth')
    .map(({ frame }) => frame.token);
  assert.deepEqual(tokens, ['ann:1', 'ann:2']);
  assert.equal(one.participant, 'ann');
});

test('an expiring token is refreshed in-band', async (t) => {
  const fake = await edge(t);
  let asked = 0;
  const auth = () => {
    asked += 1;
    if (asked === 2) throw new Error('the token server is away for a moment');
    return `ann:${asked}`;
  };
  const one = client(t, fake.url, { auth });
  await until(() => one.state === 'open', 'open');
  fake.tell({ t: 'expiring', token_expires: new Date().toISOString() });
  const refreshed = () => fake.received.find(({ frame }) => frame.t === 'refresh');
  await until(refreshed, 'refresh');
  assert.equal(refreshed().frame.token, 'ann:3');
  await sleep(20);
  assert.equal(one.connects, 1);
});

test('refused tokens are asked for again, and in the end the loop throws', async (t) => {
  const fake = await edge(t);
  let asked = 0;
  const auth = () => ((asked += 1) < 3 ? 'bad' : 'ann:good');
  await until(() => client(t, fake.url, { auth }).state !== undefined, 'made');
  await until(() => fake.welcomes === 1, 'welcome at the third token');
  const one = client(t, fake.url, { auth: () => 'bad' });
  await assert.rejects(take(one.attach('s'), 1), {
    code: 'UNAUTHENTICATED',
    advice: 'reauthenticate',
  });
  await assert.rejects(one.publish('s', { text: 'x' }), { code: 'UNAUTHENTICATED' });
  assert.equal(one.state, 'closed');
});

test('auth that throws is tried again, unless it says stop', async (t) => {
  const fake = await edge(t);
  note(fake.log('s'));
  let asked = 0;
  const auth = () => {
    asked += 1;
    if (asked < 5) throw new TypeError('fetch failed');
    return 'ann:x';
  };
  assertDense(await take(client(t, fake.url, { auth }).attach('s'), 1));
  const never = () => {
    throw new EverwireError('DENIED', 'signed out');
  };
  const session = client(t, fake.url, { auth: never }).attach('s');
  await assert.rejects(take(session, 1), { code: 'DENIED', message: 'signed out' });
});

for (const code of ['DENIED', 'TOKEN_REVOKED', 'MALFORMED']) {
  test(`bye with advice stop ends the client: ${code}`, async (t) => {
    const fake = await edge(t);
    const one = client(t, fake.url);
    const session = one.attach('s', { create: true });
    await until(() => session.state === 'live', 'live');
    fake.bye(code);
    await assert.rejects(take(session, 1), { code, advice: 'stop' });
    await sleep(60);
    assert.equal(fake.welcomes, 1);
  });
}

for (const code of ['TOKEN_EXPIRED', 'SLOW_READER', 'OVERLOADED', 'DRAINING', 'INTERNAL']) {
  test(`bye with another advice brings the client back: ${code}`, async (t) => {
    const fake = await edge(t);
    const log = fake.log('s');
    const one = client(t, fake.url);
    const session = one.attach('s');
    await until(() => session.state === 'live', 'live');
    fake.bye(code);
    note(log);
    assertDense(await take(session, 1));
    assert.equal(fake.welcomes, 2);
  });
}

test('a close code alone says as much as bye', async (t) => {
  const fake = await edge(t);
  const one = client(t, fake.url);
  const session = one.attach('s', { create: true });
  await until(() => session.state === 'live', 'live');
  for (const socket of fake.ws.clients) socket.close(4003);
  await assert.rejects(take(session, 1), { code: 'TOKEN_REVOKED', advice: 'stop' });
});

/** Two edges before the same log, and a client that is attached at the first. */
async function pair(t, options = {}) {
  const [old, fresh] = [await edge(t), await edge(t)];
  fresh.logs = old.logs;
  const log = old.log('s');
  const one = client(t, [old.url, fresh.url], { random: () => 0.4, ...options });
  const states = [];
  one.on('state', ({ state }) => states.push(state));
  const session = one.attach('s');
  await until(() => session.state === 'live', 'live');
  return { old, fresh, log, one, session, states };
}

test('moving takes the client to another edge within the time', async (t) => {
  const { old, fresh, log, one, session } = await pair(t);
  old.tell({ t: 'moving', within_ms: 1_000 });
  await sleep(100);
  assert.equal(fresh.sockets.size, 0, 'it leaves with jitter, not at once');
  await until(() => fresh.welcomes === 1, 'moved', 1_000);
  await until(() => old.sockets.size === 0, 'the old socket is closed');
  assert.equal(one.state, 'open');
  note(log);
  assertDense(await take(session, 1));
  assert.equal(old.welcomes, 1);
});

test('a client that moves misses nothing, waits for nothing and sees nothing twice', async (t) => {
  const { old, fresh, log, one, session, states } = await pair(t);
  const times = [];
  const reading = (async () => {
    const events = [];
    for await (const event of session) {
      times.push(Date.now());
      events.push(event);
      if (events.length === 200) return events;
    }
    return events;
  })();
  const writing = setInterval(() => note(log), 5);
  t.after(() => clearInterval(writing));
  // The new edge is slow to answer: the old one delivers until it does.
  const { mangle } = fresh;
  const held = [];
  fresh.mangle = (frame) => (frame.t === 'welcome' ? [frame] : (held.push(frame), []));
  old.tell({ t: 'moving', within_ms: 200 });
  await until(() => fresh.welcomes === 1, 'known at the new edge');
  const before = times.length;
  await until(() => times.length > before + 20, 'the old edge delivers on');
  assert.equal(old.sockets.size, 1, 'it is not left before the new one has answered');
  fresh.mangle = mangle;
  held.forEach((frame) => fresh.tell(frame));
  await until(() => old.sockets.size === 0, 'the old edge is left', 2_000);
  assertDense(await reading);
  assert.ok(session.counts.duplicates > 0, 'both edges delivered for a while');
  assert.equal(session.counts.holes, 0);
  assert.ok(!states.slice(1).some((state) => state !== 'open'), states.join());
  assert.equal(one.connects, 2);
});

test('what was asked of the edge that goes is asked of the next one, and done once', async (t) => {
  const { old, fresh, log, session } = await pair(t);
  old.swallow = (frame) => frame.t === 'publish' || frame.t === 'signal';
  log.startRun('r1', { participant: 'agent', kind: 'agent' });
  const published = session.publish({ text: 'hello' }, { key: 'k1' });
  const cancelled = session.cancel('r1');
  old.tell({ t: 'moving', within_ms: 50 });
  assert.equal((await published).duplicate, false);
  assert.equal((await cancelled).outcome, 'applied');
  const asked = fresh.received.filter(({ frame }) => frame.t === 'publish' || frame.t === 'signal');
  assert.deepEqual(
    asked.map(({ frame }) => frame.t),
    ['publish', 'signal'],
    'in the order in which they were asked',
  );
  const events = await take(session, log.tail);
  assertDense(events);
  assert.equal(events.filter(({ kind }) => kind === 'input').length, 1);
});

test('a client that moves keeps its socket until there is another', async (t) => {
  const { old, fresh, log, session, states } = await pair(t);
  let refused = 0;
  const { accept } = fresh;
  fresh.accept = (token) => ((refused += 1) <= 3 ? undefined : accept(token));
  old.tell({ t: 'moving', within_ms: 50 });
  await until(() => refused === 1, 'the next edge refuses');
  note(log);
  assertDense(await take(session, 1));
  // Every second try goes back to the old one, which takes it.
  await until(() => old.welcomes + fresh.welcomes === 2, 'moved');
  note(log);
  assertDense(await take(session, 1), 2);
  assert.ok(!states.slice(1).some((state) => state !== 'open'), states.join());
});

test('an edge that dies while its client moves is left all the same', async (t) => {
  const { old, fresh, log, session } = await pair(t);
  fresh.stalled = true;
  old.tell({ t: 'moving', within_ms: 10 });
  await until(() => fresh.sockets.size === 1, 'on the way');
  old.dropAll();
  await until(() => session.state === 'connecting', 'lost');
  fresh.stalled = false;
  note(log);
  assertDense(await take(session, 1));
});

test('a client with one address moves to whoever answers there', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const one = client(t, fake.url);
  const session = one.attach('s');
  await until(() => session.state === 'live', 'live');
  fake.tell({ t: 'moving', within_ms: 20 });
  await until(() => fake.welcomes === 2 && fake.sockets.size === 1, 'moved');
  note(log);
  assertDense(await take(session, 1));
  assert.equal(one.connects, 2);
});

test('an edge that is killed is left for the next address at once', async (t) => {
  const { old, fresh, log, session } = await pair(t, { backoff: { firstMs: 100, maxMs: 400 } });
  const from = Date.now();
  await old.stop();
  old.stop = async () => {};
  await until(() => fresh.welcomes === 1, 'at the next one');
  assert.ok(Date.now() - from < 1_000);
  note(log);
  assertDense(await take(session, 1));
});

test('disconnect keeps it cut until reconnect', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const one = client(t, fake.url);
  const session = one.attach('s');
  await until(() => session.state === 'live', 'live');
  one.disconnect();
  assert.equal(one.state, 'disconnected');
  await until(() => fake.ws.clients.size === 0, 'the socket is really closed');
  note(log);
  one.wake();
  await sleep(80);
  assert.equal(one.connects, 1);
  const attached = [];
  session.on('attached', (facts) => attached.push(facts));
  one.reconnect();
  assertDense(await take(session, 1));
  assert.deepEqual(attached, [{ session_epoch: log.epoch, from: 1, tail: 1, behind: 1 }]);
});

test('waking up does not wait for the backoff', async (t) => {
  const fake = await edge(t);
  const one = client(t, fake.url, {
    backoff: { firstMs: 60_000, maxMs: 60_000 },
    random: () => 0.9,
  });
  await until(() => one.state === 'open', 'open');
  fake.dropAll();
  await until(() => one.state === 'waiting', 'waiting');
  one.wake();
  await until(() => one.state === 'open', 'open again', 3_000);
});

test('waking up on a dead socket finds out at once, not after the heartbeat', async (t) => {
  const fake = await edge(t, { heartbeatMs: 30_000, lostAfterMs: 300 });
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  fake.stalled = true;
  const from = Date.now();
  one.wake();
  await until(() => one.state !== 'open', 'lost');
  assert.ok(Date.now() - from < 2_000);
});

test('a connect that hangs is given up', async (t) => {
  const fake = await edge(t, { stalled: true });
  const one = client(t, fake.url, { connectTimeoutMs: 300 });
  await until(() => one.state === 'waiting', 'waiting');
  fake.stalled = false;
  await until(() => one.state === 'open', 'open');
});

test('a session error with an advice is followed', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const one = client(t, fake.url);
  const session = one.attach('s');
  await until(() => session.state === 'live', 'live');
  fake.tell({
    t: 'error',
    session: 's',
    code: 'OVERLOADED',
    message: 'm',
    advice: 'retry',
    details: {},
  });
  await until(() => session.counts.attaches === 2 && session.state === 'live', 'attached again');
  note(log);
  assertDense(await take(session, 1));
  fake.tell({
    t: 'error',
    session: 's',
    code: 'DENIED',
    message: 'm',
    advice: 'stop',
    details: {},
  });
  await assert.rejects(take(session, 1), { code: 'DENIED' });
  assert.equal(one.connects, 1);
});

test('unknown frames, fields and kinds are let be', async (t) => {
  const fake = await edge(t);
  const session = client(t, fake.url).attach('s', { create: true });
  await until(() => session.state === 'live', 'live');
  fake.tell({ t: 'weather', sun: true });
  fake.log('s').append('run.dreaming', NOTE, { of: 'sheep' });
  const [event] = await take(session, 1);
  assert.equal(event.kind, 'run.dreaming');
});

test('close ends everything on this side', async (t) => {
  const fake = await edge(t);
  const one = client(t, fake.url);
  const session = one.attach('s', { create: true });
  await until(() => session.state === 'live', 'live');
  const reading = take(session, 1);
  fake.swallow = (frame) => frame.t === 'publish';
  const publishing = session.publish({ text: 'x' });
  setTimeout(() => one.close(), 10);
  await assert.rejects(publishing, { code: 'CLOSED' });
  assert.deepEqual(await reading, []);
  await until(() => fake.ws.clients.size === 0, 'socket closed');
  await assert.rejects(take(one.attach('s'), 1), { code: 'CLOSED' });
});

test('without a WebSocket the client reads over SSE by itself', async (t) => {
  if (globalThis.WebSocket !== undefined) return t.skip('this Node has a WebSocket');
  const fake = await edge(t);
  const one = client(t, fake.url, { WebSocket: undefined });
  const session = one.attach('s', { create: true });
  const reading = take(session, 1);
  const { offset } = await session.publish({ text: 'hello' });
  assert.equal((await reading)[0].offset, offset);
  assert.equal(fake.welcomes, 0);
  assert.deepEqual(
    new Set(fake.httpRequests.map(({ method }) => method)),
    new Set(['GET', 'POST']),
  );
});

test('a silent SSE response is given up and read again', async (t) => {
  const { sseLinks } = await import('../dist/sse.js');
  const fake = await edge(t);
  note(fake.log('s'));
  const frames = [];
  const closed = [];
  const link = sseLinks(fetch, 400)(fake.url, {
    opened: () => link.send({ t: 'auth', token: 'ann:x' }),
    frame: (frame) => frames.push(frame),
    closed: (why) => closed.push(why),
  });
  t.after(() => link.drop());
  await until(() => frames.length === 1, 'welcome');
  link.send({ t: 'attach', id: '1', session: 's', form: 'raw' });
  await until(() => frames.some((frame) => frame.t === 'events'), 'events');
  await until(() => frames.some((frame) => frame.t === 'error'), 'error');
  assert.equal(frames.at(-1).code, 'LOST');
  assert.equal(frames.at(-1).advice, 'retry');
});
