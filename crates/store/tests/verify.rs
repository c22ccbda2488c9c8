//! A byte that changed in a table file of RocksDB: found by whoever looks unasked, covered by what
//! is installed in the place of the damaged rows, and gone with the whole event DB when a
//! compaction meets it, in a process that lives on.
#![cfg(feature = "rocks")]
#![expect(clippy::unwrap_used, reason = "a test: its panics are its answers")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use everwire_core::ids::META_GROUP;
use everwire_core::position::Offset;
use everwire_store::rocks::RocksStore;
use everwire_store::testing::{append, options, record, session, write_of, write_session};
use everwire_store::{Applied, Store, StoreError};

/// Two groups whose rows share a block, so small are they.
const GROUPS: [u32; 2] = [1, 2];

/// The largest table file of the event DB.
fn largest_table(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("events")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let tables = paths.filter(|path| path.extension().is_some_and(|ending| ending == "sst"));
    let sized = tables.map(|path| (path.metadata().unwrap().len(), path));
    sized.max().unwrap().1
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 4;
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0x10;
    }
    fs::write(path, bytes).unwrap();
}

/// A group as another node gives it.
struct Snapshot {
    group: u32,
    applied: Applied,
    pieces: Vec<Bytes>,
}

impl Snapshot {
    fn of(store: &dyn Store, group: u32) -> Self {
        let mut reader = store.snapshot(group).unwrap();
        let applied = reader.applied().cloned().unwrap();
        let pieces = std::iter::from_fn(|| reader.next_chunk().unwrap()).collect();
        Self {
            group,
            applied,
            pieces,
        }
    }

    fn install(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mut install = store.install(self.group)?;
        for piece in &self.pieces {
            install.chunk(piece.clone())?;
        }
        install.finish(self.applied.clone())
    }
}

/// Whether a group's rows are known to be damaged; if not, all of them are served.
fn is_damaged(store: &dyn Store, group: u32) -> bool {
    let of_group = |error: &StoreError| matches!(error, StoreError::DamagedRows { group: found, .. } if *found == group);
    let read = store.events(session(group, 0, 1), Offset::ZERO.next(), usize::MAX, 99);
    match (store.verify(group, None, usize::MAX), read) {
        (Ok(None), Ok(events)) => {
            assert_eq!(events.len(), 20);
            false
        },
        (Err(error), _) | (_, Err(error)) => {
            assert!(of_group(&error), "{error:?}");
            true
        },
        other => panic!("{other:?}"),
    }
}

/// Installs whatever is damaged, until nothing is.
fn heal(store: &dyn Store, snapshots: &[Snapshot]) {
    for _ in 0..10 {
        let mut damaged = snapshots.iter().filter(|it| is_damaged(store, it.group));
        let Some(snapshot) = damaged.next() else {
            return;
        };
        // It may be lost again, with the whole event DB: then it says so.
        if let Err(error) = snapshot.install(store) {
            assert!(matches!(error, StoreError::DamagedRows { .. }), "{error:?}");
        }
    }
    panic!("it is damaged again and again");
}

#[test]
fn a_block_that_changed_is_found_and_healed_in_a_process_that_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    // Whatever is fatal panics.
    let open = || RocksStore::open(dir.path(), options()).unwrap();
    let store = open();
    for group in GROUPS {
        append(&*store, group, vec![record(3, 1, 5)]).unwrap();
        let write = write_session(1, session(group, 0, 1), 1..=20);
        store.write(group, write).unwrap();
    }
    let mut meta = write_of(7);
    meta.applied.state = Bytes::from_static(b"topology");
    store.write(META_GROUP, meta.clone()).unwrap();
    let snapshots = GROUPS.map(|group| Snapshot::of(&*store, group));
    drop(store);
    let table = largest_table(dir.path());
    flip(&table);
    let inode = table.metadata().unwrap().ino();

    let store = open();
    for group in GROUPS {
        assert!(is_damaged(&*store, group));
    }
    heal(&*store, &snapshots);

    // Sooner or later a compaction meets what still lies below.
    let is_there = || table.metadata().is_ok_and(|found| found.ino() == inode);
    for number in 1..50 {
        if !is_there() {
            break;
        }
        // Refused from the moment on when its rows are lost.
        drop(store.write(9, write_session(number, session(9, 0, number), 1..=20)));
        store.flush().unwrap();
    }
    assert!(!is_there(), "no compaction came");
    assert_eq!(
        store.applied(META_GROUP).unwrap(),
        Some(meta.applied.clone())
    );
    assert!(!store.damaged().is_empty());
    heal(&*store, &snapshots);
    store.write(META_GROUP, meta.clone()).unwrap();
    store.flush().unwrap();
    drop(store);

    let store = open();
    for group in GROUPS {
        assert!(!is_damaged(&*store, group));
        assert_eq!(
            store.log_state(group).unwrap().last,
            Some(record(3, 1, 0).position)
        );
    }
    assert_eq!(store.applied(META_GROUP).unwrap(), Some(meta.applied));
}
