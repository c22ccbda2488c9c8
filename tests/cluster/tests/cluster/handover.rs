//! A planned hand-over: an operator moves a shard's leader, and its writers hardly notice.

use std::time::Duration;

use everwire_cluster_tests::load::Plan;
use everwire_cluster_tests::{Load, alone};
use everwire_core::ShardId;
use everwire_testkit::cluster::session_on;
use everwire_testkit::machine::Quiet;
use everwire_testkit::{Cluster, run};
use tokio::time::Instant;

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN, hold};

/// A planned hand-over stalls a shard for at most so long.
const HANDOVER_MAX: Duration = Duration::from_millis(100);
/// Events a second in each session: what is between two acks anyway is small beside the bound.
const PACE: u32 = 100;
/// Shards whose leaders are moved.
const SHARDS: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_hand_over_takes_no_longer_than_a_tenth_of_a_second() {
    let _alone = alone().await;
    let cluster = Cluster::start(3).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let addrs = cluster.addrs().join(",");
    let mut stalls = Vec::new();
    let mut loads = Vec::new();
    let quiet = Quiet::watch();
    for shard in (0..SHARDS).map(ShardId) {
        let session = session_on(shard, "handed");
        let plan = Plan {
            sessions: vec![session.clone()],
            edges: Vec::new(),
            pace: PACE,
        };
        let load = Load::start(&cluster, &plan).await;
        load.goes_on(50).await;
        let before = cluster.leader_of(&session).await;
        let since = Instant::now();
        let number = shard.to_string();
        let args = ["cluster", "transfer", "--shard", &number];
        let output = run(&addrs, &cluster.operator(), &args).await;
        assert!(output.status.success(), "{output:?}");
        let after = cluster.leader_of(&session).await;
        load.goes_on_everywhere(Instant::now(), 20, GOES_ON_WITHIN)
            .await;
        assert_ne!(before, after, "shard {shard} has another leader");
        stalls.push(load.stall(&session, since));
        loads.push(load);
        // One load at a time: an end of its writers is a part of the check.
        let load = loads.pop().expect("just pushed");
        load.check(&cluster, 50).await;
    }
    hold("stall of a planned hand-over", stalls, HANDOVER_MAX, &quiet);
}
