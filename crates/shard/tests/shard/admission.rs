//! In front of the log: lanes, bounds, order.

use everwire_core::command::{Lane, SignalOutcome};
use everwire_core::limits::{ENTRIES_IN_FLIGHT_MAX, ENTRY_BYTES_MAX, SHARD_AGENT_BYTES_MAX};
use everwire_core::{Code, Outcome};
use everwire_shard::Pending;

use crate::support::*;

/// Fills the agents' lane of a shard whose disk stands still; what was admitted, in order.
fn fill(world: &World, session: &str) -> Vec<Pending> {
    let shard = world.shard(session);
    let big = "x".repeat(200 << 10);
    let mut admitted = Vec::new();
    loop {
        match shard.submit(app(session, &big)) {
            Ok(pending) => admitted.push(pending),
            Err(refusal) => {
                assert_eq!(refusal.code, Code::Overloaded);
                assert_eq!(refusal.details.limit, Some(SHARD_AGENT_BYTES_MAX as u64));
                return admitted;
            },
        }
        let most = SHARD_AGENT_BYTES_MAX + (1 + ENTRIES_IN_FLIGHT_MAX) * ENTRY_BYTES_MAX;
        assert!(
            admitted.len() * big.len() <= most,
            "the lane is not bounded"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_overtakes_a_full_lane_of_agents() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    shard.propose(start("s", "r")).await.unwrap();
    world.disk.hold();
    let agents = fill(&world, "s");
    // The proposer takes some into flight; then the lane is full again.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let more = fill(&world, "s");
    let question = shard.submit(input("s", "question"));
    let stop = shard.submit(cancel("s", "r")).unwrap();
    world.disk.release();

    let asked = posted(question).await;
    let Outcome::Signalled { outcome, .. } = stop.await.unwrap() else {
        panic!("not a cancel");
    };
    let SignalOutcome::Applied { offset: stopped } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(stopped, asked.next(), "in the order of the calls");
    let mut last = at(0);
    let mut after = 0;
    for pending in agents.into_iter().chain(more) {
        let offset = posted(Ok(pending)).await;
        assert!(offset > last, "the agents' lane was reordered");
        last = offset;
        after += usize::from(offset > stopped);
    }
    // Only what was in flight went before.
    let in_flight = (1 + ENTRIES_IN_FLIGHT_MAX) * ENTRY_BYTES_MAX / (200 << 10);
    assert!(stopped.get() <= 2 + in_flight as u64, "{stopped}");
    assert!(after > 50, "{after}");
    world.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_takes_commands_again_when_it_has_room() {
    let world = World::new(1).await;
    world.disk.hold();
    let admitted = fill(&world, "s");
    world.disk.release();
    for pending in admitted {
        posted(Ok(pending)).await;
    }
    posted(world.shard("s").submit(app("s", "room"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_caller_left_is_applied_all_the_same() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    drop(shard.submit(app("s", "nobody waits")).unwrap());
    assert_eq!(posted(shard.submit(app("s", "second"))).await, at(2));
    let mut subscription = subscribe(&shard, "s").await;
    let events = read_to(&mut subscription, 2).await;
    assert_eq!(text(&events[0]), "nobody waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_commands_share_entries() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "first"))).await;
    let before = shard.status().applied;
    world.disk.hold();
    let pending: Vec<_> = (0..2_000).map(|_| shard.submit(app("s", "x"))).collect();
    world.disk.release();
    for pending in pending {
        posted(pending).await;
    }
    let entries = shard.status().committed - before;
    let most = 2 + 2 * ENTRIES_IN_FLIGHT_MAX as u64;
    assert!(entries <= most, "{entries} entries for 2,000 commands");
    assert_eq!(input("s", "i").op.lane(), Lane::People);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_the_rules_are_outcomes() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    let outcome = shard.propose(publish("s", "r", 1, &["x".into()])).await;
    let refusal = published(outcome.unwrap()).unwrap_err();
    assert_eq!(refusal.code, Code::UnknownSession);
    shard.propose(start("s", "r")).await.unwrap();
    let outcome = shard.propose(publish("s", "r", 2, &["x".into()])).await;
    let refusal = published(outcome.unwrap()).unwrap_err();
    assert_eq!(refusal.code, Code::SeqGap);
}
