//! The real store: the behaviour suite, and damage that only files can have.
#![cfg(feature = "rocks")]
#![expect(clippy::unwrap_used, reason = "a test: its panics are its answers")]

use std::fs::{self, File, OpenOptions as FileOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use everwire_core::ids::NodeId;
use everwire_store::layout::{Family, LogFamily};
use everwire_store::rocks::{RocksStore, peek_identity, retire};
use everwire_store::sim::Damage;
use everwire_store::testing::{
    Bed, answer, append, at, done, options, record, session, suite, write_of, write_session,
};
use everwire_store::{Identity, LogState, OpenOptions, Store, StoreError, VoteRecord, regressed};
use rocksdb::{DB, IteratorMode, Options};
use tempfile::TempDir;

/// A directory that a crash copies: what a killed process leaves is what its files hold.
struct RocksBed {
    root: TempDir,
    lives: AtomicU32,
    remembered: Mutex<Option<PathBuf>>,
}

impl RocksBed {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            lives: AtomicU32::new(0),
            remembered: Mutex::new(None),
        }
    }

    fn dir(&self) -> PathBuf {
        let life = self.lives.load(Ordering::SeqCst);
        self.root.path().join(format!("life-{life}"))
    }

    /// Flips the last byte of the first or last value of a family.
    fn flip(&self, db: &str, family: &str, last: bool) {
        let path = self.dir().join(db);
        let families = DB::list_cf(&Options::default(), &path).unwrap();
        let db = DB::open_cf(&Options::default(), &path, families).unwrap();
        let cf = db.cf_handle(family).unwrap();
        let mode = if last {
            IteratorMode::End
        } else {
            IteratorMode::Start
        };
        let (key, mut value) = db.iterator_cf(cf, mode).next().unwrap().unwrap();
        *value.last_mut().unwrap() ^= 0x10;
        db.put_cf(cf, key, value).unwrap();
        db.flush_cf(cf).unwrap();
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // Holds nothing.
        if entry.file_name() == "BALLAST" {
            continue;
        }
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Names and sizes, to tell whether a background thread worked while it was copied.
fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => all.extend(listing(&path)),
            Ok(meta) => all.push((path, meta.len())),
            Err(_) => {},
        }
    }
    all.sort();
    all
}

fn flip_in_file(path: &Path, place: u64) {
    let file = FileOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
}

impl Bed for RocksBed {
    fn open(&self, options: OpenOptions) -> Result<Arc<dyn Store>, StoreError> {
        RocksStore::open(&self.dir(), options)
    }

    fn crash(&self, store: Arc<dyn Store>) {
        let from = self.dir();
        let life = self.lives.load(Ordering::SeqCst) + 1;
        let to = self.root.path().join(format!("life-{life}"));
        loop {
            let before = listing(&from);
            // RocksDB may remove a file under the copy: then it was no moment's picture.
            if copy(&from, &to).is_ok() && before == listing(&from) {
                break;
            }
            fs::remove_dir_all(&to).unwrap();
        }
        drop(store);
        self.lives.store(life, Ordering::SeqCst);
    }

    fn damage(&self, what: Damage) {
        let dir = self.dir();
        match what {
            Damage::LogHead => self.flip("log", LogFamily::Log.name(), false),
            Damage::Log => self.flip("log", LogFamily::Log.name(), true),
            Damage::Meta => self.flip("log", LogFamily::Meta.name(), false),
            Damage::Events => self.flip("events", Family::Events.name(), true),
            Damage::Rows => self.flip("events", Family::Rows.name(), true),
            Damage::Applied => self.flip("events", Family::Applied.name(), true),
            Damage::AppliedHead => self.flip("events", Family::Applied.name(), false),
            // Somewhere in the cluster's name.
            Damage::Slot(true) => flip_in_file(&dir.join("WATERMARK"), 24),
            Damage::Slot(false) => flip_in_file(&dir.join("WATERMARK"), (256 << 10) + 24),
            Damage::EventDb => fs::write(dir.join("events/CURRENT"), "nothing of ours").unwrap(),
            Damage::Identity => flip_in_file(&dir.join("IDENTITY"), 9),
        }
    }

    fn remember_log(&self) {
        let to = self.root.path().join("remembered");
        copy(&self.dir().join("log"), &to).unwrap();
        *self.remembered.lock().unwrap() = Some(to);
    }

    fn restore_log(&self) {
        let log = self.dir().join("log");
        fs::remove_dir_all(&log).unwrap();
        copy(self.remembered.lock().unwrap().as_ref().unwrap(), &log).unwrap();
    }

    fn peek(&self) -> Result<Option<Identity>, StoreError> {
        peek_identity(&self.dir())
    }

    fn retire(&self) -> Result<(), StoreError> {
        retire(&self.dir()).map(drop)
    }

    fn set_format_version(&self, identity: &Identity, format_version: u32) {
        let bytes = identity.file_bytes(format_version);
        fs::write(self.dir().join("IDENTITY"), bytes).unwrap();
    }
}

#[test]
fn the_real_store_behaves() {
    suite(&|| Box::new(RocksBed::new()));
}

/// Point-in-time recovery drops a bad record and all behind it without a word; the watermark
/// says that more was synced.
#[test]
fn a_damaged_wal_is_quarantine() {
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    for index in 1..=200 {
        append(&*store, 1, vec![record(3, index, 500)]).unwrap();
    }
    // A clean end of the watermark's thread; the log DB keeps its WAL either way.
    drop(store);
    let log = bed.dir().join("log");
    let wal = listing(&log)
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "log"))
        .max_by_key(|(_, size)| *size)
        .unwrap();
    flip_in_file(&wal.0, 50_000);
    let answer = bed.open(options()).map(|_| ());
    assert!(
        matches!(answer, Err(StoreError::Quarantine { .. })),
        "{answer:?}"
    );
}

#[test]
fn a_missing_watermark_or_log_is_quarantine() {
    for lost in ["WATERMARK", "log", "IDENTITY"] {
        let bed = RocksBed::new();
        let store = bed.open(options()).unwrap();
        append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
        drop(store);
        let path = bed.dir().join(lost);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        let answer = bed.open(options()).map(|_| ());
        assert!(
            matches!(answer, Err(StoreError::Quarantine { .. })),
            "{lost}: {answer:?}"
        );
    }
}

#[test]
fn a_lost_event_db_is_replayed_from_the_log() {
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
    store.write(1, write_of(1)).unwrap();
    drop(store);
    fs::remove_dir_all(bed.dir().join("events")).unwrap();
    let store = bed.open(options()).unwrap();
    assert_eq!(store.applied(1).unwrap(), None);
    assert_eq!(store.log_state(1).unwrap().last, Some(at(1)));
}

/// The batch number follows within 10 ms, without another write.
#[test]
fn the_watermark_follows_an_idle_log() {
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    let read = || {
        let mut bytes = Vec::new();
        let path = bed.dir().join("WATERMARK");
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let before = read();
    append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
    // Far beyond 10 ms, for a loaded machine.
    let changed = (0..400).any(|_| {
        let (_wait, told) = std::sync::mpsc::channel::<()>();
        told.recv_timeout(std::time::Duration::from_millis(5)).ok();
        read() != before
    });
    assert!(changed);
}

/// A write to the watermark that was cut in the middle leaves the other slot.
#[test]
fn a_torn_vote_leaves_the_old_one() {
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    let vote = VoteRecord {
        term: 4,
        node: 7,
        committed: false,
    };
    let (send, told) = done();
    store.save_vote(1, vote, send);
    answer(&told).unwrap();
    drop(store);
    let path = bed.dir().join("WATERMARK");
    let mut file = FileOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&[0xaa; 30]).unwrap();
    drop(file);
    let store = bed.open(options()).unwrap();
    assert_eq!(store.vote(1).unwrap(), Some(vote));
}

/// RocksDB sets options to what it finds compatible, without a word: recycling of the WAL, for
/// one, in any recovery mode but this. What it runs with stands in its OPTIONS file.
#[test]
fn rocksdb_runs_with_the_options_that_matter() {
    let bed = RocksBed::new();
    drop(bed.open(options()).unwrap());
    let options_of = |db: &str| {
        let newest = listing(&bed.dir().join(db))
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| path.to_string_lossy().contains("OPTIONS-"))
            .max()
            .unwrap();
        fs::read_to_string(newest).unwrap()
    };
    let log = options_of("log");
    for line in [
        "recycle_log_file_num=4",
        "wal_recovery_mode=kPointInTimeRecovery",
        "track_and_verify_wals_in_manifest=true",
        "atomic_flush=true",
        "enable_pipelined_write=false",
        "unordered_write=false",
        "level0_slowdown_writes_trigger=1073741824",
        "level0_stop_writes_trigger=1073741824",
        "soft_pending_compaction_bytes_limit=0",
        "hard_pending_compaction_bytes_limit=0",
    ] {
        assert!(log.contains(line), "{line}");
    }
    let events = options_of("events");
    for line in [
        "atomic_flush=true",
        "memtable_max_range_deletions=1000",
        "enable_blob_files=true",
    ] {
        assert!(events.contains(line), "{line}");
    }
}

/// The pieces of a snapshot that arrives stand in files; they go with their owner, with the next
/// open, and when they read back differently that is said.
#[test]
fn spooled_snapshots_are_files_that_go() {
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    for number in 1..=3 {
        let write = write_session(number, session(4, 1, number), 1..=5);
        store.write(4, write).unwrap();
    }
    let mut source = store.snapshot(4).unwrap();
    let applied = source.applied().cloned().unwrap();
    let piece = source.next_chunk().unwrap().unwrap();
    let files = || match fs::read_dir(bed.dir().join("incoming")) {
        Ok(files) => files.map(|file| file.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    let spooled = || {
        let mut spool = store.spool(4, applied.clone()).unwrap();
        spool.chunk(piece.clone()).unwrap();
        spool
    };
    let spool = spooled();
    assert_eq!(files().len(), 1);
    let mut reader = spool.finish().unwrap();
    assert_eq!(reader.next_chunk().unwrap(), Some(piece.clone()));
    assert_eq!(reader.next_chunk().unwrap(), None);
    assert_eq!(files().len(), 1);
    drop(reader);
    assert!(files().is_empty(), "gone with its reader");
    drop(spooled());
    assert!(files().is_empty(), "gone with the spool");

    for place in [0, 5, 100] {
        let spool = spooled();
        flip_in_file(&files()[0], place);
        let answer = spool.finish().unwrap().next_chunk();
        assert!(
            matches!(answer, Err(StoreError::Damaged { .. })),
            "{place}: {answer:?}"
        );
    }
    let left = spooled();
    drop(source);
    bed.crash(store.clone());
    assert_eq!(files().len(), 1, "a killed process leaves it");
    drop((left, store));
    drop(bed.open(options()).unwrap());
    assert!(files().is_empty(), "gone at the next open");
}

/// Wherever a crash cuts a retirement: the next who opens the directory finishes it.
#[test]
fn a_retirement_is_finished_after_a_crash() {
    let moved = ["WATERMARK", "log", "events", "IDENTITY"];
    for count in 0..=moved.len() {
        let bed = RocksBed::new();
        let store = bed.open(options()).unwrap();
        append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
        drop(store);
        let (dir, target) = (bed.dir(), bed.dir().join("retired-7-1"));
        fs::write(dir.join("RETIRING"), "retired-7-1").unwrap();
        if count > 0 {
            fs::create_dir(&target).unwrap();
        }
        for part in &moved[..count] {
            fs::rename(dir.join(part), target.join(part)).unwrap();
        }
        assert_eq!(bed.peek(), Ok(None));
        if count % 2 == 0 {
            assert_eq!(retire(&dir).unwrap(), target);
        }
        let identity = Identity::new("another", NodeId(9));
        let new = OpenOptions::create(identity, options().on_fatal);
        let store = bed.open(new).unwrap();
        assert_eq!(store.log_state(1).unwrap(), LogState::default());
        assert!(!dir.join("RETIRING").exists());
        assert_eq!(fs::read_dir(&target).unwrap().count(), moved.len());
        drop(store);
        // Nothing is lost: it can still be opened where it lies.
        let old = RocksStore::open(&target, OpenOptions::new(options().on_fatal)).unwrap();
        assert_eq!(old.log_state(1).unwrap().last, Some(at(1)));
        drop(old);
        // One generation is kept.
        let second = retire(&dir).unwrap();
        assert_eq!(second, dir.join("retired-9-1"));
        assert!(second.exists() && !target.exists());
    }
}

/// Quarantine gives the node's id up, so it is for a log that is lost and nothing else.
#[test]
fn a_log_db_that_is_lost_is_quarantine() {
    let garble = |path: PathBuf| fs::write(path, "nothing of ours").unwrap();
    let newest = |bed: &RocksBed, part: &str| {
        let files = listing(&bed.dir().join("log")).into_iter();
        let found = files.filter(|(path, _)| path.to_string_lossy().contains(part));
        found.map(|(path, _)| path).max().unwrap()
    };
    let breaks: [&dyn Fn(&RocksBed); 4] = [
        &|bed| garble(bed.dir().join("log/CURRENT")),
        &|bed| garble(newest(bed, "MANIFEST")),
        &|bed| flip_in_file(&newest(bed, "MANIFEST"), 100),
        &|bed| fs::remove_file(newest(bed, ".sst")).unwrap(),
    ];
    for (number, damage) in breaks.iter().enumerate() {
        let bed = RocksBed::new();
        let store = bed.open(options()).unwrap();
        append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
        drop(store);
        let path = bed.dir().join("log");
        let families = DB::list_cf(&Options::default(), &path).unwrap();
        let db = DB::open_cf(&Options::default(), &path, families).unwrap();
        db.flush_cf(db.cf_handle(LogFamily::Log.name()).unwrap())
            .unwrap();
        drop(db);
        damage(&bed);
        let answer = bed.open(options()).map(|_| ());
        assert!(
            matches!(answer, Err(StoreError::Quarantine { .. })),
            "{number}: {answer:?}"
        );
    }
}

#[test]
fn what_the_machine_refuses_is_no_quarantine() {
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
    drop(store);
    let refused = |what: &str| {
        let answer = bed.open(options()).map(|_| ());
        assert!(
            matches!(answer, Err(StoreError::Io(_))),
            "{what}: {answer:?}"
        );
    };
    // Somebody else has one of the databases open.
    for part in ["log", "events"] {
        let path = bed.dir().join(part);
        let families = DB::list_cf(&Options::default(), &path).unwrap();
        let held = DB::open_cf(&Options::default(), &path, families).unwrap();
        refused(part);
        drop(held);
    }
    // A path that is not what it should be, as a stand-in for a missing right: root has them all.
    for part in ["log", "events"] {
        let lock = bed.dir().join(part).join("LOCK");
        fs::remove_file(&lock).unwrap();
        fs::create_dir(&lock).unwrap();
        refused(part);
        fs::remove_dir(&lock).unwrap();
    }
    assert_eq!(
        bed.open(options()).unwrap().log_state(1).unwrap().last,
        Some(at(1))
    );
}

const FEW_FILES: &str = "EVERWIRE_STORE_FEW_FILES";

/// The test runs itself with fewer and fewer files allowed: the answer is never a quarantine.
#[test]
fn too_many_open_files_is_no_quarantine() {
    if let Some(dir) = std::env::var_os(FEW_FILES) {
        let answer = RocksStore::open(Path::new(&dir), options()).map(|_| ());
        println!("answer {answer:?}");
        return;
    }
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
    store.write(1, write_of(1)).unwrap();
    drop(store);
    let me = std::env::current_exe().unwrap();
    let mut refused = 0;
    for files in (6..40).step_by(3) {
        let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .arg(&me)
            .args([
                "--exact",
                "too_many_open_files_is_no_quarantine",
                "--nocapture",
            ])
            .env(FEW_FILES, bed.dir())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            !said.contains("Quarantine") && !said.contains("Damaged"),
            "{files}: {said}"
        );
        refused += usize::from(said.contains("answer Err(Io("));
    }
    assert!(refused > 1, "no limit was low enough");
    assert!(!bed.dir().join("events-damaged").exists());
    assert_eq!(
        bed.open(options()).unwrap().log_state(1).unwrap().last,
        Some(at(1))
    );
}

/// An older copy of the directory is put back: with the watermark kept, this node notices; with
/// all of it gone back, only those who had recorded more do.
#[test]
fn a_directory_that_went_back_is_noticed() {
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
    drop(store);
    let old = bed.root.path().join("old");
    copy(&bed.dir(), &old).unwrap();
    let store = bed.open(options()).unwrap();
    append(&*store, 1, vec![record(3, 2, 5)]).unwrap();
    let vote = VoteRecord {
        term: 9,
        node: 7,
        committed: false,
    };
    let (send, told) = done();
    store.save_vote(1, vote, send);
    answer(&told).unwrap();
    let recorded = store.own_record();
    drop(store);
    let watermark = fs::read(bed.dir().join("WATERMARK")).unwrap();

    let put_back = || {
        fs::remove_dir_all(bed.dir()).unwrap();
        copy(&old, &bed.dir()).unwrap();
    };
    put_back();
    fs::write(bed.dir().join("WATERMARK"), &watermark).unwrap();
    let answer = bed.open(options()).map(|_| ());
    assert!(
        matches!(answer, Err(StoreError::Quarantine { .. })),
        "{answer:?}"
    );

    put_back();
    let store = bed.open(options()).unwrap();
    assert!(regressed(&recorded, &store.own_record()));
}

/// A compaction or flush that meets bad blocks ends the process; the next one must not meet them
/// again.
#[test]
fn a_condemned_event_db_is_set_aside() {
    let bed = RocksBed::new();
    let store = bed.open(options()).unwrap();
    append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
    store.write(1, write_of(1)).unwrap();
    drop(store);
    fs::write(bed.dir().join("EVENTS-DAMAGED"), "").unwrap();
    for _ in 0..2 {
        let store = bed.open(options()).unwrap();
        assert_eq!(store.applied(1).unwrap(), None);
        assert_eq!(store.log_state(1).unwrap().last, Some(at(1)));
        drop(store);
        assert!(!bed.dir().join("EVENTS-DAMAGED").exists());
        assert!(bed.dir().join("events-damaged/CURRENT").exists());
    }
}
