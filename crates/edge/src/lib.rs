//! The stateless edge: WebSocket, SSE and HTTP for browsers and phones.
//!
//! Comes in: connections of anybody, and bytes that nobody has checked. Goes out: calls to the
//! nodes with the caller's own token, and committed events to everybody who may see them.
//! Never: a disk, a shard, an event that was not committed; and a connection's end is never
//! turned into a signal.
//!
//! The way of an event: `follow` (the room's upstream) → `room` (memory, and whom to wake) →
//! `board` or `sse` (who asks when it has room) → `wire` → the reader. Nothing is pushed:
//! docs/protocol/edge-internals.md says why.

mod attach;
mod backlog;
mod board;
mod config;
mod conn;
mod encode;
mod follow;
mod http;
mod hub;
mod identity;
mod lanes;
mod listener;
mod member;
mod metrics;
mod origin;
mod room;
mod shared;
mod socket;
mod sse;
#[cfg(test)]
mod testing;
mod ticket;
mod timers;
mod upgrade;
mod upstream;
mod wake;
mod wire;

pub use config::{EdgeConfig, EdgeError, EdgeTls, Timings};
pub use listener::Incoming;
pub use upstream::{RoomKey, Subscription, Upstream};

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_client::{Client, ClientConfig, TlsConfig};
use everwire_core::limits::EDGE_START_WAIT;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backlog::Memory;
use crate::hub::Hub;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::origin::Origins;
use crate::shared::Shared;
use crate::ticket::Tickets;

/// A running edge. Dropping it stops it at once; [`Edge::shutdown`] does it politely.
pub struct Edge {
    shared: Arc<Shared>,
    http_addr: SocketAddr,
    drain_window: Duration,
    /// Ends the taking of connections; what is open goes on.
    closing: CancellationToken,
}

impl Edge {
    /// Binds the address and serves. Waits a moment for a node, but serves without one too.
    pub async fn start(config: EdgeConfig) -> Result<Self, EdgeError> {
        let client = ClientConfig {
            addrs: config.nodes.clone(),
            token: Arc::clone(&config.edge_token),
            tls: config
                .node_tls_ca
                .clone()
                .map(|ca_pem| TlsConfig { ca_pem }),
            clock: Arc::clone(&config.clock),
            random: Arc::clone(&config.random),
            connector: None,
            deadline: config.timings.request_within,
            direct: true,
        };
        let client = Client::new(client).map_err(EdgeError::Nodes)?;
        let edge = Self::start_with(config, Arc::new(client.clone()))?;
        if timeout(EDGE_START_WAIT, client.find_nodes()).await.is_err() {
            tracing::warn!("no node has answered yet; the edge goes on trying");
        }
        Ok(edge)
    }

    /// The same with somebody else's nodes: a simulation's, or a test's. What `config` says about
    /// nodes is not used.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_with(config: EdgeConfig, upstream: Arc<dyn Upstream>) -> Result<Self, EdgeError> {
        let listener = Listener::bind(&config)?;
        Self::serve(config, upstream, listener)
    }

    /// The same in a network of somebody's own, too: what `config` says of the address that is
    /// served is what [`Edge::http_addr`] answers, and nothing else.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_in(
        config: EdgeConfig,
        upstream: Arc<dyn Upstream>,
        incoming: Incoming,
    ) -> Result<Self, EdgeError> {
        let listener = Listener::given(&config, incoming)?;
        Self::serve(config, upstream, listener)
    }

    fn serve(
        config: EdgeConfig,
        upstream: Arc<dyn Upstream>,
        listener: Listener,
    ) -> Result<Self, EdgeError> {
        let addr = config.http;
        let bound = listener.addr();
        let bound = bound.map_err(|source| EdgeError::Listen { addr, source })?;
        let http_addr = bound.unwrap_or(addr);
        let drain_window = config.drain_window;
        let shared = share(config, upstream);
        let closing = CancellationToken::new();
        let router = http::router(Arc::clone(&shared));
        shared.spawn(listener.run(Arc::clone(&shared), router, closing.clone()));
        tracing::info!(%http_addr, "the edge serves");
        Ok(Self {
            shared,
            http_addr,
            drain_window,
            closing,
        })
    }

    /// Where HTTP is served; the real port if port 0 was asked for.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Adds the edge's metrics to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    /// Whether it is worth coming here: not while the edge drains, and not while it reaches no
    /// node.
    pub fn ready(&self) -> bool {
        self.shared.ready()
    }

    /// Answers like [`Edge::ready`] for as long as somebody keeps it: for a health endpoint.
    pub fn ready_probe(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        Arc::new(move || shared.ready())
    }

    /// Stops: tells clients to move, spread over the drain window, says bye to those who stayed
    /// and to those who still come, then closes. Runs are not touched.
    pub async fn shutdown(self) {
        self.shared.drain(self.drain_window).await;
        self.closing.cancel();
        // Rooms end only with the edge, so the tasks are never all gone before this.
        let connections = async {
            while self.shared.metrics.connections.get() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let grace = self.shared.timings.close_within;
        let _ = timeout(grace, connections).await;
        self.shared.finishing.close();
        let _ = timeout(grace, self.shared.finishing.wait()).await;
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.closing.cancel();
        self.shared.stop.cancel();
    }
}

fn share(config: EdgeConfig, upstream: Arc<dyn Upstream>) -> Arc<Shared> {
    let metrics = Arc::new(Metrics::default());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let hub = Hub::new(
        upstream,
        Memory::new(config.rooms_bytes_max),
        config.timings,
        Arc::clone(&metrics),
        stop.clone(),
        tasks.clone(),
    );
    Arc::new(Shared {
        name: config.name,
        verifier: config.verifier,
        clock: config.clock,
        random: config.random,
        timings: config.timings,
        hub,
        metrics,
        tickets: Tickets::default(),
        origins: Origins::new(&config.origins, config.allow_loopback_origins),
        places: Mutex::default(),
        emptied: Notify::new(),
        next_place: AtomicU64::new(0),
        draining: AtomicBool::new(false),
        since: Instant::now(),
        tasks,
        finishing: TaskTracker::new(),
        stop,
    })
}
