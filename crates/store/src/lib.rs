//! The disk of one node: Raft log, votes, events, rows, snapshots. One trait, [`Store`], and two
//! homes behind it: RocksDB (feature `rocks`) and a simulated disk with modelled fsync.
//!
//! Comes in: opaque log records, votes, and what the rules changed. Goes out: the same, after
//! any crash, or a typed error. Never: Raft's rules, the network, a decision about a session; a
//! clock only to measure itself. Layout and recovery: docs/protocol/storage.md.

mod disk;
mod engine;
mod error;
mod identity;
pub mod layout;
mod meters;
pub mod record;
pub mod sim;
pub mod testing;
mod types;
mod watermark;

#[cfg(feature = "rocks")]
pub mod rocks;

use std::ops::Range;

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::command::Fire;
use everwire_core::event::Event;
use everwire_core::ids::{Namespace, NodeId, RunId, SessionName, Slot};
use everwire_core::position::Offset;
use everwire_core::row::{NameRow, Row, RowKey, RowRange, SessionKey};

pub use engine::regressed;
pub use error::StoreError;
pub use meters::{Meters, Times};
pub use types::{
    Applied, ApplyWrite, Closing, Done, Identity, LogPosition, LogRecord, LogState, OnFatal,
    OpenOptions, PeerRecord, Space, SpaceLevel, Verified, VoteRecord,
};

/// The disk of one node, shared by all its groups. `group` is a shard's number, or
/// `core::ids::META_GROUP`: a group without slots has log, vote and applied row like any other,
/// and its whole state in [`Applied::state`]; its snapshots have no pieces.
///
/// # One group's pointers
///
/// ```text
///            purged        durable applied      applied       committed        last
///              │                 │                 │              │              │
///  ░░░░░░░░░░░░▼─────────────────▼─────────────────▼──────────────▼──────────────▼
///  gone from   │ in the log and  │ in the log, and │ in the log;  │ in the log;  │
///  the log     │ flushed in the  │ in the event DB │ Raft says    │ a new leader │
///              │ event DB        │ until a crash   │ so, not the  │ may take it  │
///              │                 │ (replayed then) │ store        │ back         │
///
///  purged ≤ durable applied ≤ applied ≤ committed ≤ last
/// ```
///
/// The store keeps `purged` ≤ `durable applied` (a purge above it is refused and fatal) and
/// `durable applied` ≤ `applied`; the rest is Raft's. After a crash `applied` is `durable
/// applied`, and the log still holds everything above it. Two exceptions, both handled above:
/// a follower may apply what its own log has not synced yet, so `applied` may stand above `last`
/// after a crash; and after a crash inside an install, or when the event DB is lost, nothing is
/// applied. If the log does not reach back to its first entry, `applied` answers
/// [`StoreError::DamagedRows`] then, and only an install mends it.
///
/// # The log's FIFO
///
/// `append`, `save_vote`, `truncate_after` and `purge` return at once and are made durable by one
/// writer in the order of the calls, group by group; groups may overtake each other. `done` says
/// `Ok` only after the synced write, in that order. A full disk is waited for; a failed write or
/// sync is never retried:
/// `on_fatal` is called, and this `done` and every later one gets an error. An operation whose
/// `done` was not called when the process died may be on disk or not, but never without those of
/// its group before it.
///
/// Their effects on `read_log` and `log_state` show at once. Callers bound what waits here: the
/// queue takes what it is given.
///
/// # Threads
///
/// Everything else waits for the disk, if it [`Store::waits`]: call it from threads that may
/// wait, never from a runtime's worker. All methods may be called from any thread at any time. `write` of one group
/// must come from one caller at a time, in the order of the log.
pub trait Store: Send + Sync + 'static {
    /// Whose directory this is.
    fn identity(&self) -> &Identity;

    /// Whether calls wait for a device. A disk that never waits may be called from a runtime's
    /// worker, and whoever holds such a store should: so a simulation has one thread, and one
    /// order in which things happen.
    fn waits(&self) -> bool;

    /// Tells when this store is closed, to whoever lets go of it.
    fn closing(&self) -> Closing;

    /// Appends records that continue the group's log; readable at once, durable when `done` says
    /// so. Indexes must be contiguous with the log ([`StoreError::Hole`] otherwise); a log that
    /// is empty and was never purged may start anywhere. Large appends are synced in steps; a
    /// crash may keep a head of them.
    fn append(&self, group: u32, records: Vec<LogRecord>, done: Done);

    /// Saves a vote. [`Store::vote`] answers it once it is durable.
    fn save_vote(&self, group: u32, vote: VoteRecord, done: Done);

    /// Keeps entries ≤ `index`; `None` removes all that are not purged.
    fn truncate_after(&self, group: u32, index: Option<u64>, done: Done);

    /// Forgets entries ≤ `upto`, which may lie above `last`. Purging what is purged is fine.
    /// Above the bound: [`StoreError::AboveBound`] and `on_fatal`. Each purge leaves one range
    /// tombstone: call it per flush, not per entry.
    fn purge(&self, group: u32, upto: LogPosition, done: Done);

    /// Sets the highest index that a purge may reach; `None` lifts the bound for good (only for
    /// openraft's suite). The store sets it itself to durable applied: at open, and raises it
    /// with each flush and install.
    fn set_purge_bound(&self, group: u32, index: Option<u64>);

    /// The last durable vote.
    fn vote(&self, group: u32) -> Result<Option<VoteRecord>, StoreError>;

    /// How full the file system was at the last look, at most a second ago or after a few
    /// megabytes: admission stops by it, for on a full disk everything waits.
    fn space(&self) -> Space;

    /// Whether the log waits for room on a full disk: what is queued becomes durable when there is
    /// some. Votes are saved meanwhile, unless they stand behind other operations of their group.
    fn log_waits(&self) -> bool;

    /// Whatever waits for room is answered with [`StoreError::Full`] from here on, and nothing of
    /// it was written: the node is about to stop, and a full disk must not hold it.
    fn stop_waiting(&self);

    /// Gives the ballast up now. It is given up by itself when the disk is nearly full, and made
    /// again when there is plenty of room.
    fn release_ballast(&self) -> Result<(), StoreError>;

    /// What this node has synced and voted: what its peers hold it to.
    fn own_record(&self) -> PeerRecord;

    /// The last synced batch of the log's writer.
    fn synced_batch(&self) -> u64 {
        self.own_record().batch
    }

    /// What we had recorded of a peer; see [`regressed`].
    fn peer_record(&self, node: NodeId) -> Option<PeerRecord>;

    /// Records what a peer has synced and voted, in the place of what was recorded before.
    /// Durable with the next batch of the log, whoever writes it: no sync of its own.
    fn note_peer(&self, node: NodeId, record: PeerRecord);

    /// The ends of the log, with what is queued.
    fn log_state(&self, group: u32) -> Result<LogState, StoreError>;

    /// About how many bytes a group's log has, what is queued included; off by a few megabytes.
    fn log_bytes(&self, group: u32) -> u64;

    /// The last index that must be purged so that about `keep` bytes of the group's log stay, at
    /// most; `None`: nothing must.
    fn log_beyond(&self, group: u32, keep: u64) -> Option<u64>;

    /// Reads a contiguous run of entries: it starts with the range (or, in a log that was never
    /// purged, with the log) and ends with the range, the log, or before the entry that would pass
    /// `bytes_max`; at least one entry if any. A range that begins at or below the purge point is
    /// [`StoreError::Purged`], never a later start. Checksums are verified; an error is never an
    /// early end.
    fn read_log(
        &self,
        group: u32,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogRecord>, StoreError>;

    /// What the group has applied. `None`: nothing, or an install has begun and not finished.
    /// [`StoreError::DamagedRows`]: its rows must be fetched anew; other groups are not touched.
    fn applied(&self, group: u32) -> Result<Option<Applied>, StoreError>;

    /// Writes what entries changed, in one batch with `applied`; visible at once, durable with
    /// the next flush. An error is fatal to the process: the batch may not be retried.
    fn write(&self, group: u32, write: ApplyWrite) -> Result<(), StoreError>;

    /// Reads a row.
    fn row(&self, key: &RowKey) -> Result<Option<Row>, StoreError>;

    /// The first keys of a range, in key order.
    fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, StoreError>;

    /// A group's timers that are due at or before `until`, session by session. Walks the group's
    /// index once.
    fn timers(&self, group: u32, until: Timestamp) -> Result<Vec<Fire>, StoreError>;

    /// A group's live runs, session by session. Walks the group's index once.
    fn live_runs(&self, group: u32) -> Result<Vec<(SessionKey, RunId)>, StoreError>;

    /// Session names of a namespace in some slots, those that begin with `prefix`, ordered by
    /// slot, then name; strictly after `after` if given.
    fn names(
        &self,
        slots: Range<u16>,
        after: Option<(Slot, Namespace, SessionName)>,
        namespace: &Namespace,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(Slot, SessionName, NameRow)>, StoreError>;

    /// Events of a session, dense from `from`, up to `count_max` of them and before the one that
    /// would pass `bytes_max`; at least one if any. `from` must lie above the trim point: a hole
    /// is [`StoreError::Damaged`].
    fn events(
        &self,
        session: SessionKey,
        from: Offset,
        bytes_max: usize,
        count_max: usize,
    ) -> Result<Vec<Event>, StoreError>;

    /// Flushes the event DB, all groups, and waits. Happens by itself at
    /// [`OpenOptions::flush_bytes`] and [`OpenOptions::flush_every`]. An error is fatal.
    fn flush(&self) -> Result<(), StoreError>;

    /// The applied position that the last finished flush covers (or that was found at open).
    fn durable_applied(&self, group: u32) -> Option<LogPosition>;

    /// Bytes applied since the last flush began.
    fn unflushed_bytes(&self) -> u64;

    /// What the store counts of itself, from memory.
    fn meters(&self) -> Meters;

    /// A group's rows and events as they stand now, unmoved by later writes.
    fn snapshot(&self, group: u32) -> Result<Box<dyn SnapshotReader>, StoreError>;

    /// Begins to take a snapshot of a group from elsewhere, to be read back once it is whole.
    /// `applied` is what its head said. Whatever goes wrong in a spool is the transfer's failure:
    /// the store is as it was, and nothing is left when the spool or its reader is dropped.
    fn spool(&self, group: u32, applied: Applied) -> Result<Box<dyn SnapshotSpool>, StoreError>;

    /// Reads about `bytes_max` of a group's rows and events and holds them against their
    /// checksums: from the first on, or from where the last call ended. Answers where to go on;
    /// `None`: that was the end. What a cache holds is taken from there, so a byte that changed
    /// on the disk below it is found when it has left, by whoever reads it first.
    fn verify(
        &self,
        group: u32,
        from: Option<Verified>,
        bytes_max: usize,
    ) -> Result<Option<Verified>, StoreError>;

    /// All groups whose rows must be fetched anew: found so at open, or lost since with the whole
    /// event DB, which begins anew when a compaction or flush of it meets damage. Each is
    /// [`StoreError::DamagedRows`], and all that is asked of such a group answers the same.
    fn damaged(&self) -> Vec<StoreError>;

    /// Drops a group's rows, events and applied row because they are damaged; its log and vote
    /// stay. Like an [`Store::install`] that has begun: afterwards `applied` is `None`, and what is
    /// needed is an install.
    fn drop_rows(&self, group: u32) -> Result<(), StoreError>;

    /// Begins to replace a group's rows and events. Returns when the install marker is synced and
    /// the old range is gone: from here on `applied` is `None` until `finish`. Nobody may write
    /// or serve the group meanwhile. A crash before `finish` returns, or dropping it, leaves the
    /// group empty with `applied` = `None`.
    fn install(&self, group: u32) -> Result<Box<dyn SnapshotInstall>, StoreError>;
}

/// Reads a snapshot, piece by piece. It pins disk space while it lives.
pub trait SnapshotReader: Send {
    /// What the group had applied in this snapshot, read inside it; `None`: nothing.
    fn applied(&self) -> Option<&Applied>;

    /// The next piece, at most 1 MiB and a row: an encoded `storage.v1.SnapshotChunk`. `None`
    /// after the last. Waits for the disk.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError>;
}

/// Keeps the pieces of a snapshot that arrives, until it is whole.
pub trait SnapshotSpool: Send {
    /// Takes the next piece, in the reader's order; verifies that each row is whole, belongs to
    /// the group and comes after the last one. After an error nothing more is taken.
    fn chunk(&mut self, chunk: Bytes) -> Result<(), StoreError>;

    /// That was the last piece, says whoever knows: reads all of them from the first on, to be
    /// handed to [`Store::install`].
    fn finish(self: Box<Self>) -> Result<Box<dyn SnapshotReader>, StoreError>;
}

/// Writes a snapshot, piece by piece.
pub trait SnapshotInstall: Send {
    /// Takes the next piece, in the reader's order; verifies each record and that its key
    /// belongs to the group.
    fn chunk(&mut self, chunk: Bytes) -> Result<(), StoreError>;

    /// Ends the install: returns when everything is flushed with `applied` and the marker is
    /// cleared and synced. The purge bound and durable applied stand at `applied` then.
    fn finish(self: Box<Self>, applied: Applied) -> Result<(), StoreError>;
}
