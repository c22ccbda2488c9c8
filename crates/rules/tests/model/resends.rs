//! Sending again: whatever stretch of what it sent a lane repeats, in order and cut differently,
//! the log stays the same.

use std::collections::BTreeSet;

use everwire_core::event::{Body, Draft};
use everwire_core::{Command, Op, Outcome, RunEpoch, Seq};
use proptest::prelude::*;

use crate::intent::{Intent, sequences};
use crate::random::Play;
use crate::world::{
    World, app, cancel, command, delta, input, message_end, message_start, name, part_start, post,
    start,
};

/// The whole output of one run, valid from first to last.
fn output(length: usize) -> Vec<Body> {
    let mut bodies = vec![message_start("m1"), part_start("m1", "p1")];
    for number in 0..length {
        match number % 7 {
            3 => bodies.push(app(&format!("a{number}"))),
            _ => bodies.push(delta("m1", "p1", &format!("é{number} "))),
        }
    }
    bodies.push(message_end("m1"));
    bodies.push(Body::RunCompleted);
    bodies
}

fn stretch(bodies: &[Body], from: usize, count: usize) -> Command {
    let op = Op::Publish {
        run: name("r1"),
        run_epoch: RunEpoch::FIRST,
        first_seq: Seq(from as u64 + 1),
        drafts: bodies
            .iter()
            .skip(from)
            .take(count)
            .cloned()
            .map(Draft::new)
            .collect(),
    };
    command("bot", op)
}

fn published(world: &World) -> Vec<(u64, Body)> {
    let of_run = world.log().iter().filter_map(|event| {
        let seq = event.run.as_ref()?.seq?;
        Some((seq.0, event.body.clone()))
    });
    of_run.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    /// A publisher that loses its connection again and again, goes back by any number of events
    /// and cuts new batches, while people post in between.
    #[test]
    fn a_writer_that_goes_back_leaves_the_log_of_one_that_does_not(
        length in 1usize..40,
        sends in prop::collection::vec((0usize..12, 1usize..9, any::<bool>()), 1..60),
    ) {
        let bodies = output(length);
        let mut world = World::default();
        world.taken(start("bot", "r1", Some("k")));
        let mut next = 0;
        for (number, (back, count, talk)) in sends.into_iter().enumerate() {
            let from = usize::min(next, bodies.len() - 1).saturating_sub(back);
            let count = count.min(bodies.len() - from);
            let before = next;
            next = next.max(from + count);
            match world.taken(stretch(&bodies, from, count)) {
                Outcome::Published(answer) => {
                    let (through, _) = answer.through().unwrap();
                    prop_assert_eq!(through.0, (from + count) as u64);
                    prop_assert_eq!(answer.duplicate.is_some(), from < before);
                    prop_assert_eq!(answer.appended.is_some(), from + count > before);
                },
                other => prop_assert!(false, "{:?}", other),
            }
            if talk {
                world.taken(post("ann", input(&format!("i{number}"), "?"), Some(&format!("k{number}")), 1));
            }
        }
        while next < bodies.len() {
            world.taken(stretch(&bodies, next, 5));
            next += 5;
        }
        let mut straight = World::default();
        straight.taken(start("bot", "r1", Some("k")));
        straight.taken(stretch(&bodies, 0, bodies.len()));
        prop_assert_eq!(published(&world), published(&straight));
        // And once more from any place, after the end.
        let done = world.clone();
        for from in 0..bodies.len() {
            world.taken(stretch(&bodies, from, bodies.len() - from));
            world.taken(stretch(&bodies, 0, from + 1));
        }
        prop_assert_eq!(world, done);
    }

    /// Whatever was taken before answers its original place or a refusal, and changes nothing.
    #[test]
    fn what_was_taken_can_be_sent_again_without_a_trace(
        sequence in sequences(60),
        from in any::<prop::sample::Index>(),
    ) {
        let mut play = Play::default();
        for (intent, session) in &sequence {
            if !matches!(intent, Intent::Delete) {
                play.play(intent, *session);
            }
        }
        let taken: Vec<_> = play.commands().zip(&play.outcomes)
            .filter(|(command, outcome)| repeatable(command) && !matches!(outcome, Outcome::Refused(_) ))
            .map(|(command, outcome)| (command.clone(), outcome.clone()))
            .collect();
        if taken.is_empty() {
            return Ok(());
        }
        let before = play.world.clone();
        for (command, first) in &taken[from.index(taken.len())..] {
            let again = play.world.run(command.clone());
            prop_assert!(same_place(first, &again), "{:?} then {:?}", first, again);
            // Answering may forget stale keys; it never adds an event.
            prop_assert_eq!(&play.world.logs, &before.logs);
        }
    }
}

/// Commands that say themselves that they are repeated.
fn repeatable(command: &Command) -> bool {
    match &command.op {
        Op::CreateSession | Op::Publish { .. } => true,
        Op::DeleteSession | Op::Unfreeze | Op::Cancel { .. } | Op::Signal { .. } => false,
        Op::StartRun(start) => start.key.is_none(),
        Op::ClaimRun { .. } | Op::Heartbeat { .. } => false,
        // Input ids are remembered for ever, keys for 24 h.
        Op::Post { draft, .. } => matches!(draft.body, Body::Input { .. }),
    }
}

fn same_place(first: &Outcome, again: &Outcome) -> bool {
    match (first, again) {
        (Outcome::Published(first), Outcome::Published(again)) => {
            let (seq, offset) = again
                .duplicate
                .map(|known| (known.through_seq, known.through_offset))
                .expect("it was taken before");
            again.appended.is_none() && first.through() == Some((seq, offset))
        },
        (
            Outcome::Posted { offset: first, .. },
            Outcome::Posted {
                offset, duplicate, ..
            },
        ) => *duplicate && first == offset,
        (Outcome::SessionReady { .. }, Outcome::SessionReady { created, .. }) => !created,
        (_, Outcome::Refused(_)) => true,
        _ => false,
    }
}

/// Sequences inside one day, with keys: starts, claims, cancels and posts answer as they did.
#[test]
fn commands_with_keys_answer_as_they_did_within_24_hours() {
    let commands = [
        start("bot", "r1", Some("k1")),
        crate::world::claim("bot", "r1", Some("k2")),
        post("ann", input("i1", "hi"), Some("k1"), 1),
        cancel("ann", "r1", "k2"),
        start("bot", "r2", Some("k3")),
        post("ann", app("x"), Some("k3"), 3),
    ];
    let mut world = World::default();
    let first: Vec<_> = commands
        .iter()
        .map(|command| world.taken(command.clone()))
        .collect();
    let done = world.clone();
    for from in 0..commands.len() {
        for to in from..commands.len() {
            let again: Vec<_> = commands[from..=to]
                .iter()
                .map(|command| world.taken(command.clone()))
                .collect();
            for (first, again) in first[from..=to].iter().zip(&again) {
                assert_eq!(&as_duplicate(first), again);
            }
        }
    }
    assert_eq!(world, done);
    let places: BTreeSet<_> = first.iter().map(|outcome| format!("{outcome:?}")).collect();
    assert_eq!(places.len(), commands.len(), "each has a place of its own");
}

fn as_duplicate(outcome: &Outcome) -> Outcome {
    let mut outcome = outcome.clone();
    match &mut outcome {
        Outcome::RunGranted { duplicate, .. }
        | Outcome::Posted { duplicate, .. }
        | Outcome::Signalled { duplicate, .. } => *duplicate = true,
        _ => {},
    }
    outcome
}
