//! The door of one shard: commands in, outcomes and subscriptions out.

use std::sync::Arc;

use everwire_core::{
    Code, Command, Cursor, Namespace, NodeId, Offset, Outcome, Refusal, RunId, SessionEpoch,
    SessionName, ShardId,
};
use everwire_rules::resolve::Answer;
use openraft::async_runtime::WatchReceiver;

use crate::far::FarReader;
use crate::group::Shard;
use crate::host::Host;
use crate::lanes::Pending;
use crate::local::LocalReader;
use crate::reads::{Listed, Page, RunInfo, SessionInfo};
use crate::run_watch::RunWatch;

/// A reader's wish: from where, in which session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// The tenant.
    pub namespace: Namespace,
    /// The session.
    pub session: SessionName,
    /// The last event seen; `None` for the earliest that is kept.
    pub cursor: Option<Cursor>,
    /// Answer only when this offset has been applied here.
    pub at_least: Option<Offset>,
}

/// The answer to an [`AttachRequest`].
#[derive(Debug)]
pub struct Attached {
    /// Where the reader stands; never [`Answer::Wait`].
    pub answer: Answer,
    /// The events from there on. `Some` exactly for [`Answer::Resumed`].
    pub subscription: Option<crate::subscription::Subscription>,
}

/// How one shard stands on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub id: ShardId,
    /// Its leader, if one is known.
    pub leader: Option<NodeId>,
    /// The nodes that hold it.
    pub replicas: Vec<NodeId>,
    /// The Raft term.
    pub term: u64,
    /// The rules that its state speaks; 0 while nobody has said so.
    pub rules: u32,
    /// The Raft index up to which this node has applied.
    pub applied: u64,
    /// The Raft index up to which the log is known to be committed.
    pub committed: u64,
    /// The Raft index up to which the log was purged; 0 when nothing was.
    pub purged: u64,
    /// Bytes that wait for the log in the people's lane.
    pub people_bytes: usize,
    /// Bytes that wait for the log in the agents' lane.
    pub agent_bytes: usize,
}

/// One shard of this node. Cheap to clone.
#[derive(Clone)]
pub struct ShardHandle {
    id: ShardId,
    /// `None`: this node does not hold it.
    local: Option<Arc<Shard>>,
    host: Arc<Host>,
}

impl ShardHandle {
    pub(crate) fn new(id: ShardId, local: Option<Arc<Shard>>, host: Arc<Host>) -> Self {
        Self { id, local, host }
    }

    /// Another node's reader.
    fn far(&self) -> FarReader<'_> {
        FarReader::of(&self.host, self.id)
    }

    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Whether this node holds the shard.
    pub fn is_held(&self) -> bool {
        self.local.is_some()
    }

    /// NOT_LEADER, with the address of a node that holds it, if this one does not.
    pub fn check_held(&self) -> Result<(), Refusal> {
        match self.local {
            Some(_) => Ok(()),
            None => {
                let message = "this node does not hold the session's shard";
                Err(self.host.elsewhere(self.id, message))
            },
        }
    }

    /// Queues a command in its lane, here or at the node that leads the shard. The order of
    /// calls is the order in the log, within a lane, for as long as the leader stays.
    ///
    /// Refused before the log: OVERLOADED when the lane is full, NOT_LEADER when no leader is
    /// known, DRAINING during shutdown. Bounded by bytes, never waits.
    pub fn submit(&self, command: Command) -> Result<Pending, Refusal> {
        if let Some(shard) = &self.local
            && shard.leadership.leads()
        {
            self.host.check_space(&command)?;
            return shard.admit(command);
        }
        if self.host.door.is_draining() {
            let message = "the node is about to stop";
            return Err(Refusal::new(Code::Draining, message));
        }
        let leader = self.host.leader_of(self.id);
        let leader = leader.filter(|leader| *leader != self.host.identity.node);
        let leader = leader.ok_or_else(|| match &self.local {
            Some(shard) => shard.leadership.not_leader(),
            None => {
                let message = "this node does not hold the session's shard, and knows no leader";
                self.host.elsewhere(self.id, message)
            },
        })?;
        self.host
            .shared
            .forwards
            .submit(leader.0, self.id, &command)
    }

    /// Submits a command and waits for its outcome. A refusal by the rules is
    /// `Ok(Outcome::Refused)`; `Err` means that the outcome is not known here, see [`Pending`].
    /// If the future is dropped, a command that was queued goes its way all the same.
    pub async fn propose(&self, command: Command) -> Result<Outcome, Refusal> {
        self.submit(command)?.await
    }

    /// Answers where a reader stands and opens its subscription. NOT_LEADER, NO_QUORUM, STALE,
    /// DRAINING, INTERNAL.
    ///
    /// This and every other read is answered from this node's replica, or, if it holds none, from
    /// another node's, one hop away.
    pub async fn attach(&self, request: AttachRequest) -> Result<Attached, Refusal> {
        match &self.local {
            Some(shard) => LocalReader::of(shard).attach(request).await,
            None => self.far().attach(request).await,
        }
    }

    /// One page of committed events from `from` on (0 and 1: from the earliest), at most
    /// `limit` (0: as many as fit [`READ_BYTES_MAX`](everwire_core::limits::READ_BYTES_MAX)).
    /// UNKNOWN_SESSION; GONE for another `epoch`, below the trim point or above the tail.
    pub async fn read(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        epoch: Option<SessionEpoch>,
        from: Offset,
        limit: usize,
    ) -> Result<Page, Refusal> {
        match &self.local {
            Some(shard) => {
                let reader = LocalReader::of(shard);
                reader.read(namespace, session, epoch, from, limit).await
            },
            None => {
                self.far()
                    .read(namespace, session, epoch, from, limit)
                    .await
            },
        }
    }

    /// A session as it stands. UNKNOWN_SESSION.
    pub async fn show(
        &self,
        namespace: &Namespace,
        session: &SessionName,
    ) -> Result<SessionInfo, Refusal> {
        match &self.local {
            Some(shard) => LocalReader::of(shard).show(namespace, session).await,
            None => self.far().show(namespace, session).await,
        }
    }

    /// Sessions of this shard whose names begin with `prefix`, in the shard's own order, after
    /// the session `after`, at most `limit`.
    pub async fn list(
        &self,
        namespace: &Namespace,
        prefix: &str,
        after: Option<&SessionName>,
        limit: usize,
    ) -> Result<Vec<Listed>, Refusal> {
        match &self.local {
            Some(shard) => {
                let reader = LocalReader::of(shard);
                reader.list(namespace, prefix, after, limit).await
            },
            None => self.far().list(namespace, prefix, after, limit).await,
        }
    }

    /// A run as it stands. UNKNOWN_SESSION, UNKNOWN_RUN.
    pub async fn run(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        run: &RunId,
    ) -> Result<RunInfo, Refusal> {
        match &self.local {
            Some(shard) => LocalReader::of(shard).run(namespace, session, run).await,
            None => self.far().run(namespace, session, run).await,
        }
    }

    /// Watches a run for its end or a new writer, from now on. UNKNOWN_SESSION.
    pub async fn watch_run(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        run: &RunId,
    ) -> Result<RunWatch, Refusal> {
        match &self.local {
            Some(shard) => {
                let reader = LocalReader::of(shard);
                reader.watch_run(namespace, session, run).await
            },
            None => self.far().watch_run(namespace, session, run).await,
        }
    }

    /// How the shard stands, as far as this node knows.
    pub fn status(&self) -> ShardStatus {
        match &self.local {
            Some(shard) => status(shard),
            None => self.reported(),
        }
    }

    /// How far the other members are behind the leader's log, in entries, as the leader knows, or
    /// said last. Empty while nobody has said so.
    pub fn followers(&self) -> Vec<(NodeId, u64)> {
        if let Some(shard) = &self.local
            && shard.leadership.leads()
        {
            return shard.lags();
        }
        let Some(leader) = self.host.leader_of(self.id) else {
            return Vec::new();
        };
        let report = self.host.report_of(leader).unwrap_or_default();
        let mut replicas = report.replicas.into_iter();
        let said = replicas.find(|replica| replica.group == self.id.0);
        let followers = said.map(|replica| replica.followers).unwrap_or_default();
        let followers = followers.into_iter();
        followers
            .map(|follower| (NodeId(follower.node), follower.lag))
            .collect()
    }

    /// How it stands elsewhere, as its holders said last.
    fn reported(&self) -> ShardStatus {
        let topology = self.host.meta.topology();
        let placement = topology.placement(self.id).cloned().unwrap_or_default();
        let reports = placement
            .replicas
            .iter()
            .filter_map(|node| self.host.report_of(*node));
        let replicas = reports.flat_map(|report| report.replicas);
        let newest = replicas
            .filter(|replica| replica.group == self.id.0)
            .max_by_key(|replica| (replica.term, replica.applied));
        let newest = newest.unwrap_or_default();
        ShardStatus {
            id: self.id,
            leader: (newest.leader != 0).then_some(NodeId(newest.leader)),
            replicas: placement.replicas,
            term: newest.term,
            applied: newest.applied,
            committed: newest.committed,
            rules: newest.rules,
            ..ShardStatus::default()
        }
    }
}

/// How a shard stands on this node, from memory.
fn status(shard: &Shard) -> ShardStatus {
    let metrics = shard.raft.metrics();
    let metrics = metrics.borrow_watched();
    let index = |id: Option<crate::raft::types::LogId>| id.map_or(0, |id| id.index());
    let members = metrics.membership_config.nodes();
    let (people_bytes, agent_bytes) = shard.lanes.queued_bytes();
    ShardStatus {
        id: shard.id,
        leader: shard.leadership.leader(),
        replicas: members.map(|(node, _)| NodeId(*node)).collect(),
        term: metrics.current_term,
        rules: shard.applier.rules_version(),
        applied: index(metrics.last_applied),
        committed: index(metrics.local_committed),
        purged: index(metrics.purged),
        people_bytes,
        agent_bytes,
    }
}
