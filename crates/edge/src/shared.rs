//! What all connections of an edge share, and the list of those that must be told when it stops.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::{Clock, Random, Refusal};
use everwire_proto::token::{Bearer, Verifier};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep_until};
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
    /// The number of the next place.
    pub(crate) next_place: AtomicU64,
    /// The edge stops: whoever still comes is sent away.
    pub(crate) draining: AtomicBool,
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

    /// Whether the edge takes connections: not while it stops.
    pub(crate) fn takes_connections(&self) -> bool {
        !self.draining.load(Ordering::SeqCst)
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
        if !self.takes_connections() {
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

    /// Sends everybody away over `window`: first half, each is told to move; second half, whoever
    /// stayed is told bye. Spread, so that they do not all knock at the next edge at once.
    /// Ends when nobody is left.
    pub(crate) async fn drain(&self, window: Duration) {
        self.draining.store(true, Ordering::SeqCst);
        let everybody: Vec<_> = locked(&self.places).values().cloned().collect();
        let Ok(count) = u32::try_from(everybody.len()) else {
            return;
        };
        if count == 0 {
            return;
        }
        let start = Instant::now();
        let half = window / 2;
        for (wake, number) in everybody.iter().zip(0..count) {
            wake.order_moving(millis(half));
            sleep_until(start + half * number / count).await;
        }
        for (wake, number) in everybody.iter().zip(0..count) {
            sleep_until(start + half + half * number / count).await;
            if locked(&self.places).is_empty() {
                return;
            }
            wake.order_bye();
        }
        for wake in locked(&self.places).values() {
            wake.order_bye();
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
        locked(&self.edge.places).remove(&self.id);
        self.gauge.dec();
    }
}
