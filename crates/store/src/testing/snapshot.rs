//! Cases of snapshots: a frozen moment, copied whole, installed safely.

use bytes::Bytes;
use everwire_core::ids::META_GROUP;
use everwire_core::row::{RowKey, SessionKey};
use everwire_proto::{storage, storage_v1};

use crate::testing::apply::rows_of;
use crate::testing::{
    Harness, answer, append, at, done, head, indexes, offsets, open, purge, records, session,
    truncate, write_of, write_session,
};
use crate::{Applied, Store, StoreError, VoteRecord};

pub(super) fn cases(make: &dyn Fn() -> Harness) {
    a_snapshot_copies_a_group_as_it_was(&make(), &make());
    a_snapshot_of_nothing_is_empty(&make());
    the_metadata_group_is_a_group_like_any_other(&make(), &make());
    large_groups_come_in_pieces(&make(), &make());
    an_install_cut_short_leaves_nothing(&make(), &make());
    an_install_takes_only_whole_rows_of_its_group(&make(), &make());
    the_log_follows_an_install(&make(), &make());
}

fn chunks(store: &dyn Store, group: u32) -> (Option<Applied>, Vec<Bytes>) {
    let mut reader = store.snapshot(group).unwrap();
    let applied = reader.applied().cloned();
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    assert_eq!(reader.next_chunk().unwrap(), None);
    (applied, chunks)
}

fn fill(store: &dyn Store, group: u32, sessions: u64, events: u64) -> Vec<SessionKey> {
    let all: Vec<_> = (1..=sessions).map(|n| session(group, 1, n)).collect();
    for (index, here) in all.iter().enumerate() {
        let mut write = write_session(index as u64 + 1, *here, 1..=events);
        write.rows.extend(
            rows_of(*here)
                .into_iter()
                .map(|(key, row)| (key, Some(row))),
        );
        store.write(group, write).unwrap();
    }
    all
}

fn install(store: &dyn Store, group: u32, applied: Applied, chunks: Vec<Bytes>) {
    let mut install = store.install(group).unwrap();
    assert_eq!(store.applied(group).unwrap(), None);
    assert_eq!(store.durable_applied(group), None);
    for chunk in chunks {
        install.chunk(chunk).unwrap();
    }
    install.finish(applied).unwrap();
}

fn a_snapshot_copies_a_group_as_it_was(from: &Harness, to: &Harness) {
    let source = open(from);
    let sessions = fill(&*source, 4, 3, 20);
    let neighbours = [fill(&*source, 3, 1, 5), fill(&*source, 5, 1, 5)].concat();

    let mut reader = source.snapshot(4).unwrap();
    // What comes later is not in it.
    source
        .write(4, write_session(9, sessions[0], 21..=30))
        .unwrap();
    let mut erase = write_of(10);
    erase.erased = vec![sessions[1]];
    source.write(4, erase).unwrap();
    source.flush().unwrap();
    let applied = reader.applied().cloned().unwrap();
    assert_eq!(applied.position, at(3));
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    drop(reader);
    assert_eq!(offsets(&*source, sessions[0]).len(), 30);

    let target = open(to);
    // It replaces what was there, and only that.
    fill(&*target, 4, 9, 2);
    let kept = fill(&*target, 5, 2, 3);
    install(&*target, 4, applied.clone(), chunks);
    for crashed in [false, true] {
        assert_eq!(target.applied(4).unwrap(), Some(applied.clone()));
        assert_eq!(target.durable_applied(4), Some(at(3)));
        for here in &sessions {
            assert_eq!(offsets(&*target, *here), (1..=20).collect::<Vec<_>>());
            for (key, row) in rows_of(*here).into_iter().skip(2) {
                let row = if matches!(key, RowKey::Head(_)) {
                    head(12)
                } else {
                    row
                };
                assert_eq!(target.row(&key).unwrap(), Some(row));
            }
        }
        assert!(offsets(&*target, session(4, 1, 9)).is_empty());
        assert!(offsets(&*target, neighbours[0]).is_empty());
        assert_eq!(offsets(&*target, kept[1]).len(), 3);
        if !crashed {
            to.crash(target);
            return a_snapshot_outlives_a_crash(to, &applied, &sessions);
        }
    }
}

fn a_snapshot_outlives_a_crash(bed: &Harness, applied: &Applied, sessions: &[SessionKey]) {
    let store = open(bed);
    assert_eq!(store.applied(4).unwrap().as_ref(), Some(applied));
    for here in sessions {
        assert_eq!(offsets(&*store, *here).len(), 20);
    }
}

fn a_snapshot_of_nothing_is_empty(bed: &Harness) {
    let store = open(bed);
    assert_eq!(chunks(&*store, 1), (None, Vec::new()));
    store.write(1000, write_of(5)).unwrap();
    fill(&*store, 0, 1, 3);
    let (applied, rows) = chunks(&*store, 1000);
    assert_eq!(applied.unwrap().position, at(5));
    assert!(rows.is_empty(), "a group without slots has no rows");
    install(&*store, 1000, write_of(8).applied, Vec::new());
    assert_eq!(store.applied(1000).unwrap().unwrap().position, at(8));
    assert_eq!(offsets(&*store, session(0, 1, 1)).len(), 3);
}

/// Its number is the highest there is: every range of keys must still hold it.
fn the_metadata_group_is_a_group_like_any_other(from: &Harness, to: &Harness) {
    let group = META_GROUP;
    let write = |index: u64, state: &'static [u8]| {
        let mut write = write_of(index);
        write.applied.state = Bytes::from_static(state);
        write
    };
    let vote = VoteRecord {
        term: 9,
        node: 7,
        committed: true,
    };
    let source = open(from);
    fill(&*source, 15, 1, 3);
    append(&*source, 15, records(1..=2)).unwrap();
    append(&*source, group, records(1..=9)).unwrap();
    let (send, told) = done();
    source.save_vote(group, vote, send);
    answer(&told).unwrap();
    source.write(group, write(5, b"five")).unwrap();
    source.flush().unwrap();
    assert_eq!(source.durable_applied(group), Some(at(5)));
    purge(&*source, group, at(4)).unwrap();
    truncate(&*source, group, Some(8));
    source.write(group, write(6, b"six")).unwrap();
    from.crash(source);
    let source = open(from);
    assert_eq!(source.vote(group).unwrap(), Some(vote));
    assert_eq!(indexes(&*source, group), [5, 6, 7, 8]);
    assert_eq!(indexes(&*source, 15), [1, 2]);
    assert_eq!(
        source.applied(group).unwrap(),
        Some(write(5, b"five").applied)
    );
    source.write(group, write(8, b"eight")).unwrap();
    let (applied, pieces) = chunks(&*source, group);
    assert!(pieces.is_empty());
    let applied = applied.unwrap();
    assert_eq!(applied.state, Bytes::from_static(b"eight"));

    let target = open(to);
    let kept = fill(&*target, 15, 1, 3);
    append(&*target, group, records(1..=2)).unwrap();
    target.write(group, write(1, b"one")).unwrap();
    let cut_short = target.install(group).unwrap();
    drop(cut_short);
    to.crash(target);
    let target = open(to);
    assert_eq!(target.applied(group).unwrap(), None);
    assert_eq!(indexes(&*target, group), [1, 2]);
    install(&*target, group, applied.clone(), pieces);
    purge(&*target, group, at(8)).unwrap();
    to.crash(target);
    let target = open(to);
    assert_eq!(target.applied(group).unwrap(), Some(applied));
    assert_eq!(target.log_state(group).unwrap().purged, Some(at(8)));
}

fn large_groups_come_in_pieces(from: &Harness, to: &Harness) {
    let source = open(from);
    let here = session(2, 0, 1);
    let mut write = write_of(1);
    write.events = (1..=60)
        .map(|offset| (here, crate::testing::event(offset, 100_000)))
        .collect();
    source.write(2, write).unwrap();
    let (applied, pieces) = chunks(&*source, 2);
    assert!((5..9).contains(&pieces.len()), "{} pieces", pieces.len());
    let largest = pieces.iter().map(Bytes::len).max().unwrap();
    assert!(largest < (1 << 20) + 110_000, "{largest} bytes");
    // A reader that is dropped half-way lets go of the disk.
    let mut reader = source.snapshot(2).unwrap();
    reader.next_chunk().unwrap();
    drop(reader);
    let target = open(to);
    install(&*target, 2, applied.unwrap(), pieces);
    assert_eq!(offsets(&*target, here), (1..=60).collect::<Vec<_>>());
}

fn an_install_cut_short_leaves_nothing(from: &Harness, to: &Harness) {
    let source = open(from);
    let sessions = fill(&*source, 4, 2, 20);
    let (applied, pieces) = chunks(&*source, 4);
    let applied = applied.unwrap();
    for flushed in [false, true] {
        let target = open(to);
        fill(&*target, 4, 1, 5);
        let kept = fill(&*target, 5, 1, 5);
        target.flush().unwrap();
        assert!(target.durable_applied(4).is_some());
        let mut install = target.install(4).unwrap();
        for piece in &pieces {
            install.chunk(piece.clone()).unwrap();
        }
        if flushed {
            target.flush().unwrap();
            assert_eq!(target.durable_applied(4), None);
        }
        drop(install);
        assert_eq!(target.applied(4).unwrap(), None, "until another install");
        to.crash(target);
        let target = open(to);
        assert_eq!(target.applied(4).unwrap(), None);
        assert_eq!(target.durable_applied(4), None);
        assert!(offsets(&*target, sessions[0]).is_empty());
        assert_eq!(chunks(&*target, 4), (None, Vec::new()));
        assert_eq!(offsets(&*target, kept[0]).len(), 5);
    }
    let target = open(to);
    install(&*target, 4, applied.clone(), pieces);
    to.crash(target);
    let target = open(to);
    assert_eq!(target.applied(4).unwrap(), Some(applied));
    assert_eq!(offsets(&*target, sessions[1]).len(), 20);
}

fn an_install_takes_only_whole_rows_of_its_group(from: &Harness, to: &Harness) {
    let source = open(from);
    fill(&*source, 4, 1, 3);
    let (_, pieces) = chunks(&*source, 4);
    let target = open(to);
    let good = storage::decode_snapshot_chunk(&pieces[0]).unwrap();
    let refused = |change: &dyn Fn(&mut storage_v1::SnapshotRow)| {
        let mut bad = good.clone();
        change(&mut bad.rows[0]);
        let mut install = target.install(4).unwrap();
        let answer = install.chunk(storage::encode_snapshot_chunk(&bad));
        assert!(
            matches!(answer, Err(StoreError::Damaged { .. })),
            "{answer:?}"
        );
    };
    refused(&|row| {
        let mut value = row.value.to_vec();
        value[20] ^= 1;
        row.value = Bytes::from(value);
    });
    refused(&|row| row.family = 5);
    refused(&|row| row.family = 9);
    refused(&|row| row.family = 3);
    let mut install = target.install(5).unwrap();
    let answer = install.chunk(pieces[0].clone());
    assert!(
        matches!(answer, Err(StoreError::Damaged { .. })),
        "foreign slots"
    );
    drop(install);
    let garbage = target
        .install(4)
        .unwrap()
        .chunk(Bytes::from_static(b"\x01\xff\xff"));
    assert!(matches!(garbage, Err(StoreError::Damaged { .. })));
}

fn the_log_follows_an_install(from: &Harness, to: &Harness) {
    let source = open(from);
    fill(&*source, 4, 1, 3);
    let (_, pieces) = chunks(&*source, 4);
    let mut applied = write_of(100).applied;
    applied.membership_position = Some(at(60));
    let target = open(to);
    append(&*target, 4, records(1..=5)).unwrap();
    install(&*target, 4, applied, pieces);
    purge(&*target, 4, at(100)).unwrap();
    append(&*target, 4, records(101..=103)).unwrap();
    to.crash(target);
    let target = open(to);
    assert_eq!(indexes(&*target, 4), [101, 102, 103]);
    assert_eq!(target.applied(4).unwrap().unwrap().position, at(100));
    let state = target.log_state(4).unwrap();
    assert_eq!((state.purged, state.last), (Some(at(100)), Some(at(103))));
}
