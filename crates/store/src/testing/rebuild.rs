//! Cases of damaged rows: found, said of which group, and replaced; log and vote stay.

use everwire_core::event::Event;
use everwire_core::ids::META_GROUP;
use everwire_core::row::{RowKey, SessionKey};

use crate::sim::Damage;
use crate::testing::{
    Harness, answer, append, at, done, event, indexes, offsets, open, purge, records, session,
    write_of, write_session,
};
use crate::{Applied, Store, StoreError, VoteRecord};

pub(super) fn cases(make: &dyn Fn() -> Harness) {
    flipped_bytes_of_applied_state_are_found(&make());
    a_damaged_applied_row_is_that_groups_alone(&make());
    damaged_rows_are_dropped_and_installed_anew(&make(), &make());
    a_lost_event_db_is_replaced(&make());
    what_nobody_asks_for_is_verified(&make());
}

/// Checks that this is damage of a group's rows.
fn of<T: std::fmt::Debug>(group: u32, found: Result<T, StoreError>) {
    let right = matches!(&found, Err(StoreError::DamagedRows { group: g, .. }) if *g == group);
    assert!(right, "{found:?}");
}

fn all(store: &dyn Store, here: SessionKey) -> Result<Vec<Event>, StoreError> {
    store.events(here, event(1, 0).offset, usize::MAX, 9)
}

fn flipped_bytes_of_applied_state_are_found(bed: &Harness) {
    let here = session(2, 0, 1);
    let head = RowKey::Head(here);
    let store = open(bed);
    store.write(2, write_session(4, here, 1..=3)).unwrap();
    drop(store);

    bed.damage(Damage::Events);
    let store = open(bed);
    of(2, all(&*store, here));
    assert!(store.row(&head).unwrap().is_some());
    let mut reader = store.snapshot(2).unwrap();
    of(2, reader.next_chunk());
    drop((reader, store));

    bed.damage(Damage::Rows);
    let store = open(bed);
    of(2, store.row(&head));
    assert_eq!(store.applied(2).unwrap().unwrap().position, at(4));
}

fn vote() -> VoteRecord {
    VoteRecord {
        term: 4,
        node: 7,
        committed: true,
    }
}

/// Groups 1, 2 and 9, each with a log of nine, a vote and five applied.
fn fill(store: &dyn Store) {
    for group in [1, 2, 9] {
        append(store, group, records(1..=9)).unwrap();
        let (send, told) = done();
        store.save_vote(group, vote(), send);
        answer(&told).unwrap();
        let write = write_session(5, session(group, 0, 1), 1..=3);
        store.write(group, write).unwrap();
    }
    store.flush().unwrap();
}

fn untouched(store: &dyn Store, group: u32, first: u64) {
    assert_eq!(store.vote(group).unwrap(), Some(vote()));
    assert_eq!(indexes(store, group), (first..=9).collect::<Vec<_>>());
}

fn serves(store: &dyn Store, group: u32) {
    assert_eq!(store.applied(group).unwrap().unwrap().position, at(5));
    assert_eq!(offsets(store, session(group, 0, 1)), [1, 2, 3]);
}

fn a_damaged_applied_row_is_that_groups_alone(bed: &Harness) {
    let store = open(bed);
    fill(&*store);
    drop(store);
    // The last: that of group 9.
    bed.damage(Damage::Applied);
    for _ in 0..2 {
        let store = open(bed);
        of(9, store.applied(9));
        of(9, store.snapshot(9).map(drop));
        assert_eq!(store.durable_applied(9), None);
        untouched(&*store, 9, 1);
        for group in [1, 2] {
            serves(&*store, group);
            untouched(&*store, group, 1);
            assert_eq!(store.durable_applied(group), Some(at(5)));
        }
        store.write(1, write_of(5)).unwrap();
        store.flush().unwrap();
    }
    // What its log holds brings it back.
    let store = open(bed);
    store.drop_rows(9).unwrap();
    assert_eq!(store.applied(9).unwrap(), None);
    bed.crash(store);
    let store = open(bed);
    assert_eq!(store.applied(9).unwrap(), None);
    untouched(&*store, 9, 1);
    let write = write_session(5, session(9, 0, 1), 1..=3);
    store.write(9, write).unwrap();
    serves(&*store, 9);
}

fn pieces(store: &dyn Store, group: u32) -> (Applied, Vec<bytes::Bytes>) {
    let mut reader = store.snapshot(group).unwrap();
    let applied = reader.applied().cloned().unwrap();
    let pieces = std::iter::from_fn(|| reader.next_chunk().unwrap()).collect();
    (applied, pieces)
}

fn damaged_rows_are_dropped_and_installed_anew(healthy: &Harness, bed: &Harness) {
    let source = open(healthy);
    fill(&*source);
    let (applied, pieces) = pieces(&*source, 9);
    let store = open(bed);
    fill(&*store);
    purge(&*store, 9, at(4)).unwrap();
    drop(store);
    bed.damage(Damage::Events);
    let store = open(bed);
    of(9, all(&*store, session(9, 0, 1)));
    store.drop_rows(9).unwrap();
    assert_eq!(store.applied(9).unwrap(), None);
    assert!(offsets(&*store, session(9, 0, 1)).is_empty());
    untouched(&*store, 9, 5);
    serves(&*store, 2);
    bed.crash(store);

    // The log begins above nothing: a replay cannot bring it back, and that is said.
    let store = open(bed);
    of(9, store.applied(9));
    untouched(&*store, 9, 5);
    let mut install = store.install(9).unwrap();
    for piece in pieces {
        install.chunk(piece).unwrap();
    }
    install.finish(applied).unwrap();
    serves(&*store, 9);
    bed.crash(store);
    let store = open(bed);
    for group in [1, 2, 9] {
        serves(&*store, group);
    }
    untouched(&*store, 9, 5);
}

/// Reads a whole group in pieces of so many bytes; answers how many it took.
fn verified(store: &dyn Store, group: u32, bytes_max: usize) -> Result<u32, StoreError> {
    let (mut at, mut count) = (None, 0);
    loop {
        count += 1;
        at = store.verify(group, at, bytes_max)?;
        if at.is_none() {
            return Ok(count);
        }
    }
}

fn what_nobody_asks_for_is_verified(bed: &Harness) {
    let store = open(bed);
    fill(&*store);
    for group in [1, 2, 3, 9] {
        assert_eq!(verified(&*store, group, usize::MAX), Ok(1));
    }
    // A row at a time: three events and the head, and the end of it.
    assert!(verified(&*store, 9, 1).unwrap() >= 4);
    drop(store);
    bed.damage(Damage::Events);
    let store = open(bed);
    for bytes_max in [1, usize::MAX] {
        of(9, verified(&*store, 9, bytes_max));
        assert!(verified(&*store, 1, bytes_max).is_ok());
    }
    let install = store.install(9).unwrap();
    // What is being replaced is nobody's to judge.
    assert_eq!(store.verify(9, None, 1), Ok(None));
    install.finish(write_of(9).applied).unwrap();
    assert!(verified(&*store, 9, 1).is_ok());
    drop(store);
    bed.damage(Damage::Applied);
    let store = open(bed);
    of(9, verified(&*store, 9, 1));
}

fn a_lost_event_db_is_replaced(bed: &Harness) {
    let store = open(bed);
    fill(&*store);
    let mut write = write_of(3);
    write.applied.state = bytes::Bytes::from_static(b"topology");
    append(&*store, META_GROUP, records(1..=9)).unwrap();
    store.write(META_GROUP, write).unwrap();
    store.flush().unwrap();
    purge(&*store, 2, at(4)).unwrap();
    purge(&*store, META_GROUP, at(3)).unwrap();
    drop(store);
    bed.damage(Damage::EventDb);
    for _ in 0..2 {
        let store = open(bed);
        of(2, store.applied(2));
        of(META_GROUP, store.applied(META_GROUP));
        for (group, first) in [(1, 1), (2, 5), (9, 1)] {
            untouched(&*store, group, first);
            assert_eq!(store.durable_applied(group), None);
            if group != 2 {
                assert!(offsets(&*store, session(group, 0, 1)).is_empty());
            }
        }
        of(2, all(&*store, session(2, 0, 1)));
        // Their logs reach back: they are replayed.
        assert_eq!(store.applied(1).unwrap(), None);
        assert_eq!(store.applied(9).unwrap(), None);
        bed.crash(store);
    }
    let store = open(bed);
    let write = write_session(5, session(1, 0, 1), 1..=3);
    store.write(1, write).unwrap();
    serves(&*store, 1);
    let install = store.install(2).unwrap();
    install.finish(write_of(9).applied).unwrap();
    assert_eq!(store.applied(2).unwrap().unwrap().position, at(9));
}
