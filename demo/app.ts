/**
 * The demo's page: one tab of one session. It shows what the client tells and adds nothing.
 * In come events, the state of the connection, and what the demo's supervisor knows of the cluster;
 * out go a question, a Stop, a pause, the answer to an approval, what this tab's buttons do to its
 * own socket, and kill -9.
 */
import {
  connect,
  formatCursor,
  Transcript,
  type Client,
  type EverwireError,
  type Session,
  type SessionEvent,
  type SignalOutcome,
  type TranscriptApproval,
  type TranscriptRun,
  type Verdict,
} from '@everwire/client';
import { ClusterView } from './cluster-view.js';
import { ClusterWatch, type ClusterState, type Wish } from './cluster.js';
import { byId, setText } from './dom.js';
import { Notices } from './notices.js';
import { Ticker } from './ticker.js';
import { TranscriptView, waitsFor } from './transcript-view.js';

interface Config {
  /** Where this tab may connect; the client goes from one to the other by itself. */
  readonly edges: readonly string[];
  readonly token: string;
  readonly participant: string;
}

/** Asked by the page itself in a new session, so that there is something to watch. */
const FIRST_QUESTION = { text: 'How does a lighthouse work?', input: 'first-question' };

const name = sessionName();
const transcript = new Transcript();
const view = new TranscriptView(byId('transcript'), answer);
const ticker = new Ticker(byId('ticker'));
const notices = new Notices(byId('notice'));
const clusterView = new ClusterView();
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
let catchingUp:
  | { readonly aim: number; readonly missed: number; readonly moved: string }
  | undefined;
/** The edge that this tab was connected to last. */
let lastEdge: string | undefined;

function cutOff(text: string): void {
  if (awaySince === undefined) {
    awaySince = transcript.offset;
    ticker.mark(`away, after offset ${awaySince}`);
  }
  notices.hold('away', text);
}

function attached(behind: number, tail: number | undefined, edge: string | undefined): void {
  const moved = lastEdge !== undefined && edge !== lastEdge ? `Now at ${edge}. ` : '';
  if (moved !== '') ticker.mark(`from ${lastEdge} to ${edge}`);
  lastEdge = edge;
  notices.release('away');
  if (awaySince === undefined) return;
  ticker.mark(`back, from offset ${transcript.offset + 1}`);
  awaySince = undefined;
  if (behind === 0) return notices.flash(`${moved || 'Back. '}Nothing was missed.`);
  catchingUp = { aim: tail ?? 0, missed: behind, moved };
  notices.hold('behind', `${behind} events happened while this tab was away. Catching up.`, 'calm');
  caughtUp();
}

function caughtUp(): void {
  if (catchingUp === undefined || transcript.offset < catchingUp.aim) return;
  const { missed, aim, moved } = catchingUp;
  catchingUp = undefined;
  notices.release('behind');
  const events = missed === 1 ? '1 event' : `${missed} events`;
  const told = `${moved}Missed ${events} while away → caught up at offset ${aim}.`;
  notices.flash(told, 'calm', 15_000);
}

// === what is shown ===

function showRun(run: TranscriptRun | undefined): void {
  const box = byId('run-state');
  box.dataset['state'] = run?.state ?? 'idle';
  setText(box, runText(run));
  byId<HTMLButtonElement>('stop').disabled = !isOpen(run) || stopping.has(run.run);
  const { signal, runs } = pauseWish();
  const pause = byId<HTMLButtonElement>('pause');
  pause.hidden = !isOpen(run);
  pause.disabled = pausing || runs.length === 0;
  setText(pause, signal === 'pause' ? 'Pause' : 'Resume');
}

/** Whether a run has not ended: also one that waits, or has no agent, can be stopped. */
function isOpen(run: TranscriptRun | undefined): run is TranscriptRun {
  return run?.state === 'running' || run?.state === 'suspended' || run?.state === 'orphaned';
}

/** What the pause button does: as long as any run goes on, it pauses. */
function pauseWish(): { readonly signal: 'pause' | 'resume'; readonly runs: TranscriptRun[] } {
  const open = transcript.runs.filter(isOpen);
  const going = open.filter(({ state }) => state !== 'suspended');
  if (going.length > 0) return { signal: 'pause', runs: going };
  // Who waits for an approval goes on with the answer.
  const runs = open.filter(({ suspended }) => suspended?.reason !== 'approval');
  return { signal: 'resume', runs };
}

/** Whether an agent writes. */
function isWriting(): boolean {
  return transcript.runs.some(({ state }) => state === 'running');
}

function runText(run: TranscriptRun | undefined): string {
  switch (run?.state) {
    case undefined:
      return 'idle';
    case 'running':
      return stopping.has(run.run) ? 'stopping' : 'answering';
    case 'suspended':
      if (stopping.has(run.run)) return 'stopping';
      return run.suspended === undefined ? 'waiting' : waitsFor(run.suspended);
    case 'orphaned':
      return stopping.has(run.run) ? 'stopping' : `orphaned at offset ${run.orphaned}`;
    case 'cancelled': {
      const seen = run.observed_offset;
      const where = `stopped at offset ${run.cancel_offset}`;
      return seen === undefined ? where : `${where}, seen at ${seen}`;
    }
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

function wordOf(client: Client, session: Session): keyof typeof CONNECTION_WORDS {
  if (client.state === 'open') return session.state;
  return client.state === 'closed' ? 'ended' : client.state;
}

function showConnection(client: Client, session: Session): void {
  const word = wordOf(client, session);
  const box = byId('connection');
  box.dataset['state'] = word;
  setText(box, CONNECTION_WORDS[word]);
  byId<HTMLButtonElement>('disconnect').disabled = client.state === 'disconnected';
  byId<HTMLButtonElement>('reconnect').disabled = client.state !== 'disconnected';
  showNumbers(client, session);
  showCluster();
}

function showNumbers(client: Client, session: Session): void {
  setText(byId('offset'), String(transcript.offset));
  // While this tab is cut off, the supervisor still knows where the log ends.
  const elsewhere = watch.state?.tail ?? 0;
  setText(byId('tail'), String(Math.max(session.tail, transcript.offset, elsewhere)));
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
  const live = transcript.runs.filter(isOpen);
  for (const { run } of live) stopping.add(run);
  showRun(youngestRun());
  await Promise.all(live.map(({ run }) => stopRun(session, run)));
}

async function stopRun(session: Session, run: string): Promise<void> {
  await tell('Stopped', session.cancel(run));
  stopping.delete(run);
  showRun(youngestRun());
}

/** Whether this tab waits for the answer to a pause or a resume. */
let pausing = false;

async function pause(session: Session): Promise<void> {
  const { signal, runs } = pauseWish();
  pausing = true;
  showRun(youngestRun());
  const done = signal === 'pause' ? 'Paused' : 'Resumed';
  await Promise.all(runs.map(({ run }) => tell(done, session[signal](run))));
  pausing = false;
  showRun(youngestRun());
}

async function answer(approval: TranscriptApproval, verdict: Verdict): Promise<void> {
  if (tab === undefined) return;
  const done = verdict === 'approve' ? 'Approved' : 'Denied';
  await tell(done, tab.session[verdict](approval));
}

/** Tells what came of a signal. */
async function tell(done: string, asked: Promise<SignalOutcome>): Promise<void> {
  const not = `Not ${done.toLowerCase()}`;
  try {
    const { outcome, offset, state } = await asked;
    if (outcome === 'applied') notices.flash(`${done} at offset ${offset}, for every tab.`);
    else if (outcome === 'already_terminal')
      notices.flash(`It had ended before: ${state} at offset ${offset}.`);
    else notices.flash(`${not}: ${outcome}.`, 'cut');
  } catch (thrown) {
    notices.flash(`${not}: ${(thrown as EverwireError).message}.`, 'cut');
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
    notices.flash(`Not sent: ${(thrown as EverwireError).message}.`, 'cut');
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
  byId('pause').addEventListener('click', () => void pause(session));
  byId('kill-leader').addEventListener('click', () => void killLeader());
  byId('kill-edge').addEventListener('click', () => void killEdge(client));
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
    notices.flash('The session was made anew; this is its beginning.', 'cut');
  });
  session.on('attached', ({ behind, tail }) => {
    attached(behind, tail, client.edge);
    if (tail === 0) void ask(session, FIRST_QUESTION, 'first-question');
  });
}

// === the cluster ===

/** This tab's client, once it has one. */
let tab: { readonly client: Client; readonly session: Session } | undefined;
const watch = new ClusterWatch(name, () => tab === undefined || !isLive(), clusterChanged);

function isLive(): boolean {
  return tab !== undefined && wordOf(tab.client, tab.session) === 'live';
}

function showCluster(): void {
  if (watch.state === undefined || tab === undefined) return;
  const { client, session } = tab;
  const connection = wordOf(client, session);
  clusterView.show(watch.state, {
    edge: client.state === 'open' ? client.edge : undefined,
    connection,
    connectionText: CONNECTION_WORDS[connection],
    flowing: isWriting() && connection === 'live',
  });
}

function clusterChanged(now: ClusterState, before: ClusterState | undefined): void {
  const leaderOf = (state: ClusterState | undefined): string | null | undefined =>
    state?.shards.find(({ id }) => id === state.shard)?.leader;
  const leader = leaderOf(now);
  for (const member of before === undefined ? [] : [...now.nodes, ...now.edges]) {
    const was = [...(before?.nodes ?? []), ...(before?.edges ?? [])];
    const then = was.find(({ name: other }) => other === member.name)?.state;
    if (member.state === 'dead' && then !== 'dead') ticker.mark(`${member.name} is dead`);
    if (member.state === 'alive' && then !== 'alive') ticker.mark(`${member.name} is back`);
  }
  if (leader != null && leader !== lastLeader) {
    if (lastLeader !== undefined) ticker.mark(`${leader} leads shard ${now.shard}`);
    lastLeader = leader;
  }
  if (now.majority) notices.release('majority');
  else notices.hold('majority', noMajority(now));
  if (leader != null) elected(leader);
  showCluster();
  if (tab !== undefined) showNumbers(tab.client, tab.session);
}

function noMajority({ nodes }: ClusterState): string {
  const alive = nodes.filter(({ state }) => state === 'alive').length;
  const count = `${alive} of ${nodes.length} nodes`;
  return `No majority: ${count}. Nothing new is committed until one is back; nothing is lost.`;
}

/** Who led this session when that was last known. */
let lastLeader: string | undefined;
/** From a `Kill leader` of this tab until the session goes on: how long it stood still at most. */
let election:
  | { readonly killed: string; leader: string | undefined; last: number; longest: number }
  | undefined;

/** An event came. */
function arrived(): void {
  if (election === undefined) return;
  const now = performance.now();
  election.longest = Math.max(election.longest, now - election.last);
  election.last = now;
  if (election.leader === undefined) return;
  const { leader, longest } = election;
  election = undefined;
  const pause = (longest / 1000).toFixed(1);
  notices.flash(`${leader} leads now. The longest pause in this tab: ${pause} s; nothing is lost.`);
}

/** The session has a leader. */
function elected(leader: string): void {
  if (election === undefined || leader === election.killed) return;
  election.leader = leader;
  if (isWriting()) return;
  election = undefined;
  notices.flash(`${leader} leads now.`);
}

async function kill(wish: Wish): Promise<string | undefined> {
  // Until it is known who is next.
  byId<HTMLButtonElement>(`kill-${wish.what}`).disabled = true;
  try {
    return await watch.kill(wish);
  } catch (thrown) {
    notices.flash(`Nobody was killed: ${(thrown as Error).message}.`, 'cut');
    return undefined;
  }
}

async function killLeader(): Promise<void> {
  const last = performance.now();
  const killed = await kill({ what: 'leader', session: name });
  if (killed === undefined) return;
  election = { killed, leader: undefined, last, longest: 0 };
  notices.flash(`${killed} led this session: killed with kill -9. The others elect a new leader.`);
}

async function killEdge(client: Client): Promise<void> {
  if (client.state !== 'open' || client.edge === undefined) return;
  await kill({ what: 'edge', edge: client.edge });
}

// === the tab's life ===

/** Who writes the run of an event, as far as was read. */
function writerOf({ run }: SessionEvent): string | undefined {
  return run === undefined ? undefined : transcript.run(run)?.author?.participant;
}

async function read(client: Client, session: Session): Promise<void> {
  for await (const event of session) {
    const writer = writerOf(event);
    for (const message of transcript.apply(event)) view.draw(message, transcript);
    if (event.run !== undefined && !event.kind.startsWith('part.')) {
      // A run's end changes what its messages say about theirs.
      for (const each of transcript.messages)
        if (each.run === event.run) view.draw(each, transcript);
      for (const each of transcript.approvals)
        if (each.run === event.run) view.drawApproval(each, transcript);
      showRun(youngestRun());
    }
    if (writer !== undefined && writerOf(event) !== writer && isLive())
      notices.flash(`The answer goes on, now from ${writerOf(event)}: ${writer} fell silent.`);
    ticker.add(event);
    caughtUp();
    arrived();
    showNumbers(client, session);
    follow();
  }
}

async function main(): Promise<void> {
  setText(byId('session'), name);
  const wide = matchMedia('(min-width: 56.01rem)').matches;
  for (const id of ['log', 'parts']) byId<HTMLDetailsElement>(id).open = wide;
  let config: Config | undefined = await firstConfig();
  const auth = async (): Promise<string> => {
    const { token } = config ?? (await fetchConfig());
    config = undefined;
    return token;
  };
  const client = connect({ urls: config.edges, auth });
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
    notices.hold('away', `Reloaded: this tab goes on after offset ${awaySince}.`, 'calm');
    follow();
  }
  tab = { client, session };
  wire(client, session);
  showConnection(client, session);
  try {
    await read(client, session);
  } catch (thrown) {
    const { message, code } = thrown as EverwireError;
    notices.hold('ended', `The session ended here: ${message} (${code}).`);
    showConnection(client, session);
  }
}

/** The demo itself may be starting still. */
async function firstConfig(): Promise<Config> {
  for (;;) {
    try {
      const config = await fetchConfig();
      notices.release('demo');
      return config;
    } catch (thrown) {
      notices.hold('demo', `Waiting for the demo: ${(thrown as Error).message}.`);
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }
}

void main();
