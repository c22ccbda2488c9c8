// What the browser tests share: the demo (given, or started here), Chromium, and tabs.
//
//   DEMO_URL      a demo that runs already, for the tests of the page; else one is started
//   EVERWIRE_BIN  the binary for it; else the newest build of this checkout
//   CHROMIUM      the browser (/usr/bin/chromium)
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';

const SUPERVISOR = fileURLToPath(new URL('../../demo/supervisor.mjs', import.meta.url));

/** It gives way to the nodes, as if it ran on a machine of its own. */
const NICE_CHROMIUM = fileURLToPath(new URL('nice-chromium', import.meta.url));
/** Until what must happen has happened. Generous: the machine may be busy with other things. */
const HAPPENS_MS = 60_000;

/** The demo that was given, or one of our own. */
export async function givenDemo() {
  const { DEMO_URL } = process.env;
  if (DEMO_URL) return { url: DEMO_URL.replace(/\/$/, ''), stop: async () => {} };
  return startDemo();
}

/** Starts the demo; gives its address, its process id, where its data is, and how to stop it. */
export async function startDemo() {
  const data = mkdtempSync(join(tmpdir(), 'everwire-demo-'));
  const env = { ...process.env, PORT: '0', DEMO_DATA: data };
  const demo = spawn(process.execPath, [SUPERVISOR], { env, stdio: ['ignore', 'pipe', 'inherit'] });
  const url = await new Promise((resolve, reject) => {
    demo.once('exit', (code) => reject(new Error(`the demo ended with ${code}`)));
    demo.stdout.on('data', (text) => {
      const [found] = /http:\/\/\S+/.exec(text) ?? [];
      if (found !== undefined) resolve(found.replace(/\/$/, ''));
    });
  });
  const stop = async () => {
    demo.removeAllListeners('exit');
    const ended = new Promise((resolve) => demo.once('exit', resolve));
    demo.kill('SIGTERM');
    await ended;
    rmSync(data, { recursive: true, force: true });
  };
  return { url, stop, pid: demo.pid, data };
}

/** The whole log of a session, as `everwire tail` tells it. */
export async function tailOf({ pid, data }, session) {
  const ports = JSON.parse(readFileSync(join(data, 'ports.json'), 'utf8'));
  const nodes = Object.values(ports).filter(({ grpc }) => grpc !== undefined);
  const addr = nodes.map(({ grpc }) => `127.0.0.1:${grpc}`).join(',');
  const [node] = childrenOf(pid, 'node');
  const [bin] = commandOf(node);
  const from = ['--addr', addr, '--token-file', join(data, 'token')];
  const options = { maxBuffer: 1 << 26, timeout: 30_000 };
  const { stdout } = await promisify(execFile)(bin, ['tail', session, '--json', ...from], options);
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

/** The process ids of a process's children whose command line holds the word. */
export function childrenOf(pid, word) {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
    .split(' ')
    .filter(Boolean);
  return children.map(Number).filter((child) => commandOf(child).includes(word));
}

function commandOf(pid) {
  return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
}

export function startBrowser() {
  return chromium.launch({
    executablePath: NICE_CHROMIUM,
    headless: true,
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
  });
}

export function sessionName() {
  return `t-${Math.random().toString(36).slice(2, 12)}`;
}

/** A tab of the page, and what can be seen of it. */
export class Tab {
  /** Errors on the console, but those of a network that the test itself has cut. */
  errors = [];
  sockets = [];
  /** Frames that the page has sent, in order. */
  sent = [];
  cut = false;

  constructor(page) {
    this.page = page;
    page.on('console', (message) => {
      if (message.type() === 'error' && !this.cut) this.errors.push(message.text());
    });
    page.on('pageerror', (error) => this.errors.push(String(error)));
    page.on('websocket', (socket) => {
      this.sockets.push(socket);
      socket.on('framesent', ({ payload }) => this.sent.push(JSON.parse(payload)));
    });
  }

  static async open(context, url) {
    const tab = new Tab(await context.newPage());
    await tab.page.goto(url);
    return tab;
  }

  button(name) {
    return this.page.getByRole('button', { name, exact: true });
  }

  /** Presses a button by its accessible name. */
  press(name) {
    return this.button(name).click();
  }

  /** What the tab shows, all of one moment. */
  see() {
    return this.page.evaluate(look);
  }

  /** Waits until what the tab shows is so. */
  async until(condition, what, ms = HAPPENS_MS) {
    const end = Date.now() + ms;
    for (;;) {
      const seen = await this.see();
      if (condition(seen)) return seen;
      if (Date.now() > end)
        assert.fail(
          `not within ${ms} ms: ${what}; ${JSON.stringify({ ...seen, transcript: seen.transcript.slice(-80) })}`,
        );
      await sleep(40);
    }
  }

  openSockets() {
    return this.sockets.filter((socket) => !socket.isClosed()).length;
  }

  /** The cursor of the youngest attach. */
  lastAttach() {
    return this.sent.findLast(({ t }) => t === 'attach');
  }

  assertQuiet() {
    assert.deepEqual(this.errors, []);
  }
}

/** Runs in the page: what it shows. */
function look() {
  const byTestId = (id) => document.querySelector(`[data-testid=${id}]`);
  const text = (id) => byTestId(id)?.textContent ?? '';
  return {
    offset: Number(text('offset')),
    tail: Number(text('tail')),
    transcript: text('transcript'),
    run: text('run-state'),
    runState: byTestId('run-state')?.dataset.state,
    connection: byTestId('connection')?.dataset.state,
    connects: Number(text('connects')),
    holes: Number(text('holes')),
    duplicates: Number(text('duplicates')),
    notice: text('notice'),
    cursor: text('cursor'),
    cluster: text('cluster'),
    clusterState: byTestId('cluster-state')?.dataset.state,
    leader: document.getElementById('way-leader-who')?.textContent,
    edge: document.getElementById('way-edge-who')?.textContent,
    visibility: document.visibilityState,
  };
}

/**
 * A tab that can be frozen, as a phone freezes one in the background. Playwright keeps its own
 * pages visible for ever, and a visible page is never frozen; so this one is made without it.
 */
export class FreezableTab {
  #next = 0;
  #answers = new Map();

  static async open(browser, url) {
    const tab = new FreezableTab();
    tab.control = await browser.newBrowserCDPSession();
    tab.control.on('Target.receivedMessageFromTarget', ({ message }) => {
      const { id, result } = JSON.parse(message);
      tab.#answers.get(id)?.(result);
      tab.#answers.delete(id);
    });
    tab.context = await tab.control.send('Target.createBrowserContext');
    const { targetId } = await tab.control.send('Target.createTarget', { url, ...tab.context });
    tab.target = { targetId };
    const { sessionId } = await tab.control.send('Target.attachToTarget', { targetId });
    tab.sessionId = sessionId;
    return tab;
  }

  #send(method, params = {}) {
    this.#next += 1;
    const id = this.#next;
    const message = JSON.stringify({ id, method, params });
    const answer = new Promise((resolve) => this.#answers.set(id, resolve));
    return this.control
      .send('Target.sendMessageToTarget', { sessionId: this.sessionId, message })
      .then(() => answer);
  }

  async see() {
    const expression = `(${look})()`;
    const { result } = await this.#send('Runtime.evaluate', { expression, returnByValue: true });
    return result.value;
  }

  until(condition, what, ms) {
    return Tab.prototype.until.call(this, condition, what, ms);
  }

  async freeze() {
    await this.#send('Page.setWebLifecycleState', { state: 'frozen' });
  }

  /** The page goes on, and somebody looks at it. */
  async thaw() {
    await this.#send('Page.setWebLifecycleState', { state: 'active' });
    await this.control.send('Target.activateTarget', this.target);
  }

  async close() {
    await this.control.send('Target.disposeBrowserContext', this.context);
    await this.control.detach();
  }
}

/** People who look at sessions of a demo. */
export class Stage {
  constructor(demo, browser) {
    this.demo = demo;
    this.browser = browser;
  }

  /** A browser of their own, until the test ends. */
  async person(t, options = {}) {
    const viewport = { width: 1280, height: 800 };
    const context = await this.browser.newContext({ viewport, ...options });
    t.after(() => context.close());
    return context;
  }

  /** A tab on a fresh session in which the answer has begun. */
  async watching(t, context, session = sessionName()) {
    const tab = await Tab.open(context, `${this.demo.url}/?session=${session}`);
    const streams = ({ offset, runState }) => offset > 20 && runState === 'running';
    await tab.until(streams, 'an answer streams');
    return tab;
  }

  /** The same session in a tab of its own, as another person would open it. */
  async witness(t, tab) {
    const other = await Tab.open(await this.person(t), tab.page.url());
    const live = ({ connection, offset }) => connection === 'live' && offset > 0;
    await other.until(live, 'the other tab is live');
    return other;
  }
}

export const ended = ({ runState }) => ['completed', 'cancelled', 'failed'].includes(runState);

/** All tabs stand at the same offset and show the same; gives what they show. */
export async function assertSame(...tabs) {
  const all = await Promise.all(tabs.map((tab) => tab.see()));
  for (const seen of all) {
    assert.equal(seen.offset, all[0].offset);
    assert.equal(seen.transcript, all[0].transcript);
    assert.equal(seen.run, all[0].run);
  }
  return all[0];
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
