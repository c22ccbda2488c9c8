// What the demo's cluster survives, seen in a browser: nodes and edges die by kill -9, one after
// the other or all at once. Each test looks at one session in two tabs, compares both with each
// other and with the log itself, and leaves the cluster whole.
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import {
  assertSame,
  childrenOf,
  ended,
  sessionName,
  sleep,
  Stage,
  startBrowser,
  startDemo,
  tailOf,
} from './harness.mjs';

/** Until the cluster is whole again: a dead process comes back after 5 s only. */
const WHOLE_MS = 90_000;
/** Until an answer of half a minute is there, on a machine that may be busy. */
const ANSWERED_MS = 180_000;
const NODES = ['node-1', 'node-2', 'node-3'];
const EDGES = ['edge-1', 'edge-2'];

let demo;
let browser;
let stage;

before(async () => {
  demo = await startDemo();
  browser = await startBrowser();
  stage = new Stage(demo, browser);
});

after(async () => {
  await browser?.close();
  await demo?.stop();
});

/** Everything lives, and every shard is led. */
async function isWhole() {
  const response = await fetch(`${demo.url}/cluster.json?session=nobody`);
  const { nodes, edges, shards } = await response.json();
  const alive = [...nodes, ...edges].every(({ state }) => state === 'alive');
  return alive && shards.length > 0 && shards.every(({ leader }) => leader !== null);
}

/** Two people's tabs on one session in which an answer streams. */
async function twoTabs(t) {
  const session = sessionName();
  const one = await stage.watching(t, await stage.person(t), session);
  const two = await stage.witness(t, one);
  // Browsers tell of sockets that a dead edge leaves behind.
  for (const tab of [one, two]) tab.cut = true;
  await one.until(({ leader }) => NODES.includes(leader), 'the leader is known');
  return { session, one, two };
}

function kill(...names) {
  const pids = names.flatMap((name) => childrenOf(demo.pid, name));
  assert.equal(pids.length, names.length);
  for (const pid of pids) process.kill(pid, 'SIGKILL');
}

/** New events come, and the page shows who leads. */
function goesOn(tab, after, what) {
  const on = ({ offset, leader }) => offset > after + 20 && NODES.includes(leader);
  return tab.until(on, what);
}

async function stopped(one, two) {
  await one.press('Stop');
  await Promise.all([one, two].map((tab) => tab.until(ended, 'stopped')));
}

/** Both tabs and the log say the same, with no offset missing or twice; gives the last answer's text. */
async function assertWhole({ session, one, two }) {
  const events = await tailOf(demo, session);
  const tail = events.length;
  assert.deepEqual(
    events.map(({ offset }) => offset),
    Array.from(events, (_, index) => index + 1),
  );
  const all = ({ offset }) => offset === tail;
  await Promise.all([one, two].map((tab) => tab.until(all, `offset ${tail}`)));
  const seen = await assertSame(one, two);
  const last = events.findLast(({ kind }) => kind === 'message.start').body.message;
  const text = events
    .filter(({ kind, body }) => kind === 'part.delta' && body.message === last)
    .map(({ body }) => body.text)
    .join('');
  assert.ok(text.length > 100);
  assert.equal(seen.transcript.split(text).length, 2, 'the text of the log, once');
  for (const tab of [one, two]) {
    const { holes, connection } = await tab.see();
    assert.deepEqual([holes, connection], [0, 'live']);
  }
  return { ...seen, text };
}

describe('the cluster of the demo', () => {
  // Whoever was killed is back before the next test begins.
  afterEach(async () => {
    const end = Date.now() + WHOLE_MS;
    while (!(await isWhole())) {
      assert.ok(Date.now() < end, 'the cluster is whole again');
      await sleep(200);
    }
  });

  test('a pause holds the answer while the leader dies, and Resume goes on where it stood', async (t) => {
    const { session, one, two } = await twoTabs(t);
    await two.press('Pause');
    const paused = ({ runState }) => runState === 'suspended';
    await Promise.all([one, two].map((tab) => tab.until(paused, 'paused')));
    await one.press('Kill leader');
    await sleep(2_500);
    const held = await assertSame(one, two);
    assert.match(held.run, /paused at offset \d+ by /);
    const led = ({ leader }) => NODES.includes(leader);
    await Promise.all([one, two].map((tab) => tab.until(led, 'another leads')));
    assert.equal((await one.see()).offset, held.offset, 'nothing was written meanwhile');
    await one.press('Resume');
    await Promise.all([one, two].map((tab) => goesOn(tab, held.offset, 'it goes on')));
    await stopped(one, two);
    await assertWhole({ session, one, two });
  });

  test('an approval is asked for and given from the other tab, though the leader dies', async (t) => {
    const { session, one, two } = await twoTabs(t);
    await stopped(one, two);
    const before = await one.see();
    await one.page.getByLabel('Your question').fill('Do it, I approve.');
    await one.press('Ask');
    const card = (tab, state) =>
      tab.page.locator(`[data-testid=approval][data-state=${state}]`).last().waitFor();
    await Promise.all([one, two].map((tab) => card(tab, 'open')));
    const waits = ({ runState }) => runState === 'suspended';
    await Promise.all([one, two].map((tab) => tab.until(waits, 'it waits')));
    await one.press('Kill leader');
    await two.press('Approve');
    await Promise.all([one, two].map((tab) => card(tab, 'approved')));
    await Promise.all([one, two].map((tab) => goesOn(tab, before.offset + 80, 'it answers')));
    await stopped(one, two);
    await assertWhole({ session, one, two });

    await one.page.getByLabel('Your question').fill('And this, do you approve?');
    await one.press('Ask');
    await Promise.all([one, two].map((tab) => card(tab, 'open')));
    await one.press('Deny');
    await Promise.all([one, two].map((tab) => card(tab, 'denied')));
    const failed = ({ runState }) => runState === 'failed';
    await Promise.all([one, two].map((tab) => tab.until(failed, 'it is not answered')));
    await assertSame(one, two);
  });

  test('it shows nodes, edges, shards, and the way of the session', async (t) => {
    const { one, two } = await twoTabs(t);
    const { leader, edge } = await one.see();
    assert.ok(EDGES.includes(edge), edge);
    for (const name of [...NODES, ...EDGES])
      assert.match(await one.page.getByTestId('cluster').textContent(), new RegExp(name));
    const row = one.page.getByTestId('nodes').locator('li', { hasText: leader });
    assert.match(await row.textContent(), /alive\s+leads \d+ shards?/);
    const leaders = one.page.getByTestId('shards').locator('li b');
    assert.equal(await leaders.count(), 16);
    for (const label of await leaders.allTextContents()) assert.match(label, /^n[123]$|^…$/);
    await one.until(({ clusterState }) => clusterState === 'whole', 'all live');
    await stopped(one, two);
  });

  test('Kill leader, twice: another node leads, and the answer comes whole', async (t) => {
    const tabs = await twoTabs(t);
    const { one, two } = tabs;
    const first = await one.see();
    await one.press('Kill leader');
    const moved = ({ leader }) => NODES.includes(leader) && leader !== first.leader;
    const second = await two.until(moved, 'another node leads');
    assert.ok(second.clusterState !== 'whole', 'one of them is dead');
    // In the other tab, whether the first one is back or not.
    await two.press('Kill leader');
    await Promise.all([one, two].map((tab) => tab.until(ended, 'it ends', ANSWERED_MS)));
    const seen = await assertWhole(tabs);
    assert.equal(seen.runState, 'completed');
    assert.match(seen.text, /Nobody has to ask it what they missed\.\s*$/);
    assert.equal((await one.see()).connects, 1, 'no reader noticed');
  });

  test('Kill edge: this tab goes on at the other one', async (t) => {
    const tabs = await twoTabs(t);
    const { one, two } = tabs;
    const { edge, offset } = await one.see();
    await one.press('Kill edge');
    const moved = (seen) => EDGES.includes(seen.edge) && seen.edge !== edge;
    const now = await one.until(moved, 'it is at the other edge');
    await goesOn(one, Math.max(now.offset, offset), 'it goes on');
    const places = one.page.getByTestId('edges').locator('li');
    await places.filter({ hasText: 'serves this tab' }).filter({ hasText: now.edge }).waitFor();
    await goesOn(two, offset, 'so does the other tab');
    // And back: the first one lives again, or will.
    await one.press('Kill edge');
    await goesOn(one, (await one.see()).offset, 'it goes on again');
    await stopped(one, two);
    await assertWhole(tabs);
  });

  test('without a majority the page says so, and goes on by itself when there is one', async (t) => {
    const tabs = await twoTabs(t);
    const { one, two } = tabs;
    const { leader } = await one.see();
    const others = NODES.filter((name) => name !== leader);
    kill(leader, others[0]);
    for (const tab of [one, two]) {
      const says = ({ cluster, notice }) =>
        cluster.includes('No majority') && notice.includes('No majority');
      await tab.until(says, 'it says so');
      assert.equal(await tab.button('Kill leader').isEnabled(), false);
    }
    const still = await one.see();
    assert.equal(still.connection, 'live', 'readers stay');
    const again = await goesOn(one, still.offset, 'the answer goes on');
    assert.doesNotMatch(again.cluster, /No majority/);
    const quiet = ({ notice }) => !notice.includes('No majority');
    await two.until(quiet, 'nobody says so any more');
    await stopped(one, two);
    await assertWhole(tabs);
  });

  test('Stop is heard though the leader has just died', async (t) => {
    const tabs = await twoTabs(t);
    const { one, two } = tabs;
    await one.press('Kill leader');
    await stopped(two, one);
    // The agent's word goes to the new leader too, and takes its time.
    const observed = ({ transcript }) => /seen by the agent/.test(transcript);
    await Promise.all([one, two].map((tab) => tab.until(observed, 'the agent has seen it')));
    const seen = await assertWhole(tabs);
    const [, place] = /stopped at offset (\d+)/.exec(seen.run);
    // The stop, the run's end, the seal of its message, and that the agent has seen it; no output.
    assert.equal(seen.offset, Number(place) + 3);
  });

  test('everything killed at once: all of it comes back, and so does every tab', async (t) => {
    const tabs = await twoTabs(t);
    const { one, two } = tabs;
    kill(...NODES, ...EDGES);
    await one.until(({ connection }) => connection !== 'live', 'it is noticed');
    const { offset } = await one.until(({ connection }) => connection === 'live', 'back');
    await Promise.all([one, two].map((tab) => tab.until(ended, 'it ends', ANSWERED_MS)));
    const seen = await assertWhole(tabs);
    assert.equal(seen.runState, 'completed');
    assert.ok(seen.offset > offset + 100);
    assert.match(seen.text, /Nobody has to ask it what they missed\.\s*$/);
  });
});
