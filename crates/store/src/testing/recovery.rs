//! Cases of opening: whose directory it is, what survived, what must not be trusted.

use everwire_core::ids::NodeId;

use crate::sim::Damage;
use crate::testing::{
    Harness, answer, append, at, counting, done, identity, indexes, offsets, open, options, purge,
    records, session, truncate, write_of, write_session,
};
use crate::{Identity, LogState, OpenOptions, StoreError, VoteRecord};

pub(super) fn cases(make: &dyn Fn() -> Harness) {
    a_directory_has_one_owner(&make());
    a_directory_is_open_once(&make());
    a_newer_directory_is_refused_and_unchanged(&make());
    acked_is_there_after_a_crash(&make());
    a_flipped_byte_in_the_log_above_durable_applied_is_quarantine(&make(), Damage::Log, 8);
    a_flipped_byte_in_the_log_above_durable_applied_is_quarantine(&make(), Damage::LogHead, 0);
    a_flipped_byte_below_durable_applied_is_found_when_read(&make());
    a_flipped_batch_number_is_quarantine(&make());
    one_bad_slot_costs_nothing_two_are_quarantine(&make());
    a_log_that_went_back_is_quarantine(&make());
    a_lost_identity_is_not_an_empty_directory(&make());
    an_identity_is_read_without_opening(&make());
    a_quarantined_directory_is_laid_to_rest(&make());
}

fn quarantined(bed: &Harness) {
    let answer = bed.open(options()).map(|_| ());
    assert!(
        matches!(answer, Err(StoreError::Quarantine { .. })),
        "{answer:?}"
    );
}

fn a_directory_has_one_owner(bed: &Harness) {
    let nobody = OpenOptions::new(options().on_fatal);
    let answer = bed.open(nobody.clone()).map(|_| ());
    assert!(
        matches!(answer, Err(StoreError::Empty { .. })),
        "{answer:?}"
    );
    let store = open(bed);
    assert_eq!(*store.identity(), identity());
    append(&*store, 0, records(1..=2)).unwrap();
    drop(store);

    let store = bed.open(nobody.clone()).unwrap();
    assert_eq!(*store.identity(), identity());
    drop(store);

    let mut other = options();
    other.cluster = Some("another".into());
    let answer = bed.open(other).map(|_| ());
    assert!(matches!(answer, Err(StoreError::WrongCluster { .. })));
    let mut other = nobody;
    other.node = Some(NodeId(8));
    let answer = bed.open(other).map(|_| ());
    assert!(matches!(answer, Err(StoreError::WrongCluster { .. })));
    // What is there counts, not what a new one would be.
    let mut again = options();
    again.create = Some(Identity {
        shards: 99,
        timeline: 5,
        ..identity()
    });
    let store = bed.open(again).unwrap();
    assert_eq!(*store.identity(), identity());
    assert_eq!(indexes(&*store, 0), [1, 2]);
}

fn a_directory_is_open_once(bed: &Harness) {
    let store = open(bed);
    let answer = bed.open(options()).map(|_| ());
    assert!(
        matches!(answer, Err(StoreError::Locked { .. })),
        "{answer:?}"
    );
    append(&*store, 0, records(1..=2)).unwrap();
    drop(store);
    assert_eq!(indexes(&*open(bed), 0), [1, 2]);
}

fn a_newer_directory_is_refused_and_unchanged(bed: &Harness) {
    append(&*open(bed), 0, records(1..=2)).unwrap();
    bed.set_format_version(&identity(), 2);
    for _ in 0..2 {
        let answer = bed.open(options()).map(|_| ());
        assert_eq!(answer, Err(StoreError::Newer { found: 2, known: 1 }));
    }
    bed.set_format_version(&identity(), 1);
    assert_eq!(indexes(&*open(bed), 0), [1, 2]);
}

fn acked_is_there_after_a_crash(bed: &Harness) {
    let mut vote = VoteRecord::default();
    for round in 0..6_u64 {
        let store = open(bed);
        for group in 0..3 {
            let saved = (round > 0).then_some(vote);
            assert_eq!(store.vote(group).unwrap(), saved);
            assert_eq!(
                indexes(&*store, group),
                (1..=round * 20).collect::<Vec<_>>()
            );
        }
        vote.term = round + 1;
        let mut told = Vec::new();
        for step in 0..20 {
            for group in 0..3 {
                let index = round * 20 + step + 1;
                let (send, answered) = done();
                store.append(group, records(index..=index), send);
                told.push(answered);
                if step == 7 {
                    let (send, answered) = done();
                    store.save_vote(group, vote, send);
                    told.push(answered);
                }
            }
        }
        for told in &told {
            answer(told).unwrap();
        }
        bed.crash(store);
    }
}

fn a_flipped_byte_in_the_log_above_durable_applied_is_quarantine(
    bed: &Harness,
    what: Damage,
    applied: u64,
) {
    let store = open(bed);
    append(&*store, 2, records(1..=9)).unwrap();
    store.write(2, write_of(applied)).unwrap();
    drop(store);
    bed.damage(what);
    quarantined(bed);
}

fn a_flipped_byte_below_durable_applied_is_found_when_read(bed: &Harness) {
    let store = open(bed);
    append(&*store, 2, records(1..=9)).unwrap();
    store.write(2, write_of(9)).unwrap();
    drop(store);
    bed.damage(Damage::LogHead);
    let store = open(bed);
    let found = store.read_log(2, 1..3, usize::MAX);
    assert!(
        matches!(found, Err(StoreError::Damaged { .. })),
        "{found:?}"
    );
    assert_eq!(store.read_log(2, 2..9, usize::MAX).unwrap().len(), 7);
    drop(store);
    // The last record tells where the log ends.
    bed.damage(Damage::Log);
    quarantined(bed);
}

fn a_flipped_batch_number_is_quarantine(bed: &Harness) {
    append(&*open(bed), 2, records(1..=9)).unwrap();
    bed.damage(Damage::Meta);
    quarantined(bed);
}

fn one_bad_slot_costs_nothing_two_are_quarantine(bed: &Harness) {
    let vote = VoteRecord {
        term: 8,
        node: 1,
        committed: true,
    };
    let store = open(bed);
    append(&*store, 2, records(1..=9)).unwrap();
    let (send, told) = done();
    store.save_vote(2, vote, send);
    answer(&told).unwrap();
    append(&*store, 2, records(10..=19)).unwrap();
    drop(store);
    for first in [true, false] {
        bed.damage(Damage::Slot(first));
        let store = open(bed);
        assert_eq!(store.vote(2).unwrap(), Some(vote), "slot {first}");
        assert_eq!(indexes(&*store, 2).len(), 19);
        // Mends both: votes are written twice.
        let (send, told) = done();
        store.save_vote(1, vote, send);
        answer(&told).unwrap();
    }
    bed.damage(Damage::Slot(true));
    bed.damage(Damage::Slot(false));
    quarantined(bed);
}

fn a_log_that_went_back_is_quarantine(bed: &Harness) {
    let store = open(bed);
    append(&*store, 2, records(1..=9)).unwrap();
    // A shorter log is not one that went back.
    truncate(&*store, 2, Some(3));
    drop(store);
    bed.remember_log();
    let (options, fatal) = counting();
    let store = bed.open(options).unwrap();
    append(&*store, 2, records(4..=6)).unwrap();
    store.write(2, write_of(5)).unwrap();
    store.flush().unwrap();
    purge(&*store, 2, at(5)).unwrap();
    drop(store);
    assert_eq!(fatal.load(std::sync::atomic::Ordering::SeqCst), 0);
    let store = open(bed);
    assert_eq!(indexes(&*store, 2), [6]);
    assert!(offsets(&*store, session(2, 0, 1)).is_empty());
    drop(store);
    bed.restore_log();
    quarantined(bed);
}

fn a_lost_identity_is_not_an_empty_directory(bed: &Harness) {
    append(&*open(bed), 2, records(1..=9)).unwrap();
    bed.damage(Damage::Identity);
    assert!(matches!(bed.peek(), Err(StoreError::Damaged { .. })));
    quarantined(bed);
}

/// Nobody needs to open it to know whose it is.
fn an_identity_is_read_without_opening(bed: &Harness) {
    assert_eq!(bed.peek(), Ok(None));
    let store = open(bed);
    assert_eq!(bed.peek(), Ok(Some(identity())));
    drop(store);
    assert_eq!(bed.peek(), Ok(Some(identity())));
}

fn a_quarantined_directory_is_laid_to_rest(bed: &Harness) {
    assert!(matches!(bed.retire(), Err(StoreError::Empty { .. })));
    for life in 0..3_u64 {
        let node = NodeId(7 + life);
        let options = || OpenOptions::create(Identity { node, ..identity() }, options().on_fatal);
        let store = bed.open(options()).unwrap();
        assert_eq!(store.identity().node, node);
        assert_eq!(store.vote(2).unwrap(), None);
        assert_eq!(store.log_state(2).unwrap(), LogState::default());
        assert_eq!(store.applied(2).unwrap(), None);
        assert!(offsets(&*store, session(2, 0, 1)).is_empty());
        append(&*store, 2, records(1..=9)).unwrap();
        let (send, told) = done();
        store.save_vote(2, VoteRecord::default(), send);
        answer(&told).unwrap();
        let write = write_session(4, session(2, 0, 1), 1..=3);
        store.write(2, write).unwrap();
        assert!(matches!(bed.retire(), Err(StoreError::Locked { .. })));
        drop(store);
        bed.damage(Damage::Log);
        let answer = bed.open(options()).map(|_| ());
        assert!(matches!(answer, Err(StoreError::Quarantine { .. })));
        bed.retire().unwrap();
        assert_eq!(bed.peek(), Ok(None));
        assert!(matches!(bed.retire(), Err(StoreError::Empty { .. })));
    }
    let answer = bed.open(OpenOptions::new(options().on_fatal)).map(|_| ());
    assert!(
        matches!(answer, Err(StoreError::Empty { .. })),
        "{answer:?}"
    );
}
