//! Who waits for the end of a run: an agent that is silent hears of a stop here, at once.
//!
//! The apply thread touches; a watcher looks the run up and decides. A touch says only that
//! something happened, so none can be lost between two looks: a watch is made first, then the
//! run is looked up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use everwire_core::row::SessionKey;
use everwire_core::{Event, Kind, RunId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

type Touches = watch::Sender<u64>;

/// The watched runs of one shard. Invariant: each entry has a watcher.
#[derive(Default)]
pub(crate) struct RunWatches {
    runs: Mutex<HashMap<(SessionKey, RunId), Arc<Touches>>>,
}

impl RunWatches {
    fn lock(&self) -> MutexGuard<'_, HashMap<(SessionKey, RunId), Arc<Touches>>> {
        self.runs.lock().expect("no panic happens under this lock")
    }

    /// Watches a run from now on.
    pub(crate) fn watch(self: &Arc<Self>, session: SessionKey, run: RunId) -> RunWatch {
        let mut runs = self.lock();
        let touches = runs.entry((session, run.clone())).or_default();
        let touched = touches.subscribe();
        drop(runs);
        RunWatch {
            touched: Some(touched),
            watched: Watched::Here(Arc::clone(self), (session, run)),
        }
    }

    /// Wakes whoever watches a run that was claimed, was orphaned or ended by these events.
    pub(crate) fn touched(&self, events: &[(SessionKey, Arc<Event>)]) {
        let runs = self.lock();
        if runs.is_empty() {
            return;
        }
        for (session, event) in events {
            let stamp = event.run.as_ref().filter(|_| changes_hands(event.kind()));
            let touches = stamp.and_then(|stamp| runs.get(&(*session, stamp.run.clone())));
            if let Some(touches) = touches {
                touches.send_modify(|count| *count += 1);
            }
        }
    }

    /// Wakes whoever watches a run of a session that was deleted.
    pub(crate) fn erased(&self, session: SessionKey) {
        let runs = self.lock();
        for (_, touches) in runs.iter().filter(|((other, _), _)| *other == session) {
            touches.send_modify(|count| *count += 1);
        }
    }
}

/// Whether a run's writer may have lost it by an event of this kind.
fn changes_hands(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::RunClaimed
            | Kind::RunOrphaned
            | Kind::RunCompleted
            | Kind::RunFailed
            | Kind::RunCancelled
    )
}

/// Waits for the end of a run. Dropping it ends the watch and nothing else.
pub struct RunWatch {
    /// Always there until it is dropped.
    touched: Option<watch::Receiver<u64>>,
    watched: Watched,
}

/// Where a run is watched.
enum Watched {
    Here(Arc<RunWatches>, (SessionKey, RunId)),
    /// At another node, by this task.
    There(JoinHandle<()>),
}

impl RunWatch {
    /// A watch that a task keeps at other nodes.
    pub(crate) fn far(touched: watch::Receiver<u64>, task: JoinHandle<()>) -> Self {
        Self {
            touched: Some(touched),
            watched: Watched::There(task),
        }
    }

    /// Resolves when the run was claimed, was orphaned or ended, or its session was deleted, since the watch
    /// was made or since the last time. Look the run up to learn what happened. Cancel-safe.
    pub async fn changed(&mut self) {
        if let Some(touched) = &mut self.touched
            && touched.changed().await.is_ok()
        {
            return;
        }
        // The sender lives as long as its last watcher, and that is us; or the node is ending.
        std::future::pending::<()>().await;
    }
}

impl std::fmt::Debug for RunWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.watched {
            Watched::Here(_, key) => write!(f, "RunWatch({key:?})"),
            Watched::There(_) => write!(f, "RunWatch(elsewhere)"),
        }
    }
}

impl Drop for RunWatch {
    fn drop(&mut self) {
        let (watches, key) = match &self.watched {
            Watched::Here(watches, key) => (watches, key),
            Watched::There(task) => return task.abort(),
        };
        let mut runs = watches.lock();
        drop(self.touched.take());
        if runs
            .get(key)
            .is_some_and(|touches| touches.receiver_count() == 0)
        {
            runs.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::event::{Body, Codec, RunStamp, Visibility};
    use everwire_core::ids::{SessionNo, Slot};
    use everwire_core::{Author, Offset, ParticipantId, ParticipantKind, RunEpoch, Timestamp};
    use futures_util::FutureExt;

    fn session(number: u64) -> SessionKey {
        SessionKey {
            slot: Slot::new(7).unwrap(),
            session_no: SessionNo(number),
        }
    }

    fn run(name: &str) -> RunId {
        RunId::parse(name).unwrap()
    }

    fn event(run_name: &str, body: Body) -> [(SessionKey, Arc<Event>); 1] {
        let event = Event {
            offset: Offset::ZERO.next(),
            time: Timestamp(0),
            run: Some(RunStamp {
                run: run(run_name),
                run_epoch: RunEpoch::FIRST,
                seq: None,
            }),
            author: Author {
                participant: ParticipantId::parse("ann").unwrap(),
                kind: ParticipantKind::User,
            },
            parent: None,
            visibility: Visibility::All,
            format: String::new(),
            codec: Codec::Plain,
            body,
            raw: None,
        };
        [(session(1), Arc::new(event))]
    }

    #[test]
    fn a_watcher_hears_of_its_own_run_only() {
        let watches = Arc::new(RunWatches::default());
        let mut watch = watches.watch(session(1), run("r1"));
        watches.touched(&event("r2", Body::RunCompleted));
        let started = Body::RunStarted {
            input: None,
            parent: None,
            meta: None,
        };
        watches.touched(&event("r1", started));
        watches.erased(session(2));
        assert_eq!(watch.changed().now_or_never(), None);
        watches.touched(&event("r1", Body::RunCompleted));
        assert_eq!(watch.changed().now_or_never(), Some(()));
        assert_eq!(watch.changed().now_or_never(), None);
        watches.erased(session(1));
        assert_eq!(watch.changed().now_or_never(), Some(()));
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let watches = Arc::new(RunWatches::default());
        let one = watches.watch(session(1), run("r1"));
        let two = watches.watch(session(1), run("r1"));
        drop(one);
        assert_eq!(watches.lock().len(), 1);
        drop(two);
        assert_eq!(watches.lock().len(), 0);
    }
}
