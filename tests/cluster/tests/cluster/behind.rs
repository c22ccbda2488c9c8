//! A node that was away for longer than the log is kept: it gets a snapshot, taken while
//! everybody writes.

use std::time::Duration;

use everwire_cluster_tests::load;
use everwire_cluster_tests::{Load, alone};
use everwire_testkit::{Cluster, Plan, say};
use tokio::time::Instant;

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN};

/// A node that has to fetch everything anew is back within this.
const BACK_WITHIN: Duration = Duration::from_secs(120);

/// What a node says when it has taken a whole snapshot of a shard.
const TAKEN: &str = "a snapshot was taken";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_for_longer_than_the_log_is_kept_catches_up_under_load() {
    let _alone = alone().await;
    let keys = [
        ("EVERWIRE_NODE_LOG_KEPT", "65536"),
        ("EVERWIRE_NODE_FLUSH_EVERY", "1"),
    ];
    let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let plan = Plan {
        env: keys.to_vec(),
        ..Plan::default()
    };
    let mut cluster = Cluster::start_with(3, plan).await;
    let edges = cluster.edges().await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let mut plan = load::Plan::at(&[&edges[0].http, &edges[1].http]);
    plan.pace = 20;
    let load = Load::start(&cluster, &plan).await;
    load.goes_on(300).await;
    let away = 2;
    cluster.kill(away).await;
    load.goes_on(5_000).await;
    cluster.start_node(away).await;
    cluster.wait_balanced(BACK_WITHIN).await;
    let installed = cluster.node(away).logged().matches(TAKEN).count();
    say(&format!("{installed} snapshots were installed"));
    assert!(installed > 0, "it was behind the purge point");
    load.goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    load.check(&cluster, 5_300).await;
}
