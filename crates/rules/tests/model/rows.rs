//! What is written: few rows for a batch, nothing for a refusal, none of a deleted session.

use everwire_core::command::{Duplicate, Published};
use everwire_core::event::{Body, MessageStatus};
use everwire_core::limits::{
    APPROVAL_DEFAULT, BATCH_EVENTS_MAX, BATCHES_REMEMBERED, KEY_TTL, LEASE_DEFAULT, LIVE_RUNS_MAX,
    OPEN_APPROVALS_MAX, OPEN_MESSAGES_MAX, OPEN_PARTS_MAX, ORPHAN_LIMIT, PEOPLE_PER_DAY_MAX,
    RUN_DEPTH_MAX, STALE_KEYS_EVERY, STALE_KEYS_PER_FIRE, STEPS_PER_RUN_MAX, TOMBSTONE_TTL,
    TOMBSTONES_MAX, TOMBSTONES_PER_PARTICIPANT_MAX,
};
use everwire_core::row::{RowKey, RunState};
use everwire_core::{Offset, Op, Outcome, Seq};
use everwire_rules::Txn;

use crate::world::{
    World, app, author, batch, cancel, claim, command, delta, input, message_start, part_start,
    post, publish, start,
};

#[test]
fn the_bounds_are_those_of_rules_version_3() {
    // Changing one needs a new version of the rules, or two replicas decide differently.
    assert_eq!(BATCH_EVENTS_MAX, 4_096);
    assert_eq!(LIVE_RUNS_MAX, 256);
    assert_eq!(OPEN_MESSAGES_MAX, 64);
    assert_eq!(OPEN_PARTS_MAX, 64);
    assert_eq!(STEPS_PER_RUN_MAX, 1_024);
    assert_eq!(BATCHES_REMEMBERED, 256);
    assert_eq!(PEOPLE_PER_DAY_MAX, 10_000);
    assert_eq!(KEY_TTL.as_secs(), 24 * 3_600);
    assert_eq!(STALE_KEYS_PER_FIRE, 256);
    assert_eq!(STALE_KEYS_EVERY.as_secs(), 3_600);
    assert_eq!(RUN_DEPTH_MAX, 16);
    assert_eq!(LEASE_DEFAULT.as_secs(), 15);
    assert_eq!(ORPHAN_LIMIT.as_secs(), 600);
    assert_eq!(TOMBSTONES_MAX, 64);
    assert_eq!(TOMBSTONES_PER_PARTICIPANT_MAX, 8);
    assert_eq!(TOMBSTONE_TTL.as_secs(), 600);
    assert_eq!(OPEN_APPROVALS_MAX, 64);
    assert_eq!(APPROVAL_DEFAULT.as_secs(), 3_600);
    assert_eq!(everwire_rules::RULES_VERSION, 3);
}

#[test]
fn a_batch_of_deltas_writes_four_rows() {
    let mut world = World::default();
    world.taken(start("bot", "r1", None));
    let bodies = vec![message_start("m1"), part_start("m1", "p1")];
    world.taken(publish("bot", "r1", 1, 1, bodies));
    let mut txn = Txn::new(&world, world.state);
    let deltas = vec![delta("m1", "p1", "x"); 100];
    txn.apply(batch(5, vec![publish("bot", "r1", 1, 3, deltas)]))
        .unwrap();
    let changes = txn.finish();
    let kinds: Vec<_> = changes.rows.keys().map(kind).collect();
    assert_eq!(kinds, ["head", "epoch", "batch", "part"]);
    assert_eq!(changes.events.len(), 100);
}

fn kind(key: &RowKey) -> &'static str {
    match key {
        RowKey::Name(..) => "name",
        RowKey::Counter(_) => "counter",
        RowKey::Head(_) => "head",
        RowKey::Run(..) => "run",
        RowKey::Epoch(..) => "epoch",
        RowKey::Batch(..) => "batch",
        RowKey::Message(..) => "message",
        RowKey::Part(..) => "part",
        RowKey::Input(..) => "input",
        RowKey::Key(..) => "key",
        RowKey::KeyAge(..) => "key age",
        RowKey::LiveRun(..) => "live run",
        RowKey::Step(..) => "step",
        RowKey::Tombstone(..) => "tombstone",
        RowKey::Timer(..) => "timer",
        RowKey::Approval(..) => "approval",
    }
}

#[test]
fn answers_to_repeated_requests_write_nothing() {
    let mut world = World::default();
    let commands = [
        start("bot", "r1", Some("k1")),
        claim("bot", "r1", Some("k2")),
        publish("bot", "r1", 2, 1, vec![app("x"), app("y")]),
        post("ann", input("i1", "hi"), Some("k3"), 1),
        cancel("ann", "r1", "k4"),
    ];
    for command in &commands {
        world.taken(command.clone());
    }
    let before = world.clone();
    for command in commands {
        world.taken(command);
    }
    assert_eq!(world, before);
}

#[test]
fn the_end_of_a_run_seals_messages_and_parts() {
    for (end, status, state) in [
        (
            Some(Body::RunCompleted),
            MessageStatus::Incomplete,
            RunState::Completed,
        ),
        (None, MessageStatus::Cancelled, RunState::Cancelled),
    ] {
        let mut world = World::default();
        world.taken(start("bot", "r1", None));
        let bodies = vec![
            message_start("m2"),
            part_start("m2", "p1"),
            message_start("m1"),
            part_start("m1", "p1"),
        ];
        world.taken(publish("bot", "r1", 1, 1, bodies));
        let by = match end {
            Some(end) => {
                world.taken(publish("bot", "r1", 1, 5, vec![end]));
                "bot"
            },
            None => {
                world.taken(cancel("ann", "r1", "k1"));
                "ann"
            },
        };
        let sealing: Vec<_> = world.log().iter().rev().take(2).rev().collect();
        let messages: Vec<_> = sealing
            .iter()
            .map(|event| match &event.body {
                Body::MessageEnd {
                    message,
                    status: of,
                } if *of == status => message.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(messages, ["m2", "m1"], "in the order of their start");
        for event in sealing {
            assert_eq!(event.author, author(by));
            assert_eq!(event.run.as_ref().unwrap().seq, None);
        }
        for (key, row) in &world.rows {
            match row {
                everwire_core::row::Row::Part(part) => assert!(!part.open, "{key:?}"),
                everwire_core::row::Row::Message(message) => {
                    assert_eq!(message.status, Some(status));
                    assert!(message.open_parts.is_empty());
                },
                everwire_core::row::Row::Run(run) => {
                    assert_eq!(run.state, state);
                    assert!(run.open_messages.is_empty());
                    assert_eq!(run.open_parts, 0);
                },
                _ => {},
            }
        }
    }
}

#[test]
fn the_place_of_a_batch_is_remembered_for_256_batches() {
    let mut world = World::default();
    world.taken(start("bot", "r1", None));
    let total = 3 * BATCHES_REMEMBERED + 7;
    for seq in 1..=total {
        world.taken(publish("bot", "r1", 1, seq, vec![app("x")]));
    }
    for seq in 1..=total {
        let outcome = world.taken(publish("bot", "r1", 1, seq, vec![app("x")]));
        let Outcome::Published(Published {
            duplicate: Some(duplicate),
            appended: None,
            ..
        }) = outcome
        else {
            panic!("{outcome:?}")
        };
        // run.started stands at 1, seq n at n + 1.
        let remembered = seq > total - BATCHES_REMEMBERED;
        let place = if remembered { seq + 1 } else { total + 1 };
        let expected = Duplicate {
            through_seq: Seq(seq),
            through_offset: Offset::new(place).unwrap(),
            exact: remembered,
        };
        assert_eq!(duplicate, expected, "seq {seq}");
    }
}

#[test]
fn a_place_is_exact_only_where_batches_stand_wall_to_wall() {
    let mut world = World::default();
    world.taken(start("bot", "r1", None));
    world.taken(publish("bot", "r1", 1, 1, vec![app("at 2"), app("at 3")]));
    world.taken(publish("bot", "r1", 1, 3, vec![app("at 4")]));
    world.taken(post("ann", app("at 5"), None, 1));
    world.taken(publish("bot", "r1", 1, 4, vec![app("at 6")]));
    let mut place = |seq, count| {
        let resend = publish("bot", "r1", 1, seq, vec![app("x"); count]);
        match world.taken(resend) {
            Outcome::Published(Published {
                duplicate: Some(duplicate),
                ..
            }) => (duplicate.through_offset.get(), duplicate.exact),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(place(1, 1), (2, true));
    assert_eq!(place(1, 3), (4, true));
    assert_eq!(place(2, 2), (4, true));
    assert_eq!(place(3, 2), (6, false));
    assert_eq!(place(4, 1), (6, true));
}

#[test]
fn a_deleted_session_leaves_no_row_of_its_own_and_its_number_never_comes_back() {
    let make = || start("bot", "r1", Some("k1"));
    let delete = || command("ann", Op::DeleteSession);
    let mut world = World::default();
    world.apply(vec![batch(1, vec![make(), delete(), make()])]);
    let mut other = World::default();
    for command in [make(), delete(), make()] {
        other.at(1, command);
    }
    assert_eq!(world, other);
    let numbers: Vec<_> = world
        .rows
        .keys()
        .filter_map(RowKey::session)
        .map(|key| key.session_no.0)
        .collect();
    assert!(numbers.iter().all(|number| *number == 2), "{numbers:?}");
    assert_eq!(world.log().len(), 1);
}

#[test]
fn a_delete_names_what_is_to_be_erased() {
    let mut world = World::default();
    world.taken(start("bot", "r1", None));
    let session = *world.logs.keys().next().unwrap();
    let mut txn = Txn::new(&world, world.state);
    txn.apply(batch(
        1,
        vec![
            post("ann", app("x"), None, 1),
            command("ann", Op::DeleteSession),
        ],
    ))
    .unwrap();
    let changes = txn.finish();
    assert_eq!(changes.erased, [session]);
    assert!(changes.events.is_empty());
    let kinds: Vec<_> = changes
        .rows
        .iter()
        .map(|(key, row)| (kind(key), row.is_some()))
        .collect();
    assert_eq!(kinds, [("name", false)]);
}

#[test]
fn time_never_goes_back() {
    let mut world = World::default();
    for (stamp, time) in [(10, 10), (5, 10), (11, 11), (0, 11)] {
        world.at(stamp, post("ann", app("x"), None, 1));
        assert_eq!(world.log().last().unwrap().time.0, time);
        assert_eq!(world.state.time.0, time);
    }
}
