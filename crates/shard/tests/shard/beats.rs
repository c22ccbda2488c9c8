//! What idle groups cost on the wire.

use std::time::Duration;

use everwire_core::limits::BEATS_HELD;
use tokio::time::Instant;

use crate::cluster::{Cluster, eventually};

/// A node's calls for its peers' logs, and for what must not wait.
fn calls(cluster: &Cluster, node: usize) -> (u64, u64) {
    let calls = cluster.set(node).peer_calls();
    let of = |line| calls.iter().find(|(name, _)| *name == line).unwrap().1;
    (of("log"), of("beat"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_of_many_groups_share_messages_and_open_no_stream() {
    let cluster = Cluster::new(3, 48).await;
    // Elections and hand-overs open streams, so a quiet second is looked for.
    eventually(
        "a second without a new stream, and with few beats",
        async || {
            let (began, before) = (Instant::now(), calls(&cluster, 0));
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (after, spent) = (calls(&cluster, 0), began.elapsed());
            let (log, beat) = (after.0 - before.0, after.1 - before.1);
            // Two peers; beside beats: reports, Hello, votes.
            let messages = 2 * (spent.as_millis() / BEATS_HELD.as_millis() + 1) + 12;
            (log == 0 && beat > 10 && u128::from(beat) <= messages).then_some(())
        },
    )
    .await;
    cluster.assert_alive();
}

/// A call to a node that is away fails at once. Each group tries again five times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_away_is_called_at_a_bounded_pace() {
    const GROUPS: u64 = 8 + 1;
    let mut cluster = Cluster::new(3, 8).await;
    cluster.stop(2).await;
    cluster.wait_ready().await;
    // The first pauses are shorter.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (began, before) = (Instant::now(), calls(&cluster, 0).0 + calls(&cluster, 1).0);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let made = calls(&cluster, 0).0 + calls(&cluster, 1).0 - before;
    let bound = GROUPS * 8 * (began.elapsed().as_secs() + 1);
    assert!(made > 0, "nobody looks for it");
    assert!(made <= bound, "{made} calls, the bound is {bound}");
    cluster.assert_alive();
}
