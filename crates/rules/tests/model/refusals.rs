//! Each refusal that the rules can give, reached once, with its facts; and what a refusal leaves.

use everwire_core::command::{Batch, Control, SignalOutcome};
use everwire_core::event::{Body, MessageStatus};
use everwire_core::limits::{
    BATCH_EVENTS_MAX, LIVE_RUNS_MAX, OPEN_MESSAGES_MAX, OPEN_PARTS_MAX, PEOPLE_PER_DAY_MAX,
};
use everwire_core::row::{Row, RowKey, RowRange, RunState};
use everwire_core::{
    Code, Command, Details, Offset, Op, Outcome, RunEpoch, Seq, Target, Timestamp,
};
use everwire_rules::{ApplyError, RULES_VERSION, ShardState, Txn, View, ViewError, may_raise};

use crate::world::{
    World, app, batch, cancel, claim, command, delta, input, message_end, message_start, name,
    part_end, part_start, post, publish, start,
};

fn offset(number: u64) -> Option<Offset> {
    Offset::new(number)
}

/// A world where bot has started r1 at offset 1 and opened m1/p1 with a delta: tail 4, seq 3.
fn writing() -> World {
    let mut world = World::default();
    world.taken(start("bot", "r1", None));
    let bodies = vec![
        message_start("m1"),
        part_start("m1", "p1"),
        delta("m1", "p1", "Hé"),
    ];
    world.taken(publish("bot", "r1", 1, 1, bodies));
    world
}

fn check(world: &mut World, command: Command, code: Code, details: Details) {
    let before = world.clone();
    let refusal = world.refused(command);
    assert_eq!(refusal.code, code, "{refusal}");
    assert_eq!(*refusal.details, details, "{refusal}");
    assert_eq!(*world, before, "a refusal changes nothing");
}

fn without_right(mut command: Command) -> Command {
    command.may_create = false;
    command
}

#[test]
fn unknown_session() {
    let commands = [
        without_right(command("bot", Op::CreateSession)),
        without_right(start("bot", "r1", None)),
        without_right(post("ann", input("i1", "hi"), Some("k1"), 1)),
        claim("bot", "r1", None),
        publish("bot", "r1", 1, 1, vec![app("x")]),
        cancel("ann", "r1", "k1"),
    ];
    for command in commands {
        let mut world = World::default();
        check(
            &mut world,
            command,
            Code::UnknownSession,
            Details::default(),
        );
    }
}

#[test]
fn unknown_run() {
    let mut world = writing();
    let none = Details::default;
    check(
        &mut world,
        claim("bot", "r2", None),
        Code::UnknownRun,
        none(),
    );
    let output = publish("bot", "r2", 1, 1, vec![app("x")]);
    check(&mut world, output, Code::UnknownRun, none());
}

#[test]
fn run_fenced() {
    let mut world = writing();
    world.taken(cancel("ann", "r1", "k1"));
    let details = Details {
        cancel_offset: offset(5),
        next_epoch: Some(RunEpoch(2)),
        ..Details::default()
    };
    for command in [
        publish("bot", "r1", 1, 4, vec![delta("m1", "p1", "x")]),
        publish("bot", "r1", 1, 9, vec![app("a gap is checked later")]),
        publish(
            "bot",
            "r1",
            1,
            3,
            vec![delta("m1", "p1", "Hé"), app("tail")],
        ),
        claim("bot", "r1", None),
        start("bot", "r1", None),
        start("bot2", "r1", None),
    ] {
        check(&mut world, command, Code::RunFenced, details.clone());
    }
}

#[test]
fn run_ended() {
    for (end, state) in [
        (Body::RunCompleted, RunState::Completed),
        (
            Body::RunFailed {
                reason: "lost".to_owned(),
            },
            RunState::Failed,
        ),
    ] {
        let mut world = writing();
        world.taken(publish("bot", "r1", 1, 4, vec![end]));
        let details = Details {
            state: Some(state.as_str()),
            offset: offset(5),
            next_epoch: Some(RunEpoch(2)),
            ..Details::default()
        };
        for command in [
            publish("bot", "r1", 1, 5, vec![app("x")]),
            claim("bot", "r1", None),
            start("bot", "r1", None),
        ] {
            check(&mut world, command, Code::RunEnded, details.clone());
        }
    }
}

#[test]
fn stale_epoch() {
    let mut world = writing();
    world.taken(claim("bot", "r1", None));
    let details = Details {
        run_epoch: Some(RunEpoch(2)),
        last_seq: Some(Seq(3)),
        last_offset: offset(4),
        ..Details::default()
    };
    let old = publish("bot", "r1", 1, 4, vec![app("x")]);
    check(&mut world, old, Code::StaleEpoch, details.clone());
    let half = publish("bot", "r1", 1, 3, vec![delta("m1", "p1", "Hé"), app("x")]);
    check(&mut world, half, Code::StaleEpoch, details);
    let never = publish("bot", "r1", 3, 1, vec![app("x")]);
    let details = Details {
        run_epoch: Some(RunEpoch(2)),
        ..Details::default()
    };
    check(&mut world, never, Code::StaleEpoch, details);
}

#[test]
fn a_stale_epoch_is_told_before_the_fence() {
    let mut world = writing();
    world.taken(claim("bot", "r1", None));
    world.taken(cancel("ann", "r1", "k1"));
    let refusal = world.refused(publish("bot", "r1", 1, 4, vec![app("x")]));
    assert_eq!(refusal.code, Code::StaleEpoch);
}

#[test]
fn seq_gap() {
    let mut world = writing();
    let details = Details {
        expected_seq: Some(Seq(4)),
        ..Details::default()
    };
    let output = publish(
        "bot",
        "r1",
        1,
        5,
        vec![delta("m9", "p9", "state is checked later")],
    );
    check(&mut world, output, Code::SeqGap, details);
    world.taken(publish("bot", "r1", 1, 4, vec![app("the stream goes on")]));
}

#[test]
fn already_claimed() {
    let mut world = writing();
    let details = Details {
        by: Some(name("bot")),
        ..Details::default()
    };
    for command in [
        claim("bot2", "r1", None),
        start("bot2", "r1", None),
        start("bot", "r1", None),
    ] {
        check(&mut world, command, Code::AlreadyClaimed, details.clone());
    }
}

#[test]
fn wrong_state_closes_the_epoch_and_nothing_else() {
    let wrong = [
        message_start("m1"),
        message_end("m2"),
        part_start("m1", "p1"),
        part_start("m2", "p1"),
        delta("m1", "p2", "x"),
        delta("m2", "p1", "x"),
        part_end("m1", "p2"),
        part_end("m2", "p1"),
    ];
    let details = Details {
        state: Some("running"),
        next_epoch: Some(RunEpoch(2)),
        ..Details::default()
    };
    for body in wrong {
        let mut world = writing();
        let before = world.clone();
        let context = format!("{body:?}");
        // What comes before it in its batch goes with it.
        let bodies = vec![delta("m1", "p1", "lost"), message_start("m3"), body];
        let refusal = world.refused(publish("bot", "r1", 1, 4, bodies));
        assert_eq!(refusal.code, Code::WrongState, "{context}");
        assert_eq!(*refusal.details, details, "{context}");
        assert_eq!(world.log(), before.log(), "{context}");
        let mut closed = before.clone();
        for row in closed.rows.values_mut() {
            if let Row::Run(run) = row {
                run.epoch_closed = true;
            }
        }
        assert_eq!(world, closed, "{context}");
        // What is in flight behind it is not taken as if it followed.
        let behind = publish("bot", "r1", 1, 4, vec![delta("m1", "p1", "x")]);
        check(&mut world, behind, Code::WrongState, details.clone());
        world.taken(claim("bot", "r1", None));
        world.taken(publish("bot", "r1", 2, 1, vec![delta("m1", "p1", "x")]));
    }
}

#[test]
fn ended_and_foreign_things_take_nothing() {
    let mut world = writing();
    world.taken(start("bot", "r2", None));
    let bodies = vec![part_end("m1", "p1"), message_start("m2"), message_end("m2")];
    world.taken(publish("bot", "r1", 1, 4, bodies));
    let wrong = [
        ("r1", delta("m1", "p1", "ended")),
        ("r1", part_end("m1", "p1")),
        ("r1", part_start("m1", "p1")),
        ("r1", part_start("m2", "p1")),
        ("r1", message_end("m2")),
        ("r1", message_start("m2")),
        ("r2", part_start("m1", "p2")),
        ("r2", message_end("m1")),
    ];
    for (run, body) in wrong {
        let mut world = world.clone();
        let seq = if run == "r1" { 7 } else { 1 };
        let refusal = world.refused(publish("bot", run, 1, seq, vec![body]));
        assert_eq!(refusal.code, Code::WrongState);
    }
}

#[test]
fn key_reused() {
    let mut world = World::default();
    world.taken(start("bot", "r1", Some("k1")));
    world.taken(post("ann", input("i1", "hi"), Some("k2"), 1));
    world.taken(post("ann", app("x"), Some("k3"), 2));
    let at = |number| Details {
        offset: offset(number),
        ..Details::default()
    };
    let used = Code::KeyReused;
    check(&mut world, start("bot", "r2", Some("k1")), used, at(1));
    check(&mut world, claim("bot", "r1", Some("k1")), used, at(1));
    let other_body = post("ann", input("i1", "hi!"), Some("k2"), 9);
    check(&mut world, other_body, used, at(2));
    check(&mut world, cancel("ann", "r1", "k2"), used, at(2));
    check(&mut world, cancel("ann", "r7", "k3"), used, at(3));
    let other_key = post("ann", input("i1", "hi"), Some("k4"), 1);
    check(&mut world, other_key, used, at(2));
    // Keys and input ids belong to their author.
    world.taken(post("bob", input("i1", "hi"), Some("k2"), 7));
}

#[test]
fn too_many_pending_runs() {
    let mut world = World::default();
    for run in 0..LIVE_RUNS_MAX {
        world.taken(start("bot", &format!("r{run}"), None));
    }
    let details = Details {
        limit: Some(u64::from(LIVE_RUNS_MAX)),
        ..Details::default()
    };
    let one_more = start("bot", "more", None);
    check(&mut world, one_more.clone(), Code::TooManyPending, details);
    world.taken(publish("bot", "r0", 1, 1, vec![Body::RunCompleted]));
    world.taken(one_more);
}

#[test]
fn too_many_pending_parts() {
    let mut world = writing();
    let parts = (2..=OPEN_PARTS_MAX).map(|part| part_start("m1", &format!("p{part}")));
    world.taken(publish("bot", "r1", 1, 4, parts.collect()));
    let details = Details {
        limit: Some(u64::from(OPEN_PARTS_MAX)),
        ..Details::default()
    };
    let seq = 3 + u64::from(OPEN_PARTS_MAX);
    let one_more = publish("bot", "r1", 1, seq, vec![part_start("m1", "more")]);
    check(&mut world, one_more, Code::TooManyPending, details);
    // The epoch goes on with the same seq.
    let bodies = vec![part_end("m1", "p2"), part_start("m1", "more")];
    world.taken(publish("bot", "r1", 1, seq, bodies));
}

#[test]
fn too_many_pending_messages() {
    let mut world = writing();
    let messages = (2..=OPEN_MESSAGES_MAX).map(|number| message_start(&format!("m{number}")));
    world.taken(publish("bot", "r1", 1, 4, messages.collect()));
    let details = Details {
        limit: Some(u64::from(OPEN_MESSAGES_MAX)),
        ..Details::default()
    };
    let seq = 3 + u64::from(OPEN_MESSAGES_MAX);
    let one_more = publish("bot", "r1", 1, seq, vec![message_start("more")]);
    check(&mut world, one_more, Code::TooManyPending, details);
    let bodies = vec![message_end("m2"), message_start("more")];
    world.taken(publish("bot", "r1", 1, seq, bodies));
}

#[test]
fn quota_of_a_day_counts_inputs_and_signals() {
    let mut world = writing();
    world.taken(start("bot", "r2", None));
    for number in 1..PEOPLE_PER_DAY_MAX {
        let id = format!("i{number}");
        world.taken(post("ann", input(&id, ""), Some(&id), u128::from(number)));
    }
    world.taken(cancel("ann", "r2", "stop-1"));
    let details = Details {
        limit: Some(u64::from(PEOPLE_PER_DAY_MAX)),
        ..Details::default()
    };
    let more = post("ann", input("more", ""), Some("more"), 7);
    check(&mut world, more.clone(), Code::Quota, details.clone());
    let stop = cancel("ann", "r1", "stop-2");
    check(&mut world, stop.clone(), Code::Quota, details);
    // App events and answers to repeated requests are not counted.
    world.taken(post("ann", app("x"), None, 1));
    world.taken(cancel("ann", "r2", "stop-1"));
    let next_day = 24 * 3_600 * 1_000;
    assert!(matches!(world.at(next_day, more), Outcome::Posted { .. }));
    assert!(matches!(world.run(stop), Outcome::Signalled { .. }));
}

#[test]
fn malformed() {
    let sealed = Body::MessageEnd {
        message: name("m1"),
        status: MessageStatus::Incomplete,
    };
    let signal = Body::SignalCancel {
        target: Target::Run(name("r1")),
        grace_ms: None,
    };
    let started = Body::RunStarted {
        input: None,
        parent: None,
        meta: None,
    };
    let cancelled = Body::RunCancelled {
        cancel_offset: Offset::ZERO,
    };
    let failed = || Body::RunFailed {
        reason: String::new(),
    };
    let too_many = vec![app("x"); BATCH_EVENTS_MAX + 1];
    let commands = [
        publish("bot", "r1", 1, 4, vec![]),
        publish("bot", "r1", 1, 4, too_many),
        publish("bot", "r1", 1, 0, vec![app("x")]),
        publish("bot", "r1", 0, 4, vec![app("x")]),
        publish("bot", "r1", 1, u64::MAX, vec![app("x")]),
        publish("bot", "r1", 1, u64::MAX - 1, vec![app("x"), app("y")]),
        publish("bot", "r1", 1, 4, vec![Body::RunCompleted, app("x")]),
        publish("bot", "r1", 1, 4, vec![failed(), Body::RunCompleted]),
        publish("bot", "r1", 1, 4, vec![sealed]),
        publish("bot", "r1", 1, 4, vec![started]),
        publish(
            "bot",
            "r1",
            1,
            4,
            vec![app("x"), Body::RunClaimed, app("y")],
        ),
        publish("bot", "r1", 1, 4, vec![cancelled]),
        publish("bot", "r1", 1, 4, vec![input("i1", "hi")]),
        publish("bot", "r1", 1, 4, vec![signal.clone()]),
        post("ann", input("i1", "no key"), None, 1),
        post("ann", message_start("m2"), Some("k1"), 1),
        post("ann", signal, Some("k1"), 1),
    ];
    for command in commands {
        check(&mut writing(), command, Code::Malformed, Details::default());
    }
}

#[test]
fn denied_to_anybody_but_the_writer() {
    let mut world = writing();
    world.taken(claim("bot", "r1", None));
    for (epoch, seq) in [(1, 1), (1, 4), (2, 1), (3, 1)] {
        let output = publish("bot2", "r1", epoch, seq, vec![app("x")]);
        check(&mut world, output, Code::Denied, Details::default());
    }
}

#[test]
fn a_cancel_that_finds_nothing_live_is_an_answer_and_not_a_refusal() {
    let mut world = writing();
    let answer = |world: &mut World, command| match world.taken(command) {
        Outcome::Signalled {
            outcome, duplicate, ..
        } => (outcome, duplicate),
        other => panic!("{other:?}"),
    };
    let before = world.clone();
    let unknown = answer(&mut world, cancel("ann", "r2", "k1"));
    assert_eq!(unknown, (SignalOutcome::UnknownRun, false));
    assert_eq!(world, before);
    // Nothing was remembered, so the retry finds the run that has started meanwhile.
    world.taken(start("bot", "r2", None));
    let offset = offset(6).unwrap();
    let applied = SignalOutcome::Applied { offset };
    assert_eq!(
        answer(&mut world, cancel("ann", "r2", "k1")),
        (applied.clone(), false)
    );
    assert_eq!(
        answer(&mut world, cancel("ann", "r2", "k1")),
        (applied, true)
    );
    let terminal = SignalOutcome::AlreadyTerminal {
        state: RunState::Cancelled,
        offset,
    };
    assert_eq!(
        answer(&mut world, cancel("bob", "r2", "k1")),
        (terminal, false)
    );
}

// === What stops a replica ===

struct Broken;

impl View for Broken {
    fn get(&self, _: &RowKey) -> Result<Option<Row>, ViewError> {
        Err(ViewError("the disk is gone".to_owned()))
    }

    fn scan(&self, _: RowRange, _: usize) -> Result<Vec<RowKey>, ViewError> {
        Err(ViewError("the disk is gone".to_owned()))
    }
}

#[test]
fn a_failed_read_is_no_refusal() {
    let mut txn = Txn::new(&Broken, ShardState::default());
    let result = txn.apply(batch(1, vec![start("bot", "r1", None)]));
    assert!(matches!(result, Err(ApplyError::View(_))));
}

#[test]
fn a_row_of_another_kind_is_no_refusal() {
    let mut world = writing();
    for (key, row) in &mut world.rows {
        if matches!(key, RowKey::Run(..)) {
            *row = Row::Index;
        }
    }
    let mut txn = Txn::new(&world, world.state);
    let result = txn.apply(batch(1, vec![claim("bot", "r1", None)]));
    assert!(matches!(result, Err(ApplyError::View(_))));
}

#[test]
fn unknown_rules_stop_the_replica() {
    let world = World::default();
    let of = |rules_version| Batch {
        rules_version,
        ..batch(1, vec![command("bot", Op::CreateSession)])
    };
    for version in [0, RULES_VERSION + 1, 99] {
        let mut txn = Txn::new(&world, ShardState::default());
        let result = txn.apply(of(version));
        assert_eq!(result, Err(ApplyError::UnknownRules(version)));
    }
    let newer = ShardState {
        time: Timestamp(0),
        rules_version: RULES_VERSION + 1,
    };
    let mut txn = Txn::new(&world, newer);
    let unknown = ApplyError::UnknownRules(RULES_VERSION + 1);
    assert_eq!(txn.apply(of(1)), Err(unknown));
}

#[test]
fn rules_are_raised_upwards_only_and_never_beyond_what_is_known() {
    let world = World::default();
    let raise = |version| Batch {
        control: vec![Control::RaiseRules { version }],
        ..batch(1, Vec::new())
    };
    // A replica of a build to come knows the next version; one of today stops at the same entry.
    let next = RULES_VERSION + 1;
    let mut newer = Txn::with_supported(&world, ShardState::default(), next);
    for (version, stands_at) in [(1, 1), (next, next), (2, next), (next, next)] {
        assert_eq!(newer.apply(raise(version)), Ok(Vec::new()));
        assert_eq!(newer.state().rules_version, stands_at);
    }
    let unknown = ApplyError::UnknownRules(next + 1);
    assert_eq!(newer.apply(raise(next + 1)), Err(unknown));
    let mut ours = Txn::new(&world, ShardState::default());
    assert_eq!(ours.apply(raise(RULES_VERSION)), Ok(Vec::new()));
    assert_eq!(ours.apply(raise(next)), Err(ApplyError::UnknownRules(next)));
    assert_eq!(ours.apply(raise(0)), Err(ApplyError::UnknownRules(0)));
}

#[test]
fn commands_of_a_batch_see_the_rules_that_it_raises() {
    let world = World::default();
    let both = Batch {
        control: vec![Control::RaiseRules {
            version: RULES_VERSION,
        }],
        ..batch(1, vec![command("bot", Op::CreateSession)])
    };
    let mut txn = Txn::new(&world, ShardState::default());
    assert_eq!(txn.apply(both).map(|outcomes| outcomes.len()), Ok(1));
    assert_eq!(txn.finish().state.rules_version, RULES_VERSION);
}

#[test]
fn rules_are_raised_when_every_member_knows_them() {
    for (current, members, expected) in [
        (1, vec![Some(2), Some(2), Some(2)], Some(2)),
        (1, vec![Some(3), Some(2), Some(4)], Some(2)),
        (1, vec![Some(2), Some(1), Some(2)], None),
        (2, vec![Some(2)], None),
        // One that has said nothing may know nothing.
        (1, vec![Some(2), None, Some(2)], None),
        // It joined after the others were raised: that is no reason to go back.
        (3, vec![Some(2), Some(3)], None),
        (1, vec![], None),
    ] {
        assert_eq!(may_raise(current, &members), expected, "{members:?}");
    }
}
