//! The simulated store: the behaviour suite, and what only a modelled disk can show: failed and
//! slow syncs, torn heads of what was not synced, the same seed twice.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: its panics are its answers"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use everwire_store::sim::{SimDisk, SimStore};
use everwire_store::testing::{
    SimBed, answer, append, at, counting, done, record, session, suite, whole_log, write_of,
    write_session,
};
use everwire_store::{LogPosition, OpenOptions, SpaceLevel, Store, StoreError, VoteRecord};
use proptest::prelude::*;

#[test]
fn the_simulated_store_behaves() {
    suite(&|| Box::new(SimBed::new(false)));
}

#[test]
fn the_simulated_store_with_threads_behaves() {
    suite(&|| Box::new(SimBed::new(true)));
}

fn vote(term: u64) -> VoteRecord {
    VoteRecord {
        term,
        node: 7,
        committed: false,
    }
}

#[test]
fn after_a_failed_sync_nothing_succeeds() {
    let disk = SimDisk::new();
    let (options, fatal) = counting();
    let store = SimStore::open(&disk, options).unwrap();
    append(&*store, 1, vec![record(3, 1, 0)]).unwrap();
    disk.fail_next_sync();
    let failed = append(&*store, 1, vec![record(3, 2, 0)]);
    assert!(matches!(failed, Err(StoreError::Io(_))), "{failed:?}");
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
    // The disk is well again; the store must not find out.
    assert!(append(&*store, 1, vec![record(3, 3, 0)]).is_err());
    assert!(append(&*store, 2, vec![record(3, 1, 0)]).is_err());
    let (send, told) = done();
    store.save_vote(2, vote(9), send);
    assert!(answer(&told).is_err());
    assert!(store.write(1, write_of(1)).is_err());
    assert!(store.flush().is_err());
    assert!(store.install(1).is_err());
    assert_eq!(fatal.load(Ordering::SeqCst), 1, "told once");
    disk.crash();
    let store = SimStore::open(&disk, counting().0).unwrap();
    assert_eq!(store.log_state(1).unwrap().last, Some(at(1)));
    assert_eq!(store.vote(2).unwrap(), None);
}

#[test]
fn a_failed_sync_of_a_vote_grants_nothing() {
    let disk = SimDisk::new();
    let (options, fatal) = counting();
    let store = SimStore::open(&disk, options).unwrap();
    disk.fail_next_sync();
    let (send, told) = done();
    store.save_vote(1, vote(5), send);
    assert!(answer(&told).is_err());
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failed_flush_is_fatal_and_covers_nothing() {
    let disk = SimDisk::new();
    let (options, fatal) = counting();
    let store = SimStore::open(&disk, options).unwrap();
    store.write(1, write_of(4)).unwrap();
    disk.fail_next_flush();
    assert!(store.flush().is_err());
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
    assert_eq!(store.durable_applied(1), None);
}

#[test]
fn the_room_on_the_disk_decides_who_may_write() {
    for threaded in [false, true] {
        let disk = SimDisk::new();
        let open = if threaded {
            SimStore::open_threaded
        } else {
            SimStore::open
        };
        let mut options = counting().0;
        options.refuse_percent = (90, 95);
        let store = open(&disk, options).unwrap();
        assert_eq!(store.space().level, SpaceLevel::Plenty, "endless");
        assert_eq!(disk.ballast(), 0);
        disk.set_space(10_000, 1_000);
        assert_eq!(store.space().level, SpaceLevel::Plenty);
        assert_eq!(disk.ballast(), 100, "made where there is room");
        assert_eq!(store.space().used_percent, 11);
        disk.set_space(10_000, 8_950);
        assert_eq!(store.space().level, SpaceLevel::AgentsRefused);
        let applied = write_of(1).applied;
        assert!(store.spool(1, applied.clone()).is_ok());
        disk.set_space(10_000, 9_500);
        assert_eq!(store.space().level, SpaceLevel::PeopleRefused);
        let mut spool = store.spool(1, applied).unwrap();
        let answer = spool.chunk(bytes::Bytes::from_static(b"\x01"));
        assert!(matches!(answer, Err(StoreError::Full { .. })), "{answer:?}");
        assert_eq!(disk.ballast(), 100);
        disk.set_space(10_000, 9_800);
        assert_eq!(disk.ballast(), 0, "given up when nothing else helps");
        append(&*store, 1, vec![record(3, 1, 0)]).unwrap();
        disk.set_space(10_000, 8_600);
        assert_eq!(disk.ballast(), 0, "not at once");
        disk.set_space(10_000, 3_000);
        assert_eq!(disk.ballast(), 100);
        assert_eq!(store.space().level, SpaceLevel::Plenty);
        store.release_ballast().unwrap();
        assert_eq!(disk.ballast(), 0);
    }
}

#[test]
fn a_held_disk_answers_nothing_until_released() {
    let disk = SimDisk::new();
    let store = SimStore::open(&disk, counting().0).unwrap();
    disk.hold();
    let mut told = Vec::new();
    for index in 1..=3 {
        let (send, answered) = done();
        store.append(1, vec![record(3, index, 600_000)], send);
        told.push(answered);
    }
    assert_eq!(store.log_state(1).unwrap().last, Some(at(3)));
    assert!(told.iter().all(|told| told.try_recv().is_err()));
    assert!(disk.step());
    assert_eq!(told.iter().filter(|t| t.try_recv().is_ok()).count(), 1);
    disk.crash();
    drop(store);
    let store = SimStore::open(&disk, counting().0).unwrap();
    assert_eq!(store.log_state(1).unwrap().last, Some(at(1)));
    disk.hold();
    let (send, answered) = done();
    store.append(1, vec![record(3, 2, 0)], send);
    disk.release();
    answer(&answered).unwrap();
}

/// Whoever asks is the only thread there is: what it waits for itself must not wait.
#[test]
fn a_disk_that_never_waits_is_slow_and_still_installs() {
    let disk = SimDisk::new();
    disk.never_wait();
    let store = SimStore::open(&disk, counting().0).unwrap();
    assert!(!store.waits());
    disk.hold();
    let (send, answered) = done();
    store.append(1, vec![record(3, 1, 0)], send);
    assert!(answered.try_recv().is_err());
    drop(store.install(1).unwrap());
    answered.try_recv().unwrap().unwrap();
    assert_eq!(store.applied(1).unwrap(), None);
}

/// As a drive does that says that it has synced.
#[test]
fn a_drive_that_lies_acks_what_it_loses() {
    let disk = SimDisk::new();
    let store = SimStore::open(&disk, counting().0).unwrap();
    append(&*store, 1, vec![record(3, 1, 0)]).unwrap();
    disk.lie();
    append(&*store, 1, vec![record(3, 2, 0)]).unwrap();
    store.write(1, write_of(1)).unwrap();
    store.flush().unwrap();
    disk.crash();
    let store = SimStore::open(&disk, counting().0).unwrap();
    assert_eq!(store.log_state(1).unwrap().last, Some(at(1)));
    assert_eq!(store.applied(1).unwrap(), None);
}

/// However little memory a log may take: what is not on disk yet stays in it.
#[test]
fn entries_that_wait_for_their_sync_are_readable() {
    let disk = SimDisk::new();
    let mut options = counting().0;
    options.tail_bytes = 0;
    let store = SimStore::open(&disk, options).unwrap();
    disk.hold();
    let all: Vec<_> = (1..=5).map(|index| record(3, index, 600_000)).collect();
    for record in &all {
        store.append(1, vec![record.clone()], done().0);
    }
    for _ in 0..5 {
        assert!(store.read_log(1, 1..6, usize::MAX).unwrap() == all);
        assert!(disk.step());
    }
    assert!(store.read_log(1, 1..6, usize::MAX).unwrap() == all);
}

/// An install counts when its marker is gone, not before.
#[test]
fn an_install_whose_end_fails_covers_nothing() {
    let disk = SimDisk::new();
    let store = SimStore::open(&disk, counting().0).unwrap();
    let install = store.install(4).unwrap();
    disk.fail_next_sync();
    assert!(install.finish(write_of(100).applied).is_err());
    assert_eq!(store.durable_applied(4), None);
    assert_eq!(store.applied(4).unwrap(), None);
    disk.crash();
    let store = SimStore::open(&disk, counting().0).unwrap();
    assert_eq!(store.applied(4).unwrap(), None);
}

#[test]
fn a_dead_store_reaches_the_disk_no_more() {
    let disk = SimDisk::new();
    let dead = SimStore::open(&disk, counting().0).unwrap();
    disk.crash();
    let store = SimStore::open(&disk, counting().0).unwrap();
    assert!(append(&*dead, 1, vec![record(3, 1, 0)]).is_err());
    assert!(dead.write(1, write_of(1)).is_err());
    drop(dead);
    assert_eq!(store.log_state(1).unwrap().last, None);
    let taken = SimStore::open(&disk, counting().0).map(|_| ());
    assert!(
        matches!(taken, Err(StoreError::Locked { .. })),
        "still open"
    );
}

#[test]
fn a_directory_that_was_not_made_to_its_end_is_made_again() {
    for seed in 0..20 {
        let disk = SimDisk::new();
        disk.fail_next_sync();
        assert!(SimStore::open(&disk, counting().0).is_err());
        disk.crash_keeping(seed);
        let store = SimStore::open(&disk, counting().0).unwrap();
        append(&*store, 1, vec![record(3, 1, 0)]).unwrap();
    }
}

/// An answer may queue the next operation, as Raft does.
#[test]
fn answers_may_call_the_store() {
    let disk = SimDisk::new();
    let store = SimStore::open(&disk, counting().0).unwrap();
    let (send, told) = done();
    let inner = Arc::clone(&store);
    store.append(
        1,
        vec![record(3, 1, 0)],
        Box::new(move |result| {
            result.unwrap();
            inner.append(1, vec![record(3, 2, 0)], send);
        }),
    );
    answer(&told).unwrap();
    assert_eq!(store.log_state(1).unwrap().last, Some(at(2)));
}

/// Un-flushed writes survive as a head, never as a choice.
#[test]
fn a_crash_may_keep_a_head_of_the_unflushed() {
    let here = session(1, 0, 1);
    let mut kept = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let disk = SimDisk::new();
        let store = SimStore::open(&disk, counting().0).unwrap();
        for index in 1..=4 {
            store
                .write(1, write_session(index, here, index..=index))
                .unwrap();
        }
        disk.crash_keeping(seed);
        let store = SimStore::open(&disk, counting().0).unwrap();
        let applied = store.applied(1).unwrap().map_or(0, |a| a.position.index);
        let events = store
            .events(here, everwire_core::Offset::ZERO, usize::MAX, 9)
            .unwrap();
        assert_eq!(events.len() as u64, applied);
        kept.insert(applied);
    }
    assert_eq!(kept.len(), 5, "every head happens: {kept:?}");
}

// === Any history ===

#[derive(Clone, Debug)]
enum Step {
    Append {
        group: usize,
        count: u64,
        size: usize,
    },
    Truncate {
        group: usize,
        back: u64,
    },
    Purge {
        group: usize,
        ahead: u64,
    },
    Vote {
        group: usize,
    },
    Hold,
    Take,
    Release,
    FailSync,
    Crash {
        seed: Option<u64>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let group = 0..3_usize;
    prop_oneof![
        8 => (group.clone(), 1..4_u64, prop_oneof![9 => Just(10_usize), 1 => Just(300_000)])
            .prop_map(|(group, count, size)| Step::Append { group, count, size }),
        2 => (group.clone(), 0..6_u64).prop_map(|(group, back)| Step::Truncate { group, back }),
        1 => (group.clone(), 0..5_u64).prop_map(|(group, ahead)| Step::Purge { group, ahead }),
        2 => group.prop_map(|group| Step::Vote { group }),
        1 => Just(Step::Hold),
        2 => Just(Step::Take),
        1 => Just(Step::Release),
        1 => Just(Step::FailSync),
        2 => proptest::option::of(any::<u64>()).prop_map(|seed| Step::Crash { seed }),
    ]
}

/// One group as a plain model has it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    purged: Option<LogPosition>,
    entries: Vec<LogPosition>,
    vote: Option<VoteRecord>,
}

impl Model {
    fn last(&self) -> Option<LogPosition> {
        self.entries.last().copied().or(self.purged)
    }

    fn read(store: &dyn Store, group: u32) -> Self {
        let found = whole_log(store, group);
        for entry in &found {
            let size = entry.bytes.len();
            assert_eq!(
                *entry,
                record(entry.position.term, entry.position.index, size)
            );
        }
        let state = store.log_state(group).unwrap();
        let model = Self {
            purged: state.purged,
            entries: found.iter().map(|entry| entry.position).collect(),
            vote: store.vote(group).unwrap(),
        };
        assert_eq!(state.last, model.last());
        model
    }
}

/// A group and all that it was since the last open, one model per operation.
#[derive(Default)]
struct History {
    states: Vec<Model>,
    told: Vec<everwire_store::testing::Answer>,
}

impl History {
    /// Operations whose answer was Ok; an error or silence promises nothing.
    fn acked(&self) -> usize {
        let answers: Vec<_> = self
            .told
            .iter()
            .map(std::sync::mpsc::Receiver::try_recv)
            .collect();
        let acked = answers
            .iter()
            .take_while(|a| matches!(a, Ok(Ok(()))))
            .count();
        let later = answers.iter().skip(acked).any(|a| matches!(a, Ok(Ok(()))));
        assert!(!later, "an ack behind a failure");
        acked
    }
}

struct World {
    disk: SimDisk,
    store: Arc<dyn Store>,
    groups: Vec<History>,
    term: u64,
}

fn quiet() -> OpenOptions {
    let mut options = counting().0;
    options.tail_bytes = 400_000;
    options
}

impl World {
    fn new() -> Self {
        let disk = SimDisk::new();
        let store = SimStore::open(&disk, quiet()).unwrap();
        let mut world = Self {
            disk,
            store,
            groups: Vec::new(),
            term: 1,
        };
        world.look();
        world
    }

    /// Starts the histories anew from what the store says.
    fn look(&mut self) {
        self.groups = (0..3)
            .map(|group| {
                self.store.set_purge_bound(group, None);
                History {
                    states: vec![Model::read(&*self.store, group)],
                    told: Vec::new(),
                }
            })
            .collect();
    }

    fn run(&mut self, step: Step) {
        let (send, told) = done();
        let of = |group: usize| u32::try_from(group).unwrap();
        match step {
            Step::Append { group, count, size } => {
                self.term += 1;
                let mut model = self.now(group);
                let first = model.last().map_or(1, |last| last.index + 1);
                let records: Vec<_> = (first..first + count)
                    .map(|index| record(self.term, index, size))
                    .collect();
                // Pieces of one append may survive without the rest.
                let sizes = usize::try_from(count).unwrap() * size;
                model.entries.extend(records.iter().map(|r| r.position));
                if sizes > 400_000 {
                    for record in records {
                        self.append_one(group, record);
                    }
                    return;
                }
                self.note(group, model, told);
                self.store.append(of(group), records, send);
            },
            Step::Truncate { group, back } => {
                let mut model = self.now(group);
                let keep = model.last().and_then(|last| last.index.checked_sub(back));
                model
                    .entries
                    .retain(|e| keep.is_some_and(|keep| e.index <= keep));
                self.note(group, model, told);
                self.store.truncate_after(of(group), keep, send);
            },
            Step::Purge { group, ahead } => {
                let mut model = self.now(group);
                let index = model.purged.map_or(0, |purged| purged.index) + ahead;
                let upto = at(index);
                if model.purged.is_none_or(|purged| purged.index < index) {
                    model.purged = Some(upto);
                    model.entries.retain(|entry| entry.index > index);
                }
                self.note(group, model, told);
                self.store.purge(of(group), upto, send);
            },
            Step::Vote { group } => {
                self.term += 1;
                let mut model = self.now(group);
                model.vote = Some(vote(self.term));
                self.note(group, model, told);
                self.store.save_vote(of(group), vote(self.term), send);
            },
            Step::Hold => self.disk.hold(),
            Step::Take => {
                self.disk.step();
            },
            Step::Release => self.disk.release(),
            Step::FailSync => self.disk.fail_next_sync(),
            Step::Crash { seed } => self.crash(seed),
        }
    }

    fn append_one(&mut self, group: usize, record: everwire_store::LogRecord) {
        let (send, told) = done();
        let mut model = self.now(group);
        model.entries.push(record.position);
        self.note(group, model, told);
        self.store
            .append(u32::try_from(group).unwrap(), vec![record], send);
    }

    fn now(&self, group: usize) -> Model {
        self.groups
            .get(group)
            .and_then(|history| history.states.last())
            .cloned()
            .unwrap()
    }

    fn note(&mut self, group: usize, model: Model, told: everwire_store::testing::Answer) {
        let history = &mut self.groups[group];
        history.states.push(model);
        history.told.push(told);
    }

    /// What is found is what was after some operation, not before the last acked one.
    fn crash(&mut self, seed: Option<u64>) {
        match seed {
            Some(seed) => self.disk.crash_keeping(seed),
            None => self.disk.crash(),
        }
        self.store = SimStore::open(&self.disk, quiet()).unwrap();
        for (group, history) in self.groups.iter().enumerate() {
            let found = Model::read(&*self.store, u32::try_from(group).unwrap());
            let acked = history.acked();
            let possible = &history.states[acked..];
            assert!(
                possible.contains(&found),
                "group {group}: found {found:?}, after {acked} acked of {:?}",
                history.states
            );
        }
        self.look();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: acked is there, un-acked may be missing from the end on, nothing is torn,
    /// and a good disk is never quarantined.
    #[test]
    fn any_history_recovers_to_a_head_of_itself(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        world.crash(None);
    }

    /// The same steps twice: the same syncs and the same disk.
    #[test]
    fn the_same_history_twice_is_the_same(steps in proptest::collection::vec(step(), 1..40)) {
        let run = || {
            let mut world = World::new();
            for step in steps.clone() {
                world.run(step);
            }
            world.crash(None);
            let found: Vec<_> = (0..3).map(|group| Model::read(&*world.store, group)).collect();
            (world.disk.syncs(), found)
        };
        prop_assert_eq!(run(), run());
    }
}
