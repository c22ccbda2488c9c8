//! One group, assembled: its Raft, its lanes, its feed, and the tasks that connect them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::{Clock, Code, NodeId, Refusal, ShardId};
use everwire_store::Store;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::{Applier, ApplyThreads};
use crate::feed::{Budget, Feed};
use crate::lanes::Lanes;
use crate::leadership::{self, Leadership};
use crate::proposer::{Proposer, not_leader};
use crate::raft::config::config;
use crate::raft::log::Log;
use crate::raft::machine::{Alive, Machine, MarkerBound};
use crate::raft::network::NoPeers;
use crate::raft::types::{Peer, Raft};
use crate::reads::Reads;
use crate::set::{OnFatal, OpenError};

/// How long a group may take to find a leader and to apply its log when it is opened. A group
/// of one voter needs as long as it takes to read and apply what was not flushed.
const OPEN_WITHIN: Duration = Duration::from_secs(120);
/// How long a read waits for the proof that this node still leads.
const BARRIER_WITHIN: Duration = Duration::from_secs(5);

/// What all groups of a node share.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) addr: String,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) on_fatal: OnFatal,
    pub(crate) threads: ApplyThreads,
    pub(crate) budget: Arc<Budget>,
    pub(crate) reads: Reads,
    pub(crate) stop: CancellationToken,
    pub(crate) alive: Alive,
}

/// A group's Raft, which goes on by itself until it is told to stop; dropping this tells it.
pub(crate) struct Running {
    id: ShardId,
    raft: Raft,
}

impl std::ops::Deref for Running {
    type Target = Raft;

    fn deref(&self) -> &Raft {
        &self.raft
    }
}

impl Running {
    /// Stops it and waits. What was not acked may or may not be in the log.
    pub(crate) async fn stop(&self) {
        stop(self.id, self.raft.clone()).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(stop(self.id, self.raft.clone()));
        }
    }
}

async fn stop(id: ShardId, raft: Raft) {
    if let Err(error) = raft.shutdown().await {
        tracing::error!(shard = %id, %error, "a group's Raft did not end well");
    }
}

/// One shard of this node.
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    /// Shards of the cluster.
    pub(crate) shards: u32,
    /// The cluster's timeline: half of every session epoch.
    pub(crate) timeline: u32,
    pub(crate) raft: Running,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) reads: Reads,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) applier: Arc<Applier>,
    pub(crate) marker: Arc<MarkerBound>,
}

/// The tasks of one group.
pub(crate) struct Tasks {
    /// Ends when the lanes are closed and empty.
    pub(crate) proposer: JoinSet<()>,
    /// Ends at `stop`.
    pub(crate) watcher: JoinSet<()>,
}

impl Shard {
    /// Opens a group. Returns when it has a leader and has applied everything that was acked
    /// before: no read goes back in time (engine trap 10).
    pub(crate) async fn open(
        id: ShardId,
        shared: &Shared,
    ) -> Result<(Arc<Self>, Tasks), OpenError> {
        let identity = shared.store.identity().clone();
        let feed = Arc::new(Feed::new(shared.budget.clone()));
        let applier = {
            let (store, feed) = (shared.store.clone(), feed.clone());
            let on_fatal = shared.on_fatal.clone();
            let open = move || Applier::open(id.0, store, feed, on_fatal);
            let opened = tokio::task::spawn_blocking(open).await;
            Arc::new(opened.map_err(|error| OpenError::group(id, error))??)
        };
        check_purged(id, &shared.store, &applier)?;
        let marker = Arc::new(MarkerBound::default());
        let machine = Machine::new(
            applier.clone(),
            shared.threads.clone(),
            marker.clone(),
            shared.alive.clone(),
        );
        let log = Log::new(id.0, shared.store.clone(), shared.alive.clone());
        let raft = Raft::new(identity.node.0, config(), NoPeers, log, machine).await;
        let raft = raft.map_err(|error| OpenError::group(id, error))?;
        let raft = Running { id, raft };
        let leadership = Arc::new(Leadership::new(id, identity.node));
        let led = lead(&raft, identity.node, &shared.addr).await;
        led.map_err(|error| OpenError::group(id, error))?;
        leadership.update(&raft);
        let shard = Arc::new(Self {
            id,
            shards: identity.shards,
            timeline: identity.timeline,
            raft,
            lanes: Arc::default(),
            feed,
            reads: shared.reads.clone(),
            leadership,
            applier,
            marker,
        });
        let tasks = shard.start(shared);
        Ok((shard, tasks))
    }

    fn start(&self, shared: &Shared) -> Tasks {
        let mut proposer = JoinSet::new();
        proposer.spawn(
            Proposer {
                raft: self.raft.raft.clone(),
                lanes: self.lanes.clone(),
                applier: self.applier.clone(),
                clock: shared.clock.clone(),
                timeline: self.timeline,
            }
            .run(),
        );
        let mut watcher = JoinSet::new();
        watcher.spawn(leadership::watch(
            self.raft.raft.clone(),
            self.leadership.clone(),
            self.feed.clone(),
            self.applier.clone(),
            shared.stop.clone(),
        ));
        Tasks { proposer, watcher }
    }

    /// Proves that this node leads, and waits until it has applied everything committed before
    /// this call. NOT_LEADER, NO_QUORUM.
    pub(crate) async fn barrier(&self) -> Result<(), Refusal> {
        let read = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(BARRIER_WITHIN, read).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(not_leader(forward))
            },
            Err(_) | Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
                let message = "no majority has confirmed the leader in time";
                Err(Refusal::new(Code::NoQuorum, message))
            },
            Ok(Err(RaftError::Fatal(error))) => {
                tracing::info!(shard = %self.id, %error, "a read found its group stopped");
                Err(Refusal::new(Code::Draining, "the shard has stopped"))
            },
        }
    }
}

/// The log must go on where the rows stand. Rows from before the purge (a drive that lied about a
/// sync, an event DB that was lost or put back) can only be fetched from a leader elsewhere.
fn check_purged(id: ShardId, store: &Arc<dyn Store>, applier: &Applier) -> Result<(), OpenError> {
    let purged = store.log_state(id.0)?.purged.map(|purged| purged.index);
    let applied = applier.standing().position.map(|applied| applied.index);
    if purged <= applied {
        return Ok(());
    }
    let reason = format!("its log is purged up to {purged:?}, its rows stand at {applied:?} only");
    Err(OpenError::group(id, reason))
}

/// Makes a group of one voter on an empty log; gets the group led and its log applied.
async fn lead(raft: &Raft, node: NodeId, addr: &str) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let initialized = raft.is_initialized().await.map_err(|error| text(&error))?;
    if !initialized {
        let addr = addr.to_owned();
        let members = BTreeMap::from([(
            node.0,
            Peer {
                addr,
                ..Peer::default()
            },
        )]);
        let made = raft.initialize(members).await;
        made.map_err(|error| text(&error))?;
    }
    // The only voter need not wait for its own silence.
    let alone = {
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().eq([node.0])
    };
    if alone {
        let elected = raft.trigger().elect(false).await;
        elected.map_err(|error| text(&error))?;
    }
    let wait = raft.wait(Some(OPEN_WITHIN));
    let led = wait.metrics(|metrics| metrics.current_leader.is_some(), "a leader");
    led.await.map_err(|error| text(&error))?;
    let recovered = raft.wait_for_recovery(Some(OPEN_WITHIN)).await;
    recovered.map_err(|error| text(&error))?;
    Ok(())
}
