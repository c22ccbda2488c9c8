//! A file system of 64 MiB: a store opens on it and serves, the levels come before the disk is
//! full, deleting makes room again by itself, and a full disk is no quarantine.
//!
//! Needs root, for the mount; without it the tests say so and do nothing.
#![cfg(feature = "rocks")]
#![expect(clippy::unwrap_used, reason = "a test: its panics are its answers")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use everwire_core::event::{Body, Data};
use everwire_core::row::RowKey;
use everwire_store::rocks::RocksStore;
use everwire_store::testing::{
    answer, append, at, done, event, head, options, record, session, write_of,
};
use everwire_store::{LogPosition, OpenOptions, SpaceLevel, Store, StoreError};
use tempfile::TempDir;

/// A mounted file system; gone when dropped.
struct Mount(TempDir);

impl Mount {
    fn new(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "everwire-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            other => {
                // Past the capture of a test's output: seen also when it passes.
                let mut out = std::io::stderr();
                writeln!(out, "SKIPPED: {test}: no file system to be had: {other:?}").unwrap();
                None
            },
        }
    }

    fn data(&self) -> std::path::PathBuf {
        self.0.path().join("data")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().unwrap();
    }
}

/// Waits for a condition, generously.
fn wait_for(what: &str, met: impl Fn() -> bool) {
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    for _ in 0..1200 {
        if met() {
            return;
        }
        never.recv_timeout(Duration::from_millis(50)).ok();
    }
    panic!("{what}");
}

/// One group, fed as a shard does it: log, then apply, and a purge behind each flush.
struct Feed {
    store: Arc<dyn Store>,
    dir: std::path::PathBuf,
    index: u64,
    session: u64,
    /// The least that was ever left, bytes.
    low: u64,
}

impl Feed {
    /// A session of its own with one event of so many bytes.
    fn step(&mut self, bytes: usize) {
        self.index += 1;
        self.session += 1;
        let noise = self.noise(bytes);
        let mut entry = record(3, self.index, 0);
        entry.bytes = noise.clone();
        append(&*self.store, 1, vec![entry]).unwrap();
        let here = session(1, 0, self.session);
        let mut write = write_of(self.index);
        write.rows.insert(RowKey::Head(here), Some(head(1)));
        let mut said = event(1, 0).as_ref().clone();
        said.body = Body::App {
            name: "noise".into(),
            data: Some(Data::Binary(noise)),
        };
        write.events = vec![(here, Arc::new(said))];
        self.store.write(1, write).unwrap();
        self.purge();
        self.low = self.low.min(fs4::available_space(&self.dir).unwrap());
    }

    /// Bytes that no compression makes smaller.
    fn noise(&self, bytes: usize) -> Bytes {
        let mut state = self.index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()
        };
        let words = std::iter::repeat_with(&mut next).take(bytes / 8 + 1);
        words.flatten().collect()
    }

    /// Deletes all sessions up to here.
    fn erase(&mut self, upto: u64) {
        self.index += 1;
        append(&*self.store, 1, vec![record(3, self.index, 10)]).unwrap();
        let mut write = write_of(self.index);
        write.erased = (1..=upto).map(|number| session(1, 0, number)).collect();
        self.store.write(1, write).unwrap();
        self.store.flush().unwrap();
        self.purge();
    }

    fn purge(&self) {
        let durable = self.store.durable_applied(1).map_or(0, |at| at.index);
        let purged = self.store.log_state(1).unwrap().purged;
        if durable > purged.map_or(0, |at: LogPosition| at.index) {
            let (send, told) = done();
            self.store.purge(1, at(durable), send);
            answer(&told).unwrap();
        }
    }

    fn level(&self) -> SpaceLevel {
        self.store.space().level
    }
}

/// Any failed write would panic, and the levels are those of a node.
fn levels() -> OpenOptions {
    OpenOptions {
        refuse_percent: (90, 95),
        ..options()
    }
}

fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
}

#[test]
fn a_small_file_system_refuses_in_time_and_recovers_by_itself() {
    let Some(mount) = Mount::new("a_small_file_system_refuses_in_time_and_recovers_by_itself")
    else {
        return;
    };
    let store = RocksStore::open(&mount.data(), levels()).unwrap();
    let fresh = store.space();
    println!("fresh: {fresh:?}");
    assert!(fresh.used_percent < 20, "{fresh:?}");
    let mut feed = Feed {
        store,
        dir: mount.data(),
        index: 0,
        session: 0,
        low: u64::MAX,
    };
    for round in 0..3 {
        let before = feed.session;
        while feed.level() == SpaceLevel::Plenty {
            feed.step(100_000);
            assert!(feed.session - before < 10_000, "it never fills");
        }
        let filled = feed.session - before;
        println!("round {round}: {filled} sessions, {:?}", feed.store.space());
        assert!(filled > 50, "too early");
        // People go on until it is their turn. How long that takes is not the test's to say:
        // what was flushed and purged meanwhile makes room again, under agents' refusal too.
        let before = feed.session;
        while feed.level() != SpaceLevel::PeopleRefused {
            let size = if feed.level() == SpaceLevel::Plenty {
                100_000
            } else {
                2_000
            };
            feed.step(size);
            assert!(feed.session - before < 50_000, "people are never refused");
        }
        println!(
            "round {round}: {} sessions more, people refused at {:?}",
            feed.session - before,
            feed.store.space()
        );
        // Deletes are never refused, and reads go on.
        let last = session(1, 0, feed.session);
        assert!(feed.store.row(&RowKey::Head(last)).unwrap().is_some());
        feed.erase(feed.session);
        wait_for("no room comes back", || {
            feed.store.space().used_percent < 50
        });
        println!("round {round}: after deleting {:?}", feed.store.space());
    }
    feed.step(1_000);
    println!("never less than {} bytes were left", feed.low);
}

#[test]
fn a_full_disk_is_no_quarantine() {
    let Some(mount) = Mount::new("a_full_disk_is_no_quarantine") else {
        return;
    };
    let open = || RocksStore::open(&mount.data(), levels());
    let store = open().unwrap();
    append(&*store, 1, vec![record(3, 1, 5)]).unwrap();
    store.write(1, write_of(1)).unwrap();
    drop(store);
    assert!(mount.data().join("BALLAST").exists());
    let strange = mount.0.path().join("strange");
    fill(&strange);
    // The ballast makes room enough to open.
    let store = open().unwrap();
    assert_eq!(store.log_state(1).unwrap().last, Some(at(1)));
    assert_eq!(store.space().level, SpaceLevel::PeopleRefused);
    assert!(!mount.data().join("BALLAST").exists());
    drop(store);
    // Without one it may fail, but the node keeps its id.
    fill(&mount.0.path().join("stranger"));
    let answer = open().map(drop);
    println!("full: {answer:?}");
    assert!(
        matches!(answer, Ok(()) | Err(StoreError::Io(_))),
        "{answer:?}"
    );
    for name in ["strange", "stranger"] {
        std::fs::remove_file(mount.0.path().join(name)).unwrap();
    }
    let store = open().unwrap();
    assert_eq!(store.log_state(1).unwrap().last, Some(at(1)));
    assert_eq!(store.applied(1).unwrap().unwrap().position, at(1));
    assert_eq!(store.space().level, SpaceLevel::Plenty);
    assert!(mount.data().join("BALLAST").exists());
}
