// The client against the real server: `everwire dev`, started here.
//
//   EVERWIRE_BIN  the binary; without it these tests are skipped, loudly
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Transcript, textOf } from '../dist/index.js';
import { assertDense, client, seeded, sleep, take, until } from './help.mjs';

const { EVERWIRE_BIN: bin, CI } = process.env;
if (bin === undefined) {
  console.error('SKIPPED: EVERWIRE_BIN is not set; the client is not tested against the server');
  assert.notEqual(CI, 'true', 'a skip is a failure in CI');
}

/** Everwire reads its own settings from the environment, and ours is none of them. */
const environment = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !name.startsWith('EVERWIRE_')),
);
const data = mkdtempSync(join(tmpdir(), 'everwire-sdk-'));
let server;
let ready;

function token(participant, allow, ttl = '1h', kind = 'user') {
  const who = ['--namespace', 'dev', '--participant', participant, '--kind', kind];
  const args = ['token', ...who, '--allow', allow, '--ttl', ttl, '--key', join(data, 'auth.key')];
  return execFileSync(bin, args, { env: environment, encoding: 'utf8' }).trim();
}

function agentEnvironment(session, who = 'agent') {
  return {
    ...environment,
    EVERWIRE_ADDR: ready.grpc,
    EVERWIRE_TOKEN: token(who, `${session}=create,subscribe,publish,run`, '1h', 'agent'),
  };
}

/** A run of so many words, written by another process at a model's pace. */
function agent(session, words, run = 'r1', who = 'agent') {
  const writer = spawn(bin, ['publish', session, '--run', run], {
    env: agentEnvironment(session, who),
    stdio: ['pipe', 'ignore', 'inherit'],
  });
  let at = 0;
  const timer = setInterval(() => {
    if (at === words.length) {
      clearInterval(timer);
      writer.stdin.end();
      return;
    }
    writer.stdin.write(`${words[at]}\n`);
    at += 1;
  }, 5);
  writer.stdin.on('error', () => clearInterval(timer));
  return writer;
}

const SIGNALS = ['cancel', 'pause', 'resume', 'approve', 'deny'].map((word) => `signal:${word}`);
const MAY = `create,subscribe,publish,${SIGNALS},history`;
const live = (t, options = {}) =>
  client(t, options.urls ?? `http://${ready.http.replace(/^http:\/\//, '')}`, {
    auth: () => token('ann', `*=${MAY}`),
    ...options,
  });
const fresh = () => `s-${Math.random().toString(36).slice(2)}`;

describe('against everwire dev', { skip: bin === undefined }, () => {
  before(async () => {
    const any = ['--grpc', '127.0.0.1:0', '--http', '127.0.0.1:0', '--admin', '127.0.0.1:0'];
    server = spawn(bin, ['dev', '--data', data, ...any], {
      env: environment,
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    ready = JSON.parse(await new Promise((resolve) => server.stdout.once('data', resolve)));
  });

  after(async () => {
    if (server !== undefined) {
      server.kill('SIGTERM');
      await new Promise((resolve) => server.once('exit', resolve));
    }
    rmSync(data, { recursive: true, force: true });
  });

  for (const transport of ['websocket', 'sse']) {
    test(`publish, read, duplicate, cancel of nothing, ${transport}`, async (t) => {
      const one = live(t, { transport });
      const session = one.attach(fresh(), { create: true });
      const reading = take(session, 2);
      await until(() => session.state === 'live', 'live');
      const first = await session.publish({ text: 'hello', input: 'i1' }, { key: 'k1' });
      assert.deepEqual([first.offset, first.duplicate], [1, false]);
      const again = await session.publish({ text: 'hello', input: 'i1' }, { key: 'k1' });
      assert.deepEqual([again.offset, again.duplicate], [1, true]);
      await assert.rejects(session.publish({ text: 'other', input: 'i2' }, { key: 'k1' }), {
        code: 'KEY_REUSED',
        advice: 'stop',
      });
      await session.publish({ kind: 'app', body: { name: 'note', data: { deep: [1, 'ü'] } } });
      const events = await reading;
      assertDense(events);
      assert.equal(events[0].body.text, 'hello');
      assert.equal(events[0].author.participant, 'ann');
      assert.deepEqual(events[1].body.data, { deep: [1, 'ü'] });
      assert.equal(session.session_epoch, first.session_epoch);
      assert.equal((await session.cancel('no-such-run')).outcome, 'unknown_run');
    });

    test(`a stream of 300 words arrives whole through many cuts, ${transport}`, async (t) => {
      const random = seeded(5);
      const one = live(t, { transport });
      const name = fresh();
      const session = one.attach(name, { create: true });
      const words = Array.from({ length: 300 }, (_, at) => `w${at}·ü🌊 `);
      agent(name, words);
      const cutting = setInterval(() => {
        one.disconnect();
        setTimeout(() => one.reconnect(), random() * 60);
      }, 150);
      t.after(() => clearInterval(cutting));
      const transcript = new Transcript();
      const events = [];
      for await (const event of session) {
        events.push(event);
        transcript.apply(event);
        if (event.kind === 'run.completed') break;
      }
      assertDense(events);
      assert.ok(session.counts.attaches > 5, `${session.counts.attaches} attaches`);
      const deltas = events
        .filter(({ kind }) => kind === 'part.delta')
        .map(({ body }) => body.text);
      assert.equal(deltas.length, 300);
      deltas.forEach((text, at) => assert.ok(text.startsWith(`w${at}·`), text));
      const [message] = transcript.messages;
      assert.deepEqual([message.status, textOf(message)], ['complete', deltas.join('')]);
      assert.equal(message.parts[0].bytes, Buffer.byteLength(deltas.join('')));
    });

    test(`a stop seals what was written, ${transport}`, async (t) => {
      const name = fresh();
      const session = live(t, { transport }).attach(name, { create: true });
      agent(
        name,
        Array.from({ length: 2_000 }, (_, at) => `w${at} `),
      );
      const transcript = new Transcript();
      let stopping;
      for await (const event of session) {
        transcript.apply(event);
        if (event.offset === 60) stopping = session.cancel('r1');
        if (event.kind === 'message.end') break;
      }
      const outcome = await stopping;
      assert.equal(outcome.outcome, 'applied');
      const run = transcript.run('r1');
      assert.deepEqual([run.state, run.cancel_offset], ['cancelled', outcome.offset]);
      assert.equal(transcript.messages[0].status, 'cancelled');
      assert.equal(transcript.offset, outcome.offset + 2);
      // Nothing more comes but that the agent has seen it.
      const [observed] = await take(session, 1);
      transcript.apply(observed);
      assert.deepEqual([observed.kind, observed.author.kind], ['signal.observed', 'agent']);
      assert.equal(run.observed_offset, outcome.offset + 3);
      const late = await session.cancel('r1');
      assert.deepEqual(
        [late.outcome, late.state, late.offset],
        ['already_terminal', 'cancelled', outcome.offset],
      );
      await sleep(200);
      assert.equal(session.tail, outcome.offset + 3);
    });

    test(`a pause holds a run, an approval is answered once, ${transport}`, async (t) => {
      const name = fresh();
      const one = live(t, { transport });
      const session = one.attach(name, { create: true });
      const other = live(t, { auth: () => token('bob', `*=${MAY}`) }).attach(name);
      const asked = {
        kind: 'approval.requested',
        body: { approval: 'a1', action: 'Do it', action_hash: 'h1', data: { files: 3 } },
      };
      // It writes on meanwhile: its end would take the request back.
      const words = Array.from({ length: 2_000 }, (_, at) => `w${at} `);
      const writer = agent(name, [JSON.stringify(asked), ...words]);
      const transcript = new Transcript();
      const reading = (async () => {
        for await (const event of session) transcript.apply(event);
      })();
      reading.catch(() => {});
      await until(() => transcript.openApprovals.length === 1, 'it asks');
      const [approval] = transcript.openApprovals;
      assert.deepEqual([approval.action, approval.data, approval.on_expiry], ['Do it', { files: 3 }, 'deny']);
      const stale = { ...approval, action_hash: 'another' };
      await assert.rejects(session.approve(stale), { code: 'WRONG_STATE', advice: 'stop' });
      const [yes, no] = await Promise.allSettled([session.approve(approval), other.deny(approval)]);
      const [won, lost] = yes.status === 'fulfilled' ? [yes, no] : [no, yes];
      assert.equal(won.value.outcome, 'applied');
      assert.equal(lost.reason.code, 'ALREADY_RESOLVED');
      await until(() => approval.outcome !== undefined, 'it is resolved');
      assert.equal(approval.resolved, won.value.offset);
      assert.equal(lost.reason.details.by, approval.by.participant);
      await assert.rejects(session.deny({ approval: 'a9', action_hash: 'h' }), {
        code: 'UNKNOWN_APPROVAL',
      });
      writer.kill('SIGKILL');

      agent(name, words, 'r2');
      await until(() => (transcript.run('r2')?.state ?? '') === 'running', 'it runs');
      one.disconnect();
      const paused = await session.pause('r2');
      one.reconnect();
      assert.equal(paused.outcome, 'applied');
      await until(() => transcript.run('r2').state === 'suspended', 'it waits');
      assert.deepEqual(
        [transcript.run('r2').suspended.reason, transcript.run('r2').suspended.by.participant],
        ['paused', 'ann'],
      );
      await assert.rejects(session.pause('r2'), { code: 'WRONG_STATE' });
      assert.equal((await session.resume('r2')).outcome, 'applied');
      await until(() => transcript.run('r2').state !== 'suspended', 'it goes on');
      session.close();
      other.close();
      await reading;
    });

    test(`one stop of everything hits each run, without a socket too, ${transport}`, async (t) => {
      const name = fresh();
      const one = live(t, { transport });
      const session = one.attach(name, { create: true });
      const words = Array.from({ length: 2_000 }, (_, at) => `w${at} `);
      for (const run of ['r1', 'r2']) agent(name, words, run);
      const transcript = new Transcript();
      let stopping;
      for await (const event of session) {
        transcript.apply(event);
        const { runs } = transcript;
        if (stopping === undefined && runs.length === 2 && event.kind === 'part.delta') {
          one.disconnect();
          stopping = session.cancel({ all: true }, { asOf: event.offset });
          void stopping.then(() => one.reconnect());
        }
        if (runs.length === 2 && runs.every((run) => run.observed_offset !== undefined)) break;
      }
      const { outcome, offset } = await stopping;
      assert.equal(outcome, 'applied');
      for (const run of transcript.runs) {
        assert.deepEqual([run.state, run.cancel_offset], ['cancelled', offset]);
        assert.equal(run.cancelled_by.participant, 'ann');
      }
      const [{ target }] = transcript.stops;
      assert.deepEqual(target, { all: true });
      const guarded = session.cancel({ subtree: 'r1' }, { expect: 'running' });
      await assert.rejects(guarded, { code: 'WRONG_STATE', details: { state: 'cancelled' } });
      const over = await session.cancel({ subtree: 'r1' });
      assert.deepEqual([over.outcome, over.state], ['already_terminal', 'cancelled']);
    });

    test(`an input is stopped before its run begins, ${transport}`, async (t) => {
      const name = fresh();
      const session = live(t, { transport }).attach(name, { create: true });
      await session.publish({ text: 'why?', input: 'i1' });
      const { outcome, offset } = await session.cancel({ input: 'i1' }, { gracefulMs: 500 });
      assert.deepEqual([outcome, offset], ['applied', 2]);
      const sample = join(data, 'sample.jsonl');
      const delta = { choices: [{ index: 0, delta: { content: 'because' } }] };
      writeFileSync(sample, `${JSON.stringify({ object: 'chat.completion.chunk', ...delta })}\n`);
      const how = ['--from', sample, '--format', 'openai-chat', '--answer-inputs'];
      const stdio = ['ignore', 'ignore', 'inherit'];
      const answering = spawn(bin, ['agent', 'replay', name, ...how], {
        env: agentEnvironment(name),
        stdio,
      });
      t.after(() => answering.kill('SIGKILL'));
      const transcript = new Transcript();
      for await (const event of session) {
        transcript.apply(event);
        if (event.kind === 'run.cancelled') break;
      }
      const [run] = transcript.runs;
      assert.deepEqual([run.input, run.input_by, run.cancel_offset], ['i1', 'ann', offset]);
      assert.deepEqual([run.author.participant, run.cancelled_by.participant], ['agent', 'ann']);
    });

    test(`what leads nowhere is told, ${transport}`, async (t) => {
      const one = live(t, { transport });
      await assert.rejects(take(one.attach(fresh()), 1), { code: 'UNKNOWN_SESSION' });
      const name = fresh();
      const { session_epoch } = await one.publish(name, { text: 'x' });
      for (const cursor of [
        { session_epoch: '9-9', offset: 1 },
        { session_epoch, offset: 7 },
      ]) {
        await assert.rejects(take(one.attach(name, { cursor }), 1), (why) => {
          assert.equal(why.code, 'GONE');
          assert.equal(why.details.session_epoch, session_epoch);
          return true;
        });
      }
      const restarted = one.attach(name, {
        cursor: { session_epoch: '9-9', offset: 1 },
        onGone: 'restart',
      });
      assertDense(await take(restarted, 1));
    });

    test(`a token that does not allow it ends the loop, ${transport}`, async (t) => {
      const auth = () => token('eve', 'other=subscribe');
      const one = live(t, { transport, auth });
      await assert.rejects(take(one.attach('mine'), 1), { code: 'DENIED', advice: 'stop' });
      await assert.rejects(one.publish('mine', { text: 'x' }), { code: 'DENIED' });
      const forged = live(t, { transport, auth: () => 'not.a.token' });
      await assert.rejects(take(forged.attach('mine'), 1), { code: 'UNAUTHENTICATED' });
    });

    test(`a cancel without a socket goes over HTTP, ${transport}`, async (t) => {
      const name = fresh();
      const one = live(t, { transport });
      const session = one.attach(name, { create: true });
      agent(
        name,
        Array.from({ length: 2_000 }, (_, at) => `w${at} `),
      );
      await take(session, 30);
      one.disconnect();
      assert.equal((await session.cancel('r1')).outcome, 'applied');
      assert.equal(one.state, 'disconnected');
    });
  }

  test('a token that ends is refreshed on the same socket', { timeout: 60_000 }, async (t) => {
    let asked = 0;
    const auth = () => {
      asked += 1;
      return token('ann', `*=${MAY}`, asked === 1 ? '8s' : '1h');
    };
    const one = live(t, { auth });
    const session = one.attach(fresh(), { create: true });
    await until(() => session.state === 'live', 'live');
    await until(() => asked > 1, 'asked again', 12_000);
    await sleep(9_000);
    assert.equal(one.connects, 1);
    assert.equal((await session.publish({ text: 'still here' })).offset, 1);
  });

  test('an agent dies, and another one goes on with its run', { timeout: 60_000 }, async (t) => {
    const name = fresh();
    const session = live(t).attach(name, { create: true });
    const words = Array.from({ length: 2_000 }, (_, at) => `w${at} `);
    const first = agent(name, words);
    const transcript = new Transcript();
    const state = () => transcript.run('r1')?.state;
    for await (const event of session) {
      transcript.apply(event);
      if (event.offset === 60) first.kill('SIGKILL');
      if (event.kind !== 'run.orphaned') continue;
      assert.deepEqual([state(), event.author.kind], ['orphaned', 'server']);
      assert.equal(transcript.messages[0].status, 'open');
      break;
    }
    agent(name, ['and ', 'on'], 'r1', 'helper');
    for await (const event of session) {
      transcript.apply(event);
      if (event.kind === 'run.claimed') assert.equal(state(), 'running');
      if (event.kind === 'run.completed') break;
    }
    const { run_epoch, author } = transcript.run('r1');
    assert.deepEqual([state(), run_epoch, author.participant], ['completed', 2, 'helper']);
    const open = transcript.messages.filter(({ status }) => status === 'open');
    assert.deepEqual(open, []);
  });

  test('edges that stop and die one after the other cost their clients nothing', async (t) => {
    const relay = ['--namespace', '*', '--participant', 'e', '--kind', 'edge', '--ttl', '1h'];
    const minted = ['token', ...relay, '--allow', '*=relay', '--key', join(data, 'auth.key')];
    writeFileSync(join(data, 'relay'), execFileSync(bin, minted, { env: environment }));
    const processes = [];
    t.after(() => processes.forEach((one) => one.kill('SIGKILL')));
    const start = async (http = '127.0.0.1:0') => {
      const where = ['--http', http, '--admin', '127.0.0.1:0', '--nodes', ready.grpc];
      const keys = ['--token-file', join(data, 'relay'), '--auth-key', join(data, 'auth.key.pub')];
      const stdio = ['ignore', 'pipe', 'ignore'];
      const one = spawn(bin, ['edge', ...where, ...keys], { env: environment, stdio });
      processes.push(one);
      const line = await new Promise((resolve) => one.stdout.once('data', resolve));
      return { process: one, http: JSON.parse(line).http.replace(/^http:\/\//, '') };
    };
    const edges = [await start(), await start()];
    const urls = edges.map(({ http }) => `http://${http}`);
    const one = live(t, { urls, random: seeded(3) });
    const states = [];
    one.on('state', ({ state }) => states.push(state));
    const name = fresh();
    const session = one.attach(name, { create: true });
    await until(() => session.state === 'live', 'live');
    agent(
      name,
      Array.from({ length: 1_000 }, (_, at) => `w${at} `),
    );
    const moved = [];
    const moving = (async () => {
      // Each of the two is stopped politely once and comes back at its address.
      for (const at of [0, 1]) {
        await sleep(300);
        edges[at].process.kill('SIGTERM');
        moved.push(await new Promise((resolve) => edges[at].process.once('exit', resolve)));
        edges[at] = await start(edges[at].http);
      }
    })();
    const events = [];
    for await (const event of session) {
      events.push(event);
      if (event.kind === 'run.completed') break;
    }
    await moving;
    assertDense(events);
    assert.equal(events.filter(({ kind }) => kind === 'part.delta').length, 1_000);
    assert.deepEqual(moved, [0, 0], 'they end well');
    const open = states.slice(states.indexOf('open'));
    assert.deepEqual([...new Set(open)], ['open'], 'nobody was cut off');
    // The one in use is killed: the next one takes over from the cursor.
    const connects = one.connects;
    assert.ok(connects >= 2);
    const reading = take(session, 1);
    edges.forEach(({ process }, at) => at === 0 && process.kill('SIGKILL'));
    edges[0] = await start(edges[0].http);
    edges[1].process.kill('SIGKILL');
    await until(() => one.connects > connects && session.state === 'live', 'live again', 20_000);
    const { offset } = await session.publish({ text: 'still here' });
    assert.deepEqual(
      (await reading).map((event) => event.offset),
      [offset],
    );
  });
});
