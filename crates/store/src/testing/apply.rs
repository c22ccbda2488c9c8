//! Cases of applied state: rows, events, names, erasure, flushes.

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::control::InputRef;
use everwire_core::event::{Author, MessageStatus, PartKind, ParticipantKind, Role, StepStatus};
use everwire_core::ids::{
    InputId, Key, MessageId, Namespace, PartId, ParticipantId, RunId, SessionName, SessionNo, Slot,
};
use everwire_core::position::{Offset, RunEpoch, Seq};
use everwire_core::row::{
    BatchRow, EpochRow, InputRow, KeyRow, MessageRow, NameRow, PartRow, Row, RowKey, RowRange,
    RunRow, RunState, SessionKey, StepRow, TimerKind, TimerRow, TombstoneRow,
};
use everwire_proto::{storage, storage_v1};

use crate::testing::{
    Harness, at, event, head, offsets, open, options, session, write_of, write_session,
};
use crate::{ApplyWrite, StoreError};

pub(super) fn cases(make: &dyn Fn() -> Harness) {
    every_row_reads_back(&make());
    events_are_dense_and_bounded(&make());
    a_hole_in_events_is_damage(&make());
    an_erased_session_is_gone_and_its_neighbours_stay(&make());
    scans_are_in_key_order_and_bounded(&make());
    names_are_paged_over_slots(&make());
    what_is_applied_comes_with_its_rows(&make());
    a_crash_goes_back_to_the_last_flush_as_a_whole(&make());
    a_flush_happens_by_size(&make());
    a_closed_store_keeps_everything(&make());
}

fn offset(number: u64) -> Offset {
    Offset::new(number).unwrap()
}

/// One row of each kind.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn rows_of(session: SessionKey) -> Vec<(RowKey, Row)> {
    let run = RunId::parse("run-1").unwrap();
    let message = MessageId::parse("m-1").unwrap();
    let part = PartId::parse("p-1").unwrap();
    let ann = ParticipantId::parse("auth0|ann@example.com").unwrap();
    let key = Key::parse("k-1").unwrap();
    let input = InputId::parse("i-1").unwrap();
    let name = SessionName::parse("chat").unwrap();
    let namespace = Namespace::parse("acme").unwrap();
    let number = session.session_no;
    let epoch = RunEpoch(2);
    vec![
        (
            RowKey::Name(session.slot, namespace, name),
            Row::Name(NameRow { session_no: number }),
        ),
        (RowKey::Counter(session.slot), Row::Counter(number.0)),
        (RowKey::Head(session), head(12)),
        (
            RowKey::Run(session, run.clone()),
            Row::Run(RunRow {
                state: RunState::Cancelled,
                run_epoch: epoch,
                input: Some(InputRef::of_anybody(input.clone())),
                ended: Some(offset(9)),
                epoch_closed: true,
                open_messages: vec![message.clone()],
                open_parts: 3,
                ..RunRow::started(ann.clone(), offset(1))
            }),
        ),
        (
            RowKey::Epoch(session, run.clone(), epoch),
            Row::Epoch(EpochRow {
                writer: ann.clone(),
                granted: offset(2),
                last_seq: Seq(4),
                last_offset: offset(6),
                batches: 300,
            }),
        ),
        (
            RowKey::Batch(session, run.clone(), epoch, 44),
            Row::Batch(BatchRow {
                first_seq: Seq(1),
                last_seq: Seq(4),
                first_offset: offset(3),
            }),
        ),
        (
            RowKey::Message(session, message.clone()),
            Row::Message(MessageRow {
                run: run.clone(),
                role: Role::Assistant,
                started: offset(3),
                status: Some(MessageStatus::Cancelled),
                open_parts: vec![part.clone()],
            }),
        ),
        (
            RowKey::Part(session, message, part),
            Row::Part(PartRow {
                kind: PartKind::ToolCall,
                open: true,
                bytes: 77,
                deltas: 5,
            }),
        ),
        (
            RowKey::Input(session, ann.clone(), input.clone()),
            Row::Input(InputRow {
                offset: offset(1),
                run: None,
            }),
        ),
        (
            RowKey::Step(session, run.clone(), "s".parse().expect("a step")),
            Row::Step(StepRow {
                attempt: 2,
                started: offset(8),
                status: Some(StepStatus::Failed),
            }),
        ),
        (
            RowKey::Tombstone(session, ann.clone(), input),
            Row::Tombstone(TombstoneRow {
                cancel_offset: offset(9),
                by: Author {
                    participant: ann.clone(),
                    kind: ParticipantKind::User,
                },
                until: Timestamp(600_005),
            }),
        ),
        (
            RowKey::Key(session, ann.clone(), key.clone()),
            Row::Key(KeyRow {
                body_hash: u128::MAX - 5,
                offset: offset(1),
                run_epoch: Some(epoch),
                time: Timestamp(5),
            }),
        ),
        (RowKey::KeyAge(session, Timestamp(5), ann, key), Row::Index),
        (RowKey::LiveRun(session, run), Row::Index),
        (
            RowKey::Timer(session, Timestamp(9), TimerKind::StaleKeys),
            Row::Timer(TimerRow {
                guard: 3,
                run: None,
                approval: None,
            }),
        ),
    ]
}

fn write_rows(index: u64, rows: &[(RowKey, Row)]) -> ApplyWrite {
    let mut write = write_of(index);
    for (key, row) in rows {
        write.rows.insert(key.clone(), Some(row.clone()));
    }
    write
}

fn every_row_reads_back(bed: &Harness) {
    let store = open(bed);
    let rows = rows_of(session(2, 0, 5));
    assert_eq!(store.row(&rows[0].0).unwrap(), None);
    store.write(2, write_rows(1, &rows)).unwrap();
    for (key, row) in &rows {
        assert_eq!(store.row(key).unwrap().as_ref(), Some(row));
    }
    let other = rows_of(session(2, 0, 6));
    assert_eq!(store.row(&other[2].0).unwrap(), None);
    let mut gone = write_of(2);
    gone.rows.insert(rows[3].0.clone(), None);
    gone.rows.insert(rows[4].0.clone(), None);
    store.write(2, gone).unwrap();
    assert_eq!(store.row(&rows[3].0).unwrap(), None);
    assert!(store.row(&rows[5].0).unwrap().is_some());
}

fn events_are_dense_and_bounded(bed: &Harness) {
    let store = open(bed);
    let (here, there) = (session(1, 3, 8), session(1, 3, 9));
    store.write(1, write_session(1, here, 1..=30)).unwrap();
    store.write(1, write_session(2, there, 1..=2)).unwrap();
    store.write(1, write_session(3, here, 31..=40)).unwrap();
    assert_eq!(offsets(&*store, here), (1..=40).collect::<Vec<_>>());
    assert_eq!(offsets(&*store, there), [1, 2]);

    let read = |from, bytes, count| {
        let found = store.events(here, offset(from), bytes, count).unwrap();
        found.iter().map(|e| e.offset.get()).collect::<Vec<_>>()
    };
    assert_eq!(read(0, usize::MAX, 2), [1, 2], "zero is before the first");
    assert_eq!(read(7, usize::MAX, 3), [7, 8, 9]);
    assert_eq!(read(7, 1, usize::MAX), [7], "at least one");
    assert!(read(7, 1, 0).is_empty());
    assert!(read(41, usize::MAX, 5).is_empty());
    let some = read(1, 1000, usize::MAX).len();
    assert!((2..15).contains(&some), "{some} events in 1000 bytes");
    let nobody = session(1, 3, 7);
    assert!(offsets(&*store, nobody).is_empty());
    let found = store.events(here, offset(5), usize::MAX, 1).unwrap();
    assert_eq!(found[0], *event(5, 50));
}

fn a_hole_in_events_is_damage(bed: &Harness) {
    let store = open(bed);
    let here = session(1, 3, 8);
    store.write(1, write_session(1, here, 1..=3)).unwrap();
    store.write(1, write_session(2, here, 5..=6)).unwrap();
    let found = store.events(here, offset(1), usize::MAX, 9);
    assert!(
        matches!(found, Err(StoreError::DamagedRows { .. })),
        "{found:?}"
    );
    let before = store.events(here, offset(1), usize::MAX, 3).unwrap();
    assert_eq!(before.len(), 3);
}

fn an_erased_session_is_gone_and_its_neighbours_stay(bed: &Harness) {
    let store = open(bed);
    let gone = session(1, 3, 0xff);
    let neighbours = [
        session(1, 3, 0xfe),
        session(1, 3, 0x100),
        session(1, 2, 0xff),
        session(1, 4, 0xff),
    ];
    let mut index = 0;
    for here in neighbours.into_iter().chain([gone]) {
        index += 1;
        let mut write = write_session(index, here, 1..=5);
        write.rows.extend(write_rows(0, &rows_of(here)).rows);
        store.write(1, write).unwrap();
    }
    let mut erase = write_session(6, gone, 6..=7);
    let name = rows_of(gone)[0].0.clone();
    erase.rows.insert(name.clone(), None);
    erase.erased = vec![gone];
    store.write(1, erase).unwrap();
    for _ in 0..2 {
        assert!(offsets(&*store, gone).is_empty());
        assert_eq!(store.row(&name).unwrap(), None);
        for (key, _) in rows_of(gone).iter().skip(2) {
            assert_eq!(store.row(key).unwrap(), None, "{key:?}");
        }
        assert!(store.scan(RowRange::LiveRuns(gone), 9).unwrap().is_empty());
        for here in neighbours {
            assert_eq!(offsets(&*store, here).len(), 5);
            for (key, _) in rows_of(here).iter().skip(2) {
                assert!(store.row(key).unwrap().is_some(), "{key:?}");
            }
        }
        let counter = RowKey::Counter(gone.slot);
        assert!(store.row(&counter).unwrap().is_some(), "counters stay");
        store.flush().unwrap();
    }
}

fn scans_are_in_key_order_and_bounded(bed: &Harness) {
    let store = open(bed);
    let here = session(0, 0, 1);
    let ann = |name: &str| ParticipantId::parse(name).unwrap();
    let age = |session, time, who: &str, key: &str| {
        RowKey::KeyAge(session, Timestamp(time), ann(who), Key::parse(key).unwrap())
    };
    let ordered = vec![
        age(here, 5, "ann", "k"),
        age(here, 5, "ann", "k1"),
        age(here, 5, "anna", "a"),
        age(here, 200, "ann", "a"),
        age(here, 70_000, "ann", "0"),
    ];
    let mut write = write_of(1);
    for key in ordered.iter().rev() {
        write.rows.insert(key.clone(), Some(Row::Index));
    }
    let other = session(0, 0, 2);
    write
        .rows
        .insert(age(other, 1, "ann", "k"), Some(Row::Index));
    for run in ["r2", "r1", "r10"] {
        let key = RowKey::LiveRun(here, RunId::parse(run).unwrap());
        write.rows.insert(key, Some(Row::Index));
    }
    store.write(0, write).unwrap();
    assert_eq!(store.scan(RowRange::KeyAges(here), 99).unwrap(), ordered);
    assert_eq!(
        store.scan(RowRange::KeyAges(here), 2).unwrap(),
        ordered[..2]
    );
    assert!(store.scan(RowRange::KeyAges(here), 0).unwrap().is_empty());
    let due = |time| store.timers(0, Timestamp(time)).unwrap();
    let mut write = write_of(2);
    for (session, time, guard) in [(here, 30, 7), (other, 20, 8), (other, 300, 9)] {
        let key = RowKey::Timer(session, Timestamp(time), TimerKind::StaleKeys);
        let row = TimerRow {
            guard,
            run: None,
            approval: None,
        };
        write.rows.insert(key, Some(Row::Timer(row)));
    }
    store.write(0, write).unwrap();
    let guards = |time| {
        due(time)
            .iter()
            .map(|timer| timer.guard)
            .collect::<Vec<_>>()
    };
    assert_eq!(guards(19), [0_u64; 0]);
    assert_eq!(guards(20), [8]);
    assert_eq!(guards(300), [7, 8, 9]);
    assert_eq!(due(20)[0].session, other);
    assert_eq!(store.timers(1, Timestamp(300)).unwrap(), []);
    let live = store.scan(RowRange::LiveRuns(here), 99).unwrap();
    let runs = ["r1", "r10", "r2"].map(|run| RowKey::LiveRun(here, RunId::parse(run).unwrap()));
    assert_eq!(live, runs);
    let runs = ["r1", "r10", "r2"].map(|run| (here, RunId::parse(run).unwrap()));
    assert_eq!(store.live_runs(0).unwrap(), runs);
    assert_eq!(store.live_runs(1).unwrap(), []);
    assert!(store.scan(RowRange::LiveRuns(other), 9).unwrap().is_empty());
}

fn names_are_paged_over_slots(bed: &Harness) {
    let store = open(bed);
    let acme = Namespace::parse("acme").unwrap();
    let beta = Namespace::parse("acme-beta").unwrap();
    let mut write = write_of(1);
    let mut expected = Vec::new();
    for slot in 0..20_u16 {
        let slot = Slot::new(slot).unwrap();
        for name in ["chat-1", "chat-2", "desk"] {
            let number = SessionNo(u64::from(slot.get()) * 10 + 1);
            let row = NameRow { session_no: number };
            let session = SessionName::parse(name).unwrap();
            for namespace in [&acme, &beta] {
                let key = RowKey::Name(slot, namespace.clone(), session.clone());
                write.rows.insert(key, Some(Row::Name(row.clone())));
            }
            if name.starts_with("chat") && (4..18).contains(&slot.get()) {
                expected.push((slot, session, row));
            }
        }
        write
            .rows
            .insert(RowKey::Counter(slot), Some(Row::Counter(3)));
    }
    store.write(0, write).unwrap();
    for page in [1, 3, 7, 100] {
        let mut found: Vec<(Slot, SessionName, NameRow)> = Vec::new();
        loop {
            let last = found.last().cloned();
            let after = last.map(|(slot, name, _)| (slot, acme.clone(), name));
            let more = store.names(4..18, after, &acme, "chat", page).unwrap();
            assert!(more.len() <= page);
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        assert_eq!(found, expected, "pages of {page}");
    }
    let none = Namespace::parse("acm").unwrap();
    assert!(store.names(0..20, None, &none, "", 9).unwrap().is_empty());
    assert_eq!(store.names(0..20, None, &acme, "", 100).unwrap().len(), 60);
}

fn what_is_applied_comes_with_its_rows(bed: &Harness) {
    let store = open(bed);
    assert_eq!(store.applied(5).unwrap(), None);
    let membership = storage::encode_membership(&storage_v1::Membership {
        configs: vec![storage_v1::NodeSet { nodes: vec![7, 8] }],
        members: vec![storage_v1::Member {
            node: 7,
            addr: "127.0.0.1:7400".into(),
            peer: String::new(),
        }],
    });
    let mut write = write_session(4, session(5, 0, 1), 1..=2);
    write.applied.membership = membership;
    write.applied.membership_position = Some(at(2));
    let applied = write.applied.clone();
    store.write(5, write).unwrap();
    assert_eq!(store.applied(5).unwrap(), Some(applied));
    assert_eq!(store.applied(4).unwrap(), None);
    assert_eq!(store.durable_applied(5), None);
    assert!(store.unflushed_bytes() > 0);
    store.flush().unwrap();
    assert_eq!(store.unflushed_bytes(), 0);
    assert_eq!(store.durable_applied(5), Some(at(4)));
    // A group that is no shard has no rows, but it applies.
    let mut meta = write_of(9);
    meta.applied.membership = Bytes::new();
    store.write(1000, meta.clone()).unwrap();
    assert_eq!(store.applied(1000).unwrap(), Some(meta.applied));
}

fn a_crash_goes_back_to_the_last_flush_as_a_whole(bed: &Harness) {
    let mut store = open(bed);
    let here = session(1, 0, 1);
    let mut applied = 0;
    for round in 1..=4 {
        let first = applied * 10 + 1;
        let write = write_session(applied + 1, here, first..=first + 9);
        store.write(1, write).unwrap();
        store.flush().unwrap();
        applied += 1;
        for lost in 1..=3 {
            let first = applied * 10 + lost * 10 - 9;
            let write = write_session(applied + lost, here, first..=first + 9);
            store.write(1, write).unwrap();
        }
        assert_eq!(store.applied(1).unwrap().unwrap().position, at(applied + 3));
        bed.crash(store);
        store = open(bed);
        let found = store.applied(1).unwrap().unwrap().position.index;
        assert_eq!(found, round, "back to the flush");
        assert_eq!(store.durable_applied(1), Some(at(found)));
        assert_eq!(offsets(&*store, here).len() as u64, found * 10);
        assert_eq!(
            store.row(&RowKey::Head(here)).unwrap(),
            Some(head(found * 10))
        );
    }
}

fn a_flush_happens_by_size(bed: &Harness) {
    let mut options = options();
    options.flush_bytes = 20_000;
    let store = bed.open(options).unwrap();
    let here = session(1, 0, 1);
    let mut last = 0;
    while store.durable_applied(1).is_none() {
        last += 1;
        assert!(last < 20_000, "no flush");
        store
            .write(1, write_session(last, here, last..=last))
            .unwrap();
    }
    assert!(last > 50, "flushed after {last} small writes");
    assert!(store.durable_applied(1).unwrap().index <= last);
}

fn a_closed_store_keeps_everything(bed: &Harness) {
    let store = open(bed);
    let here = session(1, 0, 1);
    store.write(1, write_session(7, here, 1..=5)).unwrap();
    drop(store);
    let store = open(bed);
    assert_eq!(store.applied(1).unwrap().unwrap().position, at(7));
    assert_eq!(store.durable_applied(1), Some(at(7)));
    assert_eq!(offsets(&*store, here), [1, 2, 3, 4, 5]);
}
