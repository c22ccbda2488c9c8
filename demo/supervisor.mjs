// Runs the demo: a cluster of three nodes and two edges, one agent process per session that
// somebody looks at, and the page with its controls. Prints one address. Ctrl-C stops everything
// that it started.
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
import { Cluster, writeSecret } from './cluster.mjs';
import { HOSTS, serve } from './web.mjs';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const SAMPLE = fileURLToPath(new URL('sample.openai-chat.jsonl', import.meta.url));
const NAMESPACE = 'demo';
/** What a tab may do, and only on its own session. */
const TAB_MAY =
  'create,subscribe,publish,signal:cancel,signal:pause,signal:resume,signal:approve,signal:deny,history,presence';
/** The agent asks for an approval before it answers a message with this word. */
const ASK_WORD = 'approve';
const AGENT_MAY = 'create,subscribe,publish,run,history';
/** For people: `everwire tail`, `publish`, `status` and the like, on every session of the demo. */
const OPERATOR_MAY = 'create,subscribe,publish,run,signal:cancel,history,presence,admin,operate';
const TAB_TOKEN_MS = 15 * 60_000;
/** Agents at once; the one whose session was asked for longest ago makes room. */
const AGENTS_MAX = 24;

const { PORT = '8080', DEMO_DATA = join(ROOT, 'demo-data'), DEMO_RATE = '30' } = process.env;
const bin = process.env.EVERWIRE_BIN ?? newestBuild();
const key = join(DEMO_DATA, 'auth.key');
const operatorToken = join(DEMO_DATA, 'token');

const agents = new Map();
const tokens = new Map();
const say = (text) => process.stderr.write(`${text}\n`);
const chat = process.env.DEMO_VERBOSE === '1' ? say : () => {};
const cluster = new Cluster({ bin, data: DEMO_DATA, key, mint: token, say, chat });

function newestBuild() {
  const target = process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target');
  const built = ['release', 'debug']
    .map((profile) => join(target, profile, 'everwire'))
    .filter(existsSync);
  built.sort((one, other) => statSync(other).mtimeMs - statSync(one).mtimeMs);
  return built[0] ?? 'everwire';
}

async function token(participant, kind, allow, ttl, namespace = NAMESPACE) {
  const who = ['--namespace', namespace, '--participant', participant, '--kind', kind];
  return run(bin, ['token', ...who, '--allow', allow, '--ttl', ttl, '--key', key]);
}

/** A tab's token, minted anew when half of its time is over. */
async function tabToken(visitor, session) {
  const id = `${visitor} ${session}`;
  const known = tokens.get(id);
  if (known !== undefined && known.until > Date.now()) return known.token;
  const minted = token(visitor, 'user', `${session}=${TAB_MAY}`, `${TAB_TOKEN_MS / 60_000}m`);
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
    await cluster.whenReady;
    const allow = `${session}=${AGENT_MAY}`;
    const EVERWIRE_TOKEN = await token('lighthouse-agent', 'agent', allow, '24h');
    return {
      command: bin,
      args: [
        ...['agent', 'replay', session, '--from', SAMPLE, '--rate', DEMO_RATE],
        ...['--answer-inputs', '--ask-before', ASK_WORD],
      ],
      env: { EVERWIRE_TOKEN, EVERWIRE_ADDR: cluster.nodes },
    };
  };
  return new Child(`agent of ${session}`, start, { log: chat, line: chat });
}

/** What a tab needs to connect; `edge` is one of `edges`, for pages that take only one. */
async function config(session, visitor) {
  await cluster.whenReady;
  ensureAgent(session);
  const { edges } = cluster;
  const [edge] = edges;
  return { edge, edges, token: await tabToken(visitor, session), participant: visitor, session };
}

/** What the page shows beside the session: who lives, who leads, and whether its agent runs. */
function view(session, tail) {
  const agent = agents.get(session)?.pid === undefined ? 'dead' : 'alive';
  return { ...cluster.view(session, tail), agent };
}

async function kill({ what, session, edge }) {
  return what === 'leader' ? cluster.killLeader(session) : cluster.killEdge(edge);
}

async function startCluster(port) {
  say('Starting three nodes and two edges …');
  const began = Date.now();
  mkdirSync(DEMO_DATA, { recursive: true });
  if (!existsSync(key)) await run(bin, ['token', '--new-key', key]);
  const mine = await token('you', 'operator', `*=${OPERATOR_MAY}`, '8760h');
  writeSecret(operatorToken, mine);
  await cluster.start(HOSTS.map((host) => `http://${host}:${port}`));
  await cluster.whenReady;
  say(`The cluster serves, after ${((Date.now() - began) / 1000).toFixed(1)} s. A look at it:`);
  say(`  ${bin} status --addr ${cluster.nodes} --token-file ${operatorToken}`);
}

async function main() {
  const page = await serve(Number(PORT), { config, view, kill });
  let stopping = false;
  const stop = async () => {
    if (stopping) return;
    stopping = true;
    page.close();
    page.closeAllConnections();
    await Promise.all([...agents.values()].map((agent) => agent.stop()));
    await cluster.stop();
    process.exit(0);
  };
  process.on('SIGINT', stop).on('SIGTERM', stop).on('SIGHUP', stop);
  // Nobody listens any more: a closed pipe.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', stop);
  await startCluster(page.address().port).catch(async (thrown) => {
    if (!stopping) await cluster.stop();
    throw thrown;
  });
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
