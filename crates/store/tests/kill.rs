//! kill -9: a process that writes for all it is worth is killed at random moments, ten times on
//! the same directory; whatever it had said was acked is there.
//!
//! The test runs itself as the child (environment variable below). The child says on stdout what
//! was acked, from inside the answer; the parent kills it after a random number of acks. Power
//! loss is not shown here, for the page cache survives a kill: that is the simulated disk's part.
#![cfg(feature = "rocks")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: its panics are its answers"
)]

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};

use everwire_core::Offset;
use everwire_store::rocks::RocksStore;
use everwire_store::testing::{at, options, record, session, whole_log, write_session};
use everwire_store::{LogRecord, Store, VoteRecord};

const CHILD: &str = "EVERWIRE_STORE_KILL_CHILD";
const KILLS: usize = 10;
const GROUPS: u32 = 4;
/// Events that each applied entry writes.
const EVENTS: u64 = 3;
/// Appends of a group that wait for their ack.
const IN_FLIGHT: usize = 20;

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Entries of ever the same size and content for an index, so that the parent can check bytes.
fn entry(index: u64) -> LogRecord {
    record(3, index, usize::try_from(index % 7).unwrap() * 300)
}

/// One group as the child sees it.
struct Lane {
    group: u32,
    next: u64,
    applied: u64,
}

/// Appends to all groups with some in flight; applies what is acked; flushes and purges; votes.
fn child(dir: &Path) {
    let mut options = options();
    options.flush_bytes = 400_000;
    let store = RocksStore::open(dir, options).unwrap();
    let (acks, acked) = channel();
    let mut lanes: Vec<Lane> = (0..GROUPS)
        .map(|group| Lane {
            group,
            next: store.log_state(group).unwrap().last.map_or(0, |l| l.index) + 1,
            applied: store
                .applied(group)
                .unwrap()
                .map_or(0, |a| a.position.index),
        })
        .collect();
    for lane in &mut lanes {
        // What was not flushed before the kill is replayed from the log.
        apply(&*store, lane, lane.next - 1);
        for _ in 0..IN_FLIGHT {
            append(&*store, lane, &acks);
        }
    }
    for round in 0_usize.. {
        let (group, index) = acked.recv().unwrap();
        let lane = &mut lanes[at_group(group)];
        apply(&*store, lane, index);
        append(&*store, lane, &acks);
        if round % 100 == 0
            && let Some(durable) = store.durable_applied(group)
        {
            store.purge(group, at(durable.index), Box::new(|result| result.unwrap()));
        }
        if round % 41 == 0 {
            vote(&*store, group);
        }
    }
}

fn apply(store: &dyn Store, lane: &mut Lane, upto: u64) {
    while lane.applied < upto {
        lane.applied += 1;
        let first = (lane.applied - 1) * EVENTS + 1;
        let events = first..=first + EVENTS - 1;
        let write = write_session(lane.applied, session(lane.group, 0, 1), events);
        store.write(lane.group, write).unwrap();
    }
}

fn at_group(group: u32) -> usize {
    usize::try_from(group).unwrap()
}

fn append(store: &dyn Store, lane: &mut Lane, acks: &Sender<(u32, u64)>) {
    let (group, index) = (lane.group, lane.next);
    lane.next += 1;
    let acks = acks.clone();
    store.append(
        group,
        vec![entry(index)],
        Box::new(move |result| {
            result.unwrap();
            say(&format!("acked {group} {index}"));
            acks.send((group, index)).unwrap();
        }),
    );
}

fn vote(store: &dyn Store, group: u32) {
    let term = store.vote(group).unwrap().map_or(0, |vote| vote.term) + 1;
    let vote = VoteRecord {
        term,
        node: 7,
        committed: false,
    };
    store.save_vote(
        group,
        vote,
        Box::new(move |result| {
            result.unwrap();
            say(&format!("voted {group} {term}"));
        }),
    );
}

/// What the child said, for good: it was read from the pipe.
#[derive(Default)]
struct Promised {
    acked: BTreeMap<u32, u64>,
    voted: BTreeMap<u32, u64>,
    acks: usize,
}

impl Promised {
    fn take(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let to = match words.next() {
            Some("acked") => &mut self.acked,
            Some("voted") => &mut self.voted,
            // What the test harness itself prints.
            _ => return,
        };
        let (Some(group), Some(number)) = (words.next(), words.next()) else {
            return;
        };
        let before = to.insert(group.parse().unwrap(), number.parse().unwrap());
        assert!(before.is_none_or(|before| before <= number.parse().unwrap()));
        self.acks += 1;
    }
}

fn run_and_kill(dir: &Path, promised: &mut Promised, after: usize) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["kill_nine_loses_nothing_acked", "--exact", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let goal = promised.acks + after;
    let mut line = String::new();
    let mut killed = false;
    // To the end of the pipe: what the child said before it died counts.
    while out.read_line(&mut line).unwrap() > 0 {
        // The kill may cut the last line.
        if line.ends_with('\n') {
            promised.take(&line);
        }
        line.clear();
        if !killed && promised.acks >= goal {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(killed, "the child ended by itself: {status}");
}

fn check(store: &dyn Store, promised: &Promised) {
    for group in 0..GROUPS {
        let state = store.log_state(group).unwrap();
        let purged = state.purged.map_or(0, |purged| purged.index);
        let last = state.last.map_or(0, |last| last.index);
        let acked = promised.acked.get(&group).copied().unwrap_or_default();
        assert!(last >= acked, "group {group}: {last}, acked {acked}");

        let found = whole_log(store, group);
        let expected: Vec<_> = (purged + 1..=last).map(entry).collect();
        assert!(found == expected, "group {group}: other entries");

        let applied = store.applied(group).unwrap();
        let applied = applied.map_or(0, |applied| applied.position.index);
        assert!(purged <= applied, "purged {purged}, applied {applied}");
        assert!(applied <= last, "applied {applied}, last {last}");
        let events = store
            .events(session(group, 0, 1), Offset::ZERO, usize::MAX, usize::MAX)
            .unwrap();
        assert_eq!(events.len() as u64, applied * EVENTS);

        let vote = store.vote(group).unwrap().map_or(0, |vote| vote.term);
        let voted = promised.voted.get(&group).copied().unwrap_or_default();
        assert!(vote >= voted, "group {group}: vote {vote}, said {voted}");
    }
}

#[test]
fn kill_nine_loses_nothing_acked() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut promised = Promised::default();
    for round in 0..KILLS {
        let random = RandomState::new().hash_one(round);
        let after = 500 + usize::try_from(random % 3000).unwrap();
        run_and_kill(dir.path(), &mut promised, after);
        let store = RocksStore::open(dir.path(), options()).unwrap();
        check(&*store, &promised);
    }
    assert!(promised.acks > KILLS * 500);
    assert_eq!(promised.acked.len(), at_group(GROUPS));
    assert_eq!(promised.voted.len(), at_group(GROUPS));
}
