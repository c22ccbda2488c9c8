//! What the engine asks of a disk: two sets of ordered keys and a watermark.
//!
//! The engine holds all the logic; a disk only stores. So the simulated disk and RocksDB run the
//! same writer, the same recovery and the same snapshots, and differ only in what a crash leaves.

use std::ops::ControlFlow;

use crate::error::StoreError;
use crate::identity::Home;
use crate::layout::{Family, KeyRange, LogFamily};

/// Sees keys and values in key order; breaks to end the scan.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError>;

/// Changes that are written together or not at all, in their order.
pub(crate) trait Batch<F>: Send {
    /// Sets a key.
    fn put(&mut self, family: F, key: &[u8], value: &[u8]);
    /// Removes a key.
    fn delete(&mut self, family: F, key: &[u8]);
    /// Removes a range of keys.
    fn delete_range(&mut self, family: F, range: &KeyRange);
    /// About how many bytes it holds.
    fn bytes(&self) -> usize;
}

/// Reads of the event DB: as it is now, or of one frozen moment.
pub(crate) trait Reads {
    /// The value of a key.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Visits the keys of a range in order.
    fn scan(&self, family: Family, range: &KeyRange, visit: Visit<'_>) -> Result<(), StoreError>;
}

/// A key and its value.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// Bytes that are kept beside the databases for a while: not durable, and gone when dropped.
pub(crate) trait Scratch: Send {
    /// Adds bytes at the end.
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError>;
    /// Reads `count` bytes from `place` on; fewer at the end.
    fn read(&self, place: u64, count: usize) -> Result<Vec<u8>, StoreError>;
    /// How many there are.
    fn len(&self) -> u64;
}

/// Where a range was deleted whose place can be had back by a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Freed {
    /// In the log DB.
    Log,
    /// In the event DB's sharded families.
    Events,
}

/// What a file system has left, and what the log needs of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    /// Bytes that anybody may still take.
    pub(crate) bytes: u64,
    /// Bytes that the log needs besides its next batch: what stands in its memory must find a
    /// place when that is flushed.
    pub(crate) log: u64,
}

/// The disk of one node. Its writes answer [`StoreError::Full`] when they were refused for want of
/// room and nothing was written: these, and no others, may be tried again.
pub(crate) trait Disk: Home + Reads + Send + Sync + 'static {
    /// A batch of the log DB.
    type LogBatch: Batch<LogFamily>;
    /// A batch of the event DB.
    type EventBatch: Batch<Family>;

    /// See [`crate::Store::waits`].
    fn waits(&self) -> bool {
        true
    }
    /// An empty batch of the log DB.
    fn log_batch(&self) -> Self::LogBatch;
    /// Writes to the log DB and syncs; after an error nothing of it may be relied on, nor tried
    /// again.
    fn log_write(&self, batch: Self::LogBatch) -> Result<(), StoreError>;
    /// The value of a key of the log DB.
    fn log_get(&self, family: LogFamily, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Visits the keys of a range of the log DB in order.
    fn log_scan(
        &self,
        family: LogFamily,
        range: &KeyRange,
        visit: Visit<'_>,
    ) -> Result<(), StoreError>;
    /// About how many bytes the values of a range of the log DB have.
    fn log_size(&self, family: LogFamily, range: &KeyRange) -> u64;
    /// The last key of a range of the log DB.
    fn log_last(&self, family: LogFamily, range: &KeyRange) -> Result<Option<Pair>, StoreError>;

    /// An empty batch of the event DB.
    fn event_batch(&self) -> Self::EventBatch;
    /// Writes to the event DB: visible at once, durable with the next flush.
    fn event_write(&self, batch: Self::EventBatch) -> Result<(), StoreError>;
    /// Makes everything written to the event DB durable: all of it, or up to some earlier batch.
    fn event_flush(&self) -> Result<(), StoreError>;
    /// How often the event DB was replaced.
    fn generation(&self) -> u64;
    /// Sets the event DB aside, as it is damaged as a whole, and makes an empty one, with these
    /// keys of the old one. Batches of the old one are refused from here on
    /// ([`StoreError::Damaged`]). An error leaves no event DB at all.
    fn replace_events(&self, keep: &[(Family, Vec<u8>)]) -> Result<(), StoreError>;
    /// An empty scratch of this name, which no living one has. Its errors are nobody's but its
    /// owner's: the databases are as they were.
    fn scratch(&self, name: &str) -> Result<Box<dyn Scratch>, StoreError>;
    /// Bytes of its file system: what could be used in all, and what is left beside what the
    /// disk needs for its own work.
    fn space(&self) -> Result<(u64, u64), StoreError>;
    /// What the file system has left right now; the ballast and what this process may yet need
    /// are no part of it.
    fn left(&self) -> Result<Left, StoreError>;
    /// Bytes of memory that caches and write buffers use, and their budget.
    fn memory(&self) -> (usize, usize);
    /// Bytes of the ballast.
    fn ballast(&self) -> u64;
    /// Makes a ballast of so many bytes; 0 removes it.
    fn set_ballast(&self, bytes: u64) -> Result<(), StoreError>;
    /// Compacts what was deleted away. Waits.
    fn reclaim(&self, freed: Freed, range: &KeyRange) -> Result<(), StoreError>;
    /// The store is closed in good order: makes durable what can be.
    fn close(&self);
    /// Calls `read` with the event DB as it stands now, unmoved by later writes.
    fn frozen(&self, read: &mut dyn FnMut(&dyn Reads));
}
