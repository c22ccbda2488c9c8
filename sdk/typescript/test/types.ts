// What must not compile. Never run: `types.test.mjs` asks the compiler, and a line that is marked
// here and compiles all the same is an error too.
import type {
  Client,
  RunsTarget,
  Session,
  SessionEvent,
  SignalOutcome,
  StopTarget,
  Transcript,
} from '../dist/index.js';

export function right(client: Client, session: Session, where: 'r1' | { all: true }): void {
  void session.cancel('r1');
  void session.cancel('r1', { expect: 'running', gracefulMs: 500, asOf: 7, key: 'k' });
  void session.cancel({ run: 'r1' }, { expect: 'orphaned' });
  void session.cancel({ subtree: 'r1' }, { expect: 'completed' });
  void session.cancel({ all: true }, { asOf: 7 });
  void session.cancel({ input: 'i1', by: 'ann' });
  void session.cancel({ all: true }, { gracefulMs: 500 });
  void session.cancel(where, { asOf: 7 });
  void client.cancel('s', { all: true });
  void client.cancel('s', 'r1', { expect: 'running' });
}

export function rightToo(session: Session, transcript: Transcript, where: RunsTarget): void {
  const outcome: Promise<SignalOutcome> = session.pause('r1');
  void outcome;
  void session.cancel('r1', { expect: 'suspended' });
  void session.pause({ subtree: 'r1' }, { key: 'k' });
  void session.resume({ all: true });
  void session.resume(where);
  for (const approval of transcript.openApprovals) void session.approve(approval);
  void session.deny({ approval: 'a1', action_hash: 'h1' }, { note: 'no', key: 'k' });
}

export function wrongToo(session: Session): void {
  // @ts-expect-error a target names something
  void session.pause({});
  // @ts-expect-error a target names one thing
  void session.pause({ run: 'r1', all: true });
  // @ts-expect-error an input can be neither paused nor resumed
  void session.resume({ input: 'i1' });
  // @ts-expect-error a pause has no guards
  void session.pause('r1', { asOf: 7 });
  // @ts-expect-error whoever answers says what was seen
  void session.approve('a1');
  // @ts-expect-error whoever answers says what was seen
  void session.deny({ approval: 'a1' });
}

export function wrong(client: Client, session: Session): void {
  // @ts-expect-error a target names something
  void session.cancel({});
  // @ts-expect-error a target names one thing
  void session.cancel({ run: 'r1', all: true });
  // @ts-expect-error a run alone, or with all that work for it
  void session.cancel({ run: 'r1', subtree: 'r1' });
  // @ts-expect-error an author belongs to an input
  void session.cancel({ run: 'r1', by: 'ann' });
  // @ts-expect-error there is no "not all"
  void session.cancel({ all: false });
  // @ts-expect-error a state is expected of a run
  void session.cancel({ all: true }, { expect: 'running' });
  // @ts-expect-error a state is expected of a run
  void client.cancel('s', { input: 'i1' }, { expect: 'running' });
  // @ts-expect-error there is no such state
  void session.cancel('r1', { expect: 'walking' });
  // @ts-expect-error options are in camelCase
  void session.cancel('r1', { graceful_ms: 500 });
}

/** Bodies can be told apart by their fields alone. */
export function told(event: SessionEvent, target: StopTarget): unknown {
  switch (event.kind) {
    case 'run.started':
      return [event.body.parent, event.body.input_by, event.body.meta];
    case 'run.epilogue':
      return event.body.data;
    case 'run.suspended':
      return event.body.reason === 'paused' ? event.author : event.body.note;
    case 'signal.pause':
    case 'signal.resume':
      return event.body.run ?? event.body.subtree ?? event.body.all;
    case 'approval.requested':
      return [event.body.approvers?.length, event.body.deadline, event.body.data];
    case 'approval.resolved':
      return event.body.outcome === 'expired' ? event.body.on_expiry : event.body.note;
    case 'signal.observed':
      return event.body.signal_offset + 1;
    case 'signal.cancel':
      if (event.body.run !== undefined) return event.body.run.length;
      if (event.body.input !== undefined) return event.body.input_by.length;
      return event.body.subtree?.length ?? event.body.all;
    default:
      return target.all;
  }
}
