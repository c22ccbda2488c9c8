//! What the calls answer: wire messages turned into words of `core`.

use std::time::Duration;

use everwire_core::command::SignalOutcome;
use everwire_core::event::SuspendReason;
use everwire_core::row::{Frozen, RunState};
use everwire_core::{
    Event, InputRef, NodeId, Offset, ParticipantId, RunEpoch, RunId, Seq, SessionEpoch,
    SessionName, ShardId, StepId, Timestamp,
};

/// Everything up to `seq` is on disk at a majority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The last acked seq; [`Seq::ZERO`] when nothing was sent.
    pub seq: Seq,
    /// Its offset.
    pub offset: Offset,
}

/// A dense stretch of acked output: seqs and offsets run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckRange {
    /// The first seq.
    pub first_seq: Seq,
    /// The last seq.
    pub last_seq: Seq,
    /// The offset of `first_seq`.
    pub first_offset: Offset,
    /// It had been committed by an earlier, unanswered attempt.
    pub duplicate: bool,
}

/// The answer to a start or a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunGrant {
    /// The session's history.
    pub session_epoch: SessionEpoch,
    /// The epoch to write under.
    pub run_epoch: RunEpoch,
    /// Where `run.started` or `run.claimed` stands.
    pub offset: Offset,
    /// For how long the writer may be silent; `None` from a server without leases.
    pub lease: Option<Duration>,
    /// An earlier attempt had been granted already.
    pub duplicate: bool,
}

/// The answer to an input or an application event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The session's history.
    pub session_epoch: SessionEpoch,
    /// Where it stands.
    pub offset: Offset,
    /// It stood there before this call.
    pub duplicate: bool,
}

/// The answer to a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signalled {
    /// How it was decided.
    pub outcome: SignalOutcome,
    /// The session's history; `None` when nothing was looked up.
    pub session_epoch: Option<SessionEpoch>,
    /// It had been decided before this call.
    pub duplicate: bool,
}

/// The answer to a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// The session's history.
    pub session_epoch: SessionEpoch,
    /// Its last offset.
    pub tail: Offset,
    /// Whether this call made it.
    pub created: bool,
}

/// A session as `show` sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its name.
    pub session: SessionName,
    /// Its history.
    pub session_epoch: SessionEpoch,
    /// The shard that holds it.
    pub shard: ShardId,
    /// The address of the shard's leader; `None` while there is none.
    pub leader: Option<String>,
    /// The last offset.
    pub tail: Offset,
    /// Events up to here are gone.
    pub trimmed: Offset,
    /// Bytes of payload in the log.
    pub bytes: u64,
    /// When it was made.
    pub created: Timestamp,
    /// The time of its last event.
    pub last: Timestamp,
    /// Live subscriptions on the node that answered.
    pub attachments: u32,
    /// Runs that are live.
    pub open_runs: Vec<RunId>,
    /// Set while the session takes no command, until an operator unfreezes it.
    pub frozen: Option<Frozen>,
}

/// A session in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSession {
    /// Its name.
    pub session: SessionName,
    /// The shard that holds it.
    pub shard: ShardId,
    /// The last offset.
    pub tail: Offset,
    /// The time of its last event.
    pub last: Timestamp,
}

/// A page of a list of sessions; no order over shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<ListedSession>,
    /// Where to go on; `None` at the end.
    pub next_page: Option<String>,
}

/// A page of committed events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The session's history.
    pub session_epoch: SessionEpoch,
    /// The first offset that the page covers.
    pub from: Offset,
    /// The last offset that the page covers; before `from` when there is nothing more.
    pub to: Offset,
    /// The last committed offset.
    pub tail: Offset,
    /// The events.
    pub events: Vec<Event>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// Its id.
    pub run: RunId,
    /// Where it stands in its life.
    pub state: RunState,
    /// The epoch that may write.
    pub run_epoch: RunEpoch,
    /// Whoever was granted it.
    pub writer: ParticipantId,
    /// The input that it answers.
    pub input: Option<InputRef>,
    /// The run that it works for.
    pub parent: Option<RunId>,
    /// While it is suspended: why.
    pub suspended: Option<SuspendReason>,
    /// The step that it is in: whoever claims it begins the next attempt at it.
    pub step: Option<StepId>,
    /// For how long its writer may be silent.
    pub lease: Option<Duration>,
    /// Where `run.started` stands.
    pub started: Offset,
    /// Where it ended; `None` while it is live.
    pub ended: Option<Offset>,
    /// The last committed seq of `run_epoch`.
    pub last_seq: Seq,
    /// Its offset.
    pub last_offset: Offset,
}

/// The cluster as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster's id.
    pub cluster: String,
    /// The version of the node that answered.
    pub version: String,
    /// The nodes.
    pub nodes: Vec<NodeInfo>,
    /// The shards.
    pub shards: Vec<ShardInfo>,
    /// The rules that the metadata group speaks; see [`ShardInfo::rules`].
    pub metadata_rules: Option<u32>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Where it serves.
    pub addr: String,
    /// Whether it was heard of lately.
    pub alive: bool,
    /// Its name in the cluster.
    pub name: String,
    /// Its replicas are being moved elsewhere, then it goes for ever.
    pub leaving: bool,
    /// Shards that it leads.
    pub leads: u32,
    /// Shards of which it holds a replica.
    pub holds: u32,
    /// Whether it leads the metadata group.
    pub metadata_leader: bool,
    /// Whether it votes in the metadata group.
    pub metadata_voter: bool,
    /// What it said of itself last; `None`: it has said nothing for a while.
    pub meters: Option<NodeMeters>,
    /// The newest rules that its build knows; `None` while it has not said so lately.
    pub rules: Option<u32>,
}

/// What a node said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMeters {
    /// Bytes of its disk; 0 when it does not know.
    pub disk_total: u64,
    /// Bytes that are left of it.
    pub disk_available: u64,
    /// Elections that its groups have seen since it started.
    pub elections: u64,
    /// Bytes of commands that wait there, for the log or on their way to a leader elsewhere.
    pub queued_bytes: u64,
    /// Synced writes of its log in the last minute.
    pub syncs: u64,
    /// Half of them took no longer.
    pub sync_p50: Duration,
    /// All but a hundredth of them took no longer.
    pub sync_p99: Duration,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its number.
    pub id: ShardId,
    /// Its leader; `None` while there is none.
    pub leader: Option<NodeId>,
    /// The nodes that hold it.
    pub replicas: Vec<NodeId>,
    /// The leader's term.
    pub term: u64,
    /// The last applied log index.
    pub applied: u64,
    /// The last committed log index.
    pub committed: u64,
    /// How far each other member is behind the leader's log, in entries; empty while the leader
    /// has not said so.
    pub followers: Vec<(NodeId, u64)>,
    /// The rules that its state speaks: raised once every member knows newer ones. `None` while
    /// nobody has said so.
    pub rules: Option<u32>,
}

impl ShardInfo {
    /// How far the last of the others is behind; `None` while nobody knows.
    pub fn lag(&self) -> Option<u64> {
        self.followers.iter().map(|(_, lag)| *lag).max()
    }
}
