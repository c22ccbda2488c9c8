/**
 * The demo's page: one tab of one session. It shows what the client tells and adds nothing.
 * In come events and the state of the connection; out go a question, a Stop, and what this tab's
 * buttons do to its own socket.
 */
import {
  connect,
  formatCursor,
  Transcript,
  type Client,
  type EverwireError,
  type Session,
  type TranscriptRun,
} from '@everwire/client';
import { byId, setText } from './dom.js';
import { Ticker } from './ticker.js';
import { TranscriptView } from './transcript-view.js';

interface Config {
  readonly edge: string;
  readonly token: string;
  readonly participant: string;
}

/** Asked by the page itself in a new session, so that there is something to watch. */
const FIRST_QUESTION = { text: 'How does a lighthouse work?', input: 'first-question' };

const name = sessionName();
const transcript = new Transcript();
const view = new TranscriptView(byId('transcript'));
const ticker = new Ticker(byId('ticker'));
const scroller = byId('scroller');

/** The session of this page is in its address; a page without one gets a new one. */
function sessionName(): string {
  const address = new URL(location.href);
  const given = address.searchParams.get('session');
  if (given !== null && /^[A-Za-z0-9._:~-]{1,128}$/.test(given)) return given;
  const random = crypto.getRandomValues(new Uint32Array(2));
  const minted = `demo-${Array.from(random, (part) => part.toString(36)).join('')}`;
  address.searchParams.set('session', minted);
  history.replaceState(null, '', address);
  return minted;
}

async function fetchConfig(): Promise<Config> {
  const response = await fetch(`/config.json?session=${encodeURIComponent(name)}`, {
    cache: 'no-store',
  });
  if (!response.ok) throw new Error(`the demo answered HTTP ${response.status}`);
  return (await response.json()) as Config;
}

// === what this tab has missed ===

/** From the moment this tab was cut off: what it had seen last. */
let awaySince: number | undefined;
/** The tail to reach until the tab has caught up, and how many events that is. */
let catchingUp: { readonly aim: number; readonly missed: number } | undefined;
let noticeTimer: ReturnType<typeof setTimeout> | undefined;

function notice(text: string, tone: 'calm' | 'cut' = 'calm', forMs?: number): void {
  const box = byId('notice');
  clearTimeout(noticeTimer);
  setText(box, text);
  box.dataset['tone'] = tone;
  if (forMs !== undefined) noticeTimer = setTimeout(() => setText(box, ''), forMs);
}

function cutOff(text: string): void {
  if (awaySince === undefined) {
    awaySince = transcript.offset;
    ticker.mark(`away, after offset ${awaySince}`);
  }
  notice(text, 'cut');
}

function attached(behind: number, tail: number | undefined): void {
  if (awaySince === undefined) return;
  ticker.mark(`back, from offset ${transcript.offset + 1}`);
  awaySince = undefined;
  if (behind === 0) return notice('Back. Nothing happened while this tab was away.', 'calm', 6_000);
  catchingUp = { aim: tail ?? 0, missed: behind };
  notice(`${behind} events happened while this tab was away. Catching up.`);
  caughtUp();
}

function caughtUp(): void {
  if (catchingUp === undefined || transcript.offset < catchingUp.aim) return;
  const { missed, aim } = catchingUp;
  catchingUp = undefined;
  const events = missed === 1 ? '1 event' : `${missed} events`;
  notice(`Missed ${events} while away → caught up at offset ${aim}.`, 'calm', 15_000);
}

// === what is shown ===

function showRun(run: TranscriptRun | undefined): void {
  const box = byId('run-state');
  box.dataset['state'] = run?.state ?? 'idle';
  setText(box, runText(run));
  byId<HTMLButtonElement>('stop').disabled = run?.state !== 'running' || stopping.has(run.run);
}

function runText(run: TranscriptRun | undefined): string {
  switch (run?.state) {
    case undefined:
      return 'idle';
    case 'running':
      return stopping.has(run.run) ? 'stopping' : 'answering';
    case 'cancelled':
      return `stopped at offset ${run.cancel_offset}`;
    case 'failed':
      return `failed: ${run.reason}`;
    default:
      return 'done';
  }
}

function youngestRun(): TranscriptRun | undefined {
  return transcript.liveRun ?? transcript.runs.at(-1);
}

const CONNECTION_WORDS = {
  connecting: 'connecting',
  waiting: 'reconnecting',
  disconnected: 'cut',
  ended: 'ended',
  catching_up: 'catching up',
  live: 'live',
  full: 'catching up',
} as const;

function showConnection(client: Client, session: Session): void {
  const word =
    client.state === 'open' ? session.state : client.state === 'closed' ? 'ended' : client.state;
  const box = byId('connection');
  box.dataset['state'] = word;
  setText(box, CONNECTION_WORDS[word]);
  byId<HTMLButtonElement>('disconnect').disabled = client.state === 'disconnected';
  byId<HTMLButtonElement>('reconnect').disabled = client.state !== 'disconnected';
  showNumbers(client, session);
}

function showNumbers(client: Client, session: Session): void {
  setText(byId('offset'), String(transcript.offset));
  setText(byId('tail'), String(Math.max(session.tail, transcript.offset)));
  const { session_epoch } = session;
  if (session_epoch !== undefined && transcript.offset > 0) {
    setText(byId('cursor'), formatCursor({ session_epoch, offset: transcript.offset }));
  }
  setText(byId('connects'), String(client.connects));
  setText(byId('edge'), client.edge ?? '…');
  setText(byId('participant'), client.participant ?? '…');
  const { attaches, duplicates, holes } = session.counts;
  setText(byId('attaches'), String(attaches));
  setText(byId('duplicates'), String(duplicates));
  setText(byId('holes'), String(holes));
}

/** Whether the reader is at the end; who scrolled up is left there. */
let following = true;
let lastTop = 0;
scroller.addEventListener('scroll', () => {
  const { scrollTop, scrollHeight, clientHeight } = scroller;
  if (scrollHeight - scrollTop - clientHeight < 80) following = true;
  // Only a hand scrolls up; that the text grew since we scrolled means nothing.
  else if (scrollTop < lastTop) following = false;
  lastTop = scrollTop;
});

// Notices, keyboards and the log change how much of it is seen.
new ResizeObserver(() => follow()).observe(scroller);

let scrolling = false;
function follow(): void {
  if (!following || scrolling) return;
  scrolling = true;
  requestAnimationFrame(() => {
    scrolling = false;
    scroller.scrollTop = scroller.scrollHeight;
  });
}

// === what the buttons do ===

/** The runs that this tab has asked to stop, while it waits for the answers. */
const stopping = new Set<string>();

async function stop(session: Session): Promise<void> {
  const live = transcript.runs.filter((run) => run.state === 'running');
  for (const { run } of live) stopping.add(run);
  showRun(youngestRun());
  await Promise.all(live.map(({ run }) => stopRun(session, run)));
}

async function stopRun(session: Session, run: string): Promise<void> {
  try {
    const { outcome, offset, state } = await session.cancel(run);
    if (outcome === 'applied')
      notice(`Stopped at offset ${offset}, for every tab.`, 'calm', 10_000);
    else if (outcome === 'already_terminal')
      notice(`It had ended before: ${state} at offset ${offset}.`, 'calm', 10_000);
    else notice(`Not stopped: ${outcome}.`, 'cut', 10_000);
  } catch (thrown) {
    notice(`Not stopped: ${(thrown as EverwireError).message}.`, 'cut');
  } finally {
    stopping.delete(run);
    showRun(youngestRun());
  }
}

async function ask(
  session: Session,
  draft: { text: string; input?: string },
  key?: string,
): Promise<void> {
  following = true;
  try {
    await session.publish(draft, key === undefined ? {} : { key });
  } catch (thrown) {
    notice(`Not sent: ${(thrown as EverwireError).message}.`, 'cut');
  }
}

function wire(client: Client, session: Session): void {
  byId('disconnect').addEventListener('click', () => {
    client.disconnect();
    cutOff('This tab is cut off. The agent goes on without it; so does every other tab.');
    byId('reconnect').focus();
  });
  byId('reconnect').addEventListener('click', () => {
    client.reconnect();
    byId('disconnect').focus();
  });
  byId('second').addEventListener('click', () => {
    // Without an opener the new tab starts from nothing, and reads all of it from the log.
    open(location.href, '_blank', 'noopener');
  });
  byId('stop').addEventListener('click', () => void stop(session));
  byId('ask').addEventListener('submit', (event) => {
    event.preventDefault();
    const box = byId<HTMLInputElement>('question');
    const text = box.value.trim();
    if (text === '') return;
    box.value = '';
    void ask(session, { text });
  });
  client.on('state', ({ state, why }) => {
    if (state === 'waiting') cutOff(`The connection is lost (${why?.message}). Reconnecting.`);
    showConnection(client, session);
  });
  session.on('state', () => showConnection(client, session));
  session.on('tail', () => showNumbers(client, session));
  session.on('trouble', () => showNumbers(client, session));
  session.on('gone', () => {
    transcript.clear();
    view.reset(transcript);
    notice('The session was made anew; this is its beginning.', 'cut');
  });
  session.on('attached', ({ behind, tail }) => {
    attached(behind, tail);
    if (tail === 0) void ask(session, FIRST_QUESTION, 'first-question');
  });
}

// === the tab's life ===

async function read(client: Client, session: Session): Promise<void> {
  for await (const event of session) {
    const message = transcript.apply(event);
    if (message !== undefined) view.draw(message, transcript);
    if (event.run !== undefined && !event.kind.startsWith('part.')) {
      // A run's end changes what its messages say about theirs.
      for (const each of transcript.messages)
        if (each.run === event.run) view.draw(each, transcript);
      showRun(youngestRun());
    }
    ticker.add(event);
    caughtUp();
    showNumbers(client, session);
    follow();
  }
}

async function main(): Promise<void> {
  setText(byId('session'), name);
  byId<HTMLDetailsElement>('log').open = matchMedia('(min-width: 56.01rem)').matches;
  let config: Config | undefined = await firstConfig();
  const auth = async (): Promise<string> => {
    const { token } = config ?? (await fetchConfig());
    config = undefined;
    return token;
  };
  const client = connect({ urls: config.edge, auth });
  const session = client.attach(name, {
    create: true,
    onGone: 'restart',
    storage: sessionStorage,
    state: transcript,
  });
  if (transcript.offset > 0) {
    view.reset(transcript);
    showRun(youngestRun());
    awaySince = transcript.offset;
    notice(`Reloaded: this tab goes on after offset ${awaySince}.`);
    follow();
  }
  wire(client, session);
  showConnection(client, session);
  try {
    await read(client, session);
  } catch (thrown) {
    const { message, code } = thrown as EverwireError;
    notice(`The session ended here: ${message} (${code}).`, 'cut');
    showConnection(client, session);
  }
}

/** The demo itself may be starting still. */
async function firstConfig(): Promise<Config> {
  for (;;) {
    try {
      return await fetchConfig();
    } catch (thrown) {
      notice(`Waiting for the demo: ${(thrown as Error).message}.`, 'cut');
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }
}

void main();
