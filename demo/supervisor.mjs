// Runs the demo: `everwire dev`, one agent process per session that somebody looks at, and the
// page. Prints one address. Ctrl-C stops everything that it started.
//
//   PORT           of the page (8080; 0 picks one)
//   EVERWIRE_BIN   the binary (else the newest build of this checkout)
//   DEMO_DATA      where the log lives (demo-data in this checkout)
//   DEMO_RATE      pieces of the answer per second (30)
//   DEMO_VERBOSE   1: also what the processes say
import { existsSync, mkdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Child, run } from './children.mjs';
import { serve } from './web.mjs';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const SAMPLE = fileURLToPath(new URL('sample.openai-chat.jsonl', import.meta.url));
/** That of `everwire dev`'s own token, so that `everwire tail` sees the same sessions. */
const NAMESPACE = 'dev';
/** What a tab may do, and only on its own session. */
const TAB_MAY = 'create,subscribe,publish,signal:cancel,history,presence';
const AGENT_MAY = 'create,subscribe,publish,run,history';
const TAB_TOKEN_MS = 15 * 60_000;
/** Agents at once; the one whose session was asked for longest ago makes room. */
const AGENTS_MAX = 24;

const { PORT = '8080', DEMO_DATA = join(ROOT, 'demo-data'), DEMO_RATE = '30' } = process.env;
const bin = process.env.EVERWIRE_BIN ?? newestBuild();
const data = join(DEMO_DATA, 'node');
/** `everwire dev` makes it at its first start; every token here is minted with it. */
const key = join(data, 'auth.key');

/** Where `everwire dev` listens: {grpc, http}; undefined while it is down. */
let listening;
/** The addresses of its first start are kept, because the tabs know them. */
const ANY = { grpc: '127.0.0.1:0', http: '127.0.0.1:0', admin: '127.0.0.1:0' };
let addresses = ANY;
let whenReady = later();
const doesNotStart = later();
const agents = new Map();
const tokens = new Map();
const say = (text) => process.stderr.write(`${text}\n`);
const chat = process.env.DEMO_VERBOSE === '1' ? say : () => {};

function newestBuild() {
  const target = process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target');
  const built = ['release', 'debug']
    .map((profile) => join(target, profile, 'everwire'))
    .filter(existsSync);
  built.sort((one, other) => statSync(other).mtimeMs - statSync(one).mtimeMs);
  return built[0] ?? 'everwire';
}

function later() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}

function startServer() {
  const start = () => {
    const { grpc, http, admin } = addresses;
    const listen = ['--grpc', grpc, '--http', http, '--admin', admin];
    return {
      command: bin,
      args: ['dev', '--data', data, ...listen],
    };
  };
  // What it says before it is ready is told only if it does not get there.
  let last = [];
  const log = (text) => {
    chat(text);
    if (listening === undefined) last = [...last.slice(-9), text];
  };
  const line = (text) => {
    const ready = readyLine(text);
    if (ready === undefined) return chat(`everwire dev: ${text}`);
    listening = ready;
    addresses = {
      grpc: address(ready.grpc),
      http: address(ready.http),
      admin: address(ready.admin),
    };
    last = [];
    whenReady.resolve();
  };
  const died = (why) => {
    // Who waits already waits for the next start.
    if (listening !== undefined) whenReady = later();
    listening = undefined;
    last.forEach((text) => say(text));
    last = [];
    if (addresses === ANY) doesNotStart.resolve(why);
  };
  return new Child('everwire dev', start, { line, died, log });
}

function readyLine(text) {
  try {
    const line = JSON.parse(text);
    return line?.ready === true ? line : undefined;
  } catch {
    return undefined;
  }
}

/** host:port, of an address with or without a scheme. */
function address(text) {
  return text.replace(/^[a-z]+:\/\//, '').replace(/\/$/, '');
}

async function token(participant, kind, session, may, ttl) {
  const who = ['--namespace', NAMESPACE, '--participant', participant, '--kind', kind];
  return run(bin, ['token', ...who, '--allow', `${session}=${may}`, '--ttl', ttl, '--key', key]);
}

/** A tab's token, minted anew when half of its time is over. */
async function tabToken(visitor, session) {
  const id = `${visitor} ${session}`;
  const known = tokens.get(id);
  if (known !== undefined && known.until > Date.now()) return known.token;
  const minted = token(visitor, 'user', session, TAB_MAY, `${TAB_TOKEN_MS / 60_000}m`);
  tokens.delete(id);
  tokens.set(id, { token: minted, until: Date.now() + TAB_TOKEN_MS / 2 });
  if (tokens.size > 1_000) tokens.delete(tokens.keys().next().value);
  minted.catch(() => tokens.delete(id));
  return minted;
}

/** Keeps an agent for the session; the map is in the order of last use. */
function ensureAgent(session) {
  const known = agents.get(session);
  agents.delete(session);
  agents.set(session, known ?? startAgent(session));
  while (agents.size > AGENTS_MAX) {
    const [oldest, agent] = agents.entries().next().value;
    agents.delete(oldest);
    void agent.stop();
  }
}

function startAgent(session) {
  const start = async () => {
    await whenReady.promise;
    const EVERWIRE_TOKEN = await token('lighthouse-agent', 'agent', session, AGENT_MAY, '24h');
    return {
      command: bin,
      args: ['agent', 'replay', session, '--from', SAMPLE, '--rate', DEMO_RATE, '--answer-inputs'],
      env: { EVERWIRE_TOKEN, EVERWIRE_ADDR: address(listening.grpc) },
    };
  };
  return new Child(`agent of ${session}`, start, { log: chat, line: chat });
}

async function config(session, visitor) {
  if (listening === undefined) throw new Error('the server is starting');
  ensureAgent(session);
  const { http } = listening;
  const edge = /^https?:/.test(http) ? http : `http://${http}`;
  return { edge, token: await tabToken(visitor, session), participant: visitor, session };
}

async function main() {
  mkdirSync(DEMO_DATA, { recursive: true });
  const page = await serve(Number(PORT), config);
  const server = startServer();
  const stop = async () => {
    process.off('SIGINT', stop).off('SIGTERM', stop);
    page.close();
    page.closeAllConnections();
    await Promise.all([...agents.values()].map((agent) => agent.stop()));
    await server.stop();
    process.exit(0);
  };
  process.on('SIGINT', stop).on('SIGTERM', stop);
  const why = await Promise.race([whenReady.promise, doesNotStart.promise]);
  if (why !== undefined) throw new Error(`everwire dev does not start (${why})`);
  process.stdout.write(
    `Everwire demo: http://127.0.0.1:${page.address().port}/ (Ctrl-C stops it)\n`,
  );
}

main().catch((thrown) => {
  const taken = thrown.code === 'EADDRINUSE';
  say(
    taken
      ? `port ${PORT} is taken: choose another one with PORT=`
      : `the demo cannot start: ${thrown.message}`,
  );
  process.exit(1);
});
