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
use crate::{Applied, SnapshotReader, Store, StoreError, VoteRecord};

pub(super) fn cases(make: &dyn Fn() -> Harness) {
    a_snapshot_copies_a_group_as_it_was(&make(), &make());
    a_snapshot_of_nothing_is_empty(&make());
    the_metadata_group_is_a_group_like_any_other(&make(), &make());
    large_groups_come_in_pieces(&make(), &make());
    what_arrives_is_read_back_once_it_is_whole(&make(), &make());
    what_arrives_broken_costs_the_transfer_only(&make(), &make());
    the_metadata_group_travels_as_its_head(&make(), &make());
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
    fill(&*target, 15, 1, 3);
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

/// Reads a reader to its end.
fn drain(mut reader: Box<dyn SnapshotReader>) -> Vec<Bytes> {
    std::iter::from_fn(|| reader.next_chunk().unwrap()).collect()
}

fn what_arrives_is_read_back_once_it_is_whole(from: &Harness, to: &Harness) {
    let source = open(from);
    let sessions = fill(&*source, 4, 3, 20);
    let mut write = write_of(4);
    write.events = (1..=30)
        .map(|offset| (session(4, 2, 7), crate::testing::event(offset, 100_000)))
        .collect();
    source.write(4, write).unwrap();
    let mut reader = source.snapshot(4).unwrap();
    let head = reader.applied().unwrap().to_head(4).unwrap();

    let target = open(to);
    let old = fill(&*target, 4, 1, 2);
    let (group, applied) = Applied::from_head(&head).unwrap();
    assert_eq!((group, Some(&applied)), (4, reader.applied()));
    let mut spool = target.spool(group, applied.clone()).unwrap();
    // Two at once are two, also of one group.
    let mut other = target.spool(group, applied.clone()).unwrap();
    let mut sent = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        spool.chunk(chunk.clone()).unwrap();
        sent.push(chunk);
    }
    assert!(sent.len() > 2, "{}", sent.len());
    other.chunk(sent[0].clone()).unwrap();
    drop(other);
    assert_eq!(
        offsets(&*target, old[0]).len(),
        2,
        "nothing has changed yet"
    );
    let reader = spool.finish().unwrap();
    assert_eq!(reader.applied(), Some(&applied));
    let back = drain(reader);
    assert!(back == sent, "byte for byte");
    install(&*target, 4, applied, back);
    assert_eq!(offsets(&*target, sessions[2]).len(), 20);
    assert_eq!(offsets(&*target, session(4, 2, 7)).len(), 30);
}

fn what_arrives_broken_costs_the_transfer_only(from: &Harness, to: &Harness) {
    let source = open(from);
    fill(&*source, 4, 2, 30);
    let (applied, pieces) = chunks(&*source, 4);
    let applied = applied.unwrap();
    let good = storage::decode_snapshot_chunk(&pieces[0]).unwrap();
    let target = open(to);
    let kept = fill(&*target, 4, 2, 3);
    let refused = |pieces: &[Bytes]| {
        let mut spool = target.spool(4, applied.clone()).unwrap();
        let mut answer = Ok(());
        for piece in pieces {
            answer = spool.chunk(piece.clone());
        }
        let again = spool.chunk(pieces[0].clone());
        for answer in [answer, again, spool.finish().map(drop)] {
            assert!(
                matches!(answer, Err(StoreError::Damaged { .. })),
                "{answer:?}"
            );
        }
    };
    let changed = |change: &dyn Fn(&mut storage_v1::SnapshotChunk)| {
        let mut bad = good.clone();
        change(&mut bad);
        storage::encode_snapshot_chunk(&bad)
    };
    refused(&[changed(&|chunk| {
        let mut value = chunk.rows[3].value.to_vec();
        value[20] ^= 1;
        chunk.rows[3].value = Bytes::from(value);
    })]);
    refused(&[changed(&|chunk| chunk.rows[0].family = 5)]);
    refused(&[changed(&|chunk| chunk.rows.swap(0, 1))]);
    refused(&[pieces[0].clone(), pieces[0].clone()]);
    refused(&[Bytes::from_static(b"\x01\xff\xff")]);
    let mut foreign = target.spool(5, applied.clone()).unwrap();
    assert!(foreign.chunk(pieces[0].clone()).is_err(), "foreign slots");
    // Cut in the middle: nobody calls it finished.
    let mut cut = target.spool(4, applied.clone()).unwrap();
    cut.chunk(pieces[0].clone()).unwrap();
    drop(cut);
    assert!(Applied::from_head(b"\x01\xff").is_err());
    assert!(Applied::from_head(&pieces[0]).is_err());
    for here in kept {
        assert_eq!(offsets(&*target, here).len(), 3);
    }
    append(&*target, 4, records(1..=2)).unwrap();
    target.write(4, write_of(3)).unwrap();
}

fn the_metadata_group_travels_as_its_head(from: &Harness, to: &Harness) {
    let source = open(from);
    let mut write = write_of(3);
    write.applied.state = Bytes::from_static(b"three");
    source.write(META_GROUP, write).unwrap();
    let reader = source.snapshot(META_GROUP).unwrap();
    let head = reader.applied().unwrap().to_head(META_GROUP).unwrap();
    let target = open(to);
    let (group, applied) = Applied::from_head(&head).unwrap();
    let spool = target.spool(group, applied).unwrap();
    let reader = spool.finish().unwrap();
    let applied = reader.applied().cloned().unwrap();
    install(&*target, group, applied, drain(reader));
    let found = target.applied(META_GROUP).unwrap().unwrap();
    assert_eq!(found.state, Bytes::from_static(b"three"));
}
