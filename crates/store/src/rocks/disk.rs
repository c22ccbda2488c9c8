//! RocksDB as the engine's disk.

use std::ops::ControlFlow;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rocksdb::{
    DB, DBRawIteratorWithThreadMode, ErrorKind, FlushOptions, ReadOptions, SnapshotWithThreadMode,
    WriteOptions,
};

use crate::disk::{Disk, Freed, Left, Pair, Reads, Scratch, Visit};
use crate::error::StoreError;
use crate::identity::Home;
use crate::layout::{Family, KeyRange, LogFamily};
use crate::rocks::batch::{Named, RocksBatch, handle};
use crate::rocks::home::Directory;
use crate::rocks::options::{Memory, RANGE_DELETIONS};
use crate::rocks::sizes::Sizes;
use crate::watermark::{Side, Slots};

const LOCK: &str = "no holder of this lock panics";
/// How often, and how many times, it is looked whether a damaged event DB is free: a read that is
/// under way ends in that time, or the process does.
const CLOSED_LOOK_EVERY: Duration = Duration::from_millis(20);
const CLOSED_LOOKS: u32 = 500;

/// What of a family waits in memory to be flushed.
const IN_MEMORY: &str = "rocksdb.cur-size-all-mem-tables";

/// Both databases and the files beside them. Fields in the order of their end: the directory's
/// lock goes last.
pub(crate) struct RocksDisk {
    log: Arc<DB>,
    events: RwLock<Events>,
    memory: Memory,
    /// See [`Sizes::reserve`].
    reserve: u64,
    /// See [`Sizes::manifest`].
    manifest: u64,
    home: Directory,
}

/// The event DB, which may be replaced by an empty one.
struct Events {
    /// `None` only while it is replaced, or when that failed.
    db: Option<Arc<DB>>,
    /// How often it was replaced.
    generation: u64,
}

/// Whether RocksDB refused a write because it met the end of the disk in the background, in a
/// flush or a compaction: it takes none until it has got over that, which it tries every few
/// seconds. This one was not begun then. One that ended in the WAL was, and must not go on.
fn refused(error: &rocksdb::Error) -> bool {
    let text: &str = error.as_ref();
    error.kind() == ErrorKind::IOError
        && text.contains("No space left on device")
        && !text.split([' ', ':']).any(|word| word.ends_with(".log"))
}

fn failed(error: &rocksdb::Error) -> StoreError {
    match error.kind() {
        _ if refused(error) => StoreError::Full { used_percent: 100 },
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
        let families = families.into_iter().chain([memory.unused_family()]);
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
        Ok(Self {
            log: Arc::new(log),
            events: RwLock::new(Events {
                db: Some(Arc::new(events)),
                generation: 0,
            }),
            memory,
            reserve: sizes.reserve,
            manifest: u64::try_from(sizes.manifest).unwrap_or(u64::MAX),
            home,
        })
    }
}

impl RocksDisk {
    /// The event DB as it is now.
    fn events(&self) -> Arc<DB> {
        let events = self.events.read().expect(LOCK);
        let db = events.db.clone();
        db.expect("the process ends when the event DB cannot be replaced")
    }

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
    let events = find_events(home, memory)?;
    for family in Family::sharded() {
        events
            .set_options_cf(handle(&events, family), &RANGE_DELETIONS)
            .map_err(|error| failed(&error))?;
    }
    Ok(events)
}

fn find_events(home: &Directory, memory: &Memory) -> Result<DB, StoreError> {
    let open = || {
        let families = Family::ALL.map(|family| memory.event_family(family));
        let families = families.into_iter().chain([memory.unused_family()]);
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

/// A batch of a database that is no more.
fn replaced() -> StoreError {
    StoreError::Damaged {
        what: "the event DB was replaced".to_owned(),
    }
}

/// Returns when nobody uses a database any more and it is closed.
fn closed(mut db: Arc<DB>) -> Result<(), StoreError> {
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    for _ in 0..CLOSED_LOOKS {
        match Arc::try_unwrap(db) {
            Ok(db) => {
                drop(db);
                return Ok(());
            },
            Err(used) => db = used,
        }
        // Nobody sends: it only waits.
        never.recv_timeout(CLOSED_LOOK_EVERY).ok();
    }
    Err(StoreError::Io(
        "the damaged event DB is still in use".to_owned(),
    ))
}

fn without_wal() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
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
        let events = self.events();
        events
            .get_cf(handle(&events, family), key)
            .map_err(|error| failed(&error))
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: Visit<'_>) -> Result<(), StoreError> {
        scan_in(&self.events(), family, range, visit)
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
        RocksBatch::new(self.log.clone(), 0)
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
        let events = self.events.read().expect(LOCK);
        let db = events.db.clone();
        let db = db.expect("the process ends when the event DB cannot be replaced");
        RocksBatch::new(db, events.generation)
    }

    fn event_write(&self, batch: RocksBatch) -> Result<(), StoreError> {
        let RocksBatch {
            db,
            generation,
            batch,
            ..
        } = batch;
        // Whoever replaces the database waits until nobody has it.
        drop(db);
        let events = self.events.read().expect(LOCK);
        let current = events
            .db
            .as_ref()
            .filter(|_| events.generation == generation);
        let Some(db) = current else {
            return Err(replaced());
        };
        let written = db.write_without_wal(batch);
        written.map_err(|error| self.events_failed(&error))
    }

    fn event_flush(&self) -> Result<(), StoreError> {
        // A database that has stopped says so to any write, one of nothing too. It must not be
        // asked to flush: each try would stand in front of its own recovery.
        self.event_write(self.event_batch())?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let events = self.events();
        let families = Family::ALL.map(|family| handle(&events, family));
        events
            .flush_cfs_opt(&families, &options)
            .map_err(|error| self.events_failed(&error))
    }

    fn space(&self) -> Result<(u64, u64), StoreError> {
        let (total, available) = self.home.space()?;
        Ok((total, available.saturating_sub(self.reserve)))
    }

    fn left(&self) -> Result<Left, StoreError> {
        let (_, bytes) = self.home.space()?;
        if bytes >= 2 * self.reserve {
            // All memtables together are less than this: no need to ask.
            let log = self.reserve / 2;
            return Ok(Left { bytes, log });
        }
        let in_memory = LogFamily::ALL.map(|family| {
            let family = handle(&self.log, family);
            let size = self.log.property_int_value_cf(family, IN_MEMORY);
            size.map(Option::unwrap_or_default)
        });
        let mut log = self.manifest;
        for size in in_memory {
            log += size.map_err(|error| failed(&error))?;
        }
        Ok(Left { bytes, log })
    }

    fn memory(&self) -> (usize, usize) {
        self.memory.used_of()
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
                let events = self.events();
                for family in Family::sharded() {
                    let family = handle(&events, family);
                    events.compact_range_cf(family, start, end);
                }
            },
        }
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.events.read().expect(LOCK).generation
    }

    fn replace_events(&self, keep: &[(Family, Vec<u8>)]) -> Result<(), StoreError> {
        let mut events = self.events.write().expect(LOCK);
        let old = events.db.take();
        let old = old.ok_or_else(|| StoreError::Io("there is no event DB".to_owned()))?;
        let mut kept = Vec::new();
        for (family, key) in keep {
            let value = old.get_cf(handle(&old, *family), key);
            kept.push((family, key, value.map_err(|error| failed(&error))?));
        }
        closed(old)?;
        let new = open_events(&self.home, &self.memory)?;
        for (family, key, value) in kept {
            if let Some(value) = value {
                let family = handle(&new, *family);
                let put = new.put_cf_opt(family, key, value, &without_wal());
                put.map_err(|error| failed(&error))?;
            }
        }
        new.flush_cf(handle(&new, Family::Applied))
            .map_err(|error| failed(&error))?;
        self.home.sync()?;
        events.db = Some(Arc::new(new));
        events.generation += 1;
        Ok(())
    }

    fn scratch(&self, name: &str) -> Result<Box<dyn Scratch>, StoreError> {
        Ok(Box::new(self.home.incoming(name)?))
    }

    fn close(&self) {
        // RocksDB flushes what has no WAL when it closes.
    }

    fn frozen(&self, read: &mut dyn FnMut(&dyn Reads)) {
        let events = self.events();
        let db: &DB = &events;
        read(&Frozen {
            db,
            snapshot: db.snapshot(),
        });
    }
}

#[cfg(test)]
mod tests {
    use rocksdb::ColumnFamily;

    use super::*;
    use crate::disk::Batch;

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
        let db = disk.events();
        let events = |what| ask(&db, handle(&db, Family::Events), what);
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
