//! Readers: a WebSocket at the edge for each session, and how long events took to come there.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use everwire_core::SessionName;
use everwire_core::event::{Body, Event};
use everwire_testkit::{Cluster, Server, Tab, tokens};
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::times::Window;

/// How long events that are under way at the end are waited for.
const LAST_WITHIN: Duration = Duration::from_millis(500);

/// What stamps count from.
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// A text that says when it was sent.
pub(crate) fn stamped(sent: Instant, filler: &str) -> String {
    let since = sent.duration_since(*BEGAN.get_or_init(|| sent));
    format!("{} {filler}", since.as_nanos())
}

/// When an event was sent, if its text says so.
fn sent_at(event: &Event) -> Option<Instant> {
    let Body::PartDelta { text, .. } = &event.body else {
        return None;
    };
    let (nanos, _) = text.split_once(' ')?;
    let since = Duration::from_nanos(nanos.parse().ok()?);
    Some(*BEGAN.get()? + since)
}

#[derive(Default)]
struct State {
    window: Option<Window>,
    times: Vec<Duration>,
}

/// The readers of one load.
pub(crate) struct Readers {
    state: Arc<Mutex<State>>,
    tasks: JoinSet<()>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readers {
    /// Nobody reads.
    pub(crate) fn none() -> Self {
        Self {
            state: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    /// A reader of each session.
    pub(crate) async fn attach(edge: &Server, cluster: &Cluster, sessions: &[SessionName]) -> Self {
        let mut readers = Self::none();
        let token = tokens::user(cluster.keys(), "reader");
        let attaching = sessions.iter();
        let attaching = attaching.map(|session| Tab::attached(&edge.http, &token, session, None));
        for tab in join_all(attaching).await {
            readers.tasks.spawn(read(tab, readers.state.clone()));
        }
        readers
    }

    /// From here on times count.
    pub(crate) fn measure_from(&self, window: Window) {
        locked(&self.state).window = Some(window);
    }

    /// Events that were counted so far.
    pub(crate) fn count(&self) -> usize {
        locked(&self.state).times.len()
    }

    /// The times; the readers leave.
    pub(crate) async fn end(mut self) -> Vec<Duration> {
        if !self.tasks.is_empty() {
            tokio::time::sleep(LAST_WITHIN).await;
        }
        self.tasks.shutdown().await;
        std::mem::take(&mut locked(&self.state).times)
    }
}

async fn read(mut tab: Tab, state: Arc<Mutex<State>>) {
    loop {
        let step = tab.step().await;
        step.expect("the edge stays");
        let now = Instant::now();
        let seen = std::mem::take(&mut tab.seen);
        tab.ranges.clear();
        let mut state = locked(&state);
        let Some(window) = state.window else { continue };
        let sent = seen.values().filter_map(sent_at);
        let counted = sent.filter(|sent| window.holds(*sent));
        state
            .times
            .extend(counted.map(|sent| now.duration_since(sent)));
    }
}
