// Events → messages; and the small pure parts below.
import assert from 'node:assert/strict';
import test from 'node:test';
import { EverwireError, formatCursor, parseCursor, textOf, Transcript } from '../dist/index.js';
import { backoffMs } from '../dist/backoff.js';
import { httpBase } from '../dist/link.js';
import { SseParser } from '../dist/sse-parser.js';
import { utf8Length, utf8SkipStart } from '../dist/utf8.js';
import { FakeLog } from './fake-log.mjs';
import { AGENT, answer, seeded } from './help.mjs';

const ANN = { participant: 'ann', kind: 'user' };

function read(log, from = 1) {
  const transcript = new Transcript();
  for (const event of log.events.slice(from - 1)) transcript.apply(event);
  return transcript;
}

test('an answer becomes a message with its text and its place', () => {
  const log = new FakeLog('s', '1-1');
  log.post(ANN, { kind: 'input', body: { input: 'i1', text: 'why?' } }, 'k');
  answer(log, 'r1', ['Be', 'cause', '.']);
  const transcript = read(log);
  const [question, reply] = transcript.messages;
  assert.deepEqual(
    [question.role, textOf(question), question.from, question.to],
    ['user', 'why?', 1, 1],
  );
  assert.deepEqual(
    [reply.role, textOf(reply), reply.status],
    ['assistant', 'Because.', 'complete'],
  );
  assert.deepEqual([reply.from, reply.to, reply.run], [3, 9, 'r1']);
  assert.deepEqual(transcript.run('r1'), {
    run: 'r1',
    run_epoch: 1,
    state: 'completed',
    author: AGENT,
    started: 2,
    ended: 10,
  });
  assert.equal(transcript.offset, log.tail);
  assert.equal(transcript.liveRun, undefined);
});

test('a stop shows where and by whom', () => {
  const log = new FakeLog('s', '1-1');
  log.startRun('r1', AGENT, 'i1');
  log.output('r1', 'message.start', { message: 'm', role: 'assistant' });
  log.output('r1', 'part.start', { message: 'm', part: 'p', part_kind: 'text' });
  log.output('r1', 'part.delta', { message: 'm', part: 'p', position: 0, text: 'half' });
  assert.equal(read(log).liveRun.run, 'r1');
  log.cancel('r1', ANN, 'k');
  const transcript = read(log);
  assert.deepEqual(
    [transcript.messages[0].status, textOf(transcript.messages[0])],
    ['cancelled', 'half'],
  );
  const { state, cancel_offset, cancelled_by, input } = transcript.run('r1');
  assert.deepEqual([state, cancel_offset, cancelled_by, input], ['cancelled', 5, ANN, 'i1']);
});

test('an event that comes again changes nothing', () => {
  const log = new FakeLog('s', '1-1');
  answer(log, 'r1', ['a', 'b']);
  const transcript = read(log);
  const before = JSON.stringify(transcript.save());
  for (const event of log.events) assert.deepEqual(transcript.apply(event), []);
  assert.equal(JSON.stringify(transcript.save()), before);
});

test('positions are bytes: a reader that joins late knows what it lacks', () => {
  const log = new FakeLog('s', '1-1');
  answer(log, 'r1', ['Grüße ', '🌊 ', 'end']);
  const part = read(log, 6).messages[0].parts[0];
  assert.deepEqual([part.text, part.missing, part.bytes], ['end', 13, 16]);
});

test('a delta that overlaps adds only what is new', () => {
  const transcript = new Transcript();
  const common = { time: '', author: AGENT, visibility: 'all', codec: 'plain', kind: 'part.delta' };
  const delta = (offset, position, text) =>
    transcript.apply({ ...common, offset, body: { message: 'm', part: 'p', position, text } });
  delta(1, 0, 'Grü');
  delta(2, 2, 'üße');
  delta(3, 7, '!');
  assert.equal(transcript.messages[0].parts[0].text, 'Grüße!');
});

test('save and load are one transcript', () => {
  const log = new FakeLog('s', '1-1');
  answer(log, 'r1', ['one ', 'two']);
  const copy = new Transcript();
  copy.load(JSON.parse(JSON.stringify(read(log).save())));
  answer(log, 'r2', ['three']);
  for (const event of log.events) copy.apply(event);
  assert.deepEqual(copy.save(), read(log).save());
});

test('lengths in UTF-8 are those of the encoder', () => {
  const random = seeded(3);
  const alphabet = ['a', 'ß', '€', '🌊', '\ud800', '\udc00', '中', '\u0000'];
  for (let round = 0; round < 300; round += 1) {
    const text = Array.from(
      { length: random() * 12 },
      () => alphabet[Math.floor(random() * 8)],
    ).join('');
    assert.equal(utf8Length(text), Buffer.byteLength(text), JSON.stringify(text));
  }
  assert.equal(utf8SkipStart('aß€🌊z', 3), '€🌊z');
  assert.equal(utf8SkipStart('aß€🌊z', 10), 'z');
  assert.equal(utf8SkipStart('ab', 9), '');
});

test('cursors have one text', () => {
  assert.equal(formatCursor({ session_epoch: '1-17', offset: 42 }), '1-17.42');
  assert.deepEqual(parseCursor('1-17.42'), { session_epoch: '1-17', offset: 42 });
  for (const text of ['', '1-17', '1-17.', '.4', '1-17.-1', '1-17.x', '1-17.9007199254740993']) {
    assert.equal(parseCursor(text), undefined, text);
  }
});

test('backoff grows to its bound with full jitter', () => {
  const options = { firstMs: 100, maxMs: 1000 };
  assert.deepEqual(
    [0, 1, 2, 3, 4, 50].map((at) => backoffMs(options, at, () => 0.999)),
    [99, 199, 399, 799, 999, 999],
  );
  assert.equal(
    backoffMs(options, 3, () => 0),
    0,
  );
});

test('addresses are http or ws, with or without a path', () => {
  assert.equal(httpBase('ws://h:1/'), 'http://h:1');
  assert.equal(httpBase('wss://h/base/?x#y'), 'https://h/base');
  assert.throws(() => httpBase('ftp://h'), TypeError);
});

test('errors carry the advice of their code, or of the frame', () => {
  assert.equal(new EverwireError('DRAINING', 'm').advice, 'retry_elsewhere');
  assert.equal(
    EverwireError.from({ code: 'NEW_CODE', message: 'm', advice: 'stop' }).advice,
    'stop',
  );
  assert.equal(
    EverwireError.from({ code: 'NEW_CODE', message: 'm', advice: 'dance' }).advice,
    'retry',
  );
  assert.equal(new EverwireError('UNKNOWN_APPROVAL', 'm').advice, 'stop');
  assert.equal(EverwireError.fromClose(4018, '').code, 'GONE');
  assert.equal(EverwireError.fromClose(4034, '').code, 'UNKNOWN_APPROVAL');
  assert.equal(EverwireError.fromClose(1006, '').advice, 'retry');
  assert.equal(EverwireError.fromHttp(502, undefined).advice, 'retry');
  assert.equal(EverwireError.fromHttp(404, undefined).advice, 'stop');
});

test('an event stream reads the same however it is cut', () => {
  const text =
    ':hello\n\nid: 1-1.1\nevent: app\ndata: {"a":\ndata: 1}\n\nid:1-1.2\r\ndata:x\r\n\r\ndata: y\r\rdata: cut';
  const whole = new SseParser().push(text);
  assert.deepEqual(whole, [
    { id: '1-1.1', event: 'app', data: '{"a":\n1}' },
    { id: '1-1.2', event: 'message', data: 'x' },
    { id: '1-1.2', event: 'message', data: 'y' },
  ]);
  for (let size = 1; size < 9; size += 1) {
    const parser = new SseParser();
    const records = [];
    for (let at = 0; at < text.length; at += size)
      records.push(...parser.push(text.slice(at, at + size)));
    assert.deepEqual(records, whole, `pieces of ${size}`);
  }
  assert.throws(() => new SseParser().push('x'.repeat(3 << 20)), /too large/);
});

test('a step that is tried again takes back what it said', () => {
  const log = new FakeLog('s', '1-1');
  log.startRun('r1', AGENT);
  const say = (message, text) => {
    log.output('r1', 'message.start', { message, role: 'assistant' });
    log.output('r1', 'part.start', { message, part: 'p', part_kind: 'text' });
    log.output('r1', 'part.delta', { message, part: 'p', position: 0, text });
  };
  say('m0', 'before');
  log.output('r1', 'step.start', { step: 's', attempt: 1, name: 'Search' });
  say('m1', 'wrong');
  assert.deepEqual(read(log).run('r1').step, { step: 's', attempt: 1, name: 'Search' });
  log.output('r1', 'step.start', { step: 's', attempt: 2 });
  say('m2', 'right');
  const texts = (transcript) => transcript.messages.map((one) => [textOf(one), one.status]);
  assert.deepEqual(texts(read(log)), [
    ['before', 'open'],
    ['right', 'open'],
  ]);
  log.output('r1', 'step.end', { step: 's', status: 'failed', reason: 'no answer' });
  const failed = read(log);
  assert.deepEqual(texts(failed), [
    ['before', 'open'],
    ['right', 'incomplete'],
  ]);
  assert.equal(failed.run('r1').step, undefined);
  assert.deepEqual([failed.messages[1].step, failed.messages[1].attempt], ['s', 2]);
  // Saved in the middle and gone on with, it comes to the same.
  const saved = new Transcript();
  saved.load(JSON.parse(JSON.stringify(failed.save())));
  for (const transcript of [failed, saved]) {
    const next = { step: 's', attempt: 3 };
    const event = { ...log.events.at(-1), kind: 'step.start', body: next, offset: log.tail + 1 };
    // What was shown of the last attempt is told, so that it can be taken away.
    const told = transcript.apply(event).map(({ message, status }) => [message, status]);
    assert.deepEqual(told, [['m2', 'superseded']]);
    assert.deepEqual(texts(transcript), [['before', 'open']]);
    assert.deepEqual(transcript.run('r1').step, next);
  }
});
