// The promises, seen in a browser: what a person does on the demo's page, and what must be true.
// The answer streams at the demo's pace; it has more than 800 deltas, about half a minute.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import {
  assertSame,
  ended,
  FreezableTab,
  givenDemo,
  sessionName,
  sleep,
  Stage,
  startBrowser,
  Tab,
} from './harness.mjs';

/** Until an answer of half a minute is there, on a machine that may be busy. */
const ANSWERED_MS = 180_000;

let demo;
let browser;
let stage;

before(async () => {
  demo = await givenDemo();
  browser = await startBrowser();
  stage = new Stage(demo, browser);
});

after(async () => {
  await browser?.close();
  await demo?.stop();
});

const person = (...args) => stage.person(...args);
const watching = (...args) => stage.watching(...args);
const witness = (...args) => stage.witness(...args);

async function ask(tab, text) {
  await tab.page.getByLabel('Your question').fill(text);
  await tab.press('Ask');
}

describe('the demo page', { concurrency: 3 }, () => {
  test('an answer streams, offset by offset, in a session that the address names', async (t) => {
    const tab = await Tab.open(await person(t), demo.url);
    const first = await tab.until(({ offset }) => offset > 30, 'events');
    assert.match(tab.page.url(), /\?session=demo-/);
    assert.match(first.transcript, /How does a lighthouse work\?/);
    assert.match(first.transcript, /A lighthouse has one job/);
    await tab.until(({ offset }) => offset > first.offset + 20, 'more events');
    const ticker = await tab.page.getByTestId('ticker').locator('li').first().textContent();
    assert.match(ticker, /^\d+ part\.delta/);
    tab.assertQuiet();
  });

  test('Disconnect cuts this tab, Reconnect brings exactly what it missed', async (t) => {
    const tab = await watching(t, await person(t));
    const other = await witness(t, tab);
    await tab.press('Disconnect');
    const cut = await tab.until(({ connection }) => connection === 'disconnected', 'cut');
    await sleep(4_000);
    assert.equal(tab.openSockets(), 0);
    // It sees nothing of the session, but the demo tells it how far the log has come.
    const still = await tab.until(({ tail }) => tail > cut.offset + 40, 'the log goes on');
    assert.deepEqual([still.offset, still.transcript], [cut.offset, cut.transcript]);
    const { offset: elsewhere } = await other.see();
    assert.ok(elsewhere > cut.offset + 40, `${elsewhere} after ${cut.offset}`);

    await tab.press('Reconnect');
    const told = /Missed (\d+) events while away → caught up/;
    const back = await tab.until(
      ({ offset, notice }) => offset >= elsewhere && told.test(notice),
      'caught up',
    );
    const [, missed] = told.exec(back.notice);
    assert.ok(Number(missed) >= elsewhere - cut.offset, back.notice);
    assert.equal(tab.lastAttach().cursor.offset, cut.offset);

    await Promise.all([tab, other].map((each) => each.until(ended, 'the answer ends', ANSWERED_MS)));
    const seen = await assertSame(tab, other);
    assert.equal(seen.runState, 'completed');
    assert.match(seen.transcript, /Nobody has to ask it what they missed\./);
    assert.deepEqual([back.duplicates, back.holes, back.connects], [0, 0, 2]);
    assert.equal((await other.see()).connects, 1);
    tab.assertQuiet();
    other.assertQuiet();
  });

  test('Open second tab joins in the middle, with nothing missing; an input appears once in each', async (t) => {
    const context = await person(t);
    const one = await watching(t, context);
    const [page] = await Promise.all([context.waitForEvent('page'), one.press('Open second tab')]);
    const two = new Tab(page);
    assert.equal(page.url(), one.page.url());
    const joined = await two.until(
      ({ offset, runState }) => offset > 40 && runState === 'running',
      'joined',
    );
    assert.match(joined.transcript, /A lighthouse has one job/);

    await ask(one, 'And what about fog?');
    const question = ({ transcript }) => transcript.includes('And what about fog?');
    const both = await Promise.all([one, two].map((tab) => tab.until(question, 'the input')));
    const places = both.map(
      ({ transcript }) => /And what about fog\?\s*(offset \d+)/.exec(transcript)?.[1],
    );
    assert.ok(places[0] !== undefined && places[0] === places[1], places.join());
    for (const { transcript } of both)
      assert.equal(transcript.split('And what about fog?').length, 2);

    // The question waits for the answer before it; a Stop of that one lets it go on.
    await one.press('Stop');
    const next = ({ run, transcript }) => run === 'answering' && transcript.includes('stopped at');
    await Promise.all([one, two].map((tab) => tab.until(next, 'the next answer')));
    await two.press('Stop');
    await Promise.all([one, two].map((tab) => tab.until(ended, 'stopped')));
    await sleep(500);
    await assertSame(one, two);
    one.assertQuiet();
    two.assertQuiet();
  });

  test('Stop in the second tab stops both at the same word, and nothing reconnects', async (t) => {
    const one = await watching(t, await person(t));
    const two = await witness(t, one);
    await two.until(({ offset }) => offset > 200, 'at least 200 events', ANSWERED_MS);
    await two.press('Stop');
    await Promise.all([one, two].map((tab) => tab.until(ended, 'stopped')));
    await sleep(1_500);
    const stopped = await assertSame(one, two);
    assert.equal(stopped.runState, 'cancelled');
    const [, place] = /stopped at offset (\d+)/.exec(stopped.run);
    // The stop, the run's end, the seal of its message, and that the agent has seen it; no output.
    assert.equal(stopped.offset, Number(place) + 3);
    assert.match(stopped.transcript, new RegExp(`stopped at offset ${place} by `));

    await ask(one, 'Go on, please.');
    const again = ({ offset, runState }) => runState === 'running' && offset > stopped.offset + 20;
    const seen = await Promise.all([one, two].map((tab) => tab.until(again, 'the next answer')));
    for (const { connects, holes } of seen) assert.deepEqual([connects, holes], [1, 0]);
    for (const tab of [one, two]) {
      assert.equal(tab.sockets.length, 1);
      tab.assertQuiet();
    }
  });

  test('Stop works in a tab whose socket is cut', async (t) => {
    const tab = await watching(t, await person(t));
    const other = await witness(t, tab);
    await tab.press('Disconnect');
    await tab.press('Stop');
    const { run } = await other.until(ended, 'stopped');
    assert.match(run, /stopped at offset/);
    assert.equal(tab.openSockets(), 0);
    await tab.press('Reconnect');
    await tab.until(ended, 'it knows');
    await assertSame(tab, other);
    tab.assertQuiet();
  });

  test('a reload keeps its place', async (t) => {
    const tab = await watching(t, await person(t));
    const other = await witness(t, tab);
    const before = await tab.until(({ offset }) => offset > 100, 'some text');
    await tab.page.reload();
    const reloaded = await tab.until(({ connection }) => connection === 'live', 'live again');
    assert.ok(reloaded.transcript.length >= before.transcript.length - 400);
    const { cursor } = tab.lastAttach();
    assert.ok(
      cursor.offset >= before.offset,
      `attached after ${cursor.offset}, had seen ${before.offset}`,
    );
    await tab.press('Stop');
    await Promise.all([tab, other].map((each) => each.until(ended, 'stopped')));
    await sleep(300);
    await assertSame(tab, other);
    tab.assertQuiet();
  });

  test('closing every tab stops nothing', async (t) => {
    const first = await person(t);
    const tab = await watching(t, first);
    const url = tab.page.url();
    const { offset } = await tab.see();
    await first.close();
    await sleep(2_000);
    const later = await Tab.open(await person(t), url);
    const seen = await later.until(({ offset: now }) => now > offset + 40, 'the run went on');
    assert.ok(['running', 'completed'].includes(seen.runState), seen.runState);
    const done = await later.until(ended, 'the answer ends', ANSWERED_MS);
    assert.equal(done.runState, 'completed');
    assert.doesNotMatch(done.transcript, /stopped/);
    later.assertQuiet();
  });

  test('a network that is away for 30 s is noticed and made good', async (t) => {
    const context = await person(t);
    const tab = await watching(t, context);
    const other = await witness(t, tab);
    tab.cut = true;
    await context.setOffline(true);
    const { offset } = await tab.see();
    await sleep(30_000);
    await context.setOffline(false);
    await Promise.all([tab, other].map((each) => each.until(ended, 'the answer ends', ANSWERED_MS)));
    const seen = await assertSame(tab, other);
    assert.equal(seen.runState, 'completed');
    assert.ok(seen.offset > offset + 200);
    assert.equal((await tab.see()).holes, 0);
  });

  test('a page that is frozen for 60 s gets what it missed', async (t) => {
    const other = await watching(t, await person(t));
    const tab = await FreezableTab.open(browser, other.page.url());
    t.after(() => tab.close());
    await tab.until(({ connection, offset }) => connection === 'live' && offset > 20, 'live');
    await tab.freeze();
    const { offset, visibility } = await tab.see();
    assert.equal(visibility, 'hidden');
    await sleep(60_000);
    assert.equal((await tab.see()).offset, offset, 'it was frozen indeed');
    await tab.thaw();
    await Promise.all([tab, other].map((each) => each.until(ended, 'the answer ends', ANSWERED_MS)));
    const seen = await assertSame(tab, other);
    assert.equal(seen.runState, 'completed');
    assert.doesNotMatch(seen.transcript, /stopped/);
    assert.equal((await tab.see()).holes, 0);
    other.assertQuiet();
  });

  test('it fits a phone, in light and dark', async (t) => {
    for (const colorScheme of ['light', 'dark']) {
      const viewport = { width: 390, height: 844 };
      const context = await person(t, { viewport, colorScheme, isMobile: true, hasTouch: true });
      const tab = await watching(t, context);
      const cluster = ['Kill leader', 'Kill edge'];
      for (const name of ['Disconnect', 'Open second tab', ...cluster, 'Stop', 'Ask']) {
        const box = await tab.button(name).boundingBox();
        assert.ok(box.x >= 0 && box.x + box.width <= viewport.width, `${name} is outside`);
        assert.ok(box.height >= 40, `${name} is too small for a thumb`);
      }
      const width = await tab.page.evaluate(() => document.documentElement.scrollWidth);
      assert.equal(width, viewport.width);
      const folder = process.env.SCREENSHOTS;
      if (folder) await tab.page.screenshot({ path: `${folder}/phone-${colorScheme}.png` });
      tab.assertQuiet();
    }
  });
});

describe('docs/examples/plain.html', { concurrency: 2 }, () => {
  const read = (page) =>
    page.evaluate(() => [
      document.getElementById('text').textContent,
      document.getElementById('state').value,
    ]);

  test('40 lines of plain WebSocket read, come back, and stop', async (t) => {
    const session = sessionName();
    const context = await person(t);
    const page = await context.newPage();
    const errors = [];
    page.on('pageerror', (error) => errors.push(String(error)));
    const sockets = [];
    await page.routeWebSocket(/\/v1\/ws$/, (route) =>
      sockets.push([route, route.connectToServer()]),
    );
    await page.goto(`${demo.url}/plain.html?session=${session}`);
    await page.getByLabel('Question').fill('How?');
    await page.waitForFunction(() => document.getElementById('state').value.startsWith('live'));
    await page.getByRole('button', { name: 'Ask' }).click();
    const grown = (length) =>
      page.waitForFunction(
        (least) => document.getElementById('text').textContent.length > least,
        length,
      );
    await grown(200);
    // The edge goes away; the page comes back with its cursor.
    await sockets[0][0].close({ code: 1012 });
    await grown((await read(page))[0].length + 100);
    assert.ok(sockets.length >= 2);
    await page.reload();
    await grown((await read(page))[0].length + 100);
    await page.getByRole('button', { name: 'Stop' }).click();
    await page.waitForFunction(() =>
      document.getElementById('text').textContent.includes('[stopped at '),
    );
    const [text] = await read(page);

    const whole = await Tab.open(await person(t), `${demo.url}/?session=${session}`);
    const { transcript } = await whole.until(ended, 'stopped');
    const answer = text.replace(/^\n> How\?\n/, '').replace(/ \[stopped at \d+\]\n$/, '');
    assert.ok(transcript.includes(answer), 'what the plain page shows is what the log holds');
    assert.deepEqual(errors, []);
  });
});
