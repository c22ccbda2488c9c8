//! Batches of RocksDB, and how its families are named.

use std::sync::Arc;

use rocksdb::{ColumnFamily, DB, WriteBatch};

use crate::disk::Batch;
use crate::layout::{Family, KeyRange, LogFamily};

/// A batch; it keeps its database, for the handles of the families.
pub(crate) struct RocksBatch {
    pub(crate) db: Arc<DB>,
    /// That of the event DB; the log DB is never replaced.
    pub(crate) generation: u64,
    /// What RocksDB is given.
    pub(crate) batch: WriteBatch,
    empty: usize,
}

/// A family's name in RocksDB.
pub(crate) trait Named {
    /// See the trait.
    fn named(&self) -> &'static str;
}

impl Named for Family {
    fn named(&self) -> &'static str {
        self.name()
    }
}

impl Named for LogFamily {
    fn named(&self) -> &'static str {
        self.name()
    }
}

/// The family in a database.
pub(crate) fn handle(db: &DB, family: impl Named) -> &ColumnFamily {
    db.cf_handle(family.named())
        .expect("every family is opened with its database")
}

impl<F: Named> Batch<F> for RocksBatch {
    fn put(&mut self, family: F, key: &[u8], value: &[u8]) {
        self.batch.put_cf(handle(&self.db, family), key, value);
    }

    fn delete(&mut self, family: F, key: &[u8]) {
        self.batch.delete_cf(handle(&self.db, family), key);
    }

    fn delete_range(&mut self, family: F, range: &KeyRange) {
        let family = handle(&self.db, family);
        self.batch.delete_range_cf(family, &range.start, &range.end);
    }

    fn bytes(&self) -> usize {
        self.batch.size_in_bytes().saturating_sub(self.empty)
    }
}

impl RocksBatch {
    /// An empty one.
    pub(crate) fn new(db: Arc<DB>, generation: u64) -> Self {
        let batch = WriteBatch::default();
        Self {
            db,
            generation,
            empty: batch.size_in_bytes(),
            batch,
        }
    }
}
