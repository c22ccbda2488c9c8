//! RocksDB as the engine's disk.

use std::ops::ControlFlow;
use std::sync::Arc;

use rocksdb::{
    ColumnFamily, DB, DBRawIteratorWithThreadMode, ErrorKind, FlushOptions, ReadOptions,
    SnapshotWithThreadMode, WriteBatch, WriteOptions,
};

use crate::disk::{Batch, Disk, Freed, Pair, Reads, Scratch, Visit};
use crate::error::StoreError;
use crate::identity::Home;
use crate::layout::{Family, KeyRange, LogFamily};
use crate::rocks::home::Directory;
use crate::rocks::options::{Memory, RANGE_DELETIONS};
use crate::rocks::sizes::Sizes;
use crate::watermark::{Side, Slots};

/// Both databases and the files beside them. Fields in the order of their end: the directory's
/// lock goes last.
pub(crate) struct RocksDisk {
    log: Arc<DB>,
    events: Arc<DB>,
    _memory: Memory,
    /// See [`Sizes::reserve`].
    reserve: u64,
    home: Directory,
}

/// A batch; it keeps its database, for the handles of the families.
pub(crate) struct RocksBatch {
    db: Arc<DB>,
    batch: WriteBatch,
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

fn handle(db: &DB, family: impl Named) -> &ColumnFamily {
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
    fn new(db: &Arc<DB>) -> Self {
        let batch = WriteBatch::default();
        Self {
            db: Arc::clone(db),
            empty: batch.size_in_bytes(),
            batch,
        }
    }
}

fn failed(error: &rocksdb::Error) -> StoreError {
    match error.kind() {
        ErrorKind::Corruption => StoreError::Damaged {
            what: error.to_string(),
        },
        _ => StoreError::Io(error.to_string()),
    }
}

impl RocksDisk {
    /// Opens or makes both databases.
    pub(crate) fn open(home: Directory, sizes: &Sizes) -> Result<Self, StoreError> {
        let memory = Memory::new(sizes)?;
        let families = LogFamily::ALL.map(|family| memory.log_family(family));
        let log = DB::open_cf_descriptors(&memory.log(), home.log(), families).map_err(
            |error| match lost(&error) {
                true => StoreError::Quarantine {
                    why: format!("the log DB does not open: {error}"),
                },
                false => StoreError::Io(format!("opening the log DB: {error}")),
            },
        )?;
        let events = open_events(&home, &memory)?;
        home.sync()?;
        for family in Family::sharded() {
            events
                .set_options_cf(handle(&events, family), &RANGE_DELETIONS)
                .map_err(|error| failed(&error))?;
        }
        Ok(Self {
            log: Arc::new(log),
            events: Arc::new(events),
            _memory: memory,
            reserve: sizes.reserve,
            home,
        })
    }
}

impl RocksDisk {
    /// A write to the event DB failed, which ends the process. If that is because its files are
    /// bad (a compaction met them), the next process must not open them again.
    fn events_failed(&self, error: &rocksdb::Error) -> StoreError {
        if lost(error)
            && let Err(failed) = self.home.condemn_events()
        {
            tracing::error!(%failed, "the damaged event DB stays");
        }
        failed(error)
    }
}

/// Opens the event DB. One that is lost is set aside, whole, and an empty one takes its place:
/// the log brings back what it still holds, and peers the rest (RULES 35).
fn open_events(home: &Directory, memory: &Memory) -> Result<DB, StoreError> {
    let open = || {
        let families = Family::ALL.map(|family| memory.event_family(family));
        DB::open_cf_descriptors(&memory.events(), home.events(), families)
    };
    let condemned = home.events_condemned()?;
    if !condemned {
        match open() {
            Ok(events) => return Ok(events),
            Err(error) if lost(&error) => {
                tracing::error!(%error, "the event DB does not open and is set aside");
            },
            Err(error) => return Err(StoreError::Io(format!("opening the event DB: {error}"))),
        }
    }
    home.set_events_aside()?;
    open().map_err(|error| StoreError::Io(format!("making an event DB: {error}")))
}

/// Whether a database does not open because its files are not what was written, or are gone; not
/// because of the machine: a full disk, a limit, a right, a lock.
fn lost(error: &rocksdb::Error) -> bool {
    match error.kind() {
        ErrorKind::Corruption => true,
        ErrorKind::IOError => error.as_ref().contains("No such file or directory"),
        _ => false,
    }
}

/// Options for reading a range; the bounds spare the walk over tombstones outside it.
fn within(range: &KeyRange) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(range.start.clone());
    options.set_iterate_upper_bound(range.end.clone());
    options
}

fn visit_all(
    mut iterator: DBRawIteratorWithThreadMode<'_, DB>,
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    iterator.seek_to_first();
    while let Some((key, value)) = iterator.item() {
        if visit(key, value)? == ControlFlow::Break(()) {
            return Ok(());
        }
        iterator.next();
    }
    // An iterator that failed looks like one that ended.
    iterator.status().map_err(|error| failed(&error))
}

fn scan_in(
    db: &DB,
    family: impl Named,
    range: &KeyRange,
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    if range.start >= range.end {
        return Ok(());
    }
    visit_all(
        db.raw_iterator_cf_opt(handle(db, family), within(range)),
        visit,
    )
}

impl Slots for RocksDisk {
    fn read_slot(&self, side: Side) -> Result<Option<Vec<u8>>, StoreError> {
        self.home.read_slot(side)
    }

    fn write_slot(&self, side: Side, bytes: &[u8]) -> Result<(), StoreError> {
        self.home.write_slot(side, bytes)
    }
}

impl Home for RocksDisk {
    fn path(&self) -> String {
        self.home.path()
    }

    fn read_identity(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.home.read_identity()
    }

    fn write_identity(&self, bytes: &[u8]) -> Result<(), StoreError> {
        self.home.write_identity(bytes)
    }

    fn has_log(&self) -> Result<bool, StoreError> {
        self.home.has_log()
    }
}

impl Reads for RocksDisk {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.events
            .get_cf(handle(&self.events, family), key)
            .map_err(|error| failed(&error))
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: Visit<'_>) -> Result<(), StoreError> {
        scan_in(&self.events, family, range, visit)
    }
}

/// The event DB of one moment.
struct Frozen<'db> {
    db: &'db DB,
    snapshot: SnapshotWithThreadMode<'db, DB>,
}

impl Reads for Frozen<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.snapshot
            .get_cf(handle(self.db, family), key)
            .map_err(|error| failed(&error))
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: Visit<'_>) -> Result<(), StoreError> {
        if range.start >= range.end {
            return Ok(());
        }
        let mut options = within(range);
        // Read once: it must not push out what readers use.
        options.fill_cache(false);
        let family = handle(self.db, family);
        visit_all(self.snapshot.raw_iterator_cf_opt(family, options), visit)
    }
}

impl Disk for RocksDisk {
    type LogBatch = RocksBatch;
    type EventBatch = RocksBatch;

    fn log_batch(&self) -> RocksBatch {
        RocksBatch::new(&self.log)
    }

    fn log_write(&self, batch: RocksBatch) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.log
            .write_opt(batch.batch, &options)
            .map_err(|error| failed(&error))
    }

    fn log_get(&self, family: LogFamily, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.log
            .get_cf(handle(&self.log, family), key)
            .map_err(|error| failed(&error))
    }

    fn log_scan(
        &self,
        family: LogFamily,
        range: &KeyRange,
        visit: Visit<'_>,
    ) -> Result<(), StoreError> {
        scan_in(&self.log, family, range, visit)
    }

    fn log_size(&self, family: LogFamily, range: &KeyRange) -> u64 {
        let family = handle(&self.log, family);
        let range = rocksdb::Range::new(&range.start, &range.end);
        let sizes = self.log.get_approximate_sizes_cf(family, &[range]);
        sizes.first().copied().unwrap_or_default()
    }

    fn log_last(&self, family: LogFamily, range: &KeyRange) -> Result<Option<Pair>, StoreError> {
        if range.start >= range.end {
            return Ok(None);
        }
        let mut iterator = self
            .log
            .raw_iterator_cf_opt(handle(&self.log, family), within(range));
        iterator.seek_to_last();
        let last = iterator
            .item()
            .map(|(key, value)| (key.to_vec(), value.to_vec()));
        iterator.status().map_err(|error| failed(&error))?;
        Ok(last)
    }

    fn event_batch(&self) -> RocksBatch {
        RocksBatch::new(&self.events)
    }

    fn event_write(&self, batch: RocksBatch) -> Result<(), StoreError> {
        self.events
            .write_without_wal(batch.batch)
            .map_err(|error| self.events_failed(&error))
    }

    fn event_flush(&self) -> Result<(), StoreError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families = Family::ALL.map(|family| handle(&self.events, family));
        self.events
            .flush_cfs_opt(&families, &options)
            .map_err(|error| self.events_failed(&error))
    }

    fn space(&self) -> Result<(u64, u64), StoreError> {
        let (total, available) = self.home.space()?;
        Ok((total, available.saturating_sub(self.reserve)))
    }

    fn ballast(&self) -> u64 {
        self.home.ballast()
    }

    fn set_ballast(&self, bytes: u64) -> Result<(), StoreError> {
        self.home.set_ballast(bytes)
    }

    fn reclaim(&self, freed: Freed, range: &KeyRange) -> Result<(), StoreError> {
        let (start, end) = (Some(&range.start), Some(&range.end));
        match freed {
            Freed::Log => {
                let family = handle(&self.log, LogFamily::Log);
                self.log.flush_cf(family).map_err(|error| failed(&error))?;
                self.log.compact_range_cf(family, start, end);
            },
            Freed::Events => {
                for family in Family::sharded() {
                    let family = handle(&self.events, family);
                    self.events.compact_range_cf(family, start, end);
                }
            },
        }
        Ok(())
    }

    fn scratch(&self, name: &str) -> Result<Box<dyn Scratch>, StoreError> {
        Ok(Box::new(self.home.incoming(name)?))
    }

    fn close(&self) {
        // RocksDB flushes what has no WAL when it closes.
    }

    fn frozen(&self, read: &mut dyn FnMut(&dyn Reads)) {
        let db: &DB = &self.events;
        read(&Frozen {
            db,
            snapshot: db.snapshot(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Block cache and memtables of both databases come out of one budget.
    #[test]
    fn both_databases_share_their_memory() {
        let dir = tempfile::tempdir().unwrap();
        let home = Directory::lock(dir.path(), true).unwrap();
        let sizes = Sizes::of(24 << 20, 100 << 30);
        let disk = RocksDisk::open(home, &sizes).unwrap();
        let ask = |db: &DB, family: &ColumnFamily, what: &str| {
            let value = db.property_int_value_cf(family, &format!("rocksdb.{what}"));
            usize::try_from(value.unwrap().unwrap()).unwrap()
        };
        let log = |what| ask(&disk.log, handle(&disk.log, LogFamily::Log), what);
        let events = |what| ask(&disk.events, handle(&disk.events, Family::Events), what);
        assert_eq!(log("block-cache-capacity"), 24 << 20);
        assert_eq!(events("block-cache-capacity"), 24 << 20);
        let used = || {
            // Two looks at a cache that is in use: a flush may come between them.
            let mut looks =
                (0..1000).map(|_| (log("block-cache-usage"), events("block-cache-usage")));
            let same = looks.find(|(one, two)| one == two);
            same.expect("one cache").0
        };
        let before = used();
        let mut last = before;
        for number in 0_u32..2000 {
            let mut batch = disk.event_batch();
            batch.put(Family::Events, &number.to_be_bytes(), &[7; 10_000]);
            disk.event_write(batch).unwrap();
            let mut batch = disk.log_batch();
            batch.put(LogFamily::Log, &number.to_be_bytes(), &[7; 10_000]);
            disk.log.write(batch.batch).unwrap();
            last = last.max(used());
        }
        assert!(
            last > before + (3 << 20),
            "memtables are not charged: {last}"
        );
        assert!(last <= 26 << 20, "above the budget: {last}");
        // A memtable is a quarter of what both may take, so a flush of one database is not
        // started by the other's.
        let files = log("num-files-at-level0") + log("num-immutable-mem-table");
        assert!(files <= 12, "{files}");
    }
}
