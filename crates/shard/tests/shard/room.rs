//! Full disks: what is on its way waits, leaders stay, readers go on, and all of it goes on by
//! itself when there is room.

use std::time::Duration;

use everwire_core::ShardId;
use everwire_core::limits::STALE_AFTER;
use tokio::time::Instant;

use crate::cluster::*;
use crate::support::*;

const SHARD: ShardId = ShardId(0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_full_disks_leaders_stay_and_readers_go_on_and_what_waits_is_committed_later() {
    let cluster = Cluster::with_threads(3, 1).await;
    let home = cluster.home(SHARD).await;
    cluster.post(home, "s", 0..5).await;
    cluster.wait_level(SHARD).await;
    let term = cluster.set(home).handle(SHARD).status().term;

    for node in 0..3 {
        cluster.disk(node).set_room(Some(0));
    }
    let shard = cluster.shard(home, "s");
    let waiting = tokio::spawn(async move { shard.propose(input("s", "i5")).await });
    // Longer than a leader is believed whom nobody hears.
    let until = Instant::now() + 2 * STALE_AFTER;
    while Instant::now() < until {
        for node in 0..3 {
            let read = cluster.read(node, "s", 5).await.unwrap();
            assert_eq!(read.len(), 5);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        !waiting.is_finished(),
        "nothing is acked that is not on disk"
    );

    for node in 0..3 {
        cluster.disk(node).set_room(None);
    }
    let outcome = waiting.await.unwrap().unwrap();
    assert!(matches!(outcome, everwire_core::Outcome::Posted { .. }));
    cluster.wait_level(SHARD).await;
    let read = cluster.read((home + 1) % 3, "s", 6).await.unwrap();
    assert_eq!(read.len(), 6);
    assert_eq!(cluster.set(home).handle(SHARD).status().term, term);
    cluster.assert_alive();
}

/// A node whose disk is full does not hold up the others, nor its own stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_full_disk_stops_nobody_and_a_node_on_it_can_be_stopped() {
    let mut cluster = Cluster::with_threads(3, 1).await;
    let home = cluster.home(SHARD).await;
    let full = (home + 1) % 3;
    cluster.disk(full).set_room(Some(0));
    cluster.post(home, "s", 0..20).await;
    cluster.stop(full).await;
    cluster.post(home, "s", 20..25).await;
    cluster.disk(full).set_room(None);
    cluster.start(full).await;
    cluster.wait_ready().await;
    cluster.wait_level(SHARD).await;
    assert_eq!(cluster.read(full, "s", 25).await.unwrap().len(), 25);
    cluster.assert_alive();
}
