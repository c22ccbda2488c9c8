//! Who waits for the end of a run: an agent that is silent hears of a stop here, at once.
//!
//! The apply thread touches; a watcher looks the run up and decides. A touch says only that
//! something happened, so none can be lost between two looks: a watch is made first, then the
//! run is looked up. A watch that has ended is made anew, and the run looked up again: what
//! happened between the two is not told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use everwire_core::row::SessionKey;
use everwire_core::{Event, Kind, RunId};
use tokio::sync::watch;

use crate::far::FarWatch;

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
        RunWatch(Place::Here(HereWatch {
            touched: Some(touched),
            watches: Arc::clone(self),
            key: (session, run),
        }))
    }

    /// Wakes whoever watches a run that was claimed, was suspended, was orphaned or ended by these events.
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

    /// Ends all watches of a session that was deleted.
    pub(crate) fn erased(&self, session: SessionKey) {
        self.lock().retain(|(other, _), _| *other != session);
    }

    /// Ends all watches: nothing more is heard here.
    pub(crate) fn end(&self) {
        self.lock().clear();
    }
}

/// Whether a run's writer may have lost it by an event of this kind.
fn changes_hands(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::RunClaimed
            | Kind::RunOrphaned
            | Kind::RunSuspended
            | Kind::RunCompleted
            | Kind::RunFailed
            | Kind::RunCancelled
    )
}

/// What a watcher hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The run was claimed, was suspended, was orphaned or ended, or is watched from now on: look it up.
    Touched,
    /// This watch hears nothing more: the session was deleted, or whoever told left its service.
    /// Make it anew, then look the run up.
    Ended,
}

/// Waits for the end of a run. Dropping it ends the watch and nothing else.
#[derive(Debug)]
pub struct RunWatch(Place);

#[derive(Debug)]
enum Place {
    Here(HereWatch),
    There(Box<FarWatch>),
}

/// A watch of a run whose shard is here.
struct HereWatch {
    /// Always there until it is dropped.
    touched: Option<watch::Receiver<u64>>,
    watches: Arc<RunWatches>,
    key: (SessionKey, RunId),
}

impl RunWatch {
    /// A watch that another node keeps.
    pub(crate) fn far(watch: FarWatch) -> Self {
        Self(Place::There(Box::new(watch)))
    }

    /// What happened since the watch was made, or since the last time. Cancel-safe; not called
    /// again once it has ended.
    pub async fn heard(&mut self) -> Heard {
        match &mut self.0 {
            Place::Here(here) => here.heard().await,
            Place::There(there) => there.heard().await,
        }
    }
}

impl HereWatch {
    async fn heard(&mut self) -> Heard {
        let touched = self.touched.as_mut().expect("it is not dropped yet");
        match touched.changed().await {
            Ok(()) => Heard::Touched,
            Err(_) => Heard::Ended,
        }
    }
}

impl std::fmt::Debug for HereWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.key)
    }
}

impl Drop for HereWatch {
    fn drop(&mut self) {
        let mut runs = self.watches.lock();
        drop(self.touched.take());
        if runs
            .get(&self.key)
            .is_some_and(|touches| touches.receiver_count() == 0)
        {
            runs.remove(&self.key);
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
        assert_eq!(watch.heard().now_or_never(), None);
        watches.touched(&event("r1", Body::RunCompleted));
        assert_eq!(watch.heard().now_or_never(), Some(Heard::Touched));
        assert_eq!(watch.heard().now_or_never(), None);
    }

    #[test]
    fn a_watch_ends_with_its_session_and_with_the_service_and_is_made_anew() {
        let watches = Arc::new(RunWatches::default());
        let mut erased = watches.watch(session(1), run("r1"));
        let mut left = watches.watch(session(2), run("r1"));
        watches.touched(&event("r1", Body::RunCompleted));
        watches.erased(session(1));
        // What was touched before is told before the end.
        assert_eq!(erased.heard().now_or_never(), Some(Heard::Touched));
        assert_eq!(erased.heard().now_or_never(), Some(Heard::Ended));
        assert_eq!(left.heard().now_or_never(), None);
        watches.end();
        assert_eq!(left.heard().now_or_never(), Some(Heard::Ended));
        let mut again = watches.watch(session(1), run("r1"));
        drop((erased, left));
        assert_eq!(watches.lock().len(), 1, "another watch is not taken off");
        watches.touched(&event("r1", Body::RunCompleted));
        assert_eq!(again.heard().now_or_never(), Some(Heard::Touched));
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
