//! The words of the store's contract: positions, records, votes, what is applied, options.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use everwire_core::clock::{Clock, Timestamp};
use everwire_core::event::Event;
use everwire_core::ids::NodeId;
use everwire_core::limits::{
    FLUSH_BYTES, FLUSH_EVERY, SHARDS_DEFAULT, SPACE_AGENTS_PERCENT, SPACE_PEOPLE_PERCENT,
    STORE_MEMORY_BYTES,
};
use everwire_core::row::{Row, RowKey, SessionKey};

use crate::error::StoreError;

/// A place in a group's Raft log: which leader's entry stands at which index. Plain data; how
/// positions compare is Raft's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogPosition {
    /// The leader's term.
    pub term: u64,
    /// The leader's node id.
    pub node: u64,
    /// The place in the log.
    pub index: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.term, self.node, self.index)
    }
}

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Where it stands.
    pub position: LogPosition,
    /// An encoded `storage.v1.LogEntry`; opaque here.
    pub bytes: Bytes,
}

/// A group's vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VoteRecord {
    /// The term voted in.
    pub term: u64,
    /// Who got it.
    pub node: u64,
    /// Whether a majority granted it.
    pub committed: bool,
}

/// What a node has synced and voted: its own as it says it, or a peer's as we recorded it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerRecord {
    /// The last synced batch of its log's writer.
    pub batch: u64,
    /// The last vote of each group.
    pub votes: BTreeMap<u32, VoteRecord>,
}

/// The two ends of a group's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry that was purged.
    pub purged: Option<LogPosition>,
    /// The last entry, or `purged` when none is left.
    pub last: Option<LogPosition>,
}

/// How far a group's rows and events were held against their checksums; where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The family's number.
    pub(crate) family: u32,
    /// The next key of it.
    pub(crate) next: Vec<u8>,
}

/// What a group has applied; written in the batch of the rows and events that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The last applied entry.
    pub position: LogPosition,
    /// The last membership: an encoded `storage.v1.Membership`; empty before the first.
    pub membership: Bytes,
    /// Where it stands; `None` before the first.
    pub membership_position: Option<LogPosition>,
    /// Command time of the last command.
    pub time: Timestamp,
    /// The rules that the group's state speaks.
    pub rules_version: u32,
    /// The whole state of a group without slots, opaque here; empty for shards.
    pub state: Bytes,
    /// What everything applied so far folds to: equal on replicas that computed the same.
    pub audit_hash: u128,
}

impl Applied {
    /// As it travels to another node in front of a snapshot.
    pub fn to_bytes(&self) -> Result<Bytes, StoreError> {
        let message = crate::engine::applied_message(self)?;
        Ok(everwire_proto::storage::encode_applied(&message))
    }

    /// Reads what [`Applied::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let message = everwire_proto::storage::decode_applied(bytes);
        crate::engine::applied_from(message.map_err(StoreError::from)?)
    }
}

/// What applying some entries changed. Written whole or not at all.
#[derive(Clone, Debug)]
pub struct ApplyWrite {
    /// Changed rows; `None` removes.
    pub rows: BTreeMap<RowKey, Option<Row>>,
    /// New events.
    pub events: Vec<(SessionKey, Arc<Event>)>,
    /// Deleted sessions: all their rows and events go, those of this write included. Their name
    /// rows and slot counters are ordinary changes in `rows`.
    pub erased: Vec<SessionKey>,
    /// What the group has applied with this write.
    pub applied: Applied,
}

/// Tells when a store is closed. Letting go of it is not enough to know: its last owner may be an
/// answer on another thread, and RocksDB does not survive the end of the process half closed.
#[derive(Clone, Debug)]
pub struct Closing(pub(crate) Weak<()>);

impl Closing {
    /// Whether the databases are closed.
    pub fn is_done(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// How full the file system of the data directory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that could be used in all.
    pub total: u64,
    /// Bytes that are left, less what waits in memory to be flushed and what the databases need
    /// for their own work.
    pub available: u64,
    /// What is used, percent, rounded down.
    pub used_percent: u64,
    /// Who may still write.
    pub level: SpaceLevel,
}

/// Who may still write (RULES 35); deletes and trims always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpaceLevel {
    /// Everybody.
    #[default]
    Plenty,
    /// Not the agents' lane.
    AgentsRefused,
    /// Not the people's lane either.
    PeopleRefused,
}

/// Whose directory this is. Written once, before anything else is acked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id, minted once.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
    /// Rises at every restore and unsafe recovery; half of every `session_epoch`.
    pub timeline: u32,
    /// Shards of the cluster.
    pub shards: u32,
}

/// Called once when a write or sync failed, or when a bound was broken: the binary ends the
/// process. It may be called from any thread and must not call the store.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Called when an operation of the log's FIFO is durable, or will never be.
///
/// Runs on the writer's thread (simulated store: on the thread that drives it), in the order of
/// the operations of its group. It must not wait; it may call the store's non-waiting
/// operations (`append`, `save_vote`, `truncate_after`, `purge`).
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// How a store is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// Written into an empty directory. `None`: an empty directory is refused.
    pub create: Option<Identity>,
    /// The cluster that the directory must belong to. `None`: any.
    pub cluster: Option<String>,
    /// The node that the directory must belong to. `None`: any.
    pub node: Option<NodeId>,
    /// See [`OnFatal`].
    pub on_fatal: OnFatal,
    /// Un-flushed apply that starts a flush, bytes.
    pub flush_bytes: u64,
    /// Age of un-flushed apply that starts a flush.
    pub flush_every: Duration,
    /// Whether the simulated store flushes its event DB when it is dropped. RocksDB always does.
    pub flush_on_close: bool,
    /// Log kept in memory per group, bytes. What is not yet synced stays in memory beyond it.
    pub tail_bytes: usize,
    /// From so full a disk on, percent, agents and people are refused ([`Space::level`]); above
    /// 100: never.
    pub refuse_percent: (u64, u64),
    /// Block cache and memtables of both databases together, bytes. The real store only.
    pub memory_bytes: usize,
    /// Tells how long syncs take; `None`: nobody measures.
    pub clock: Option<Arc<dyn Clock>>,
}

impl OpenOptions {
    /// Opens what is there, whoever it belongs to.
    pub fn new(on_fatal: OnFatal) -> Self {
        Self {
            create: None,
            cluster: None,
            node: None,
            on_fatal,
            flush_bytes: FLUSH_BYTES,
            flush_every: FLUSH_EVERY,
            flush_on_close: true,
            tail_bytes: 2 << 20,
            refuse_percent: (SPACE_AGENTS_PERCENT, SPACE_PEOPLE_PERCENT),
            memory_bytes: STORE_MEMORY_BYTES,
            clock: None,
        }
    }

    /// Opens the directory of this identity's cluster and node, or makes it.
    pub fn create(identity: Identity, on_fatal: OnFatal) -> Self {
        Self {
            cluster: Some(identity.cluster.clone()),
            node: Some(identity.node),
            create: Some(identity),
            ..Self::new(on_fatal)
        }
    }
}

impl Identity {
    /// The bytes of the file IDENTITY in a directory of this format version: for tests of what
    /// another release wrote.
    pub fn file_bytes(&self, format_version: u32) -> Vec<u8> {
        crate::identity::encode(self, format_version)
    }

    /// A new directory of `cluster` and `node`: timeline 1, the default count of shards.
    pub fn new(cluster: impl Into<String>, node: NodeId) -> Self {
        Self {
            cluster: cluster.into(),
            node,
            timeline: 1,
            shards: SHARDS_DEFAULT,
        }
    }
}
