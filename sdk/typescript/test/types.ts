// What must not compile. Never run: `types.test.mjs` asks the compiler, and a line that is marked
// here and compiles all the same is an error too.
import type { Client, Session, SessionEvent, StopTarget } from '../dist/index.js';

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
