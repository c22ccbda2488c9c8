//! What all connections of an edge share, and the list of those that must be told when it stops.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::limits::{EDGE_DRAIN_MIN, EDGE_MOVE_GRACE, EDGE_MOVES_PER_SECOND};
use everwire_core::{Clock, Code, Random, Refusal};
use everwire_proto::token::{Bearer, Verifier};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Timings;
use crate::conn::Place;
use crate::hub::Hub;
use crate::identity::Identity;
use crate::lanes::Lanes;
use crate::metrics::Metrics;
use crate::origin::Origins;
use crate::ticket::Tickets;
use crate::wake::{Wake, locked};

/// Whole milliseconds, as frames carry them.
pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// What all connections share.
pub(crate) struct Shared {
    /// What this edge is called.
    pub(crate) name: String,
    /// Verifies tokens.
    pub(crate) verifier: Verifier,
    /// Tells when tokens end.
    pub(crate) clock: Arc<dyn Clock>,
    /// Mints what must not be guessed.
    pub(crate) random: Arc<dyn Random>,
    /// How long things take.
    pub(crate) timings: Timings,
    /// The rooms, and the nodes behind them.
    pub(crate) hub: Arc<Hub>,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// Tickets for event streams.
    pub(crate) tickets: Tickets,
    /// Which pages may come.
    pub(crate) origins: Origins,
    /// Sockets and event streams, to be told when the edge stops.
    pub(crate) places: Mutex<HashMap<u64, Arc<Wake>>>,
    /// Rings when the last of them has left.
    pub(crate) emptied: Notify,
    /// The number of the next place.
    pub(crate) next_place: AtomicU64,
    /// The edge stops: whoever still comes is sent away.
    pub(crate) draining: AtomicBool,
    /// When the edge started.
    pub(crate) since: Instant,
    /// Every task of the edge.
    pub(crate) tasks: TaskTracker,
    /// Requests that outlive their connection.
    pub(crate) finishing: TaskTracker,
    /// Ends every task of the edge.
    pub(crate) stop: CancellationToken,
}

impl Shared {
    /// Verifies a token.
    pub(crate) fn identify(&self, token: Bearer) -> Result<Identity, Refusal> {
        Identity::verify(&self.verifier, &*self.clock, token)
    }

    /// Whether it is worth coming here: not while the edge stops or reaches no node.
    pub(crate) fn ready(&self) -> bool {
        let heard = self.hub.upstream.heard_ago();
        let heard = heard.is_some_and(|ago| ago <= self.timings.ready_within);
        heard && !self.drains()
    }

    fn drains(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Refuses newcomers of an edge that has been alone for long: it does not know any more who
    /// may do what (RULES 38).
    pub(crate) fn check_heard(&self) -> Result<(), Refusal> {
        let heard = self.hub.upstream.heard_ago();
        if heard.unwrap_or_else(|| self.since.elapsed()) <= self.timings.unheard_max {
            return Ok(());
        }
        let message = "this edge has heard of no node for a while";
        Err(Refusal::new(Code::Stale, message))
    }

    /// A place for a socket.
    pub(crate) fn enter(self: &Arc<Self>) -> SocketPlace {
        self.enter_as(self.metrics.sockets.clone())
    }

    /// A place for an event stream.
    pub(crate) fn enter_stream(self: &Arc<Self>) -> SocketPlace {
        self.enter_as(self.metrics.streams.clone())
    }

    fn enter_as(self: &Arc<Self>, gauge: Gauge) -> SocketPlace {
        gauge.inc();
        let id = self.next_place.fetch_add(1, Ordering::Relaxed);
        let wake = Arc::new(Wake::default());
        locked(&self.places).insert(id, Arc::clone(&wake));
        if self.drains() {
            wake.order_bye();
        }
        SocketPlace {
            edge: Arc::clone(self),
            id,
            wake,
            gauge,
        }
    }

    /// Runs a task that ends with the edge.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(stop.run_until_cancelled_owned(task));
    }

    /// Carries out what was asked before its connection ended. It keeps the connection's place
    /// until then: whoever asks and leaves, again and again, must not fill the memory.
    pub(crate) fn finish(&self, lanes: Lanes, token: Bearer, place: Place) {
        let finishing = self.finishing.token();
        self.spawn(async move {
            lanes.finish(token).await;
            drop((finishing, place));
        });
    }

    /// Sends everybody away over `window`, or less if they are few: first half, each is told to
    /// move; second half, whoever stayed is told bye. Spread, so that they do not all knock at the
    /// next edge at once. Ends when nobody is left. Whoever comes from now on is told bye.
    pub(crate) async fn drain(&self, window: Duration) {
        self.draining.store(true, Ordering::SeqCst);
        let everybody: Vec<_> = locked(&self.places).values().cloned().collect();
        let Ok(count) = u32::try_from(everybody.len()) else {
            return;
        };
        if count == 0 {
            return;
        }
        let needed = Duration::from_secs(1) * count / EDGE_MOVES_PER_SECOND;
        let half = window.min(needed.max(EDGE_DRAIN_MIN)) / 2;
        // Whoever begins to move in time may end a little later: costs nothing if all have gone.
        let grace = window.saturating_sub(2 * half).min(EDGE_MOVE_GRACE);
        let start = Instant::now();
        for (wake, number) in everybody.iter().zip(0..count) {
            wake.order_moving(millis(half));
            self.metrics.moving.inc();
            sleep_until(start + half * number / count).await;
        }
        for (wake, number) in everybody.iter().zip(0..count) {
            if self
                .empty_before(start + half + grace + half * number / count)
                .await
            {
                return;
            }
            wake.order_bye();
        }
        for wake in locked(&self.places).values() {
            wake.order_bye();
        }
    }

    /// Waits until nobody is left, or until that time; answers whether nobody is.
    async fn empty_before(&self, until: Instant) -> bool {
        loop {
            let emptied = self.emptied.notified();
            if locked(&self.places).is_empty() {
                return true;
            }
            if timeout_at(until, emptied).await.is_err() {
                return false;
            }
        }
    }
}

/// One connection's entry in the list of those that must be told when the edge stops.
pub(crate) struct SocketPlace {
    edge: Arc<Shared>,
    id: u64,
    wake: Arc<Wake>,
    gauge: Gauge,
}

impl SocketPlace {
    /// The connection's bell.
    pub(crate) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }
}

impl Drop for SocketPlace {
    fn drop(&mut self) {
        let mut places = locked(&self.edge.places);
        places.remove(&self.id);
        if places.is_empty() {
            self.edge.emptied.notify_waiters();
        }
        drop(places);
        self.gauge.dec();
    }
}
