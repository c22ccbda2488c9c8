//! What follows when the decision of a command panics: the session is frozen, alike on every
//! replica, and nothing else is touched.

use everwire_core::row::{Frozen, Row, RowKey};
use everwire_core::{Code, Command, Op, Outcome, Timestamp};
use everwire_rules::{Txn, poison};
use proptest::prelude::*;

use crate::intent::{Intent, sequences};
use crate::random::Sent;
use crate::world::{World, app, batch, cancel, command, name, post, publish, start};

fn of(session: &str, mut command: Command) -> Command {
    command.session = name(session);
    command
}

fn poisoned() -> Command {
    poison::arm();
    post("ann", app(poison::NAME), Some("poison"), 1)
}

fn frozen_rows(world: &World) -> Vec<Frozen> {
    let rows = world.rows.values();
    rows.filter_map(|row| match row {
        Row::Head(head) => head.frozen.clone(),
        _ => None,
    })
    .collect()
}

#[test]
fn a_poison_command_freezes_its_session_and_leaves_nothing_else() {
    let mut world = World::default();
    world.at(5, start("bot", "r1", None));
    let (rows, logs) = (world.rows.clone(), world.logs.clone());
    assert_eq!(world.at(7, poisoned()), world.run(poisoned()));
    assert_eq!(world.logs, logs);
    let by = Frozen {
        time: Timestamp(7),
        command: "post".to_owned(),
    };
    assert_eq!(frozen_rows(&world), [by]);
    for (key, row) in &world.rows {
        assert!(matches!(key, RowKey::Head(_)) || rows.get(key) == Some(row));
    }
    assert_eq!(world.rows.len(), rows.len());
}

#[test]
fn a_frozen_session_takes_nothing_until_it_is_unfrozen() {
    let mut world = World::default();
    world.taken(start("bot", "r1", Some("k1")));
    assert_eq!(world.refused(poisoned()).code, Code::Frozen);
    let frozen = world.clone();
    for refused in [
        command("ann", Op::CreateSession),
        // Not even what was answered before.
        start("bot", "r1", Some("k1")),
        start("bot", "r2", None),
        publish("bot", "r1", 1, 1, vec![app("x")]),
        post("ann", app("x"), None, 1),
        cancel("ann", "r1", "k2"),
    ] {
        assert_eq!(world.refused(refused).code, Code::Frozen);
        assert_eq!(world, frozen);
    }
    world.taken(of("other", post("ann", app("x"), None, 1)));
    for was in [true, false] {
        let outcome = world.taken(command("op", Op::Unfreeze));
        let Outcome::SessionUnfrozen { frozen, .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(frozen, was);
    }
    world.taken(publish("bot", "r1", 1, 1, vec![app("x")]));
    // A run's output can be poison too, and the blame is the first one's.
    let bodies = vec![app("y"), app(poison::NAME)];
    assert_eq!(
        world.refused(publish("bot", "r1", 1, 2, bodies)).code,
        Code::Frozen
    );
    world.refused(poisoned());
    assert_eq!(frozen_rows(&world)[0].command, "publish");
    world.taken(command("ann", Op::DeleteSession));
    world.taken(start("bot", "r1", None));
}

#[test]
fn poison_for_no_session_freezes_none() {
    let mut world = World::default();
    assert_eq!(world.refused(poisoned()).code, Code::Internal);
    assert_eq!(world.rows, World::default().rows);
    let unknown = world.refused(command("op", Op::Unfreeze));
    assert_eq!(unknown.code, Code::UnknownSession);
}

#[test]
fn who_writes_the_changes_is_told_what_was_frozen() {
    let mut world = World::default();
    world.taken(start("bot", "r1", None));
    let session = *world.logs.keys().next().unwrap();
    let mut txn = Txn::new(&world, world.state);
    txn.apply(batch(1, vec![poisoned(), poisoned()])).unwrap();
    assert_eq!(txn.finish().frozen, [session]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Poison anywhere in the life of two sessions: every way to cut the log into transactions
    /// gives the same, and the session that got none lives as if nothing had been.
    #[test]
    fn replicas_freeze_alike_and_other_sessions_go_on(
        sequence in sequences(40),
        places in prop::collection::vec(0..40usize, 1..4),
        cuts in prop::collection::vec(any::<bool>(), 50),
    ) {
        let mut play = crate::random::Play::default();
        for (intent, session) in &sequence {
            if !matches!(intent, Intent::Delete) {
                play.play(intent, *session);
            }
        }
        let Some(victim) = play.commands().next().map(|command| command.session.clone()) else {
            return Ok(());
        };
        let mut log = play.sent.clone();
        for place in places {
            let place = place.min(log.len());
            let time = place.checked_sub(1).and_then(|at| log.get(at)).map_or(0, |(time, _)| *time);
            log.insert(place, (time, Sent::Command(Box::new(of(victim.as_str(), poisoned())))));
        }
        let mut one_by_one = World::default();
        for (time, sent) in &log {
            one_by_one.apply(vec![sent.batch(*time)]);
        }
        let mut cut = World::default();
        let mut open = Vec::new();
        for ((time, sent), ends) in log.iter().zip(cuts.iter().cycle()) {
            open.push(sent.batch(*time));
            if *ends {
                cut.apply(std::mem::take(&mut open));
            }
        }
        cut.apply(open);
        prop_assert_eq!(&cut, &one_by_one);

        let frozen = of(victim.as_str(), poisoned());
        let frozen = Sent::Command(Box::new(frozen)).slot();
        let spared = |world: &World| {
            let mut alone = World::default();
            for (time, sent) in &play.sent {
                if sent.slot() != frozen {
                    alone.apply(vec![sent.batch(*time)]);
                }
            }
            alone.logs.values().all(|log| world.logs.values().any(|other| other == log))
        };
        prop_assert!(spared(&one_by_one));
    }
}
