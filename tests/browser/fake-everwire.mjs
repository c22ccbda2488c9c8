#!/usr/bin/env node
// Stands in for the `everwire` binary where there is none: the commands that the demo's supervisor
// calls, on the fake edge of the TypeScript client. It shows the page, not the server.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { FakeEdge } from '../../sdk/typescript/test/fake-edge.mjs';

const AGENT = { participant: 'lighthouse-agent', kind: 'agent' };
const [command, ...rest] = process.argv.slice(2);

function options(args) {
  const text = { type: 'string' };
  const names = ['data', 'grpc', 'http', 'admin', 'namespace', 'participant', 'kind', 'allow'];
  const all = [...names, 'ttl', 'key', 'from', 'rate'].map((name) => [name, text]);
  const flags = { 'answer-inputs': { type: 'boolean' } };
  return parseArgs({
    args,
    options: { ...Object.fromEntries(all), ...flags },
    allowPositionals: true,
  });
}

/** Follows the session and answers its inputs with the recording, one after the other. */
function follow(edge, { session, from, rate }) {
  const words = readFileSync(from, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line).choices[0].delta.content ?? '')
    .filter((word) => word !== '');
  const log = edge.log(session);
  const waiting = [];
  let seen = 0;
  let busy = false;
  let stopped = false;
  const look = () => {
    for (; seen < log.tail; seen += 1) {
      const { kind, body } = log.events[seen];
      if (kind === 'input') waiting.push(body.input);
    }
    if (busy || stopped || waiting.length === 0) return;
    busy = true;
    setTimeout(async () => {
      await answer(log, waiting.shift(), words, rate);
      busy = false;
      look();
    }, 50);
  };
  log.readers.add(look);
  look();
  return () => {
    stopped = true;
    log.readers.delete(look);
  };
}

async function answer(log, input, words, rate) {
  const run = `run-${log.runs.size + 1}`;
  const message = `${run}-answer`;
  log.startRun(run, AGENT, input);
  log.output(run, 'message.start', { message, role: 'assistant' });
  log.output(run, 'part.start', { message, part: 'text', part_kind: 'text' });
  let position = 0;
  for (const text of words) {
    await new Promise((resolve) => setTimeout(resolve, 1000 / rate));
    if (!log.output(run, 'part.delta', { message, part: 'text', position, text })) return;
    position += Buffer.byteLength(text);
  }
  log.output(run, 'part.end', { message, part: 'text' });
  log.output(run, 'message.end', { message, status: 'complete' });
  log.output(run, 'run.completed', {});
}

async function dev({ values }) {
  const edge = new FakeEdge();
  edge.heartbeatMs = 2_000;
  edge.lostAfterMs = 6_000;
  edge.extra = async (request, response) => {
    if (request.method !== 'POST' || request.url !== '/fake/agent') return false;
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const stop = follow(edge, JSON.parse(Buffer.concat(pieces).toString()));
    // The agent lives as long as its process holds this answer open.
    response.writeHead(200).write('\n');
    response.on('close', stop);
    return true;
  };
  // As the real edge: a socket that is silent for too long is closed.
  await edge.start(Number(values.http.split(':').at(-1)));
  const address = `127.0.0.1:${edge.port}`;
  process.stdout.write(
    `${JSON.stringify({ ready: true, grpc: address, http: address, admin: address })}\n`,
  );
}

async function agent({ values, positionals }) {
  const [, session] = positionals;
  const response = await fetch(`http://${process.env.EVERWIRE_ADDR}/fake/agent`, {
    method: 'POST',
    body: JSON.stringify({ session, from: values.from, rate: Number(values.rate) }),
  });
  for await (const _ of response.body);
}

const parsed = options(rest);
if (command === 'token') {
  process.stdout.write(`${parsed.values.participant}:${parsed.values.allow}\n`);
} else if (command === 'dev') await dev(parsed);
else if (command === 'agent') await agent(parsed).catch(() => process.exit(5));
else process.exit(2);
