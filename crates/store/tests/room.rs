//! A full disk is waited for: nothing fails, votes are saved, reads go on, and everything goes on
//! by itself when there is room.
#![expect(clippy::unwrap_used, reason = "a test: its panics are its answers")]

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use everwire_store::sim::{SimDisk, SimStore};
use everwire_store::testing::{
    Answer, answer, append, at, done, options, record, session, write_session,
};
use everwire_store::{Store, StoreError, VoteRecord};

/// How long something is watched that must not go on.
const STILL: Duration = Duration::from_millis(300);

fn vote(term: u64) -> VoteRecord {
    VoteRecord {
        term,
        node: 7,
        committed: false,
    }
}

fn appending(store: &dyn Store, group: u32, index: u64) -> Answer {
    let (send, told) = done();
    store.append(group, vec![record(3, index, 0)], send);
    told
}

fn voting(store: &dyn Store, group: u32, term: u64) -> Answer {
    let (send, told) = done();
    store.save_vote(group, vote(term), send);
    told
}

fn still(told: &Answer) {
    assert_eq!(told.recv_timeout(STILL), Err(RecvTimeoutError::Timeout));
}

#[test]
fn the_log_waits_for_room_and_votes_do_not() {
    let disk = SimDisk::new();
    let store = SimStore::open_threaded(&disk, options()).unwrap();
    append(&*store, 1, vec![record(3, 1, 0)]).unwrap();
    assert!(!store.log_waits());
    disk.set_room(Some(0));
    let appended = appending(&*store, 1, 2);
    still(&appended);
    assert!(store.log_waits());
    answer(&voting(&*store, 2, 9)).unwrap();
    assert_eq!(store.vote(2).unwrap(), Some(vote(9)));
    // Never before what stands before it in its group.
    let behind = voting(&*store, 1, 9);
    still(&behind);
    assert_eq!(store.vote(1).unwrap(), None);
    let last = appending(&*store, 2, 1);
    disk.set_room(None);
    for told in [appended, behind, last] {
        answer(&told).unwrap();
    }
    assert!(!store.log_waits());
    // On disk, in their order.
    disk.crash();
    drop(store);
    let store = SimStore::open(&disk, options()).unwrap();
    assert_eq!(store.log_state(1).unwrap().last, Some(at(2)));
    assert_eq!(store.log_state(2).unwrap().last, Some(at(1)));
    assert_eq!(store.vote(1).unwrap(), Some(vote(9)));
}

#[test]
fn a_flush_waits_and_so_does_what_memory_cannot_hold() {
    let disk = SimDisk::new();
    let mut options = options();
    options.flush_bytes = 1_000;
    let store = SimStore::open_threaded(&disk, options).unwrap();
    disk.set_room(Some(0));
    let (written, told) = channel();
    let applying = store.clone();
    let thread = std::thread::spawn(move || {
        for index in 1..=100 {
            applying
                .write(1, write_session(index, session(1, 0, index), 1..=1))
                .unwrap();
            written.send(index).unwrap();
        }
    });
    // What fits in memory is applied, and shown.
    let mut last = 0;
    while let Ok(index) = told.recv_timeout(STILL) {
        last = index;
    }
    assert!((1..100).contains(&last), "{last}");
    assert_eq!(store.applied(1).unwrap().unwrap().position, at(last));
    assert_eq!(store.durable_applied(1), None);
    disk.set_room(None);
    thread.join().unwrap();
    store.flush().unwrap();
    assert_eq!(store.durable_applied(1), Some(at(100)));
}

#[test]
fn whoever_stops_waits_no_longer() {
    let disk = SimDisk::new();
    let store = SimStore::open_threaded(&disk, options()).unwrap();
    append(&*store, 1, vec![record(3, 1, 0)]).unwrap();
    store
        .write(1, write_session(1, session(1, 0, 1), 1..=1))
        .unwrap();
    disk.set_room(Some(0));
    let appended = appending(&*store, 1, 2);
    still(&appended);
    let flushing: Arc<dyn Store> = store.clone();
    let flush = std::thread::spawn(move || flushing.flush());
    store.stop_waiting();
    // Refused, and nothing of it was written; nothing is fatal.
    let full = |result| matches!(result, Err(StoreError::Full { .. }));
    assert!(full(answer(&appended)));
    assert!(full(flush.join().unwrap()));
    disk.crash();
    drop(store);
    let store = SimStore::open(&disk, options()).unwrap();
    assert_eq!(store.log_state(1).unwrap().last, Some(at(1)));
}

#[cfg(feature = "rocks")]
mod rocks {
    use std::fs::File;
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::Command;

    use everwire_core::row::RowKey;
    use everwire_store::SpaceLevel;
    use everwire_store::rocks::RocksStore;
    use everwire_store::testing::{head, write_of};
    use tempfile::TempDir;

    use super::*;

    /// Longest wait for RocksDB to get over the end of its disk: it tries every five seconds.
    const OVER_WITHIN: Duration = Duration::from_secs(60);

    /// A mounted file system of 64 MiB; gone when dropped.
    struct Mount(TempDir);

    impl Mount {
        fn new() -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=64m", "everwire-test"])
                .arg(dir.path())
                .output();
            if mounted.is_ok_and(|output| output.status.success()) {
                return Some(Self(dir));
            }
            // Past the capture of a test's output: seen also when it passes.
            let mut out = std::io::stderr();
            writeln!(out, "SKIPPED: a full disk: no file system to be had").unwrap();
            None
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Somebody else takes all that is left.
        fn fill(&self, name: &str) {
            let mut file = File::create(self.path(name)).unwrap();
            while file.write_all(&[7; 4096]).is_ok() {}
        }

        fn free(&self, name: &str) {
            std::fs::remove_file(self.path(name)).unwrap();
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            Command::new("umount").arg(self.0.path()).status().unwrap();
        }
    }

    /// Any failed write would panic.
    fn open(mount: &Mount) -> Arc<dyn Store> {
        let mut options = options();
        options.refuse_percent = (90, 95);
        RocksStore::open(&mount.path("data"), options).unwrap()
    }

    #[test]
    fn a_log_on_a_full_disk_waits() {
        let Some(mount) = Mount::new() else { return };
        let store = open(&mount);
        append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
        store
            .write(1, write_session(1, session(1, 0, 1), 1..=1))
            .unwrap();
        mount.fill("strange");
        store.release_ballast().unwrap();
        mount.fill("stranger");
        let appended = appending(&*store, 1, 2);
        still(&appended);
        assert!(store.log_waits());
        assert_eq!(store.space().level, SpaceLevel::PeopleRefused);
        answer(&voting(&*store, 2, 9)).unwrap();
        let read = store.row(&RowKey::Head(session(1, 0, 1))).unwrap();
        assert_eq!(read, Some(head(1)));
        mount.free("stranger");
        answer(&appended).unwrap();
        mount.free("strange");
        store.flush().unwrap();
        drop(store);
        let store = open(&mount);
        assert_eq!(store.log_state(1).unwrap().last, Some(at(2)));
        assert_eq!(store.durable_applied(1), Some(at(1)));
        assert_eq!(store.vote(2).unwrap(), Some(vote(9)));
    }

    /// Small rows take more of a memtable than of a batch: RocksDB flushes by itself, where nobody
    /// looks first, and stops.
    #[test]
    fn rocksdb_meets_the_end_of_the_disk_and_gets_over_it() {
        let Some(mount) = Mount::new() else { return };
        let store = open(&mount);
        mount.fill("strange");
        store.release_ballast().unwrap();
        mount.fill("stranger");
        let (written, told) = channel();
        let applying = store.clone();
        let thread = std::thread::spawn(move || {
            for index in 1..=20_000 {
                let mut write = write_of(index);
                let row = session(1, 0, index);
                write.rows.insert(RowKey::Head(row), Some(head(1)));
                applying.write(1, write).unwrap();
                written.send(index).unwrap();
            }
        });
        let mut last = 0;
        while let Ok(index) = told.recv_timeout(STILL) {
            last = index;
        }
        assert!((1..20_000).contains(&last), "{last}");
        let kept = store.row(&RowKey::Head(session(1, 0, last))).unwrap();
        assert_eq!(kept, Some(head(1)));
        mount.free("strange");
        mount.free("stranger");
        while last < 20_000 {
            last = told.recv_timeout(OVER_WITHIN).unwrap();
        }
        thread.join().unwrap();
        store.flush().unwrap();
        assert_eq!(store.durable_applied(1), Some(at(20_000)));
    }
}
