// A reload: the old page dies, a new one goes on from what the storage holds.
import assert from 'node:assert/strict';
import test from 'node:test';
import { Transcript } from '../dist/index.js';
import {
  AGENT,
  answer,
  assertDense,
  client,
  edge,
  MemoryStorage,
  seeded,
  sleep,
  take,
  until,
} from './help.mjs';

const note = (log) => log.append('app', AGENT, { name: 'note' });
const notes = (log, count) => {
  for (let at = 0; at < count; at += 1) note(log);
};

test('a reload goes on behind the last event taken', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  notes(log, 6);
  const storage = new MemoryStorage();
  const before = client(t, fake.url);
  assertDense(await take(before.attach('s', { storage }), 4));
  before.close();
  assert.deepEqual(JSON.parse(storage.getItem('everwire:s')), {
    cursor: { session_epoch: log.epoch, offset: 4 },
  });
  assertDense(await take(client(t, fake.url).attach('s', { storage }), 2), 5);
});

test('an event whose work was not done comes again after a reload', async (t) => {
  const fake = await edge(t);
  notes(fake.log('s'), 3);
  const storage = new MemoryStorage();
  const iterator = client(t, fake.url).attach('s', { storage })[Symbol.asyncIterator]();
  await iterator.next();
  const { value } = await iterator.next();
  assert.equal(value.offset, 2);
  // The page dies here, with event 2 in its hands.
  assertDense(await take(client(t, fake.url).attach('s', { storage }), 2), 2);
});

test('every event counts once over many reloads at random moments', async (t) => {
  for (const seed of [1, 2]) {
    const random = seeded(seed);
    const fake = await edge(t);
    const log = fake.log('s');
    const storage = new MemoryStorage();
    const total = 200;
    const writing = setInterval(() => log.tail < total && notes(log, 3), 1);
    t.after(() => clearInterval(writing));
    let sum;
    let reloads = 0;
    for (let done = false; !done; reloads += 1) {
      // The page's memory is lost with the page; only the storage stays, and the dead write no more.
      let dead = false;
      const ofThisPage = {
        getItem: (key) => storage.getItem(key),
        setItem: (key, value) => dead || storage.setItem(key, value),
        removeItem: (key) => dead || storage.removeItem(key),
      };
      sum = { offsets: [] };
      const state = { save: () => sum, load: (saved) => (sum = structuredClone(saved)) };
      const one = client(t, fake.url);
      let left = 5 + random() * 80;
      for await (const { offset } of one.attach('s', { storage: ofThisPage, state })) {
        sum.offsets.push(offset);
        // Long enough, now and then, for the state to be saved while the page lives.
        if (random() < 0.05) await sleep(random() * 280);
        done = sum.offsets.length === total;
        if (done || (left -= 1) < 0) break;
      }
      // Sometimes the page has time to say goodbye, sometimes not.
      if (random() < 0.5) one.close();
      dead = true;
      one.close();
    }
    assert.deepEqual(
      sum.offsets,
      Array.from({ length: total }, (_, at) => at + 1),
    );
    assert.ok(reloads > 2, `${reloads} reloads`);
  }
});

test('a state is never stored with half an event in it', async (t) => {
  const fake = await edge(t);
  notes(fake.log('s'), 4);
  const storage = new MemoryStorage();
  const stored = [];
  storage.setItem = (_, text) => stored.push(JSON.parse(text));
  const seen = [];
  const state = { save: () => [...seen], load: () => {} };
  const session = client(t, fake.url).attach('s', { storage, state });
  for await (const { offset } of session) {
    seen.push(`begin ${offset}`);
    // Longer than the state is saved every.
    await sleep(300);
    seen.push(`end ${offset}`);
    if (offset === 4) break;
  }
  await until(() => stored.at(-1)?.cursor.offset === 4, 'stored');
  assert.ok(stored.length >= 2, `${stored.length} times`);
  for (const { cursor, state: saved } of stored) assert.equal(saved.length, 2 * cursor.offset);
});

test('a cursor without its state is not used', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  notes(log, 2);
  const storage = new MemoryStorage();
  storage.setItem(
    'everwire:s',
    JSON.stringify({ cursor: { session_epoch: log.epoch, offset: 1 } }),
  );
  const loaded = [];
  const state = { save: () => 0, load: (saved) => loaded.push(saved) };
  assertDense(await take(client(t, fake.url).attach('s', { storage, state }), 2));
  assert.deepEqual(loaded, []);
});

test('an unreadable item and a full storage do not stop the reader', async (t) => {
  const fake = await edge(t);
  notes(fake.log('s'), 2);
  const storage = new MemoryStorage();
  storage.setItem('everwire:s', '{"cursor":');
  storage.setItem = () => {
    throw new Error('QuotaExceededError');
  };
  const session = client(t, fake.url).attach('s', { storage });
  const troubles = [];
  session.on('trouble', (why) => troubles.push(why.message));
  assertDense(await take(session, 2));
  assert.equal(troubles.filter((message) => message.includes('Quota')).length, 2);
});

test('gone forgets the stored cursor when it restarts', async (t) => {
  const fake = await edge(t);
  notes(fake.log('s'), 2);
  const storage = new MemoryStorage();
  storage.setItem('everwire:s', JSON.stringify({ cursor: { session_epoch: 'old', offset: 1 } }));
  const session = client(t, fake.url).attach('s', { storage, onGone: 'restart' });
  assertDense(await take(session, 2));
  assert.match(storage.getItem('everwire:s'), /"1-1","offset":2/);
});

test('a transcript and its cursor survive a reload together', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const words = ['Grüße, ', 'wor', 'ld 🌊', '!'];
  answer(log, 'r1', words);
  const storage = new MemoryStorage();
  const read = async (count) => {
    const transcript = new Transcript();
    const one = client(t, fake.url);
    const session = one.attach('s', { storage, state: transcript });
    for await (const event of session) {
      transcript.apply(event);
      if (event.offset === count) break;
    }
    one.close();
    return transcript;
  };
  assert.equal((await read(5)).messages[0].parts[0].text, 'Grüße, wor');
  const whole = await read(log.tail);
  assert.equal(whole.messages[0].parts[0].text, words.join(''));
  assert.equal(whole.messages[0].parts[0].missing, 0);
});
