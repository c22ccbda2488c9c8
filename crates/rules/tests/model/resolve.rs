//! Attach: the table, exhaustively over small numbers, against a second reading of it.

use everwire_core::{Cursor, Offset, SessionEpoch, SessionNo};
use everwire_rules::resolve::{Answer, Readable, resolve};

/// The rows of the table in `docs/protocol/rules.md`, named alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    NotFound,
    OtherEpoch,
    Trimmed,
    Ahead,
    Wait,
    Resumed,
    Fresh,
}

fn offset(number: u64) -> Offset {
    Offset::new(number).expect("small")
}

fn epoch(number: u64) -> SessionEpoch {
    SessionEpoch {
        timeline: 1,
        session_no: SessionNo(number),
    }
}

/// Which line answers, and the number in its answer; written as conditions that exclude each
/// other, not as an order.
fn expected(session: Option<&Readable>, cursor: Option<Cursor>) -> (Line, u64) {
    let Some(at) = session else {
        return (Line::NotFound, 0);
    };
    let (trimmed, applied) = (at.trimmed.get(), at.applied_tail.get());
    let known = applied.max(at.leader_tail.get());
    match cursor {
        None => (Line::Fresh, trimmed + 1),
        Some(cursor) => {
            let ours = cursor.session_epoch.is_none() || cursor.session_epoch == Some(epoch(1));
            match (ours, cursor.offset.get()) {
                (false, _) => (Line::OtherEpoch, trimmed + 1),
                (true, seen) if seen < trimmed => (Line::Trimmed, trimmed + 1),
                (true, seen) if (trimmed..=applied).contains(&seen) => (Line::Resumed, seen + 1),
                (true, seen) if (applied + 1..=known).contains(&seen) => (Line::Wait, 0),
                (true, _) => (Line::Ahead, trimmed + 1),
            }
        },
    }
}

#[test]
fn the_table_is_whole_and_its_lines_do_not_overlap() {
    let mut reached = std::collections::BTreeMap::new();
    let mut check = |session: Option<Readable>, cursor: Option<Cursor>| {
        let (line, number) = expected(session.as_ref(), cursor);
        *reached.entry(line).or_insert(0) += 1;
        let answer = resolve(session.as_ref(), cursor);
        let context = format!("{session:?} {cursor:?}");
        match (line, answer) {
            (Line::NotFound, Answer::NotFound) | (Line::Wait, Answer::Wait) => {},
            (
                Line::OtherEpoch | Line::Trimmed | Line::Ahead,
                Answer::Gone {
                    session_epoch,
                    earliest,
                    tail,
                    ahead,
                },
            ) => {
                let session = session.unwrap();
                assert_eq!(session_epoch, session.session_epoch, "{context}");
                assert_eq!(earliest, offset(number), "{context}");
                assert_eq!(tail, session.leader_tail.max(session.applied_tail));
                assert_eq!(ahead, line == Line::Ahead, "{context}");
            },
            (
                Line::Resumed | Line::Fresh,
                Answer::Resumed {
                    session_epoch,
                    from,
                    tail,
                },
            ) => {
                let session = session.unwrap();
                assert_eq!(session_epoch, session.session_epoch, "{context}");
                assert_eq!(from, offset(number), "{context}");
                assert_eq!(tail, session.leader_tail.max(session.applied_tail));
            },
            (line, answer) => panic!("{context}: {line:?} expected, {answer:?} given"),
        }
    };
    let cursors = || {
        let offsets = (0..=6).chain([Offset::MAX.get()]);
        let some = offsets.flat_map(|at| {
            [None, Some(epoch(1)), Some(epoch(2))].map(|session_epoch| {
                Some(Cursor {
                    session_epoch,
                    offset: offset(at),
                })
            })
        });
        some.chain([None])
    };
    for cursor in cursors() {
        check(None, cursor);
        for applied in 0..=5 {
            for trimmed in 0..=applied {
                for leader in 0..=5 {
                    let session = Readable {
                        session_epoch: epoch(1),
                        trimmed: offset(trimmed),
                        applied_tail: offset(applied),
                        leader_tail: offset(leader),
                    };
                    check(Some(session), cursor);
                }
            }
        }
    }
    assert_eq!(reached.len(), 7, "every line is reached: {reached:?}");
}

#[test]
fn an_epoch_of_another_timeline_is_another_history() {
    let session = Readable {
        session_epoch: epoch(1),
        trimmed: Offset::ZERO,
        applied_tail: offset(4),
        leader_tail: offset(4),
    };
    let restored = SessionEpoch {
        timeline: 2,
        session_no: SessionNo(1),
    };
    let cursor = Cursor {
        session_epoch: Some(restored),
        offset: offset(2),
    };
    let answer = resolve(Some(&session), Some(cursor));
    assert!(matches!(answer, Answer::Gone { ahead: false, .. }));
}
