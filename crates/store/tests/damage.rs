//! A flipped byte inside a table file of the event DB: reads tell whose rows it hits, those are
//! replaced; and when a compaction meets it, all groups' rows are lost, and the process lives.
#![cfg(feature = "rocks")]
#![expect(clippy::unwrap_used, reason = "a test: its panics are its answers")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use everwire_core::event::{Body, Data};
use everwire_core::position::Offset;
use everwire_store::rocks::RocksStore;
use everwire_store::testing::{append, at, counting, event, record, session, write_of};
use everwire_store::{ApplyWrite, Store, StoreError};

/// Events that no compression makes smaller, so that a flipped byte is one of theirs.
fn noise(group: u32, index: u64) -> ApplyWrite {
    let mut write = write_of(index);
    let mut state = index | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    for offset in 1..=40 {
        let mut said = event(offset, 0).as_ref().clone();
        let data: Vec<u8> = std::iter::repeat_with(&mut next)
            .take(500)
            .flatten()
            .collect();
        said.body = Body::App {
            name: "noise".into(),
            data: Some(Data::Binary(Bytes::from(data))),
        };
        let here = session(group, 0, index);
        write.events.push((here, std::sync::Arc::new(said)));
    }
    write
}

fn flip_in_the_largest_table(dir: &Path) {
    let files = fs::read_dir(dir.join("events")).unwrap();
    let tables = files.map(|file| file.unwrap().path());
    let tables = tables.filter(|path| path.extension().is_some_and(|e| e == "sst"));
    let largest = tables.max_by_key(|path| fs::metadata(path).unwrap().len());
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(largest.unwrap())
        .unwrap();
    let place = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
}

#[test]
fn a_flipped_byte_in_a_table_costs_that_groups_rows_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let open = || {
        let (options, fatal) = counting();
        (RocksStore::open(dir, options).unwrap(), fatal)
    };
    let read = |store: &dyn Store| {
        let here = session(4, 0, 1);
        store.events(here, Offset::ZERO.next(), usize::MAX, usize::MAX)
    };
    let (store, _) = open();
    append(
        &*store,
        4,
        (1..=3).map(|index| record(3, index, 0)).collect(),
    )
    .unwrap();
    store.write(4, noise(4, 1)).unwrap();
    store.write(5, write_of(1)).unwrap();
    drop(store);
    flip_in_the_largest_table(dir);

    let (store, fatal) = open();
    let found = read(&*store);
    assert!(
        matches!(found, Err(StoreError::DamagedRows { group: 4, .. })),
        "{found:?}"
    );
    store.drop_rows(4).unwrap();
    let install = store.install(4).unwrap();
    install.finish(write_of(3).applied).unwrap();
    assert!(read(&*store).unwrap().is_empty());
    assert_eq!(store.log_state(4).unwrap().last, Some(at(3)));
    assert_eq!(store.applied(5).unwrap().unwrap().position, at(1));

    // The bad block is still in its file: sooner or later a compaction meets it.
    let mut lost = None;
    for index in 4..2000 {
        let told = store.write(4, noise(4, index)).and_then(|()| store.flush());
        if let Err(error) = told {
            lost = Some(error);
            break;
        }
    }
    assert_eq!(fatal.load(Ordering::SeqCst), 0);
    let Some(error) = lost else {
        // It was dropped with the rows that it belonged to: nothing is left to meet.
        return;
    };
    println!("{error}");
    assert!(dir.join("events-damaged").exists());
    for group in [4, 5] {
        let of_group = |error: &StoreError| matches!(error, StoreError::DamagedRows { group: found, .. } if *found == group);
        assert!(store.damaged().iter().any(of_group));
        let applied = store.applied(group);
        assert!(applied.as_ref().is_err_and(of_group), "{applied:?}");
    }
    assert_eq!(store.log_state(4).unwrap().last, Some(at(3)));
    let install = store.install(4).unwrap();
    install.finish(write_of(0).applied).unwrap();
    store.write(4, noise(4, 1)).unwrap();
    store.flush().unwrap();
    assert_eq!(read(&*store).unwrap().len(), 40);
    assert_eq!(store.durable_applied(4), Some(at(1)));
}
