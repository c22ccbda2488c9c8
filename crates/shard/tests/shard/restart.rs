//! All nodes come back at once, or not.

use std::time::Duration;

use crate::cluster::{Cluster, eventually};

async fn goes_on(cluster: &Cluster) {
    cluster.wait_ready().await;
    cluster.post(0, "s", 5..10).await;
    for node in 0..3 {
        let read = eventually("it serves", async || cluster.read(node, "s", 10).await.ok());
        assert_eq!(read.await.len(), 10);
    }
    cluster.assert_alive();
}

/// The topology that each remembers is of no use: they meet behind the new seeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_moved_find_each_other() {
    let mut cluster = Cluster::new(3, 2).await;
    cluster.post(0, "s", 0..5).await;
    for node in 0..3 {
        cluster.stop(node).await;
    }
    cluster.start_all_elsewhere().await;
    goes_on(&cluster).await;
    eventually("the topology knows where they are", async || {
        let topology = cluster.set(0).topology();
        let mut nodes = topology.nodes.values();
        nodes
            .all(|node| node.peer.starts_with("moved-"))
            .then_some(())
    })
    .await;
}

/// Killed before anything was flushed they have the topology in their logs only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_lost_power_before_their_first_flush_ask_their_seeds() {
    let mut cluster = Cluster::new(3, 2).await;
    cluster.post(0, "s", 0..5).await;
    for node in 0..3 {
        cluster.crash(node).await;
    }
    cluster.start_all().await;
    goes_on(&cluster).await;
}

/// A node that waits for the others has its disk open; told to stop, it ends with it closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_given_up_leaves_the_disk_closed() {
    let mut cluster = Cluster::new(3, 2).await;
    cluster.post(0, "s", 0..5).await;
    for node in 0..3 {
        cluster.stop(node).await;
    }
    for after in [1, 20, 300] {
        cluster.given_up(1, Duration::from_millis(after)).await;
    }
    cluster.start_all().await;
    goes_on(&cluster).await;
}
