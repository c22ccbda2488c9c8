//! An event DB that is damaged as a whole begins anew, in the same process.
//!
//! A compaction or flush that meets damaged blocks stops RocksDB for good. Then the database is
//! set aside and an empty one takes its place; the metadata group's row, which is its whole state,
//! comes along. All shards' rows are gone, are said to be damaged, and are fetched anew, one shard
//! like any other (RULES 35). Whoever read of the old database while it was replaced finds its
//! group damaged afterwards; whoever wrote to it is refused.

use std::sync::Mutex;

use everwire_core::ids::META_GROUP;

use crate::disk::Disk;
use crate::engine::Core;
use crate::error::StoreError;
use crate::layout::{Family, Key};

/// One replacement at a time.
#[derive(Default)]
pub(crate) struct Anew(Mutex<()>);

/// Whether something that failed may be tried again.
fn again() -> StoreError {
    StoreError::Anew
}

impl<D: Disk> Core<D> {
    /// What follows when a write or flush of the event DB failed that began in a generation of it:
    /// it may be tried when there is room ([`StoreError::Full`]), at once in the next generation
    /// ([`StoreError::Anew`]), or never.
    pub(crate) fn failed(&self, what: &str, generation: u64, error: StoreError) -> StoreError {
        match error {
            StoreError::Full { .. } => error,
            StoreError::Damaged { .. } => self.begin_anew(what, generation, &error),
            error => self.fatal.fail(what, &error),
        }
    }

    fn begin_anew(&self, what: &str, generation: u64, error: &StoreError) -> StoreError {
        let Ok(_one) = self.anew.0.lock() else {
            return self.fatal.fail(what, error);
        };
        if self.disk.generation() != generation {
            return again();
        }
        tracing::error!(what, %error, "the event DB is damaged as a whole and begins anew");
        // First: nobody may take an empty database for what a shard holds.
        self.flusher
            .lose(0..self.identity.shards, &error.to_string());
        let keep = [(Family::Applied, Key::Applied(META_GROUP).encode())];
        match self.disk.replace_events(&keep) {
            Ok(()) => again(),
            Err(failed) => self.fatal.fail(what, &failed),
        }
    }

    /// What was read of a group's rows; nothing if they were lost meanwhile.
    pub(crate) fn read_of<T>(
        &self,
        group: u32,
        found: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let found = found.map_err(|error| error.of_rows(group))?;
        match self.flusher.damage(group) {
            Some(damage) => Err(damage),
            None => Ok(found),
        }
    }
}
