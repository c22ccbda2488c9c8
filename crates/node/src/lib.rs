//! The storage node: gRPC services, identity, routing.
//!
//! Comes in: calls with a token and bytes that nobody has checked. Goes out: commands to the
//! shards, answers and streams of committed events to callers. Never: rocksdb, openraft, a
//! WebSocket; and a connection's end is never turned into a signal.

mod answer;
mod config;
mod connection;
mod context;
mod identity;
mod map;
mod metrics;
mod peers;
mod server;
mod service;

pub use config::{NodeConfig, NodeError, PeerOptions, Tls};
pub use everwire_shard::catches_panics;
#[cfg(feature = "test-poison")]
pub use everwire_shard::poison;
pub use everwire_shard::{
    Dial, Disk, Identity, Incoming, Io, Kept, OpenOptions, PeerTls, Peers, RULES_VERSION, Store,
    StoreError,
};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::DRAIN_WITHIN;
use everwire_proto::token::Verifier;
use everwire_shard::{Directory, ShardSet, ShardSetConfig};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::context::Context;
use crate::map::Maps;
use crate::metrics::Metrics;

/// How long a stopped node waits for the last task that holds its disk, and how often it looks.
const RELEASE_WITHIN: Duration = Duration::from_secs(10);
const RELEASE_AGAIN_AFTER: Duration = Duration::from_millis(2);
/// How often a starting node looks whether it is ready.
const READY_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Where a node stands: its disk, and the network it is in.
pub struct Place {
    /// What it answers when it is asked where it serves.
    pub grpc_addr: SocketAddr,
    /// The address that clients are told.
    pub addr: String,
    /// Connections of clients, TLS not yet begun.
    pub incoming: Incoming,
    /// What it answers when it is asked where its peers connect.
    pub peer_addr: Option<SocketAddr>,
    /// The other nodes; `None` for a cluster of one.
    pub peers: Option<Peers>,
    /// Where its store comes from.
    pub disk: Arc<dyn Disk>,
}

/// A running storage node.
pub struct Node {
    grpc_addr: SocketAddr,
    peer_addr: Option<SocketAddr>,
    context: Arc<Context>,
    health: HealthReporter,
    /// Cuts the connections that are left when the node's time to drain is over.
    cut: CancellationToken,
    /// Serves until the context drains and every connection has ended.
    server: JoinHandle<()>,
}

impl Node {
    /// Opens the data directory, waits until every shard has a leader and has recovered, and
    /// serves.
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        let started = Self::start_unless(config, std::future::pending()).await?;
        Ok(started.expect("nobody stops it"))
    }

    /// The same, given up when `stop` is ready: then there is no node. When there is none, for
    /// this reason or another, the data directory is closed again and the process may end.
    pub async fn start_unless(
        mut config: NodeConfig,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>, NodeError> {
        // What can be refused without touching the disk comes first.
        verifier(&config)?;
        let listener = listen(config.grpc, config.listener.take())?;
        let grpc_addr = local_addr(&listener, config.grpc)?;
        if config.tls.is_none() && !config.insecure && !grpc_addr.ip().is_loopback() {
            return Err(NodeError::InTheClear(grpc_addr));
        }
        let addr = config
            .advertise
            .clone()
            .unwrap_or_else(|| grpc_addr.to_string());
        let peers = config.peers.take();
        let peers = peers
            .map(|peers| peers::listen(peers, config.insecure))
            .transpose()?;
        let peer_addr = peers.as_ref().map(|(addr, _)| *addr);
        let mut options = OpenOptions::new(Arc::clone(&config.on_fatal));
        options.flush_every = config.flush_every;
        options.clock = Some(Arc::clone(&config.clock));
        let disk = Directory {
            path: config.data.clone(),
            options,
        };
        let place = Place {
            grpc_addr,
            addr,
            incoming: connection::accepted(listener),
            peer_addr,
            peers: peers.map(|(_, peers)| peers),
            disk: Arc::new(disk),
        };
        Self::start_in(config, place, stop).await
    }

    /// The same on a disk and in a network of somebody's own: the simulation's. What `config` says
    /// about addresses, peers and the data directory is not used.
    pub async fn start_in(
        config: NodeConfig,
        place: Place,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>, NodeError> {
        let verifier = verifier(&config)?;
        let tls = config.tls.as_ref().map(server::tls).transpose()?;
        let Place {
            grpc_addr,
            addr,
            incoming,
            peer_addr,
            peers,
            disk,
        } = place;

        // The disk, then the groups on it: nothing is served before all that was acked is back.
        let shards = ShardSet::start(
            disk,
            ShardSetConfig {
                addr,
                clock: Arc::clone(&config.clock),
                random: Arc::clone(&config.random),
                on_fatal: Arc::clone(&config.on_fatal),
                peers,
                cluster: config.cluster.clone(),
                shards: config.shards,
                kept: config.kept,
                scrub_every: config.scrub_every,
                rules: config.rules,
            },
            stop,
        );
        let Some(shards) = shards.await? else {
            return Ok(None);
        };
        let identity = shards.identity().clone();

        let context = Arc::new(Context {
            shards,
            clock: config.clock,
            verifier,
            maps: Maps::new(),
            metrics: Metrics::new(),
            draining: CancellationToken::new(),
            cluster: identity.cluster,
            node: identity.node,
            version: config.version,
        });
        tokio::spawn(map::refresh(Arc::downgrade(&context)));
        let cut = CancellationToken::new();
        let health = HealthReporter::new();
        let server = match server::serve(context.clone(), incoming, tls, &health, cut.clone()) {
            Ok(server) => server,
            Err(error) => {
                context.shards.shutdown().await;
                release(context).await;
                return Err(error);
            },
        };
        server::set_health(&health, ServingStatus::Serving).await;
        tracing::info!(addr = %grpc_addr, cluster = context.cluster, "node serves");
        Ok(Some(Self {
            grpc_addr,
            peer_addr,
            context,
            health,
            cut,
            server,
        }))
    }

    /// Where gRPC is served; the real port if port 0 was asked for.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where other nodes connect, if there may be any.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer_addr
    }

    /// Waits until the node is ready.
    pub async fn wait_ready(&self) {
        let ready = self.ready_probe();
        while !ready() {
            tokio::time::sleep(READY_AGAIN_AFTER).await;
        }
    }

    /// Adds the node's metrics to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.context
            .metrics
            .register(registry, Arc::downgrade(&self.context));
    }

    /// Whether the node can be counted on: it holds what it is to hold, each shard of it has a
    /// leader, and it is not draining.
    pub fn ready(&self) -> bool {
        (self.ready_probe())()
    }

    /// Answers like [`Node::ready`] for as long as somebody keeps it: for a health endpoint.
    pub fn ready_probe(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        // Weak: a probe that outlives the node must not keep its disk open.
        let (context, server) = (Arc::downgrade(&self.context), self.server.abort_handle());
        Arc::new(move || {
            context.upgrade().is_some_and(|context| {
                context.check_serving().is_ok() && !server.is_finished() && context.shards.ready()
            })
        })
    }

    /// Stops: tells health watchers, ends streams with DRAINING, lets calls in flight finish
    /// within a deadline, then stops and flushes the shards.
    pub async fn shutdown(self) {
        tracing::info!(addr = %self.grpc_addr, "node stops");
        server::set_health(&self.health, ServingStatus::NotServing).await;
        // While the node still serves: whoever writes here goes on through it to the new leaders.
        self.context.shards.hand_over().await;
        self.context.draining.cancel();
        // Health watchers never leave by themselves, and a stalled peer keeps its connection:
        // past the deadline both are cut.
        let mut server = self.server;
        if tokio::time::timeout(DRAIN_WITHIN, &mut server)
            .await
            .is_err()
        {
            self.cut.cancel();
            if let Err(error) = server.await {
                tracing::error!(%error, "the server did not end well");
            }
        }
        self.context.shards.shutdown().await;
        release(self.context).await;
    }
}

/// Lets go of the disk and waits until it is closed: whoever opens it next finds it free, and the
/// process may end. Tasks of connections that were just cut hold the context a moment longer, and
/// tasks of the shards the store.
async fn release(context: Arc<Context>) {
    let (closing, waits) = (context.shards.closing(), context.shards.waits());
    let until = Instant::now() + RELEASE_WITHIN;
    let mut held = Some(context);
    while !closing.is_done() {
        if Instant::now() >= until {
            tracing::warn!("something still holds the disk; it is closed when that ends");
            return;
        }
        match held.take().map(Arc::try_unwrap) {
            None => {},
            Some(Err(context)) => held = Some(context),
            // Closing the databases flushes them: never on a runtime worker.
            Some(Ok(context)) if waits => {
                if let Err(error) = tokio::task::spawn_blocking(|| drop(context)).await {
                    tracing::error!(%error, "the disk was not closed well");
                }
            },
            Some(Ok(context)) => drop(context),
        }
        tokio::time::sleep(RELEASE_AGAIN_AFTER).await;
    }
}

fn verifier(config: &NodeConfig) -> Result<Verifier, NodeError> {
    Verifier::new(&config.auth_key).map_err(|error| NodeError::AuthKey(error.to_string()))
}

fn listen(
    addr: SocketAddr,
    listener: Option<std::net::TcpListener>,
) -> Result<TcpListener, NodeError> {
    let bound = match listener {
        Some(listener) => Ok(listener),
        None => std::net::TcpListener::bind(addr),
    };
    bound
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        })
        .map_err(|source| NodeError::Listen { addr, source })
}

fn local_addr(listener: &TcpListener, addr: SocketAddr) -> Result<SocketAddr, NodeError> {
    listener
        .local_addr()
        .map_err(|source| NodeError::Listen { addr, source })
}
