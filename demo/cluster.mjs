// The demo's cluster: three nodes and two edges, each a process of its own. It knows which of them
// live, asks a living node what the cluster thinks of itself, and kills on request.
import { randomInt } from 'node:crypto';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { Child, run } from './children.mjs';

const NODES = ['node-1', 'node-2', 'node-3'];
const EDGES = ['edge-1', 'edge-2'];
/** Below those that the kernel gives away: a port must be free when its owner comes back. */
const PORTS = { from: 20_000, to: 32_000 };
/** The engine tells each try to reach a dead peer: thousands a second. */
const LOG_LEVEL = 'info,openraft=error';
const EDGE_TOKEN_HOURS = 48;
/** How often the cluster is asked, while a page looks. */
const ASK_EVERY_MS = 400;
/** A page that has not asked for so long looks no more. */
const LOOKS_FOR_MS = 3_000;
/** A session's tail is asked for no more often. */
const TAIL_EVERY_MS = 1_000;
const ANSWER_WITHIN_MS = 4_000;
/** Sessions whose shard is remembered. */
const SESSIONS_MAX = 1_000;

/** What cannot be done right now, and why: for a person. */
export class NotNow extends Error {}

export class Cluster {
  /** By name: {name, kind, child, ports, ready, last}. */
  #members = new Map();
  /** The youngest answer of `everwire status`: node ids by address, and the shards. */
  #status = { nodes: [], shards: [] };
  /** Of each session that a page shows: its shard and tail, and when what was asked. */
  #sessions = new Map();
  #lookedAt = 0;
  #asking = new Set();
  #renewal;
  #token;
  #ready;
  #failed;
  /** Resolves when every member has been ready once, rejects when one cannot start at all. */
  whenReady = new Promise((resolve, reject) => {
    this.#ready = resolve;
    this.#failed = reject;
  });

  /** `mint(participant, kind, allow, ttl)` gives tokens; `say` and `chat` are for people. */
  constructor({ bin, data, key, mint, say, chat }) {
    Object.assign(this, { bin, data, key, mint, say, chat });
    // Whoever started this waits for it later.
    this.whenReady.catch(() => {});
  }

  /** gRPC addresses of all nodes, comma-separated. */
  get nodes() {
    return this.#of('node')
      .map(({ ports }) => `127.0.0.1:${ports.grpc}`)
      .join(',');
  }

  /** Where browsers connect; edges that live come first. */
  get edges() {
    const alive = ({ ready }) => (ready ? 0 : 1);
    return this.#of('edge')
      .sort((one, other) => alive(one) - alive(other))
      .map(({ ports }) => `http://127.0.0.1:${ports.http}`);
  }

  /** `origins` are those of pages that may connect. */
  async start(origins) {
    this.origins = origins;
    const ports = await this.#ports();
    for (const name of NODES) this.#add(name, 'node', ports[name]);
    for (const name of EDGES) this.#add(name, 'edge', ports[name]);
    this.#token = await this.mint('demo', 'operator', '*=operate,subscribe,history', '8760h');
    await this.#renewEdgeTokens();
    this.#renewal = setInterval(
      () => void this.#renewEdgeTokens().catch(({ message }) => this.say(message)),
      (EDGE_TOKEN_HOURS / 2) * 3_600_000,
    );
    for (const member of this.#members.values()) member.child = this.#child(member);
  }

  async stop() {
    clearInterval(this.#renewal);
    const edges = this.#of('edge').map(({ child }) => child?.stop());
    await Promise.all(edges);
    await Promise.all(this.#of('node').map(({ child }) => child?.stop()));
  }

  #of(kind) {
    return [...this.#members.values()].filter((member) => member.kind === kind);
  }

  #add(name, kind, ports) {
    this.#members.set(name, { name, kind, ports, ready: false, last: [] });
  }

  // === processes ===

  #child(member) {
    const { name, kind } = member;
    const args = kind === 'node' ? this.#nodeArgs(member) : this.#edgeArgs(member);
    const line = (text) => {
      if (!isReadyLine(text)) return this.chat(`${name}: ${text}`);
      member.ready = true;
      member.last = [];
      if (member.began) this.say(`${name} is back`);
      member.began = true;
      if ([...this.#members.values()].every(({ began }) => began)) this.#ready();
    };
    const died = (why) => {
      member.ready = false;
      if (member.began) return this.say(`${name} is dead (${why}); starting it again in 5 s`);
      // What it said before it was ready is told only if it does not get there.
      member.last.forEach((text) => this.say(text));
      this.#failed(new Error(`${name} does not start (${why})`));
    };
    const log = (text) => {
      this.chat(text);
      if (!member.ready) member.last = [...member.last.slice(-9), text];
    };
    return new Child(name, () => ({ command: this.bin, args }), { line, died, log });
  }

  #nodeArgs({ name, ports }) {
    const seeds = this.#of('node').map((node) => `127.0.0.1:${node.ports.peer}`);
    const listen = ['grpc', 'peer', 'admin'].flatMap((door) => at(door, ports[door]));
    const found = ['--seeds', seeds.join(','), '--bootstrap-expect', String(seeds.length)];
    const own = ['--name', name, '--data', join(this.data, name), '--auth-key', `${this.key}.pub`];
    return ['node', ...own, ...listen, ...found, '--log-level', LOG_LEVEL];
  }

  #edgeArgs({ name, ports }) {
    const listen = ['http', 'admin'].flatMap((door) => at(door, ports[door]));
    const keys = ['--token-file', this.#edgeToken(name), '--auth-key', `${this.key}.pub`];
    const origins = this.origins.flatMap((origin) => ['--origin', origin]);
    return ['edge', '--name', name, ...listen, '--nodes', this.nodes, ...keys, ...origins];
  }

  #edgeToken(name) {
    return join(this.data, `${name}.token`);
  }

  /** Edges read their file anew for each use. */
  async #renewEdgeTokens() {
    for (const { name } of this.#of('edge')) {
      const token = await this.mint(name, 'edge', '*=relay', `${EDGE_TOKEN_HOURS}h`, '*');
      writeSecret(this.#edgeToken(name), token);
    }
  }

  /** The ports of the last time: nodes that form a cluster know each other by them. */
  async #ports() {
    const file = join(this.data, 'ports.json');
    if (existsSync(file)) {
      const ports = JSON.parse(readFileSync(file, 'utf8'));
      const taken = [];
      for (const port of Object.values(ports).flatMap((each) => Object.values(each)))
        if (!(await isFree(port))) taken.push(port);
      if (taken.length === 0) return ports;
      throw new Error(
        `ports ${taken.join(', ')} are taken: is another demo running on ${this.data}?`,
      );
    }
    const used = new Set();
    const doors = async (...names) => {
      const found = {};
      for (const door of names) found[door] = await freePort(used);
      return found;
    };
    const ports = {};
    for (const name of NODES) ports[name] = await doors('grpc', 'peer', 'admin');
    for (const name of EDGES) ports[name] = await doors('http', 'admin');
    writeSecret(file, JSON.stringify(ports));
    return ports;
  }

  // === what is known ===

  /** What a page shows of the cluster; `tail` asks for the end of the session's log as well. */
  view(session, tail) {
    this.#lookedAt = Date.now();
    const known = this.#remember(session);
    if (tail) known.tailWanted = Date.now();
    void this.#keepAsking('status', () => this.#askStatus());
    void this.#keepAsking('sessions', () => this.#askSessions());
    const nodes = this.#of('node').map((node) => ({ ...told(node), id: this.#idOf(node) }));
    const nameOf = new Map(nodes.map(({ id, name }) => [id, name]));
    const alive = nodes.filter(({ state }) => state === 'alive');
    const serving = new Set(alive.map(({ id }) => id));
    const shards = this.#status.shards.map(({ id, leader, replicas }) => {
      const majority = replicas.filter((replica) => serving.has(replica)).length * 2;
      const leads = serving.has(leader) && majority > replicas.length;
      return {
        id,
        leader: leads ? nameOf.get(leader) : null,
        replicas: replicas.map((replica) => nameOf.get(replica) ?? `node ${replica}`),
      };
    });
    for (const node of nodes) {
      node.leads = shards.filter(({ leader }) => leader === node.name).length;
      delete node.id;
    }
    return {
      nodes,
      edges: this.#of('edge').map(told),
      majority: alive.length * 2 > nodes.length,
      shards,
      shard: known.shard ?? null,
      tail: known.tail ?? null,
    };
  }

  #idOf({ ports }) {
    const address = `127.0.0.1:${ports.grpc}`;
    return this.#status.nodes.find(({ addr }) => addr === address)?.id;
  }

  #remember(session) {
    const known = this.#sessions.get(session) ?? { tailWanted: 0, asked: 0 };
    known.looked = Date.now();
    this.#sessions.delete(session);
    this.#sessions.set(session, known);
    if (this.#sessions.size > SESSIONS_MAX)
      this.#sessions.delete(this.#sessions.keys().next().value);
    return known;
  }

  /** Asks again and again while a page looks; one question of a kind at a time. */
  async #keepAsking(kind, ask) {
    if (this.#asking.has(kind)) return;
    this.#asking.add(kind);
    while (isRecent(this.#lookedAt)) {
      await ask();
      await new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS));
    }
    this.#asking.delete(kind);
  }

  async #askStatus() {
    const status = await this.#everwire('status');
    if (status !== undefined) this.#status = status;
  }

  /** A session's shard is asked for once; its tail while a page that is cut off wants it. */
  async #askSessions() {
    const wanted = [...this.#sessions].filter(([, { shard, looked, tailWanted, asked }]) => {
      const open = shard === undefined ? isRecent(looked) : isRecent(tailWanted);
      return open && Date.now() - asked >= TAIL_EVERY_MS;
    });
    // Together, but not many: each is a process.
    await Promise.all(wanted.slice(-4).map(([session, known]) => this.#askSession(session, known)));
  }

  async #askSession(session, known) {
    known.asked = Date.now();
    const shown = await this.#everwire('session', 'show', session);
    if (shown !== undefined) Object.assign(known, { shard: shown.shard, tail: shown.tail });
  }

  /** Asks a node that lives; undefined if it does not answer in time. */
  async #everwire(...args) {
    const alive = this.#of('node').filter(({ ready }) => ready);
    if (alive.length === 0) return undefined;
    const env = {
      EVERWIRE_TOKEN: this.#token,
      EVERWIRE_ADDR: alive.map(({ ports }) => `127.0.0.1:${ports.grpc}`).join(','),
    };
    try {
      const options = { env, timeoutMs: ANSWER_WITHIN_MS };
      return JSON.parse(await run(this.bin, [...args, '--json'], options));
    } catch (thrown) {
      this.chat(thrown.message);
      return undefined;
    }
  }

  // === kill -9 ===

  /** Kills the node that leads the session's shard; gives its name. */
  async killLeader(session) {
    const known = this.#remember(session);
    if (known.shard === undefined) await this.#askSession(session, known);
    await this.#askStatus();
    const { shard, shards } = this.view(session, false);
    const leader = shards.find(({ id }) => id === shard)?.leader ?? undefined;
    if (leader === undefined) throw new NotNow('nobody leads this session right now');
    return this.#kill(leader, `it led shard ${shard}`);
  }

  /** Kills an edge by its name. */
  killEdge(name) {
    if (this.#members.get(name)?.kind !== 'edge') throw new NotNow('there is no such edge');
    return this.#kill(name, 'a tab was connected to it');
  }

  #kill(name, why) {
    const member = this.#members.get(name);
    if (member?.child?.kill() !== true) throw new NotNow(`${name} is dead already`);
    // Not later: whoever asks next must see it dead.
    member.ready = false;
    this.say(`kill -9 ${name}: ${why}`);
    return name;
  }
}

function isRecent(moment) {
  return Date.now() - moment < LOOKS_FOR_MS;
}

function told({ name, ready, child }) {
  const backInMs = child?.backInMs;
  const state = ready ? 'alive' : backInMs === undefined ? 'starting' : 'dead';
  return { name, state, back_in_ms: backInMs ?? null };
}

function at(door, port) {
  return [`--${door}`, `127.0.0.1:${port}`];
}

function isReadyLine(text) {
  try {
    return JSON.parse(text)?.ready === true;
  } catch {
    return false;
  }
}

/** In one piece: an edge may be reading it. */
export function writeSecret(file, text) {
  writeFileSync(`${file}.new`, text, { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

async function freePort(used) {
  for (;;) {
    const port = randomInt(PORTS.from, PORTS.to);
    if (!used.has(port) && (await isFree(port))) {
      used.add(port);
      return port;
    }
  }
}

function isFree(port) {
  return new Promise((resolve) => {
    const probe = createServer();
    probe.once('error', () => resolve(false));
    probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)));
  });
}
