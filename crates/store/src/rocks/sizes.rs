//! How large RocksDB's parts may become, from the memory that it is given and the file system
//! that it stands on.
//!
//! On a small file system the defaults alone would fill it: a WAL is preallocated at the size of
//! a memtable, and a few are kept for recycling. All parts shrink together there, so that
//! nothing is a large share of the whole.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Block cache and memtables of both databases together.
    pub(crate) memory: usize,
    /// What memtables may take of it.
    pub(crate) buffers: usize,
    /// One memtable: of the log, and of the event DB's big families.
    pub(crate) memtable: usize,
    /// WAL files kept to be written over.
    pub(crate) recycled: usize,
    /// One file of RocksDB's own messages.
    pub(crate) messages: usize,
    /// What a manifest reserves ahead.
    pub(crate) manifest: usize,
    /// What one compaction below the first level may take up, memtables.
    pub(crate) compaction: usize,
    /// Compactions of both databases at once.
    pub(crate) compactions: i32,
    /// Whether large values live in blob files: collecting garbage there rewrites a quarter of
    /// them at once.
    pub(crate) blobs: bool,
    /// What flushes and compactions may need before they give their input back, bytes. It counts
    /// as used: else they would fill the disk under the log's writer.
    pub(crate) reserve: u64,
}

const MEMTABLE_MAX: u64 = 64 << 20;
const MEMTABLE_MIN: u64 = 256 << 10;
/// A memtable's share of the file system.
const SHARES: u64 = 256;
/// The first level with what waits in front of it while a slow machine lags behind, twice.
const RESERVE_MEMTABLES: u64 = 24;

impl Sizes {
    /// For `memory` bytes on a file system of `total` bytes.
    pub(crate) fn of(memory: usize, total: u64) -> Self {
        let buffers = memory / 3 * 2;
        // A flush of one database must never be started by the memtables of the other: all that
        // both hold, and what is being flushed of it, stays below what memtables may take.
        let share = u64::try_from(buffers / 4).unwrap_or(MEMTABLE_MAX);
        let memtable = (total / SHARES)
            .min(share)
            .clamp(MEMTABLE_MIN, MEMTABLE_MAX);
        let is_small = total < SHARES * MEMTABLE_MAX;
        let sized = |small: usize, large: usize| if is_small { small } else { large };
        Self {
            memory,
            buffers,
            memtable: usize::try_from(memtable).unwrap_or(usize::MAX),
            recycled: sized(1, 4),
            messages: sized(128 << 10, 4 << 20),
            manifest: sized(64 << 10, 4 << 20),
            compaction: sized(8, 25),
            compactions: if is_small { 1 } else { 2 },
            blobs: !is_small,
            reserve: RESERVE_MEMTABLES * memtable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_disk_gets_the_full_sizes() {
        let sizes = Sizes::of(384 << 20, 100 << 30);
        assert_eq!(sizes.buffers, 256 << 20);
        assert_eq!((sizes.memtable, sizes.recycled), (64 << 20, 4));
    }

    #[test]
    fn a_small_disk_or_little_memory_gets_small_ones() {
        let small = Sizes::of(384 << 20, 64 << 20);
        assert_eq!((small.memtable, small.reserve), (256 << 10, 6 << 20));
        assert_eq!(
            (small.recycled, small.compactions, small.blobs),
            (1, 1, false)
        );
        assert_eq!(Sizes::of(96 << 20, 100 << 30).memtable, 16 << 20);
        assert_eq!(Sizes::of(0, 0).memtable, 256 << 10);
    }
}
