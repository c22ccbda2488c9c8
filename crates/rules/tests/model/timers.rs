//! Timers: they fire when they stand and have come, and never else; the one that removes stale
//! keys, in bounded steps.

use everwire_core::command::{Batch, Control, Fire};
use everwire_core::limits::STALE_KEYS_PER_FIRE;
use everwire_core::row::{Row, RowKey, TimerKind};
use everwire_core::{Op, Outcome, Timestamp};
use everwire_rules::Txn;

use crate::world::{World, app, batch, command, expire, input, post, start};

const HOUR: u64 = 3_600 * 1_000;
const DAY: u64 = 24 * HOUR;

/// The timers that stand, by session and moment.
fn standing(world: &World) -> Vec<Fire> {
    let rows = world.rows.iter();
    rows.filter_map(|(key, row)| match (key, row) {
        (RowKey::Timer(session, due, kind), Row::Timer(row)) => Some(Fire {
            session: *session,
            due: *due,
            kind: *kind,
            guard: row.guard,
        }),
        _ => None,
    })
    .collect()
}

fn firing(ms: u64, fires: &[Fire]) -> Batch {
    Batch {
        control: fires.iter().copied().map(Control::Fire).collect(),
        ..batch(ms, Vec::new())
    }
}

fn fire(world: &mut World, ms: u64, fires: &[Fire]) {
    assert_eq!(world.apply(vec![firing(ms, fires)]), []);
}

fn only(world: &World) -> Fire {
    let standing = standing(world);
    assert_eq!(standing.len(), 1, "{standing:?}");
    standing.into_iter().next().expect("there is one")
}

fn keys(world: &World) -> (usize, usize) {
    let count = |what: fn(&RowKey) -> bool| world.rows.keys().filter(|key| what(key)).count();
    let ages = count(|key| matches!(key, RowKey::KeyAge(..)));
    (count(|key| matches!(key, RowKey::Key(..))), ages)
}

fn keyed(number: usize) -> everwire_core::Command {
    let body_hash = number as u128;
    post("ann", app("x"), Some(&format!("k{number:05}")), body_hash)
}

#[test]
fn a_session_has_one_timer_while_it_has_keys() {
    let mut world = World::default();
    world.at(5, post("ann", app("x"), None, 1));
    assert_eq!(standing(&world), []);
    world.at(10, keyed(1));
    world.at(20, keyed(2));
    let timer = only(&world);
    assert_eq!(timer.due, Timestamp(10 + DAY + 1));
    assert_eq!(timer.kind, TimerKind::StaleKeys);
    let tail = world.log().len();
    // The second key is not stale yet; the timer looks again, but not for each of them.
    fire(&mut world, timer.due.0, &[timer]);
    assert_eq!(keys(&world), (1, 1));
    let next = only(&world);
    assert_eq!(next.due, Timestamp(timer.due.0 + HOUR));
    fire(&mut world, next.due.0, &[next]);
    assert_eq!((keys(&world), standing(&world).len()), ((0, 0), 0));
    assert_eq!(world.log().len(), tail, "no event tells of it");
    world.run(keyed(3));
    assert_eq!(only(&world).due, Timestamp(next.due.0 + DAY + 1));
}

#[test]
fn what_does_not_stand_or_has_not_come_does_nothing() {
    let mut world = World::default();
    world.at(10, keyed(1));
    let timer = only(&world);
    let due = timer.due.0;
    let other = Fire {
        guard: timer.guard + 1,
        ..timer
    };
    let mut elsewhere = timer;
    elsewhere.session.session_no.0 += 1;
    let earlier = Fire {
        due: Timestamp(due - 1),
        ..timer
    };
    for (ms, named) in [
        (due - 1, timer),
        (due, other),
        (due, elsewhere),
        (due, earlier),
    ] {
        let rows = world.rows.clone();
        fire(&mut world, ms, &[named]);
        assert_eq!(world.rows, rows);
    }
    // A leader that was replaced may name it too: it fires once.
    fire(&mut world, due, &[timer, timer]);
    assert_eq!(standing(&world), []);
    let rows = world.rows.clone();
    fire(&mut world, due, &[timer]);
    assert_eq!(world.rows, rows);
    // Time is command time: the stamp of a leader behind its predecessor does not count.
    world.run(keyed(2));
    let timer = only(&world);
    world.at(timer.due.0, post("ann", app("x"), None, 1));
    fire(&mut world, 0, &[timer]);
    assert_eq!(keys(&world), (0, 0));
}

#[test]
fn many_stale_keys_go_in_bounded_steps_and_a_reused_one_stays() {
    let mut world = World::default();
    let many = 2 * STALE_KEYS_PER_FIRE + 10;
    world.apply(vec![batch(7, (0..many).map(keyed).collect())]);
    let timer = only(&world);
    // The last is used again when it is stale: it counts as absent, and as new from then on.
    let again = world.at(timer.due.0, keyed(many - 1));
    assert!(matches!(
        again,
        Outcome::Posted {
            duplicate: false,
            ..
        }
    ));
    let mut steps = Vec::new();
    while keys(&world).0 > 1 {
        let before = keys(&world).0;
        let timer = only(&world);
        assert!(timer.due <= world.state.time, "the rest is due at once");
        fire(&mut world, 0, &[timer]);
        steps.push(before - keys(&world).0);
    }
    assert_eq!(steps, [STALE_KEYS_PER_FIRE, STALE_KEYS_PER_FIRE, 9]);
    assert_eq!(keys(&world), (1, 1));
    let known = world.run(keyed(many - 1));
    assert!(matches!(
        known,
        Outcome::Posted {
            duplicate: true,
            ..
        }
    ));
    assert_eq!(only(&world).due, Timestamp(timer.due.0 + DAY + 1));
}

#[test]
fn a_deleted_session_takes_its_timer_along() {
    let mut world = World::default();
    world.at(7, keyed(1));
    let timer = only(&world);
    world.run(command("ann", Op::DeleteSession));
    assert_eq!(standing(&world), []);
    world.run(post("ann", input("i1", "hi"), Some("k1"), 1));
    let rows = world.rows.clone();
    fire(&mut world, timer.due.0, &[timer]);
    assert_eq!(world.rows, rows);
}

#[test]
fn nothing_is_asked_of_a_session_that_its_own_transaction_deleted() {
    let mut world = World::default();
    world.at(7, start("bot", "r1", Some("k1")));
    let timer = only(&world);
    let deleted = batch(8, vec![command("ann", Op::DeleteSession)]);
    let controls = vec![Control::Fire(timer), expire(timer.session, "r1", 1, 0)];
    let asked = Batch {
        control: controls,
        ..batch(timer.due.0, Vec::new())
    };
    // Each replica cuts batches into transactions as it likes, and all must write the same.
    let mut txn = Txn::new(&world, world.state);
    txn.apply(deleted).unwrap();
    txn.apply(asked).unwrap();
    let last = txn.last_batch();
    assert_eq!((last.rows.len(), last.events.len()), (0, 0));
    let changes = txn.finish();
    assert!(changes.rows.keys().all(|key| key.session().is_none()));
    assert_eq!((changes.events.len(), changes.erased.len()), (0, 1));
}

#[test]
fn firing_inside_one_transaction_is_firing_one_by_one() {
    let mut one_by_one = World::default();
    let many: Vec<_> = (0..STALE_KEYS_PER_FIRE + 5).map(keyed).collect();
    one_by_one.apply(vec![batch(7, many.clone())]);
    let first = only(&one_by_one);
    fire(&mut one_by_one, first.due.0, &[first]);
    let second = only(&one_by_one);
    fire(&mut one_by_one, first.due.0, &[second]);
    one_by_one.at(first.due.0 + 5, keyed(0));

    let mut together = World::default();
    together.apply(vec![
        batch(7, many),
        firing(first.due.0, &[first, second]),
        batch(first.due.0 + 5, vec![keyed(0)]),
    ]);
    assert_eq!(together, one_by_one);
    assert_eq!(keys(&together), (1, 1));
}

#[cfg(feature = "test-poison")]
#[test]
fn a_frozen_session_keeps_its_timer() {
    use everwire_rules::poison;

    poison::arm();
    let mut world = World::default();
    world.at(7, keyed(1));
    let timer = only(&world);
    world.refused(post("ann", app(poison::NAME), None, 1));
    fire(&mut world, timer.due.0, &[timer]);
    assert_eq!(only(&world), timer);
    world.taken(command("op", Op::Unfreeze));
    fire(&mut world, timer.due.0, &[timer]);
    assert_eq!((keys(&world), standing(&world)), ((0, 0), vec![]));
}
