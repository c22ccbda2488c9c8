//! Replicas that are damaged, diverged or empty are made anew from another, and no reader sees it.

use std::collections::BTreeMap;
use std::time::Duration;

use everwire_core::row::{HeadRow, Row, RowKey, SessionKey};
use everwire_core::{Code, SessionNo, ShardId, Slot};
use everwire_store::ApplyWrite;
use everwire_store::sim::Damage;

use crate::cluster::*;
use crate::support::*;

const SHARD: ShardId = ShardId(0);

/// A cluster whose session `s` has events 1 to 20 on all three nodes, and a node that follows. The
/// last event is that of offset 20, the last row the session's head: what is damaged.
async fn filled() -> (Cluster, usize) {
    let cluster = Cluster::new(3, 1).await;
    for number in 0..20 {
        cluster.propose(0, "s", app("s", &number.to_string())).await;
    }
    cluster.wait_level(SHARD).await;
    let leader = cluster.leader(SHARD).await;
    (cluster, (leader + 1) % 3)
}

/// Waits until a node serves the whole session from its own disk, as another has it, after it was
/// rebuilt once.
async fn wait_whole(cluster: &Cluster, node: usize, to: u64) {
    eventually("the shard is rebuilt", async || {
        (cluster.set(node).rebuilt() > 0).then_some(())
    })
    .await;
    let other = (node + 1) % 3;
    let expected = eventually("another replica serves", async || {
        cluster.read(other, "s", to).await.ok()
    });
    let expected = expected.await;
    let found = eventually("the replica serves again", async || {
        cluster.read(node, "s", to).await.ok()
    });
    assert_eq!(found.await, expected);
    // Once more where a read that was under way told of the old damage when that was healed.
    let rebuilt = cluster.set(node).rebuilt();
    assert!((1..=2).contains(&rebuilt), "rebuilt {rebuilt} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_event_is_fetched_anew_and_readers_go_elsewhere() {
    let (mut cluster, node) = filled().await;
    cluster.stop(node).await;
    assert!(cluster.disk(node).damage(Damage::Events));
    cluster.start(node).await;
    cluster.wait_ready().await;

    let mut reader = Wanderer::default();
    let mut at = node;
    let mut refused = Vec::new();
    while reader.events.len() < 20 {
        if let Err(refusal) = reader.read_at(&cluster, at, "s").await {
            refused.push(refusal.code);
            at = (at + 1) % 3;
        }
    }
    assert_eq!(refused.first(), Some(&Code::Stale), "{refused:?}");
    cluster.post(at, "s", 20..25).await;
    wait_whole(&cluster, node, 25).await;
    cluster.assert_alive();
}

/// Nobody reads it and nothing is written: only who looks unasked can find it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_event_that_nobody_asks_for_is_found() {
    let (mut cluster, node) = filled().await;
    cluster.stop(node).await;
    assert!(cluster.disk(node).damage(Damage::Events));
    cluster.scrub_every = Duration::from_millis(100);
    cluster.start(node).await;
    cluster.wait_ready().await;
    wait_whole(&cluster, node, 20).await;
    cluster.assert_alive();
}

/// Each goes on voting until it has what it needs: two of three at once stop nothing for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_are_damaged_at_once() {
    let (mut cluster, _) = filled().await;
    let leader = cluster.leader(SHARD).await;
    let damaged = [(leader + 1) % 3, (leader + 2) % 3];
    for node in damaged {
        cluster.stop(node).await;
        assert!(cluster.disk(node).damage(Damage::Events));
    }
    for node in damaged {
        cluster.start(node).await;
    }
    cluster.wait_ready().await;
    for node in damaged {
        eventually("the damage is met", async || {
            let refused = cluster.read(node, "s", 20).await.err()?;
            (refused.code == Code::Stale).then_some(())
        })
        .await;
    }
    cluster.post(leader, "s", 20..25).await;
    for node in damaged {
        wait_whole(&cluster, node, 25).await;
    }
    cluster.assert_alive();
}

/// The row is needed to apply the next entry; the entry's author has its answer all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_meets_damage_and_the_replica_is_rebuilt() {
    let (mut cluster, node) = filled().await;
    cluster.stop(node).await;
    assert!(cluster.disk(node).damage(Damage::Rows));
    cluster.start(node).await;
    cluster.wait_ready().await;
    cluster.post(node, "s", 20..30).await;
    wait_whole(&cluster, node, 30).await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_meets_damage_in_applying_is_replaced() {
    let (mut cluster, _) = filled().await;
    let leader = cluster.home(SHARD).await;
    cluster.stop(leader).await;
    assert!(cluster.disk(leader).damage(Damage::Rows));
    cluster.start(leader).await;
    // It is where the leadership belongs, so it comes back by itself.
    cluster.wait_led_by(SHARD, leader).await;
    cluster.post((leader + 1) % 3, "s", 20..30).await;
    wait_whole(&cluster, leader, 30).await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_applied_row_at_the_start_costs_the_rows_and_not_the_node() {
    let (mut cluster, node) = filled().await;
    cluster.stop(node).await;
    assert!(cluster.disk(node).damage(Damage::AppliedHead));
    cluster.start(node).await;
    cluster.post(0, "s", 20..25).await;
    wait_whole(&cluster, node, 25).await;
    cluster.wait_ready().await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_metadata_group_is_fetched_before_the_node_takes_part() {
    let (mut cluster, node) = filled().await;
    cluster.stop(node).await;
    assert!(cluster.disk(node).damage(Damage::Applied));
    cluster.start(node).await;
    cluster.wait_ready().await;
    assert_eq!(cluster.set(node).topology().nodes.len(), 3);
    // The shard itself was whole.
    let read = eventually("it serves", async || cluster.read(node, "s", 20).await.ok());
    assert_eq!(read.await.len(), 20);
    assert_eq!(cluster.set(node).rebuilt(), 0);
    cluster.assert_alive();
}

/// Purges some of a node's log: what the others have said that they have.
async fn purge(cluster: &Cluster, node: usize) {
    eventually("something is purged", async || {
        cluster.set(node).purge_logs().await.unwrap();
        let purged = cluster.set(node).handle(SHARD).status().purged;
        (purged > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_db_that_is_lost_behind_a_purge_is_fetched_anew() {
    let (mut cluster, node) = filled().await;
    purge(&cluster, node).await;
    cluster.stop(node).await;
    assert!(cluster.disk(node).damage(Damage::EventDb));
    cluster.start(node).await;
    wait_whole(&cluster, node, 20).await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_inside_an_install_ends_in_another_install() {
    let (mut cluster, node) = filled().await;
    purge(&cluster, node).await;
    cluster.stop(node).await;
    let store = cluster.store(node);
    drop(store.install(SHARD.0).unwrap());
    cluster.disk(node).crash();
    drop(store);
    cluster.start(node).await;
    cluster.post(0, "s", 20..25).await;
    wait_whole(&cluster, node, 25).await;
    cluster.assert_alive();
}

fn session() -> SessionKey {
    SessionKey {
        slot: Slot::of(&namespace(), &name("s")),
        session_no: SessionNo(1),
    }
}

/// Makes a replica one that has computed something else: its session weighs more.
async fn diverge(cluster: &mut Cluster, node: usize, more: u64) {
    cluster.stop(node).await;
    let store = cluster.store(node);
    let key = RowKey::Head(session());
    let Some(Row::Head(head)) = store.row(&key).unwrap() else {
        panic!("no head");
    };
    let head = HeadRow {
        bytes: head.bytes + more,
        ..head
    };
    let write = ApplyWrite {
        rows: BTreeMap::from([(key, Some(Row::Head(head)))]),
        events: Vec::new(),
        erased: Vec::new(),
        applied: store.applied(SHARD.0).unwrap().unwrap(),
    };
    store.write(SHARD.0, write).unwrap();
    store.flush().unwrap();
    drop(store);
    cluster.start(node).await;
    cluster.wait_ready().await;
}

/// What a node says that the session weighs.
async fn bytes_at(cluster: &Cluster, node: usize) -> Option<u64> {
    let shard = cluster.shard(node, "s");
    let info = shard.show(&namespace(), &name("s")).await;
    info.ok().map(|info| info.bytes)
}

async fn wait_bytes(cluster: &Cluster, node: usize, expected: u64) {
    eventually("the session weighs what it should", async || {
        (bytes_at(cluster, node).await == Some(expected)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_computed_something_else_is_rebuilt() {
    let (mut cluster, node) = filled().await;
    diverge(&mut cluster, node, 1).await;
    cluster.post(0, "s", 20..22).await;
    let right = eventually("the leader tells", async || {
        bytes_at(&cluster, cluster.leader(SHARD).await).await
    });
    let right = right.await;
    assert_ne!(bytes_at(&cluster, node).await, Some(right));
    wait_bytes(&cluster, node, right).await;
    wait_whole(&cluster, node, 22).await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_computed_something_else_hands_over_before_it_is_rebuilt() {
    let (mut cluster, _) = filled().await;
    let leader = cluster.home(SHARD).await;
    diverge(&mut cluster, leader, 1).await;
    cluster.wait_led_by(SHARD, leader).await;
    cluster.post(leader, "s", 20..22).await;
    let wrong = eventually("the leader tells", async || {
        bytes_at(&cluster, leader).await
    });
    let wrong = wrong.await;
    // The others are right by one, and never copy it.
    let other = (leader + 1) % 3;
    eventually("another leads", async || {
        let now = cluster.shard(other, "s").status().leader?;
        (number(now) != leader).then_some(())
    })
    .await;
    for node in 0..3 {
        wait_bytes(&cluster, node, wrong - 1).await;
    }
    wait_whole(&cluster, leader, 22).await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nobody_rebuilds_and_writes_are_refused() {
    let (mut cluster, _) = filled().await;
    diverge(&mut cluster, 1, 1).await;
    diverge(&mut cluster, 2, 2).await;
    cluster.post(0, "s", 20..22).await;
    for (node, id) in [(0, "x0"), (1, "x1"), (2, "x2")] {
        eventually("writes are refused", async || {
            let refused = cluster.shard(node, "s").propose(input("s", id)).await;
            (refused.err()?.code == Code::Frozen).then_some(())
        })
        .await;
    }
    // What is there is read as before.
    for node in 0..3 {
        let shard = cluster.shard(node, "s");
        let info = shard.show(&namespace(), &name("s")).await.unwrap();
        let tail = info.tail.get();
        let read = cluster.read(node, "s", tail).await.unwrap();
        assert_eq!(read.len() as u64, tail);
    }
    cluster.assert_alive();
}
