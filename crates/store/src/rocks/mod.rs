//! The real store: RocksDB, two databases and three files in one directory.
//!
//! ```text
//! DIR/LOCK        held while a process has the directory open
//! DIR/IDENTITY    whose it is; written once
//! DIR/WATERMARK   votes and the last synced batch; two slots
//! DIR/log/        the log DB: WAL on, every write synced
//! DIR/events/     the event DB: no WAL, flushed
//! DIR/incoming/   snapshots that are arriving; removed at open
//! DIR/events-damaged/  an event DB that did not open; kept until the next one
//! DIR/retired-N-n what a quarantined node left; kept until the next one
//! ```
//!
//! Never: logic. What is written when, and what an open must find, stands in `engine`.

mod disk;
mod home;
mod options;
mod retire;

use std::path::Path;
use std::sync::Arc;

use crate::engine::{self, Engine};
use crate::{OpenOptions, Store, StoreError, identity};

use disk::RocksDisk;
use home::Directory;

pub use retire::{peek_identity, retire};

/// A store in RocksDB.
pub struct RocksStore;

impl RocksStore {
    /// Opens a data directory, or makes it if `options.create` says so. Waits for the disk:
    /// after a crash it replays the WAL of the log and reads the log above what was flushed.
    ///
    /// Dropping the store writes what is queued, flushes the event DB and ends its threads.
    pub fn open(dir: &Path, options: OpenOptions) -> Result<Arc<dyn Store>, StoreError> {
        let home = Directory::lock(dir, options.create.is_some())?;
        retire::finish(&home, dir)?;
        let (identity, watermark) = identity::settle(&home, &options)?;
        home.clear_incoming()?;
        let disk = RocksDisk::open(home, &options)?;
        let core = engine::open(disk, identity, watermark, &options, false)?;
        Ok(Arc::new(Engine::threaded(core)?))
    }
}
