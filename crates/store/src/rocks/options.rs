//! RocksDB's options, each with its reason. Facts: reference notes of the engine, RocksDB 11.8.

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, Env,
    LogLevel, Options, WriteBufferManager,
};

use crate::error::StoreError;

use crate::layout::{Family, LogFamily};
use crate::rocks::sizes::Sizes;

/// Unlimited, where RocksDB wants a small number.
const NEVER: i32 = 1 << 30;
/// What flushes and compactions of the event DB may write per second, bytes (RULES 37). About a
/// third of what the slowest disk measured takes; the log is never limited.
const EVENT_RATE_BYTES: i64 = 128 << 20;
/// Values from here on live in blob files, so that compaction does not copy them, bytes.
const BLOB_BYTES: u64 = 16 << 10;

/// Memory that both databases share.
pub(crate) struct Memory {
    cache: Cache,
    buffers: WriteBufferManager,
    env: Env,
    sizes: Sizes,
}

impl Memory {
    /// One block cache, one budget for memtables, one pool of threads: the crate knows no second
    /// environment, so the pool gets a flush thread for each database, and a rate-limited flush
    /// of events does not stand in front of one of the log.
    pub(crate) fn new(sizes: &Sizes) -> Result<Self, StoreError> {
        let mut env = Env::new().map_err(|error| StoreError::Io(error.to_string()))?;
        env.set_high_priority_background_threads(2);
        env.set_background_threads(sizes.compactions);
        let cache = Cache::new_hyper_clock_cache(sizes.memory, 0);
        Ok(Self {
            env,
            // Memtables are charged to the cache, so that one budget holds for both. No stall: the
            // log's writer must never wait for the event DB's memory.
            buffers: WriteBufferManager::new_write_buffer_manager_with_cache(
                sizes.buffers,
                false,
                cache.clone(),
            ),
            cache,
            sizes: *sizes,
        })
    }

    /// Bytes that are used, and how many there are. Memtables are charged to the cache.
    pub(crate) fn used_of(&self) -> (usize, usize) {
        (self.cache.get_usage(), self.sizes.memory)
    }

    fn common(&self) -> Options {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // All families of a database flush together: what an open finds is one moment.
        options.set_atomic_flush(true);
        options.set_paranoid_checks(true);
        options.set_write_buffer_manager(&self.buffers);
        options.set_env(&self.env);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(self.sizes.messages);
        options.set_manifest_preallocation_size(self.sizes.manifest);
        options.set_log_level(LogLevel::Warn);
        options
    }

    fn table(&self) -> BlockBasedOptions {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table.set_format_version(6);
        table
    }

    /// Memtables, files and levels of one scale: what a compaction writes before it gives its
    /// input back is a small share of the disk.
    fn levels(&self, options: &mut Options) {
        options.set_write_buffer_size(self.sizes.memtable);
        options.set_target_file_size_base(bytes(self.sizes.memtable));
        options.set_max_bytes_for_level_base(bytes(4 * self.sizes.memtable));
        options.set_max_compaction_bytes(bytes(self.sizes.compaction * self.sizes.memtable));
    }

    /// The family that every database has, and that nothing is written to. RocksDB goes on after
    /// the end of a disk only when the largest memtable of any family has room: its default, 64
    /// MiB, may be more than a small disk has in all.
    pub(crate) fn unused_family(&self) -> ColumnFamilyDescriptor {
        let mut options = Options::default();
        self.levels(&mut options);
        ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, options)
    }

    /// The log DB.
    pub(crate) fn log(&self) -> Options {
        let mut options = self.common();
        // Recycling overwrites blocks that the file system has allocated: a sync costs half. It
        // works in this mode only; the modes that promise more switch it off without a word. What
        // the mode silently drops, the watermark finds.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options.set_recycle_log_file_num(self.sizes.recycled);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_max_total_wal_size(bytes(8 * self.sizes.memtable));
        options
    }

    /// A family of the log DB.
    pub(crate) fn log_family(&self, family: LogFamily) -> ColumnFamilyDescriptor {
        let mut options = Options::default();
        // Both families have the same, so that the small one never starts a flush.
        self.levels(&mut options);
        options.set_max_write_buffer_number(6);
        // The log never waits for compaction.
        options.set_level_zero_slowdown_writes_trigger(NEVER);
        options.set_level_zero_stop_writes_trigger(NEVER);
        options.set_soft_pending_compaction_bytes_limit(0);
        options.set_hard_pending_compaction_bytes_limit(0);
        // Most records are purged before they sink: no work on the first levels. No prefix
        // filter: every file holds every group, so it would never say no.
        options.set_compression_per_level(&[
            DBCompressionType::None,
            DBCompressionType::None,
            DBCompressionType::Lz4,
            DBCompressionType::Lz4,
            DBCompressionType::Lz4,
            DBCompressionType::Lz4,
            DBCompressionType::Zstd,
        ]);
        options.set_block_based_table_factory(&self.table());
        ColumnFamilyDescriptor::new(family.name(), options)
    }

    /// The event DB.
    pub(crate) fn events(&self) -> Options {
        let mut options = self.common();
        options.set_ratelimiter(EVENT_RATE_BYTES, 100_000, 10);
        options.set_bytes_per_sync(1 << 20);
        options
    }

    /// A family of the event DB.
    pub(crate) fn event_family(&self, family: Family) -> ColumnFamilyDescriptor {
        let mut options = Options::default();
        // An explicit flush comes first as a rule.
        self.levels(&mut options);
        options.set_max_write_buffer_number(4);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_bottommost_compression_type(DBCompressionType::Zstd);
        let mut table = self.table();
        match family {
            // Read in order, never looked up.
            Family::Events => {
                options.set_enable_blob_files(self.sizes.blobs);
                options.set_min_blob_size(BLOB_BYTES);
                options.set_blob_compression_type(DBCompressionType::Lz4);
                options.set_enable_blob_gc(true);
                options.set_blob_gc_force_threshold(0.5);
                table.set_block_size(16 << 10);
            },
            // Looked up, often in vain.
            Family::Rows | Family::Names => table.set_bloom_filter(10.0, false),
            Family::Index | Family::Applied => {},
        }
        options.set_block_based_table_factory(&table);
        ColumnFamilyDescriptor::new(family.name(), options)
    }
}

fn bytes(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

/// Set on an open family, for want of a setter: a memtable with so many range deletions is
/// flushed, because every read of it pays for each.
pub(crate) const RANGE_DELETIONS: [(&str, &str); 1] = [("memtable_max_range_deletions", "1000")];
