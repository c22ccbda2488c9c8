//! The real store: RocksDB, two databases and three files in one directory.
//!
//! ```text
//! DIR/LOCK        held while a process has the directory open
//! DIR/IDENTITY    whose it is; written once
//! DIR/WATERMARK   votes and the last synced batch; two slots
//! DIR/log/        the log DB: WAL on, every write synced
//! DIR/events/     the event DB: no WAL, flushed
//! DIR/BALLAST     room that is given up when the disk is nearly full
//! DIR/incoming/   snapshots that are arriving; removed at open
//! DIR/events-damaged/  an event DB that was damaged as a whole; kept until the next one
//! DIR/retired-N-n what a quarantined node left; kept until the next one
//! ```
//!
//! Never: logic. What is written when, and what an open must find, stands in `engine`.

mod batch;
mod disk;
mod home;
mod options;
mod retire;
mod sizes;

use std::path::Path;
use std::sync::Arc;

use crate::engine::{self, Engine};
use crate::{OpenOptions, Store, StoreError, identity};

use disk::RocksDisk;
use home::Directory;
use sizes::Sizes;

pub use retire::{peek_identity, retire};

/// A store in RocksDB.
pub struct RocksStore;

impl RocksStore {
    /// Opens a data directory, or makes it if `options.create` says so. Waits for the disk:
    /// after a crash it replays the WAL of the log and reads the log above what was flushed.
    ///
    /// Dropping the store writes what is queued, flushes the event DB and ends its threads.
    pub fn open(dir: &Path, mut options: OpenOptions) -> Result<Arc<dyn Store>, StoreError> {
        let home = Directory::lock(dir, options.create.is_some())?;
        retire::finish(&home, dir)?;
        let (identity, watermark) = identity::settle(&home, &options)?;
        home.clear_incoming()?;
        let (total, available) = home.space()?;
        if available < total / 100 * 3 {
            // Recovery writes: it must not fail for want of what only waits to be given up.
            home.set_ballast(0)?;
        }
        let sizes = Sizes::of(options.memory_bytes, total);
        let flush_bytes = u64::try_from(sizes.memtable).unwrap_or(u64::MAX);
        options.flush_bytes = options.flush_bytes.min(flush_bytes);
        let disk = RocksDisk::open(home, &sizes)?;
        let core = engine::open(disk, identity, watermark, &options, false)?;
        Ok(Arc::new(Engine::threaded(core)?))
    }
}
