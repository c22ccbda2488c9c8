// Events arrive once and in order, whatever the connection does.
import assert from 'node:assert/strict';
import test from 'node:test';
import { assertDense, client, edge, MemoryStorage, seeded, sleep, take, until } from './help.mjs';

const NOTE = { participant: 'bob', kind: 'user' };
const note = (log, text) => log.append('app', NOTE, { name: 'note', data: text });
const notes = (log, count) => {
  for (let at = 0; at < count; at += 1) note(log, `n${at}`);
};

test('events come from the earliest one and then live', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  notes(log, 3);
  const session = client(t, fake.url).attach('s');
  assertDense(await take(session, 3));
  assert.deepEqual(session.cursor, { session_epoch: log.epoch, offset: 3 });
  note(log, 'later');
  assertDense(await take(session, 1), 4);
  assert.equal(session.state, 'live');
});

test('a cursor resumes behind its event', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  notes(log, 9);
  const cursor = { session_epoch: log.epoch, offset: 6 };
  assertDense(await take(client(t, fake.url).attach('s', { cursor }), 3), 7);
});

test('many sessions share one socket', async (t) => {
  const fake = await edge(t);
  const one = client(t, fake.url);
  const names = Array.from({ length: 100 }, (_, at) => `s${at}`);
  for (const name of names) notes(fake.log(name), 5);
  const sessions = names.map((name) => one.attach(name));
  for (const session of sessions) assertDense(await take(session, 5));
  assert.equal(fake.welcomes, 1);
});

test('a broken connection comes back and nothing is missing', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  notes(log, 5);
  const one = client(t, fake.url);
  const session = one.attach('s');
  const reading = take(session, 10);
  await until(() => session.state === 'live', 'live');
  fake.dropAll();
  notes(log, 5);
  assertDense(await reading);
  assert.equal(one.connects, 2);
});

for (const transport of ['websocket', 'sse']) {
  for (const seed of [1, 2, 3, 4, 5, 6, 7, 8]) {
    test(`exactly once under random faults, ${transport}, seed ${seed}`, async (t) => {
      const random = seeded(seed);
      const fake = await edge(t);
      const log = fake.log('s');
      const total = 400;
      fake.pack = () => 1 + Math.floor(random() * 12);
      fake.mangle = (frame) => {
        if (frame.t !== 'events' || transport === 'sse') return [frame];
        const dice = random();
        // The same frame twice; an overlap with what was sent before; a frame that never comes.
        if (dice < 0.1) return [frame, frame];
        if (dice < 0.2 && frame.from > 3) {
          const from = frame.from - 3;
          return [{ ...frame, from, events: log.events.slice(from - 1, frame.to) }];
        }
        if (dice < 0.25) return [];
        return [frame];
      };
      const one = client(t, fake.url, { transport, random: seeded(seed) });
      const session = one.attach('s');
      const events = take(session, total);
      while (log.tail < total) {
        note(log, `n${log.tail}`);
        const dice = random();
        if (dice < 0.02) fake.dropAll();
        if (dice > 0.9) await sleep(random() * 8);
      }
      // A frame that was lost at the very end shows only when something follows it.
      const end = setInterval(
        () => fake.tell({ t: 'events', session: 's', from: total + 1, to: total, events: [] }),
        20,
      );
      const got = await events.finally(() => clearInterval(end));
      assertDense(got);
      assert.deepEqual(got, log.events);
      // The faults did happen.
      assert.ok(session.counts.attaches > 2, `${session.counts.attaches} attaches`);
      if (transport === 'websocket')
        assert.ok(one.connects > 1 && session.counts.duplicates > 0 && session.counts.holes > 0);
    });
  }
}

test('a hole makes the client reattach at its place', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const troubles = [];
  const session = client(t, fake.url).attach('s');
  session.on('trouble', (why) => troubles.push(why.code));
  await until(() => session.state === 'live', 'live');
  fake.mangle = (frame) => (frame.t === 'events' && frame.from === 3 ? [] : [frame]);
  const reading = take(session, 5);
  notes(log, 3);
  await sleep(20);
  fake.mangle = (frame) => [frame];
  notes(log, 2);
  assertDense(await reading);
  assert.deepEqual(troubles, ['HOLE']);
  assert.equal(session.counts.holes, 1);
  const attaches = fake.received.filter(({ frame }) => frame.t === 'attach');
  assert.deepEqual(attaches.at(-1).frame.cursor, { session_epoch: log.epoch, offset: 2 });
});

test('a sign of life that is ahead of us is a hole too', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const session = client(t, fake.url).attach('s');
  await until(() => session.state === 'live', 'live');
  const reading = take(session, 2);
  fake.mangle = (frame) => (frame.t === 'events' ? [] : [frame]);
  notes(log, 2);
  fake.mangle = (frame) => [frame];
  fake.tell({ t: 'events', session: 's', from: 3, to: 2, tail: 2, events: [] });
  assertDense(await reading);
});

test('a frame that does not hold what it covers is not believed', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const session = client(t, fake.url).attach('s');
  await until(() => session.state === 'live', 'live');
  const reading = take(session, 2);
  let once = true;
  fake.mangle = (frame) => {
    if (frame.t !== 'events' || !once) return [frame];
    once = false;
    return [{ ...frame, events: [...frame.events].map((event) => ({ ...event, offset: 7 })) }];
  };
  notes(log, 2);
  assertDense(await reading);
  assert.equal(session.counts.holes, 1);
});

test('a range without events moves the place but not the count', async (t) => {
  const fake = await edge(t);
  const session = client(t, fake.url).attach('s', { create: true });
  await until(() => session.state === 'live', 'live');
  const log = fake.log('s');
  // Offsets 1 to 3 are hidden from this reader.
  fake.mangle = (frame) =>
    frame.t === 'events' && frame.to <= 3 ? [{ ...frame, events: [] }] : [frame];
  notes(log, 4);
  assertDense(await take(session, 1), 4);
  assert.equal(session.counts.holes, 0);
});

test('the buffer is bounded: a full one detaches and comes back without a gap', async (t) => {
  const fake = await edge(t, { pack: () => 4 });
  const log = fake.log('s');
  const bufferBytes = 20_000;
  const session = client(t, fake.url, { bufferBytes }).attach('s');
  const states = [];
  session.on('state', (state) => states.push(state));
  await until(() => session.state === 'live', 'live');
  for (let at = 0; at < 300; at += 1) note(log, 'x'.repeat(500));
  await until(() => session.state === 'full', 'full');
  await sleep(30);
  assert.ok(session.bufferedBytes < bufferBytes + 4 * 1000, `${session.bufferedBytes}`);
  let most = 0;
  const got = [];
  for await (const event of session) {
    most = Math.max(most, session.bufferedBytes);
    got.push(event);
    if (got.length === 300) break;
  }
  assertDense(got);
  assert.ok(most < bufferBytes + 4 * 1000, `${most}`);
  assert.ok(states.filter((state) => state === 'full').length > 3, states.join());
  assert.equal(session.counts.holes, 0);
});

test('an unknown session is a typed error', async (t) => {
  const fake = await edge(t);
  for (const transport of ['websocket', 'sse']) {
    const session = client(t, fake.url, { transport }).attach('nowhere');
    await assert.rejects(take(session, 1), { code: 'UNKNOWN_SESSION', advice: 'stop' });
    assert.equal(session.state, 'ended');
  }
});

test('a cursor that leads nowhere is a typed error with the facts', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  notes(log, 9);
  log.trimmed = 4;
  for (const transport of ['websocket', 'sse']) {
    for (const cursor of [
      { session_epoch: log.epoch, offset: 3 },
      { session_epoch: 'other', offset: 9 },
      { session_epoch: log.epoch, offset: 99 },
    ]) {
      const session = client(t, fake.url, { transport }).attach('s', { cursor });
      await assert.rejects(take(session, 1), (why) => {
        assert.equal(why.code, 'GONE');
        assert.deepEqual(why.details, { session_epoch: log.epoch, earliest: 5, tail: 9, cursor });
        return true;
      });
    }
    // At the trim point itself nothing is missing.
    const cursor = { session_epoch: log.epoch, offset: 4 };
    assertDense(await take(client(t, fake.url, { transport }).attach('s', { cursor }), 5), 5);
  }
});

test('onGone restart tells and begins anew', async (t) => {
  const fake = await edge(t);
  notes(fake.log('s'), 4);
  for (const transport of ['websocket', 'sse']) {
    const cursor = { session_epoch: 'other', offset: 2 };
    const session = client(t, fake.url, { transport }).attach('s', { cursor, onGone: 'restart' });
    const gone = [];
    session.on('gone', (facts) => gone.push(facts));
    assertDense(await take(session, 4));
    assert.deepEqual(gone, [{ session_epoch: '1-1', earliest: 1, tail: 4, cursor }]);
  }
});

test('a session that is made anew while we are away is gone, not continued', async (t) => {
  const fake = await edge(t);
  notes(fake.log('s'), 3);
  const storage = new MemoryStorage();
  const one = client(t, fake.url);
  const session = one.attach('s', { storage, onGone: 'restart' });
  assertDense(await take(session, 3));
  one.disconnect();
  fake.logs.delete('s');
  notes(fake.log('s'), 5);
  one.reconnect();
  assertDense(await take(session, 5));
  assert.equal(session.session_epoch, '1-2');
  assert.equal(session.cursor.session_epoch, '1-2');
});

test('the last events are handed over before the error', async (t) => {
  const fake = await edge(t);
  notes(fake.log('s'), 3);
  const one = client(t, fake.url);
  const session = one.attach('s');
  await until(() => session.state === 'live', 'live');
  fake.bye('TOKEN_REVOKED');
  await until(() => one.state === 'closed', 'closed');
  const got = [];
  await assert.rejects(
    async () => {
      for await (const event of session) got.push(event);
    },
    { code: 'TOKEN_REVOKED', advice: 'stop' },
  );
  assertDense(got);
  assert.equal(got.length, 3);
});

test('closing a session ends its loop and a second attach is possible', async (t) => {
  const fake = await edge(t);
  notes(fake.log('s'), 2);
  const one = client(t, fake.url);
  const session = one.attach('s');
  assert.throws(() => one.attach('s'), TypeError);
  setTimeout(() => session.close(), 20);
  const got = [];
  for await (const event of session) got.push(event);
  assertDense(got);
  assertDense(await take(one.attach('s', { cursor: { ...session.cursor, offset: 1 } }), 1), 2);
});
