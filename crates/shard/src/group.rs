//! One group, assembled: its Raft, its lanes, its feed, and the tasks that connect them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::limits::{APPLY_THREADS_MAX, ATTEMPT_WITHIN, HAND_OVER_WITHIN};
use everwire_core::{Clock, Code, Namespace, NodeId, Refusal, SessionName, ShardId, Slot};
use everwire_proto::internal_v1 as wire;
use everwire_store::{Store, StoreError};
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, LinearizableReadError, RaftError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::{Applier, ApplyThreads};
use crate::damage::Damages;
use crate::feed::{Budget, Feed};
use crate::lanes::Lanes;
use crate::leadership::{self, Leadership};
use crate::meters::Counts;
use crate::peer::{Beats, Forwards, Line, Links, PeerNetwork, change_refusal, refusal_from};
use crate::proposer::{Proposer, not_leader};
use crate::raft::config::config;
use crate::raft::log::Log;
use crate::raft::machine::{Alive, Machine, MarkerBound};
use crate::raft::types::{Peer, Raft};
use crate::reads::Reads;
use crate::set::{OnFatal, OpenError, ShardSetConfig};
use crate::support::Support;

/// How long a group of one voter may take to lead and to apply its log when it is opened: as
/// long as it takes to read and apply what was not flushed.
const OPEN_WITHIN: Duration = Duration::from_secs(120);
/// How long a read waits for the proof that the leader still leads.
const BARRIER_WITHIN: Duration = ATTEMPT_WITHIN;

/// What all groups of a node share.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) on_fatal: OnFatal,
    pub(crate) threads: ApplyThreads,
    pub(crate) budget: Arc<Budget>,
    pub(crate) reads: Reads,
    /// Taken when the node stops: what is left then belongs to whoever uses the store.
    pub(crate) alive: Mutex<Option<Alive>>,
    pub(crate) support: Arc<Support>,
    pub(crate) links: Arc<Links>,
    pub(crate) beats: Arc<Beats>,
    pub(crate) forwards: Arc<Forwards>,
    pub(crate) damages: Arc<Damages>,
    pub(crate) counts: Arc<Counts>,
}

impl Shared {
    /// For the groups on a store.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        config: &ShardSetConfig,
        links: Arc<Links>,
        counts: Arc<Counts>,
        alive: Alive,
    ) -> Result<Self, OpenError> {
        let identity = store.identity();
        let node = identity.node;
        let groups = usize::try_from(identity.shards).expect("32 bits fit");
        let threads = if store.waits() {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            ApplyThreads::start(threads.min(APPLY_THREADS_MAX).min(groups), groups + 1)
        } else {
            Ok(ApplyThreads::none())
        };
        let damages = Arc::new(Damages::new(identity));
        Ok(Self {
            reads: Reads::new(store.clone(), damages.clone()),
            damages,
            store,
            beats: Arc::new(Beats::new(links.clone(), config.clock.clone())),
            forwards: Arc::new(Forwards::new(links.clone())),
            links,
            counts,
            clock: config.clock.clone(),
            on_fatal: config.on_fatal.clone(),
            threads: threads.map_err(OpenError::Threads)?,
            budget: Arc::<Budget>::default(),
            support: Arc::new(Support::new(node, config.rules)),
            alive: Mutex::new(Some(alive)),
        })
    }

    fn alive(&self) -> Result<Alive, String> {
        let alive = self.alive.lock().expect("no panic happens under this lock");
        alive
            .clone()
            .ok_or_else(|| "the node is about to stop".to_owned())
    }

    /// No group is opened any more.
    pub(crate) fn release(&self) {
        drop(
            self.alive
                .lock()
                .expect("no panic happens under this lock")
                .take(),
        );
    }
}

/// A group's Raft, which goes on by itself until it is told to stop; dropping this tells it.
pub(crate) struct Running {
    group: u32,
    raft: Raft,
}

impl std::ops::Deref for Running {
    type Target = Raft;

    fn deref(&self) -> &Raft {
        &self.raft
    }
}

impl Running {
    /// The Raft, for whoever does not own it.
    pub(crate) fn raft(&self) -> Raft {
        self.raft.clone()
    }

    /// Stops it and waits. What was not acked may or may not be in the log.
    pub(crate) async fn stop(&self) {
        stop(self.group, self.raft.clone()).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(stop(self.group, self.raft.clone()));
        }
    }
}

async fn stop(group: u32, raft: Raft) {
    if let Err(error) = raft.shutdown().await {
        tracing::error!(group, %error, "a group's Raft did not end well");
    }
}

/// Starts a group's Raft on what its log and rows hold.
pub(crate) async fn start_raft(
    group: u32,
    shared: &Shared,
    applier: &Arc<Applier>,
    marker: Arc<MarkerBound>,
) -> Result<Running, OpenError> {
    check_purged(group, &shared.store, applier)?;
    let alive = shared
        .alive()
        .map_err(|reason| OpenError::group(group, reason))?;
    let threads = shared.threads.clone();
    let machine = Machine::new(applier.clone(), threads, marker, alive.clone());
    let log = Log::new(group, shared.store.clone(), alive);
    let network = PeerNetwork {
        group,
        waits: shared.store.waits(),
        links: shared.links.clone(),
        beats: shared.beats.clone(),
        damages: shared.damages.clone(),
        counts: shared.counts.clone(),
    };
    let node = shared.store.identity().node;
    let raft = Raft::new(node.0, config(), network, log, machine).await;
    let raft = raft.map_err(|error| OpenError::group(group, error))?;
    Ok(Running { group, raft })
}

/// Makes a group of these voters if its log is empty. The only voter leads at once.
pub(crate) async fn initialize(
    raft: &Raft,
    node: NodeId,
    voters: BTreeMap<u64, Peer>,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    if !voters.contains_key(&node.0) {
        return Ok(());
    }
    match raft.initialize(voters).await {
        // Somebody was faster: the log is not empty any more.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(text(&error)),
    }
}

/// Leads at once if this node is the only voter, and waits until its log is applied: it need
/// not wait for its own silence.
pub(crate) async fn lead_alone(raft: &Raft, node: NodeId) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    // From the group itself: its metrics may lag behind what was just made.
    let voters = raft.with_raft_state(|state| {
        let membership = state.membership_state.effective();
        membership.voter_ids().collect::<Vec<_>>()
    });
    let alone = voters.await.map_err(|error| text(&error))? == [node.0];
    if !alone {
        return Ok(());
    }
    let elected = raft.trigger().elect(false).await;
    elected.map_err(|error| text(&error))?;
    let wait = raft.wait(Some(OPEN_WITHIN));
    let led = wait.metrics(|metrics| metrics.current_leader.is_some(), "a leader");
    led.await.map_err(|error| text(&error))?;
    let recovered = raft.wait_for_recovery(Some(OPEN_WITHIN)).await;
    recovered.map_err(|error| text(&error))?;
    Ok(())
}

/// How far each member of a group is behind the log of this node, which leads it, in entries;
/// empty if it does not.
pub(crate) fn lags(raft: &Raft) -> Vec<(NodeId, u64)> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let last = metrics.last_log_index.unwrap_or_default();
    let progress = metrics.replication.iter().flatten();
    let lags = progress.map(|(node, matched)| {
        let matched = matched.as_ref().map_or(0, |id| id.index());
        (NodeId(*node), last.saturating_sub(matched))
    });
    lags.collect()
}

/// Proves that this node leads a group; the index that a read must see.
pub(crate) async fn read_index(group: u32, raft: &Raft) -> Result<u64, Refusal> {
    let read = raft.get_read_log_id(ReadPolicy::ReadIndex);
    match tokio::time::timeout(BARRIER_WITHIN, read).await {
        Ok(Ok((read, _applied))) => Ok(read.index()),
        Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
            Err(not_leader(forward))
        },
        Err(_) | Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
            let message = "no majority has confirmed the leader in time";
            Err(Refusal::new(Code::NoQuorum, message))
        },
        Ok(Err(RaftError::Fatal(error))) => {
            tracing::info!(group, %error, "a read found its group stopped");
            Err(Refusal::new(Code::Draining, "the shard has stopped"))
        },
    }
}

/// One shard of this node.
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    pub(crate) node: NodeId,
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
    pub(crate) links: Arc<Links>,
    /// Cleared for good when this replica is to be rebuilt: nobody is served from it any more.
    in_service: AtomicBool,
}

/// The tasks of one group.
pub(crate) struct Tasks {
    /// Ends when the lanes are closed and empty.
    pub(crate) proposer: JoinSet<()>,
    /// Ends at `stop`.
    pub(crate) watcher: JoinSet<()>,
    /// Ends the watcher.
    pub(crate) stop: CancellationToken,
}

impl Shard {
    /// Opens a group; makes it out of `voters` if its log is empty. A group of one voter leads
    /// and has applied its log when this returns; any other finds its leader in its own time.
    pub(crate) async fn open(
        id: ShardId,
        shared: &Shared,
        voters: Option<BTreeMap<u64, Peer>>,
        stop: CancellationToken,
    ) -> Result<(Arc<Self>, Tasks), OpenError> {
        let identity = shared.store.identity().clone();
        let feed = Arc::new(Feed::new(shared.budget.clone()));
        let applier = Applier::open(id.0, shared, feed.clone()).await?;
        let marker = Arc::new(MarkerBound::default());
        let raft = start_raft(id.0, shared, &applier, marker.clone()).await?;
        let failed = |reason: String| OpenError::group(id.0, reason);
        if let Some(voters) = voters {
            initialize(&raft, identity.node, voters)
                .await
                .map_err(failed)?;
        }
        lead_alone(&raft, identity.node).await.map_err(failed)?;
        let (links, counts) = (shared.links.clone(), shared.counts.clone());
        let leadership = Arc::new(Leadership::new(id.0, identity.node, links, counts));
        leadership.update(&raft);
        let shard = Arc::new(Self {
            id,
            node: identity.node,
            shards: identity.shards,
            timeline: identity.timeline,
            raft,
            lanes: Arc::default(),
            feed,
            reads: shared.reads.clone(),
            leadership,
            applier,
            marker,
            links: shared.links.clone(),
            in_service: AtomicBool::new(true),
        });
        let tasks = shard.start(shared, stop);
        Ok((shard, tasks))
    }

    fn start(&self, shared: &Shared, stop: CancellationToken) -> Tasks {
        let mut proposer = JoinSet::new();
        proposer.spawn(
            Proposer {
                raft: self.raft.raft(),
                lanes: self.lanes.clone(),
                applier: self.applier.clone(),
                clock: shared.clock.clone(),
                timeline: self.timeline,
            }
            .run(),
        );
        let mut watcher = JoinSet::new();
        watcher.spawn(leadership::watch(
            self.raft.raft(),
            self.leadership.clone(),
            self.feed.clone(),
            self.applier.clone(),
            stop.clone(),
        ));
        Tasks {
            proposer,
            watcher,
            stop,
        }
    }

    /// Whether readers and writers are served from this replica.
    pub(crate) fn is_in_service(&self) -> bool {
        self.in_service.load(Ordering::SeqCst)
    }

    /// Serves nobody any more; its Raft goes on.
    pub(crate) fn take_out_of_service(&self, refusal: &Refusal) {
        self.in_service.store(false, Ordering::SeqCst);
        self.feed.close(refusal);
        self.lanes.close(refusal.clone());
    }

    /// Whether a session belongs to this shard.
    pub(crate) fn holds(&self, namespace: &Namespace, session: &SessionName) -> bool {
        ShardId::holding(Slot::of(namespace, session), self.shards) == self.id
    }

    /// Waits until this node has applied everything that was committed before this call, as the
    /// leader knows it. NOT_LEADER, NO_QUORUM.
    pub(crate) async fn barrier(&self) -> Result<(), Refusal> {
        let index = if self.leadership.leads() {
            if self.leadership.leader().is_none() {
                let message = "no majority has heard the leader for a while";
                return Err(Refusal::new(Code::NoQuorum, message));
            }
            self.read_index().await?
        } else {
            self.ask_read_index().await?
        };
        let wait = self.raft.wait(Some(BARRIER_WITHIN));
        let applied = wait
            .applied_index_at_least(Some(index), "a read index")
            .await;
        applied.map(|_metrics| ()).map_err(|error| {
            tracing::debug!(shard = %self.id, %error, "a read waited in vain");
            Refusal::new(Code::Stale, "this replica has not caught up in time")
        })
    }

    /// Proves that this node leads; the index that a read must see.
    pub(crate) async fn read_index(&self) -> Result<u64, Refusal> {
        read_index(self.id.0, &self.raft).await
    }

    async fn ask_read_index(&self) -> Result<u64, Refusal> {
        let unknown = || self.leadership.not_leader();
        let leader = self.leadership.leader().ok_or_else(unknown)?;
        let mut client = self
            .links
            .client(leader.0, Line::Beat)
            .ok_or_else(unknown)?;
        let request = wire::ReadIndexRequest { group: self.id.0 };
        let asked = tokio::time::timeout(BARRIER_WITHIN, client.read_index(request)).await;
        let silent = |_elapsed| Refusal::new(Code::NoQuorum, "the leader gave no read index");
        let response = asked.map_err(silent)?;
        let response = response
            .map_err(|status| change_refusal(&status))?
            .into_inner();
        refusal_from(response.refusal)?;
        Ok(response.index)
    }

    /// The voter that could lead next: the one that asked for, else whoever has most of the log.
    fn successor(&self, wanted: Option<NodeId>) -> Option<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters = metrics.membership_config.membership().voter_ids();
        let others = voters.filter(|voter| *voter != self.node.0);
        if let Some(wanted) = wanted {
            return others
                .into_iter()
                .find(|voter| *voter == wanted.0)
                .map(NodeId);
        }
        let progress = metrics.replication.as_ref()?;
        let alive = |voter: &u64| {
            let silent = self.links.silent_for(*voter);
            silent.is_some_and(|silent| silent < Duration::from_secs(1))
        };
        let matched = |voter: &u64| progress.get(voter).and_then(|matched| *matched);
        others.filter(alive).max_by_key(matched).map(NodeId)
    }

    /// How far a follower is behind the leader's log, in entries; `None` if this node does not
    /// lead or knows nothing of it.
    pub(crate) fn lag_of(&self, node: NodeId) -> Option<u64> {
        let lags = lags(&self.raft);
        let found = lags.into_iter().find(|(follower, _)| *follower == node);
        found.map(|(_, lag)| lag)
    }

    /// How far every other member is behind; empty if this node does not lead.
    pub(crate) fn lags(&self) -> Vec<(NodeId, u64)> {
        let mut lags = lags(&self.raft);
        lags.retain(|(node, _)| *node != self.node);
        lags
    }

    /// Hands the leadership over and waits until the other leads. Answers who leads then.
    pub(crate) async fn hand_over(&self, to: Option<NodeId>) -> Result<NodeId, Refusal> {
        if !self.leadership.leads() {
            return Err(self.leadership.not_leader());
        }
        if to == Some(self.node) {
            return Ok(self.node);
        }
        let nobody = || Refusal::new(Code::WrongState, "no other voter can lead the shard now");
        let to = self.successor(to).ok_or_else(nobody)?;
        let asked = self.raft.trigger().transfer_leader(to.0).await;
        asked.map_err(|error| {
            tracing::warn!(shard = %self.id, %error, "the leadership could not be handed over");
            Refusal::new(Code::Draining, "the shard has stopped")
        })?;
        let wait = self.raft.wait(Some(HAND_OVER_WITHIN));
        let node = self.node.0;
        let other = move |metrics: &openraft::RaftMetrics<_>| {
            let leader: Option<u64> = metrics.current_leader;
            leader.is_some_and(|leader| leader != node)
        };
        let led = wait.metrics(other, "another leader").await;
        let led = led.map_err(|_late| {
            Refusal::new(
                Code::NoQuorum,
                "the other node has not taken the leadership in time",
            )
        })?;
        self.leadership.handed_over();
        self.leadership.update(&self.raft);
        led.current_leader.map(NodeId).ok_or_else(nobody)
    }
}

/// The log must go on where the rows stand. Rows from before the purge (a drive that lied about a
/// sync, an event DB that was lost or put back) can only be fetched from a leader elsewhere: they
/// are damaged.
fn check_purged(group: u32, store: &Arc<dyn Store>, applier: &Applier) -> Result<(), OpenError> {
    let purged = store.log_state(group)?.purged.map(|purged| purged.index);
    let applied = applier.standing().position.map(|applied| applied.index);
    if purged <= applied {
        return Ok(());
    }
    let what = format!("the log is purged up to {purged:?}, the rows stand at {applied:?} only");
    Err(StoreError::DamagedRows { group, what }.into())
}
