// What the client's tests share: a seeded random, an edge and a client that end with the test,
// small waits.
import assert from 'node:assert/strict';
import WebSocket from 'ws';
import { connect } from '../dist/index.js';
import { FakeEdge } from './fake-edge.mjs';

export const AGENT = { participant: 'agent', kind: 'agent' };

/** The same numbers for the same seed. */
export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export async function edge(t, settings = {}) {
  const made = Object.assign(await new FakeEdge().start(), settings);
  t.after(() => made.stop());
  return made;
}

/** A client with short pauses; WebSocket unless told otherwise. */
export function client(t, urls, options = {}) {
  const made = connect({
    urls,
    auth: () => 'ann:token',
    backoff: { firstMs: 5, maxMs: 40 },
    random: seeded(7),
    ...(options.transport === 'sse' ? {} : { WebSocket }),
    ...options,
  });
  t.after(() => made.close());
  return made;
}

/** Takes so many events of a session. */
export async function take(session, count) {
  const events = [];
  if (count === 0) return events;
  for await (const event of session) {
    events.push(event);
    if (events.length === count) break;
  }
  return events;
}

export function offsets(events) {
  return events.map((event) => event.offset);
}

export function assertDense(events, first = 1) {
  assert.deepEqual(
    offsets(events),
    events.map((_, at) => first + at),
  );
}

/** Waits until the condition holds; fails after `ms`. */
export async function until(condition, what, ms = 5_000) {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) assert.fail(`not within ${ms} ms: ${what}`);
    await sleep(2);
  }
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** What a browser's storage does. */
export class MemoryStorage {
  items = new Map();
  getItem(key) {
    return this.items.get(key) ?? null;
  }
  setItem(key, value) {
    this.items.set(key, String(value));
  }
  removeItem(key) {
    this.items.delete(key);
  }
}

/** An answer in the log: a run with one message of these words. */
export function answer(log, run, words) {
  log.startRun(run, AGENT);
  log.output(run, 'message.start', { message: `${run}-m`, role: 'assistant' });
  log.output(run, 'part.start', { message: `${run}-m`, part: 'p', part_kind: 'text' });
  let position = 0;
  for (const text of words) {
    log.output(run, 'part.delta', { message: `${run}-m`, part: 'p', position, text });
    position += Buffer.byteLength(text);
  }
  log.output(run, 'part.end', { message: `${run}-m`, part: 'p' });
  log.output(run, 'message.end', { message: `${run}-m`, status: 'complete' });
  log.output(run, 'run.completed', {});
}
