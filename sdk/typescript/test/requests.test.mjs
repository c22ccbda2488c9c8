// Publishes and cancels: once in the log, whatever happens to their answer.
import assert from 'node:assert/strict';
import test from 'node:test';
import { AGENT, client, edge, seeded, sleep, until } from './help.mjs';

const ofType = (fake, t) =>
  fake.received.map(({ frame }) => frame).filter((frame) => frame.t === t);

for (const transport of ['websocket', 'sse']) {
  test(`publish answers with its place, ${transport}`, async (t) => {
    const fake = await edge(t);
    const one = client(t, fake.url, { transport });
    const log = fake.log('s');
    assert.deepEqual(await one.publish('s', { text: 'a' }, { key: 'k' }), {
      session_epoch: log.epoch,
      offset: 1,
      duplicate: false,
    });
    const { input } = log.events[0].body;
    const again = await one.publish('s', { text: 'a', input }, { key: 'k' });
    assert.deepEqual([again.offset, again.duplicate], [1, true]);
    await assert.rejects(one.publish('s', { text: 'b' }, { key: 'k' }), {
      code: 'KEY_REUSED',
      advice: 'stop',
      details: { offset: 1 },
    });
    const draft = { kind: 'app', body: { name: 'n', data: { deep: [1] } } };
    assert.equal((await one.publish('s', draft)).offset, 2);
    assert.deepEqual(log.events[1].body, draft.body);
  });

  test(`a publish whose answer is lost comes again under its key, ${transport}`, async (t) => {
    const fake = await edge(t);
    const log = fake.log('s');
    const one = client(t, fake.url, { transport });
    await until(() => one.state === 'open', 'open');
    // It is committed, and then the answer gets lost with the connection.
    const post = log.post.bind(log);
    let cut = false;
    log.post = (...asked) => {
      const answer = post(...asked);
      if (!cut) fake.dropAll();
      cut = true;
      return answer;
    };
    const answer = await one.publish('s', { text: 'once' });
    assert.deepEqual([answer.offset, answer.duplicate], [1, true]);
    assert.equal(log.tail, 1);
  });

  test(`many publishes under random disconnects stand in the log once each, ${transport}`, async (t) => {
    const fake = await edge(t);
    const log = fake.log('s');
    const random = seeded(11);
    const one = client(t, fake.url, { transport });
    const cutting = setInterval(() => fake.dropAll(), 15);
    t.after(() => clearInterval(cutting));
    const answers = [];
    for (let at = 0; at < 60; at += 1) {
      answers.push(one.publish('s', { text: `t${at}` }).then(({ offset }) => [offset, `t${at}`]));
      if (random() < 0.5) await sleep(random() * 12);
    }
    const places = await Promise.all(answers);
    assert.equal(log.tail, 60);
    for (const [offset, text] of places) assert.equal(log.events[offset - 1].body.text, text);
  });

  test(`cancel has the four outcomes, ${transport}`, async (t) => {
    const fake = await edge(t);
    const log = fake.log('s');
    log.startRun('r1', AGENT);
    const one = client(t, fake.url, { transport });
    const session_epoch = log.epoch;
    assert.deepEqual(await one.cancel('s', 'r1'), {
      outcome: 'applied',
      session_epoch,
      offset: 2,
      duplicate: false,
    });
    assert.deepEqual(await one.cancel('s', 'r1'), {
      outcome: 'already_terminal',
      session_epoch,
      offset: 2,
      state: 'cancelled',
      duplicate: false,
    });
    assert.equal((await one.cancel('s', 'other')).outcome, 'unknown_run');
  });
}

test('publishes that wait go out in their order', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  const one = client(t, fake.url);
  one.disconnect();
  const texts = Array.from({ length: 200 }, (_, at) => `t${at}`);
  const all = texts.map((text) => one.publish('s', { text }));
  one.reconnect();
  await Promise.all(all);
  assert.deepEqual(
    log.events.map((event) => event.body.text),
    texts,
  );
});

test('after a refusal and a lost connection the order is still that of the asking', async (t) => {
  const fake = await edge(t);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  let first = true;
  // The first is refused for the moment; no other is answered, so the window stays full.
  fake.swallow = (frame) => {
    if (frame.t !== 'publish') return false;
    if (first) {
      const { id, session } = frame;
      const refused = { code: 'OVERLOADED', message: 'm', advice: 'retry', details: {} };
      fake.tell({ t: 'error', id, session, ...refused });
    }
    first = false;
    return true;
  };
  const texts = Array.from({ length: 100 }, (_, at) => `t${at}`);
  const all = texts.map((text) => one.publish('s', { text }));
  await sleep(150);
  fake.swallow = () => false;
  fake.dropAll();
  await Promise.all(all);
  assert.deepEqual(
    fake.log('s').events.map((event) => event.body.text),
    texts,
  );
});

test('no more requests are in flight than the edge takes', async (t) => {
  const fake = await edge(t, { swallow: (frame) => frame.t === 'publish' });
  const one = client(t, fake.url);
  const all = Array.from({ length: 100 }, () => one.publish('s', { text: 'x' }));
  all.forEach((publishing) => publishing.catch(() => {}));
  await until(() => one.state === 'open', 'open');
  await sleep(50);
  assert.equal(ofType(fake, 'publish').length, 60);
  fake.swallow = () => false;
  fake.dropAll();
  await Promise.all(all);
  assert.equal(fake.log('s').tail, 100);
});

test('cancel goes over HTTP while the socket is not open, once', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  log.startRun('r1', AGENT);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  one.disconnect();
  const from = Date.now();
  const outcome = await one.cancel('s', 'r1', { key: 'stop-1' });
  assert.ok(Date.now() - from < 1_500, 'it does not wait for a socket first');
  assert.equal(outcome.outcome, 'applied');
  const [request] = fake.httpRequests.filter(({ method }) => method === 'POST');
  assert.equal(request.path, '/v1/sessions/s/runs/r1/cancel');
  assert.equal(request.headers['idempotency-key'], 'stop-1');
  assert.equal(one.connects, 1);
  one.reconnect();
  await until(() => one.state === 'open', 'open');
  assert.equal(ofType(fake, 'signal').length, 0);
});

test('cancel goes over HTTP when the socket is stalled', async (t) => {
  const fake = await edge(t, { swallow: (frame) => frame.t === 'signal' });
  const log = fake.log('s');
  log.startRun('r1', AGENT);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  const from = Date.now();
  assert.equal((await one.cancel('s', 'r1')).outcome, 'applied');
  assert.ok(Date.now() - from < 4000);
  const [signal] = ofType(fake, 'signal');
  assert.equal(fake.httpRequests.at(-1).headers['idempotency-key'], signal.key);
});

test('a cancel whose answer is lost is committed once', async (t) => {
  const fake = await edge(t);
  const log = fake.log('s');
  log.startRun('r1', AGENT);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  fake.mangle = (frame) => {
    if (frame.t !== 'outcome') return [frame];
    fake.mangle = (other) => [other];
    fake.dropAll();
    return [];
  };
  const outcome = await one.cancel('s', 'r1');
  assert.deepEqual([outcome.outcome, outcome.offset, outcome.duplicate], ['applied', 2, true]);
  assert.equal(log.events.filter(({ kind }) => kind === 'signal.cancel').length, 1);
});

test('a refusal that passes is tried again; one that stays reaches the caller', async (t) => {
  const fake = await edge(t);
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  let refuse = 3;
  const error = { code: 'OVERLOADED', message: 'm', advice: 'retry', details: {} };
  fake.mangle = (frame) => {
    if (frame.t !== 'ack' || (refuse -= 1) < 0) return [frame];
    const { id, session } = frame;
    return [{ t: 'error', id, session, ...error }];
  };
  const answer = await one.publish('s', { text: 'x' });
  assert.equal(answer.offset, 1);
  assert.equal(fake.log('s').tail, 1);
  refuse = Infinity;
  await assert.rejects(one.publish('s', { text: 'y' }), { code: 'OVERLOADED', advice: 'retry' });
});

test('a request refused for its token is sent again with a new one', async (t) => {
  const fake = await edge(t);
  let asked = 0;
  const one = client(t, fake.url, { auth: () => `ann:${(asked += 1)}` });
  await until(() => one.state === 'open', 'open');
  let refuse = true;
  fake.mangle = (frame) => {
    if (frame.t !== 'ack' || !refuse) return [frame];
    refuse = false;
    const { id, session } = frame;
    return [
      {
        t: 'error',
        id,
        session,
        code: 'TOKEN_EXPIRED',
        message: 'm',
        advice: 'reauthenticate',
        details: {},
      },
    ];
  };
  assert.equal((await one.publish('s', { text: 'x' })).offset, 1);
  assert.deepEqual(
    ofType(fake, 'refresh').map(({ token }) => token),
    ['ann:2'],
  );
  assert.equal(one.connects, 1);
});

test('a request goes to another edge when this one says so', async (t) => {
  const [one, two] = [await edge(t), await edge(t)];
  two.logs = one.logs;
  one.mangle = (frame) => {
    if (frame.t !== 'ack') return [frame];
    const { id, session } = frame;
    return [
      {
        t: 'error',
        id,
        session,
        code: 'STALE',
        message: 'm',
        advice: 'retry_elsewhere',
        details: {},
      },
    ];
  };
  const wire = client(t, [one.url, two.url], { random: () => 0.1 });
  const answer = await wire.publish('s', { text: 'x' });
  assert.deepEqual([answer.offset, answer.duplicate], [1, true]);
  assert.equal(two.welcomes, 1);
});

test('what cannot be sent is refused here, not over and over there', async (t) => {
  const fake = await edge(t);
  const one = client(t, fake.url);
  await assert.rejects(one.publish('s', { text: 'é'.repeat(70_000) }), { code: 'TOO_LARGE' });
  await assert.rejects(one.publish('no spaces', { text: 'x' }), { code: 'MALFORMED' });
  await assert.rejects(one.cancel('s', '../r'), { code: 'MALFORMED' });
  assert.throws(() => one.attach(''), { code: 'MALFORMED' });
  await until(() => one.state === 'open', 'open');
  assert.equal(ofType(fake, 'publish').length, 0);
});

test('what waits is bounded, in count and in bytes', async (t) => {
  const fake = await edge(t);
  const one = client(t, fake.url);
  one.disconnect();
  const small = Array.from({ length: 1_001 }, () => one.publish('s', { text: 'x' }));
  const refused = { code: 'TOO_MANY_PENDING', advice: 'retry' };
  await assert.rejects(small.pop(), refused);
  one.reconnect();
  await Promise.all(small);
  one.disconnect();
  const text = 'x'.repeat(100_000);
  const large = Array.from({ length: 42 }, () => one.publish('s', { text }));
  await assert.rejects(large.pop(), refused);
  one.reconnect();
  await Promise.all(large);
  assert.equal((await one.publish('s', { text })).offset, 1_042);
});

test('a caller may give up waiting', async (t) => {
  const fake = await edge(t, { swallow: (frame) => frame.t === 'publish' });
  const one = client(t, fake.url);
  await until(() => one.state === 'open', 'open');
  const giveUp = AbortSignal.timeout(30);
  await assert.rejects(one.publish('s', { text: 'x' }, { signal: giveUp }), {
    name: 'TimeoutError',
  });
  fake.swallow = () => false;
  fake.dropAll();
  await until(() => one.connects === 2, 'second connection');
  await sleep(30);
  assert.equal(fake.log('s').tail, 0);
});
