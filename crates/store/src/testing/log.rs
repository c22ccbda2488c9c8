//! Cases of the log: append, read, truncate, purge, votes, order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::clock::{Clock, Timestamp};
use everwire_core::ids::{META_GROUP, NodeId};

use crate::testing::{
    Harness, answer, append, at, counting, done, indexes, open, options, purge, record, records,
    truncate, whole_log, write_of,
};
use crate::{LogPosition, LogState, PeerRecord, StoreError, VoteRecord, regressed};

pub(super) fn cases(make: &dyn Fn() -> Harness) {
    entries_are_readable_when_appended(&make());
    reads_are_bounded_but_never_empty(&make());
    an_append_that_leaves_a_hole_is_refused(&make());
    old_entries_are_read_from_disk(&make());
    truncated_entries_are_gone_and_can_be_replaced(&make());
    a_purge_stops_at_durable_applied(&make());
    a_lifted_bound_lets_purges_pass(&make());
    purged_entries_stay_gone(&make());
    a_vote_is_answered_when_durable(&make());
    completions_keep_the_order_of_their_group(&make());
    a_large_append_is_one_operation(&make());
    many_writers_share_the_disk(&make());
    reads_beside_purges_and_truncations_are_whole(&make());
    a_log_is_weighed(&make());
    what_is_recorded_of_peers_rides_with_the_log(&make());
    syncs_are_counted_and_timed(&make());
}

/// A clock that goes on by a millisecond whenever somebody looks at it.
#[derive(Default)]
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

fn syncs_are_counted_and_timed(bed: &Harness) {
    let mut options = options();
    options.clock = Some(Arc::new(Ticking::default()));
    let store = bed.open(options).unwrap();
    let before = store.meters();
    for index in 1..=5 {
        append(&*store, 2, vec![record(3, index, 1000)]).unwrap();
    }
    let meters = store.meters();
    let syncs = meters.syncs.since(&before.syncs);
    assert_eq!(syncs.count(), 5);
    assert!(syncs.sum() >= Duration::from_millis(5), "{syncs:?}");
    assert!(syncs.quantile(1) > Some(Duration::from_micros(512)));
    let bytes = meters.sync_bytes - before.sync_bytes;
    assert!((5_000..20_000).contains(&bytes), "{bytes}");
    assert_eq!(meters.waiting_bytes, 0);
    // Nothing was synced for a vote or a read.
    let (send, told) = done();
    store.save_vote(2, VoteRecord::default(), send);
    answer(&told).unwrap();
    assert_eq!(store.meters().syncs.since(&before.syncs).count(), 5);
    store.write(2, write_of(5)).unwrap();
    store.flush().unwrap();
    assert!(store.meters().flushes.count() > before.flushes.count());
}

fn entries_are_readable_when_appended(bed: &Harness) {
    let store = open(bed);
    assert_eq!(store.log_state(3).unwrap(), LogState::default());
    assert!(store.read_log(3, 0..10, 100).unwrap().is_empty());

    let (send, told) = done();
    store.append(3, records(1..=5), send);
    // Before the answer too.
    assert_eq!(indexes(&*store, 3), [1, 2, 3, 4, 5]);
    answer(&told).unwrap();
    append(&*store, 3, records(6..=8)).unwrap();
    append(&*store, 3, Vec::new()).unwrap();

    let state = store.log_state(3).unwrap();
    assert_eq!((state.purged, state.last), (None, Some(at(8))));
    let some = store.read_log(3, 3..6, usize::MAX).unwrap();
    assert_eq!(some, records(3..=5));
    assert!(store.read_log(3, 9..20, usize::MAX).unwrap().is_empty());
    assert!(indexes(&*store, 4).is_empty(), "groups are apart");
}

fn reads_are_bounded_but_never_empty(bed: &Harness) {
    let mut options = options();
    options.tail_bytes = 2500;
    let store = bed.open(options).unwrap();
    for index in 1..=10 {
        append(&*store, 1, vec![record(3, index, 1000)]).unwrap();
    }
    let count = |bytes| store.read_log(1, 1..11, bytes).unwrap().len();
    assert_eq!(count(0), 1);
    assert_eq!(count(999), 1);
    assert_eq!(count(3000), 3);
    assert_eq!(count(9999), 9);
    assert_eq!(count(10_000), 10);
    let late = store.read_log(1, 9..u64::MAX, 1).unwrap();
    assert_eq!(late, [record(3, 9, 1000)]);
}

fn an_append_that_leaves_a_hole_is_refused(bed: &Harness) {
    let store = open(bed);
    append(&*store, 0, records(5..=6)).unwrap();
    let hole = |found| {
        Err(StoreError::Hole {
            group: 0,
            expected: 7,
            found,
        })
    };
    assert_eq!(append(&*store, 0, records(8..=8)), hole(8));
    assert_eq!(append(&*store, 0, records(6..=6)), hole(6));
    let torn = vec![record(3, 7, 0), record(3, 9, 0)];
    let refused = append(&*store, 0, torn);
    assert!(matches!(refused, Err(StoreError::Hole { found: 9, .. })));
    assert_eq!(indexes(&*store, 0), [5, 6]);
    append(&*store, 0, records(7..=7)).unwrap();
}

fn old_entries_are_read_from_disk(bed: &Harness) {
    let mut options = options();
    options.tail_bytes = 40;
    let store = bed.open(options.clone()).unwrap();
    for index in 1..=50 {
        append(&*store, 9, records(index..=index)).unwrap();
    }
    let all = store.read_log(9, 0..u64::MAX, usize::MAX).unwrap();
    assert_eq!(all, records(1..=50));
    drop(store);
    let store = bed.open(options).unwrap();
    let all = store.read_log(9, 0..u64::MAX, usize::MAX).unwrap();
    assert_eq!(all, records(1..=50));
    assert_eq!(store.log_state(9).unwrap().last, Some(at(50)));
}

fn truncated_entries_are_gone_and_can_be_replaced(bed: &Harness) {
    let mut options = options();
    options.tail_bytes = 40;
    let mut store = bed.open(options.clone()).unwrap();
    append(&*store, 2, records(1..=20)).unwrap();
    truncate(&*store, 2, Some(20));
    truncate(&*store, 2, Some(12));
    assert_eq!(store.log_state(2).unwrap().last, Some(at(12)));
    append(&*store, 2, vec![record(4, 13, 0), record(4, 14, 0)]).unwrap();
    for _ in 0..2 {
        let found = store.read_log(2, 12..100, usize::MAX).unwrap();
        let expected = [record(3, 12, 0), record(4, 13, 0), record(4, 14, 0)];
        assert_eq!(found, expected);
        bed.crash(store);
        store = bed.open(options.clone()).unwrap();
    }
    truncate(&*store, 2, Some(5));
    append(&*store, 2, vec![record(5, 6, 0)]).unwrap();
    truncate(&*store, 2, None);
    assert_eq!(store.log_state(2).unwrap(), LogState::default());
    assert!(indexes(&*store, 2).is_empty());
    bed.crash(store);
    store = bed.open(options).unwrap();
    assert!(indexes(&*store, 2).is_empty());
    append(&*store, 2, records(0..=3)).unwrap();
    assert_eq!(indexes(&*store, 2), [0, 1, 2, 3]);
}

fn a_purge_stops_at_durable_applied(bed: &Harness) {
    let (options, fatal) = counting();
    let store = bed.open(options).unwrap();
    append(&*store, 1, records(1..=10)).unwrap();
    let above = |upto, bound| {
        Err(StoreError::AboveBound {
            group: 1,
            upto,
            bound,
        })
    };
    assert_eq!(purge(&*store, 1, at(1)), above(1, None));
    store.write(1, write_of(6)).unwrap();
    assert_eq!(purge(&*store, 1, at(6)), above(6, None), "not yet flushed");
    store.flush().unwrap();
    assert_eq!(store.durable_applied(1), Some(at(6)));
    assert_eq!(purge(&*store, 1, at(7)), above(7, Some(6)));
    assert_eq!(fatal.load(Ordering::SeqCst), 3);
    assert_eq!(indexes(&*store, 1).len(), 10, "nothing of it happened");
    purge(&*store, 1, at(6)).unwrap();
    assert_eq!(indexes(&*store, 1), [7, 8, 9, 10]);
    assert_eq!(fatal.load(Ordering::SeqCst), 3);
}

fn a_lifted_bound_lets_purges_pass(bed: &Harness) {
    let store = open(bed);
    append(&*store, 1, records(0..=10)).unwrap();
    store.set_purge_bound(1, None);
    purge(&*store, 1, at(3)).unwrap();
    purge(&*store, 1, at(2)).unwrap();
    assert_eq!(store.log_state(1).unwrap().purged, Some(at(3)));
    let found = store.read_log(1, 4..6, usize::MAX).unwrap();
    assert_eq!(found, records(4..=5));
    let later = LogPosition {
        term: 9,
        node: 1,
        index: 40,
    };
    purge(&*store, 1, later).unwrap();
    let state = store.log_state(1).unwrap();
    assert_eq!((state.purged, state.last), (Some(later), Some(later)));
    let refused = append(&*store, 1, records(11..=11));
    assert!(matches!(
        refused,
        Err(StoreError::Hole { expected: 41, .. })
    ));
    append(&*store, 1, records(41..=42)).unwrap();
    assert_eq!(indexes(&*store, 1), [41, 42]);
}

fn purged_entries_stay_gone(bed: &Harness) {
    let mut store = open(bed);
    for round in 0..5 {
        let first = round * 10 + 1;
        append(&*store, 1, records(first..=first + 9)).unwrap();
        store.write(1, write_of(first + 6)).unwrap();
        store.flush().unwrap();
        purge(&*store, 1, at(first + 6)).unwrap();
        bed.crash(store);
        store = open(bed);
        let state = store.log_state(1).unwrap();
        assert_eq!(state.purged, Some(at(first + 6)));
        assert_eq!(state.last, Some(at(first + 9)));
        assert_eq!(indexes(&*store, 1), [first + 7, first + 8, first + 9]);
        assert_eq!(store.durable_applied(1), Some(at(first + 6)));
        // Never a later start: what is gone is said to be gone.
        let upto = first + 6;
        for start in [0, first, upto] {
            let found = store.read_log(1, start..first + 9, usize::MAX);
            assert_eq!(found, Err(StoreError::Purged { group: 1, upto }));
        }
        let rest = store.read_log(1, upto + 1..u64::MAX, 1).unwrap();
        assert_eq!(rest, records(upto + 1..=upto + 1));
        assert_eq!(store.read_log(1, 3..3, 1), Ok(Vec::new()));
    }
    // The bound is set at open.
    store.write(1, write_of(48)).unwrap();
    store.flush().unwrap();
    purge(&*store, 1, at(48)).unwrap();
    bed.crash(store);
    let store = open(bed);
    assert_eq!(indexes(&*store, 1), [49, 50]);
}

fn a_vote_is_answered_when_durable(bed: &Harness) {
    let mut store = open(bed);
    assert_eq!(store.vote(1).unwrap(), None);
    let mut vote = VoteRecord {
        term: 1,
        node: 2,
        committed: false,
    };
    for term in 1..=5 {
        vote.term = term;
        vote.committed = term % 2 == 0;
        let (send, told) = done();
        store.save_vote(1, vote, send);
        answer(&told).unwrap();
        assert_eq!(store.vote(1).unwrap(), Some(vote));
        if term % 2 == 0 {
            bed.crash(store);
        } else {
            drop(store);
        }
        store = open(bed);
        assert_eq!(store.vote(1).unwrap(), Some(vote));
        assert_eq!(store.vote(0).unwrap(), None);
    }
}

fn completions_keep_the_order_of_their_group(bed: &Harness) {
    let store = open(bed);
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut last = Vec::new();
    for round in 0..40_u64 {
        for group in 0..4_u32 {
            let (send, told) = done();
            let order = Arc::clone(&order);
            let noted = Box::new(move |result: Result<(), StoreError>| {
                order.lock().unwrap().push((group, round));
                send(result);
            });
            let next = store
                .log_state(group)
                .unwrap()
                .last
                .map_or(1, |l| l.index + 1);
            match (round + u64::from(group)) % 5 {
                0 => {
                    let vote = VoteRecord {
                        term: round,
                        ..VoteRecord::default()
                    };
                    store.save_vote(group, vote, noted);
                },
                1 => store.truncate_after(group, next.checked_sub(2), noted),
                2 => store.append(group, vec![record(3, next, 400_000)], noted),
                _ => store.append(group, vec![record(3, next, 10)], noted),
            }
            last.push(told);
        }
    }
    for told in &last {
        answer(told).unwrap();
    }
    let order = order.lock().unwrap();
    for group in 0..4 {
        let of_group: Vec<u64> = order
            .iter()
            .filter(|(of, _)| *of == group)
            .map(|(_, round)| *round)
            .collect();
        assert_eq!(of_group, (0..40).collect::<Vec<_>>());
    }
}

fn a_large_append_is_one_operation(bed: &Harness) {
    let store = open(bed);
    let large: Vec<_> = (1..=40).map(|index| record(3, index, 150_000)).collect();
    append(&*store, 1, large.clone()).unwrap();
    append(&*store, 1, vec![record(3, 41, 3 << 20)]).unwrap();
    bed.crash(store);
    let store = open(bed);
    assert_eq!(store.read_log(1, 1..41, usize::MAX).unwrap(), large);
    let last = store.read_log(1, 41..42, 10).unwrap();
    assert_eq!(last, [record(3, 41, 3 << 20)]);
}

fn many_writers_share_the_disk(bed: &Harness) {
    let store = open(bed);
    std::thread::scope(|scope| {
        for group in 0..6 {
            let store = &store;
            scope.spawn(move || {
                for index in 1..=30 {
                    let (send, told) = done();
                    store.append(group, records(index..=index), send);
                    let found = store.read_log(group, index..index + 1, 1).unwrap();
                    assert_eq!(found, records(index..=index));
                    if index % 3 == 0 {
                        answer(&told).unwrap();
                    }
                }
                append(&**store, group, Vec::new()).unwrap();
            });
        }
    });
    bed.crash(store);
    let store = open(bed);
    for group in 0..6 {
        assert_eq!(indexes(&*store, group), (1..=30).collect::<Vec<_>>());
    }
}

/// A reader never sees half of a change: no hole, no mixture of an old log and a new one.
fn reads_beside_purges_and_truncations_are_whole(bed: &Harness) {
    let mut options = options();
    options.tail_bytes = 0;
    let store = bed.open(options).unwrap();
    store.set_purge_bound(1, None);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let found = whole_log(&*store, 1);
                    for pair in found.windows(2) {
                        let (a, b) = (pair[0].position, pair[1].position);
                        assert_eq!(a.index + 1, b.index);
                        assert!(a.term <= b.term, "{a} then {b}");
                    }
                }
            });
        }
        for term in 1..=100 {
            let next = store.log_state(1).unwrap().last.map_or(1, |l| l.index + 1);
            let more = (next..next + 20).map(|index| record(term, index, 20));
            append(&*store, 1, more.collect()).unwrap();
            truncate(&*store, 1, Some(next + 9));
            let upto = LogPosition {
                term,
                ..at(next + 3)
            };
            purge(&*store, 1, upto).unwrap();
        }
        over.store(true, Ordering::SeqCst);
    });
}

fn what_is_recorded_of_peers_rides_with_the_log(bed: &Harness) {
    let vote = |term| VoteRecord {
        term,
        node: 3,
        committed: true,
    };
    let record = |batch, term| PeerRecord {
        batch,
        votes: [(0, vote(term)), (META_GROUP, vote(term + 1))].into(),
    };
    let (one, two) = (NodeId(1), NodeId(u64::MAX));
    let store = open(bed);
    assert_eq!(store.peer_record(one), None);
    store.note_peer(one, record(10, 3));
    store.note_peer(two, record(20, 4));
    assert_eq!(store.peer_record(one), Some(record(10, 3)));
    append(&*store, 2, records(1..=1)).unwrap();
    store.note_peer(one, record(11, 3));
    assert_eq!(store.peer_record(one), Some(record(11, 3)));
    let own = store.own_record();
    assert_eq!((own.batch, store.synced_batch()), (1, 1));
    assert!(own.votes.is_empty());
    bed.crash(store);

    let store = open(bed);
    let found = store.peer_record(one).unwrap();
    assert_eq!(found, record(10, 3), "what no batch carried is gone");
    assert_eq!(store.peer_record(two), Some(record(20, 4)));
    assert!(!regressed(&own, &store.own_record()));
    let (send, told) = done();
    store.save_vote(META_GROUP, vote(9), send);
    answer(&told).unwrap();
    append(&*store, 2, records(2..=3)).unwrap();
    let later = store.own_record();
    assert_eq!(later.votes, [(META_GROUP, vote(9))].into());
    assert!(later.batch > own.batch);
    assert!(regressed(&later, &own) && !regressed(&own, &later));
}

fn a_log_is_weighed(bed: &Harness) {
    let mut options = options();
    options.tail_bytes = 0;
    let store = bed.open(options.clone()).unwrap();
    assert_eq!((store.log_bytes(1), store.log_beyond(1, 0)), (0, None));
    for index in 1..=80 {
        append(&*store, 1, vec![record(3, index, 100_000)]).unwrap();
    }
    append(&*store, 2, records(1..=3)).unwrap();
    let about = |bytes: u64, expected: u64| {
        let right = bytes > expected * 8 / 10 && bytes < expected * 12 / 10;
        assert!(right, "{bytes}, expected about {expected}");
    };
    about(store.log_bytes(1), 8_000_000);
    assert!(store.log_bytes(2) < 500);
    assert_eq!(store.log_beyond(1, u64::MAX), None);
    about(store.log_beyond(1, 4_000_000).unwrap(), 40);
    store.write(1, write_of(60)).unwrap();
    store.flush().unwrap();
    purge(&*store, 1, at(20)).unwrap();
    truncate(&*store, 1, Some(70));
    about(store.log_bytes(1), 5_000_000);
    drop(store);
    let store = bed.open(options).unwrap();
    // What is applied is weighed by the disk, which may not know what it has not flushed yet.
    assert!(store.log_bytes(1) >= 1_000_000, "{}", store.log_bytes(1));
    assert!(store.log_bytes(1) < 9_000_000, "{}", store.log_bytes(1));
    if let Some(upto) = store.log_beyond(1, 500_000) {
        assert!((20..=70).contains(&upto), "{upto}");
    }
}
