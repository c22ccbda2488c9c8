//! The checker is worth something only if it finds what is broken: a sound history, and one
//! break of every kind.

use everwire_core::event::{Author, Codec, PartKind, Role, RunStamp, Visibility};
use everwire_core::{ParticipantId, ParticipantKind, Timestamp};

use super::*;

fn at(offset: u64) -> Offset {
    Offset::new(offset).expect("small")
}

fn run() -> RunId {
    RunId::parse("r1").expect("a good name")
}

fn message() -> MessageId {
    MessageId::parse("m1").expect("a good name")
}

fn part() -> PartId {
    PartId::parse("p1").expect("a good name")
}

fn started() -> Body {
    Body::RunStarted {
        input: None,
        parent: None,
        meta: None,
    }
}

fn stop() -> Body {
    Body::SignalCancel {
        target: everwire_core::Target::Run(run()),
        grace_ms: None,
    }
}

fn event(offset: u64, seq: Option<u64>, body: Body) -> Event {
    Event {
        offset: at(offset),
        time: Timestamp(1_000 + offset),
        run: Some(RunStamp {
            run: run(),
            run_epoch: RunEpoch::FIRST,
            seq: seq.map(Seq),
        }),
        author: Author {
            participant: ParticipantId::parse("bot").expect("a good name"),
            kind: ParticipantKind::Agent,
        },
        parent: None,
        visibility: Visibility::All,
        format: String::new(),
        codec: Codec::Plain,
        body,
        raw: None,
    }
}

fn delta(offset: u64, seq: u64, position: u64) -> Event {
    let text = "abc".to_owned();
    let (message, part) = (message(), part());
    let body = Body::PartDelta {
        message,
        part,
        position,
        text,
    };
    event(offset, Some(seq), body)
}

/// A whole history that can be broken.
#[derive(Clone)]
struct World {
    log: Vec<Event>,
    acked: Vec<Acked>,
    readers: Vec<Reader>,
}

impl World {
    fn violations(&self) -> Vec<Violation> {
        let history = History {
            log: &self.log,
            acked: &self.acked,
            readers: &self.readers,
        };
        history.violations()
    }

    /// Breaks a sound history and says what was found.
    fn broken(breaks: impl FnOnce(&mut Self)) -> Vec<Violation> {
        let mut world = sound();
        breaks(&mut world);
        world.violations()
    }

    fn back(&mut self) -> &mut Attachment {
        &mut self.readers[1].attachments[1]
    }
}

/// A run of four deltas that is cancelled at 8; a reader from the start, and one that came back.
fn sound() -> World {
    let (role, kind) = (Role::Assistant, PartKind::Text);
    let start = Body::MessageStart {
        message: message(),
        role,
    };
    let open = Body::PartStart {
        message: message(),
        part: part(),
        kind,
        name: None,
        data: None,
    };
    let mut log = vec![
        event(1, None, started()),
        event(2, Some(1), start),
        event(3, Some(2), open),
    ];
    log.extend((0..4).map(|n| delta(4 + n, 3 + n, 3 * n)));
    log.push(event(8, None, stop()));
    let cancel_offset = at(8);
    log.push(event(9, None, Body::RunCancelled { cancel_offset }));

    let acked = log.iter().filter_map(|event| {
        let seq = event.run.as_ref()?.seq?;
        let mut draft = Draft::new(event.body.clone());
        if let Body::PartDelta { position, .. } = &mut draft.body {
            *position = 0;
        }
        Some(Acked {
            run: run(),
            run_epoch: RunEpoch::FIRST,
            seq,
            offset: event.offset,
            draft,
        })
    });
    let whole = Attachment {
        cursor: None,
        ranges: vec![(at(1), at(4)), (at(5), at(4)), (at(5), at(9))],
        events: log.clone(),
    };
    let first = Attachment {
        cursor: None,
        ranges: vec![(at(1), at(5))],
        events: log[..5].to_vec(),
    };
    let back = Attachment {
        cursor: Some(at(5)),
        ranges: vec![(at(6), at(6)), (at(7), at(9))],
        events: log[5..].to_vec(),
    };
    let reader = |name: &str, attachments| Reader {
        name: name.to_owned(),
        attachments,
    };
    World {
        acked: acked.collect(),
        readers: vec![
            reader("stays", vec![whole]),
            reader("returns", vec![first, back]),
        ],
        log,
    }
}

#[test]
fn a_sound_history_has_no_violations() {
    assert_eq!(sound().violations(), []);
}

#[test]
fn a_hole_in_the_log_is_found() {
    let found = World::broken(|world| drop(world.log.remove(0)));
    assert!(found.contains(&Violation::NotDense {
        expected: at(1),
        found: at(2)
    }));
    let found = World::broken(|world| drop(world.log.remove(5)));
    assert!(found.contains(&Violation::NotDense {
        expected: at(6),
        found: at(7)
    }));
    let lost = Violation::Lost(run(), RunEpoch::FIRST, Seq(5), at(6));
    assert!(found.contains(&lost), "{found:?}");
    let gap = Violation::SeqGap(run(), RunEpoch::FIRST, Seq(6), at(7));
    assert!(found.contains(&gap), "{found:?}");
}

#[test]
fn a_lost_tail_is_found() {
    let found = World::broken(|world| world.log.truncate(6));
    let lost = Violation::Lost(run(), RunEpoch::FIRST, Seq(6), at(7));
    assert!(found.contains(&lost), "{found:?}");
    let short = |one: &&Violation| matches!(one, Violation::Short(..));
    assert_eq!(found.iter().filter(short).count(), 2);
}

#[test]
fn an_event_that_was_taken_twice_is_found() {
    let found = World::broken(|world| {
        world.log.truncate(7);
        world.log.push(delta(8, 6, 12));
    });
    let twice = Violation::Twice(run(), RunEpoch::FIRST, Seq(6), at(8));
    assert!(found.contains(&twice), "{found:?}");
}

#[test]
fn the_same_seq_under_another_epoch_is_no_duplicate() {
    let found = World::broken(|world| {
        let mut other = delta(10, 1, 12);
        other.run.as_mut().expect("a stamp").run_epoch = RunEpoch(2);
        world.log.push(other);
    });
    assert!(!found.iter().any(|one| matches!(one, Violation::Twice(..))));
}

#[test]
fn an_ack_for_another_place_is_found() {
    let found = World::broken(|world| world.acked[3].offset = at(7));
    let moved = Violation::Moved(run(), RunEpoch::FIRST, Seq(4), at(7), at(5));
    assert_eq!(found, [moved]);
}

#[test]
fn other_words_than_were_sent_are_found() {
    let altered = |found: Vec<Violation>| {
        let expected = Violation::Altered(run(), RunEpoch::FIRST, Seq(4), at(5));
        assert!(found.contains(&expected), "{found:?}");
    };
    altered(World::broken(|world| {
        let Body::PartDelta { text, .. } = &mut world.acked[3].draft.body else {
            panic!("the fourth is a delta");
        };
        text.push('!');
    }));
    altered(World::broken(|world| {
        let draft = world.acked[3].draft.clone();
        world.acked[3].draft = draft.with_raw("openai-chat", "{}");
    }));
    altered(World::broken(|world| {
        world.acked[3].draft.visibility = Visibility::Operators;
    }));
}

#[test]
fn output_above_a_cancel_is_found() {
    let found = World::broken(|world| world.log.push(delta(10, 7, 12)));
    assert!(found.contains(&Violation::AfterCancel(run(), at(8), at(10))));
    // What the server itself says about the cancelled run is no output.
    assert!(
        !sound()
            .violations()
            .contains(&Violation::AfterCancel(run(), at(8), at(9)))
    );
}

#[test]
fn a_wrong_position_is_found() {
    let found = World::broken(|world| {
        world.log[4] = delta(5, 4, 4);
    });
    assert!(found.contains(&Violation::Position(at(5))), "{found:?}");
}

#[test]
fn a_reader_that_comes_back_elsewhere_is_found() {
    let found = World::broken(|world| {
        world.back().cursor = Some(at(4));
        world.back().ranges[0] = (at(5), at(6));
        let again = world.log[4].clone();
        world.back().events.insert(0, again);
    });
    assert_eq!(
        found,
        [Violation::NotTheRest("returns".into(), at(5), at(4))]
    );
}

#[test]
fn a_reader_that_forgets_its_cursor_is_found() {
    let found = World::broken(|world| {
        let whole = world.readers[0].attachments[0].clone();
        *world.back() = whole;
    });
    assert_eq!(
        found,
        [Violation::NotTheRest("returns".into(), at(5), at(0))]
    );
}

#[test]
fn a_gap_and_an_overlap_of_ranges_are_found() {
    let found = World::broken(|world| {
        world.back().ranges[0] = (at(7), at(7));
    });
    let range = Violation::Range("returns".into(), at(7), at(7));
    assert!(found.contains(&range), "{found:?}");
    let found = World::broken(|world| world.back().ranges[0] = (at(5), at(6)));
    let range = Violation::Range("returns".into(), at(5), at(6));
    assert!(found.contains(&range), "{found:?}");
    let found = World::broken(|world| world.back().ranges.insert(1, (at(7), at(5))));
    let range = Violation::Range("returns".into(), at(7), at(5));
    assert!(found.contains(&range), "{found:?}");
}

#[test]
fn an_event_that_a_reader_missed_or_had_twice_is_found() {
    let found = World::broken(|world| drop(world.back().events.remove(1)));
    assert_eq!(found, [Violation::Skipped("returns".into(), at(7))]);
    let found = World::broken(|world| {
        let again = world.log[6].clone();
        world.back().events.insert(2, again);
    });
    assert_eq!(found, [Violation::Stray("returns".into(), at(7))]);
    let found = World::broken(|world| world.back().events.swap(0, 1));
    assert_eq!(found, [Violation::Stray("returns".into(), at(6))]);
}

#[test]
fn one_other_byte_in_one_reader_is_found() {
    let found = World::broken(|world| {
        world.back().events[0].time = Timestamp(7);
    });
    assert_eq!(found, [Violation::Different("returns".into(), at(6))]);
}

#[test]
fn a_reader_that_stopped_short_is_found() {
    let found = World::broken(|world| {
        world.readers[1].attachments.pop();
    });
    assert_eq!(found, [Violation::Short("returns".into(), at(5), at(9))]);
}

#[test]
fn a_part_of_the_log_is_enough_for_its_acks() {
    let world = sound();
    assert_eq!(acks(&world.log[4..], &world.acked[3..]), []);
    let lost = acks(&world.log[4..], &world.acked[2..]);
    assert_eq!(
        lost,
        [Violation::Lost(run(), RunEpoch::FIRST, Seq(3), at(4))]
    );
}
