//! The shards of one node: its place in the cluster, its groups, the way to everybody else's.

use std::convert::Infallible;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use everwire_core::ids::META_GROUP;
use everwire_core::limits::DRAIN_WITHIN;
use everwire_core::topology::Topology;
use everwire_core::{Clock, Code, Namespace, NodeId, Random, Refusal, SessionName, ShardId, Slot};
use everwire_proto::internal_v1 as wire;
use everwire_store::{Closing, Identity, Store, StoreError};
use futures_util::future::join_all;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::entrance::{Entrance, opening};
use crate::formation::{self, Wish};
use crate::group::Shared;
use crate::handle::ShardHandle;
use crate::host::Host;
use crate::meta::Meta;
use crate::meters::{Meters, NodeReport};
use crate::peer::{GroupEntry, Peers, Phase};
use crate::purge::{self, Kept};
use crate::readiness;
use crate::steward;
use crate::support::unknown_rules;
use crate::trial::Trial;
use crate::wait::on_disk;

pub use everwire_store::OnFatal;

/// What the shards of a node need besides their disk.
pub struct ShardSetConfig {
    /// This node's address for clients, told to everybody through the topology.
    pub addr: String,
    /// Wall clock for stamps.
    pub clock: Arc<dyn Clock>,
    /// Mints what must be nobody else's.
    pub random: Arc<dyn Random>,
    /// Ends the process: called with the reason when going on could lose or invent data. It is
    /// expected not to return to a state in which this node still acks.
    pub on_fatal: OnFatal,
    /// The other nodes; `None` for a cluster of one.
    pub peers: Option<Peers>,
    /// The cluster that an empty disk must come to; `None` takes any.
    pub cluster: Option<String>,
    /// Shards of a new cluster.
    pub shards: u32,
    /// How much log is kept for members that lag or are away.
    pub kept: Kept,
    /// Once in so long everything that is held here is read and held against its checksums.
    pub scrub_every: Duration,
    /// The newest rules that this node knows: [`RULES_VERSION`](everwire_rules::RULES_VERSION),
    /// unless a test is to see what an older or a newer build does.
    pub rules: u32,
}

/// Where a node's store comes from.
pub trait Disk: Send + Sync + 'static {
    /// Whose directory this is; `None` while it is empty. Waits for the disk.
    fn identity(&self) -> Result<Option<Identity>, StoreError>;

    /// Opens it, or makes it if it is empty. Waits for the disk.
    fn open(&self, identity: Identity) -> Result<Arc<dyn Store>, StoreError>;

    /// Puts what is there aside, so that the node can begin anew. Waits for the disk.
    fn retire(&self) -> Result<(), StoreError>;

    /// Whether these calls wait for a device; see [`Store::waits`].
    fn waits(&self) -> bool {
        true
    }
}

/// A data directory on the real disk.
#[cfg(feature = "rocks")]
pub struct Directory {
    /// Where it is.
    pub path: std::path::PathBuf,
    /// How it is opened; whose it is, is added.
    pub options: everwire_store::OpenOptions,
}

#[cfg(feature = "rocks")]
impl Disk for Directory {
    fn identity(&self) -> Result<Option<Identity>, StoreError> {
        everwire_store::rocks::peek_identity(&self.path)
    }

    fn open(&self, identity: Identity) -> Result<Arc<dyn Store>, StoreError> {
        let mut options = self.options.clone();
        options.create = Some(identity);
        everwire_store::rocks::RocksStore::open(&self.path, options)
    }

    fn retire(&self) -> Result<(), StoreError> {
        everwire_store::rocks::retire(&self.path).map(|_aside| ())
    }
}

/// Why the shards of a node could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The disk said no.
    #[error("the store cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The threads that apply could not be started.
    #[error("the apply threads cannot be started: {0}")]
    Threads(std::io::Error),
    /// A Raft group did not start, or found no leader in time.
    #[error("shard {shard} did not start: {reason}")]
    Group {
        /// The shard.
        shard: ShardId,
        /// What happened.
        reason: String,
    },
    /// The metadata group did not start.
    #[error("the metadata group did not start: {reason}")]
    Meta {
        /// What happened.
        reason: String,
    },
    /// A group's state speaks rules that this build does not know.
    #[error("{}", unknown_rules(&group_name(*.group), *.version, *.known))]
    Rules {
        /// The shard, or `u32::MAX` for the metadata group.
        group: u32,
        /// What it speaks.
        version: u32,
        /// The newest that this build knows.
        known: u32,
    },
    /// The peer listener cannot be served.
    #[error("peers cannot be served: {0}")]
    Peers(String),
    /// The cluster does not take this node, or this node the cluster.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// Our mistake: something panicked.
    #[error("opening failed: {0}")]
    Panicked(String),
}

/// A group in a sentence.
pub(crate) fn group_name(group: u32) -> String {
    match group {
        META_GROUP => "the metadata group".to_owned(),
        shard => format!("shard {shard}"),
    }
}

impl OpenError {
    pub(crate) fn group(group: u32, reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string();
        match group {
            META_GROUP => Self::Meta { reason },
            shard => Self::Group {
                shard: ShardId(shard),
                reason,
            },
        }
    }

    /// The code to show for it.
    pub fn code(&self) -> Code {
        match self {
            Self::Store(StoreError::Newer { .. }) | Self::Rules { .. } => Code::UnsupportedVersion,
            Self::Store(StoreError::WrongCluster { .. }) => Code::WrongCluster,
            Self::Refused(refusal) => refusal.code,
            Self::Store(_)
            | Self::Threads(_)
            | Self::Group { .. }
            | Self::Meta { .. }
            | Self::Peers(_)
            | Self::Panicked(_) => Code::Internal,
        }
    }
}

/// The shards of one node.
pub struct ShardSet {
    host: Arc<Host>,
    /// Taken by the first shutdown.
    running: Mutex<Option<Running>>,
}

struct Running {
    duties: JoinSet<()>,
    meta: JoinSet<()>,
    peers: Option<JoinHandle<()>>,
    /// Ends the peer listener.
    peers_stop: DropGuard,
    /// Ends when nothing of openraft's uses the store any more.
    released: mpsc::Receiver<Infallible>,
}

/// A directory of another cluster is left alone.
fn check_cluster(wanted: Option<&str>, found: Option<&Identity>) -> Result<(), OpenError> {
    match (wanted, found) {
        (Some(wanted), Some(found)) if found.cluster != wanted => {
            let message = format!(
                "the data directory belongs to cluster {}, not to {wanted}",
                found.cluster
            );
            let refusal = Refusal::new(Code::WrongCluster, message);
            Err(OpenError::Refused(refusal))
        },
        _ => Ok(()),
    }
}

impl ShardSet {
    /// Finds this node's place in its cluster, opens its disk and starts what it holds. Returns
    /// when a cluster of one serves, and in any other as soon as this node takes part: its
    /// leaders are found in their own time, see [`ShardSet::ready`]. A node with an empty disk
    /// waits here until there is a cluster, or until `stop` is ready: then there is no node.
    ///
    /// When there is none, for this reason or another, the disk is closed again.
    pub async fn start(
        disk: Arc<dyn Disk>,
        config: ShardSetConfig,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>, OpenError> {
        let (mut config, mut peers) = (config, None);
        std::mem::swap(&mut config.peers, &mut peers);
        let entrance = Entrance::open(&config, peers)?;
        let door = entrance.door.clone();
        let trial = Arc::new(Trial::new(disk));
        // Boxed: it is long, and whoever waits for it would carry all of it.
        let going = Box::pin(Self::go_in(trial.clone(), config, entrance));
        let started = tokio::select! {
            started = going => started.map(Some),
            () = stop => Ok(None),
        };
        if !matches!(started, Ok(Some(_))) {
            door.set_store(None);
            drop(door);
            trial.closed().await;
        }
        started
    }

    async fn go_in(
        disk: Arc<dyn Disk>,
        config: ShardSetConfig,
        entrance: Entrance,
    ) -> Result<Self, OpenError> {
        let found = {
            let (waits, disk) = (disk.waits(), disk.clone());
            opening(waits, move || disk.identity()).await?
        };
        check_cluster(config.cluster.as_deref(), found.as_ref())?;
        let opened = match found {
            Some(identity) => entrance.come_back(disk.clone(), identity).await?,
            None => None,
        };
        let (store, formation) = match opened {
            Some(store) => (store, None),
            None => {
                let (identity, formation) = entrance
                    .find_place(config.cluster.clone(), config.shards, &config.random)
                    .await?;
                let waits = disk.waits();
                let store = opening(waits, move || disk.open(identity)).await?;
                (store, formation)
            },
        };
        Self::assemble(store, config, entrance, formation).await
    }

    /// The same on a store that is open already.
    pub async fn open(store: Arc<dyn Store>, config: ShardSetConfig) -> Result<Self, OpenError> {
        let (mut config, mut peers) = (config, None);
        std::mem::swap(&mut config.peers, &mut peers);
        let entrance = Entrance::open(&config, peers)?;
        Self::assemble(store, config, entrance, None).await
    }

    async fn assemble(
        store: Arc<dyn Store>,
        config: ShardSetConfig,
        entrance: Entrance,
        formation: Option<wire::Formation>,
    ) -> Result<Self, OpenError> {
        let identity = store.identity().clone();
        let about = entrance.door.about.clone();
        let formation = match (&entrance.wish, formation) {
            (None, _) => {
                let cluster = identity.cluster.clone();
                let alone = formation::alone(&about, cluster, identity.shards);
                // A cluster of one goes on as whoever it is.
                (identity.node == NodeId(1)).then_some(alone)
            },
            (Some(_), formation) => formation,
        };
        entrance.links.introduce(&identity.cluster, identity.node.0);
        entrance.door.set_phase(Phase::Member {
            cluster: identity.cluster.clone(),
            node: identity.node,
            formation: formation.clone(),
        });
        entrance.door.set_store(Some(store.clone()));
        let (alive, released) = mpsc::channel(1);
        let counts = entrance.door.counts.clone();
        let shared = Shared::new(store, &config, entrance.links.clone(), counts, alive)?;
        let _ = entrance.door.damages.set(shared.damages.clone());
        let _ = entrance.door.forwards.set(shared.forwards.clone());
        let stop = CancellationToken::new();
        let voters = formation.as_ref().map(formation::voters);
        let (meta, meta_tasks) = Meta::open(&shared, voters, stop.clone()).await?;
        if entrance.wish.is_some() {
            shared.damages.follow(meta.watch());
        }
        let entry = GroupEntry {
            raft: meta.raft.raft(),
            leadership: meta.leadership.clone(),
            applier: meta.applier.clone(),
            shard: None,
        };
        entrance.door.groups.insert(META_GROUP, entry);
        let _ = entrance.door.meta.set(meta.clone());
        let host = Arc::new(Host {
            shared,
            identity,
            about,
            door: entrance.door,
            meta,
            formation,
            shards: RwLock::default(),
            tasks: Mutex::default(),
            kept: config.kept,
            scrub_every: config.scrub_every,
            started: Instant::now(),
            reports: RwLock::default(),
            stop,
        });
        let set = Self {
            host,
            running: Mutex::new(Some(Running {
                duties: JoinSet::new(),
                meta: meta_tasks,
                peers: entrance.server,
                peers_stop: entrance.stop,
                released,
            })),
        };
        set.take_up(entrance.wish).await
    }

    /// Starts what a node does besides serving. If it cannot, all that was started is stopped.
    async fn take_up(self, wish: Option<Wish>) -> Result<Self, OpenError> {
        match steward::start(&self.host, wish).await {
            Ok(duties) => {
                if let Some(running) = &mut *self.running.lock().await {
                    running.duties = duties;
                }
                Ok(self)
            },
            Err(error) => {
                self.shutdown().await;
                Err(error)
            },
        }
    }

    /// Whose directory this is.
    pub fn identity(&self) -> &Identity {
        &self.host.identity
    }

    /// Whether dropping this waits for a device, as the store's calls do.
    pub fn waits(&self) -> bool {
        self.host.shared.store.waits()
    }

    /// The topology as this node knows it.
    pub fn topology(&self) -> Arc<Topology> {
        self.host.meta.topology()
    }

    /// Whether a node was heard lately.
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.host.is_alive(node, everwire_core::limits::DEAD_AFTER)
    }

    /// Whether this node holds what it is to hold: it votes in every shard that is placed on it,
    /// each has a leader, and nothing is left to take over from a node in whose place it came.
    pub fn ready(&self) -> bool {
        readiness::is_ready(&self.host)
    }

    /// Replicas of this node that were damaged or had diverged, and were rebuilt since the start.
    pub fn rebuilt(&self) -> u64 {
        self.host.shared.damages.rebuilt()
    }

    /// Calls to other nodes that were begun so far, by what the connection carries: `log`,
    /// `beat`, `bulk`, `forward`, `read`.
    pub fn peer_calls(&self) -> [(&'static str, u64); 5] {
        self.host.shared.links.calls()
    }

    /// Whether this node knows the cluster that it is in.
    pub fn is_member(&self) -> bool {
        let topology = self.host.meta.topology();
        topology.nodes.contains_key(&self.host.identity.node)
    }

    /// The newest rules that a node knows, if it has said so lately.
    pub fn rules_known(&self, node: NodeId) -> Option<u32> {
        self.host.shared.support.of(node)
    }

    /// The rules that the metadata group speaks.
    pub fn metadata_rules(&self) -> u32 {
        self.host.meta.applier.rules_version()
    }

    /// What this node counts of its groups.
    pub fn meters(&self) -> Meters {
        self.host.meters()
    }

    /// What a node said of itself last; `None`: it has said nothing lately.
    pub fn report(&self, node: NodeId) -> Option<NodeReport> {
        self.host.node_report(node)
    }

    /// The shard that holds a session.
    pub fn shard(&self, namespace: &Namespace, session: &SessionName) -> ShardHandle {
        let slot = Slot::of(namespace, session);
        self.handle(ShardId::holding(slot, self.host.identity.shards))
    }

    /// A shard by its number, whoever holds it.
    pub fn handle(&self, shard: ShardId) -> ShardHandle {
        ShardHandle::new(shard, self.host.local(shard), self.host.clone())
    }

    /// Every shard of the cluster, in the order of their ids.
    pub fn shards(&self) -> Vec<ShardHandle> {
        let all = (0..self.host.identity.shards).map(ShardId);
        all.map(|shard| self.handle(shard)).collect()
    }

    /// The leader of the metadata group.
    pub fn meta_leader(&self) -> Option<NodeId> {
        self.host.meta.leadership.leader()
    }

    /// Hands the leadership of a shard to a node, or to whichever is best, wherever it is now.
    /// Answers who leads then. NOT_LEADER, WRONG_STATE, NO_QUORUM.
    pub async fn transfer(&self, shard: ShardId, to: Option<NodeId>) -> Result<NodeId, Refusal> {
        steward::transfer(&self.host, shard, to).await
    }

    /// Moves everything that a node holds elsewhere, and then lets it go. Answers the version of
    /// the topology that says so. WRONG_STATE when there is no node to take it.
    pub async fn retire(&self, node: NodeId) -> Result<u64, Refusal> {
        let change = everwire_core::topology::Change::Retire { node };
        Ok(self.host.meta.change(change).await?.version)
    }

    /// Flushes the event DB and purges every shard's log behind it, now instead of in a while.
    pub async fn purge_logs(&self) -> Result<(), Refusal> {
        let failed = |reason: String| {
            tracing::error!(%reason, "the logs were not purged");
            Refusal::new(Code::Internal, "the logs were not purged")
        };
        self.flush().await.map_err(failed)?;
        for shard in self.host.hosted() {
            purge::purge(&purge::Purged::of(&self.host, &shard))
                .await
                .map_err(failed)?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), String> {
        let flushed = on_disk(&self.host.shared.store, |store| store.flush()).await;
        let flushed = flushed.map_err(|error| error.to_string())?;
        flushed.map_err(|error| error.to_string())
    }

    /// Tells when the disk is free for whoever opens it next, once this is dropped.
    pub fn closing(&self) -> Closing {
        self.host.shared.store.closing()
    }

    /// Hands over every leadership that another node can take. What is admitted meanwhile still
    /// goes its way. The first part of a planned stop.
    pub async fn hand_over(&self) {
        self.host.door.set_draining();
        steward::hand_over_all(&self.host).await;
    }

    /// Ends subscriptions with DRAINING, refuses new commands, waits for those admitted, stops
    /// every group and flushes, so that the next start is fast. Safe to call twice.
    pub async fn shutdown(&self) {
        let Some(mut running) = self.running.lock().await.take() else {
            return;
        };
        self.host.door.set_draining();
        self.close();
        let mut tasks = self.host.tasks.lock().await;
        let proposers = tasks.values_mut();
        let drained = join_all(proposers.map(|tasks| tasks.proposer.join_next()));
        if tokio::time::timeout(DRAIN_WITHIN, drained).await.is_err() {
            tracing::warn!("some admitted commands were not applied before the shutdown");
        }
        self.host.stop.cancel();
        // What a full disk did not take by now is in the log, or was never acked.
        self.host.shared.store.stop_waiting();
        for tasks in tasks.values_mut() {
            tasks.stop.cancel();
            tasks.watcher.join_next().await;
        }
        tasks.clear();
        drop(tasks);
        running.duties.shutdown().await;
        running.meta.shutdown().await;
        drop(running.peers_stop);
        if let Some(peers) = running.peers {
            // It only ends.
            let _ = peers.await;
        }
        let hosted = self.host.hosted();
        join_all(hosted.iter().map(|shard| shard.raft.stop())).await;
        self.host.meta.raft.stop().await;
        self.host.shared.release();
        let released = tokio::time::timeout(DRAIN_WITHIN, running.released.recv());
        if released.await.is_err() {
            tracing::warn!("something still uses the store after the shutdown");
        }
        if let Err(reason) = self.flush().await {
            tracing::error!(%reason, "the last flush failed; the log still has everything");
        }
    }

    fn close(&self) {
        let refusal = Refusal::new(Code::Draining, "the node is about to stop");
        for shard in self.host.hosted() {
            shard.lanes.close(refusal.clone());
            shard.feed.close(&refusal);
        }
    }
}

impl Drop for ShardSet {
    /// Like the end of the process: nothing is waited for. Whatever was acked is on disk.
    fn drop(&mut self) {
        if self.running.get_mut().take().is_none() {
            return;
        }
        self.host.stop.cancel();
        self.close();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        for shard in self.host.hosted() {
            runtime.spawn(async move { shard.raft.stop().await });
        }
        let meta = self.host.meta.clone();
        runtime.spawn(async move { meta.raft.stop().await });
    }
}
