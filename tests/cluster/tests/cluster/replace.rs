//! A node is replaced by another, shard by shard, while everybody works.

use std::time::Duration;

use everwire_cluster_tests::{Load, alone};
use everwire_testkit::{Cluster, run, say};
use tokio::time::Instant;

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN};

/// All shards have moved within this.
const REPLACED_WITHIN: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_replaced_under_load() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::at(&cluster, &edges).await;
    load.goes_on(300).await;
    let old = cluster.id_of(1).await;
    let new = cluster.add_node();
    cluster.start_node(new).await;
    let (addrs, number) = (cluster.addrs().join(","), old.to_string());
    let args = ["node", "replace", "--node", &number];
    let output = run(&addrs, &cluster.operator(), &args).await;
    assert!(output.status.success(), "{output:?}");

    let until = Instant::now() + REPLACED_WITHIN;
    loop {
        let status = cluster.status().await;
        let with_old = status
            .shards
            .iter()
            .filter(|shard| shard.replicas.contains(&old.0));
        let whole = status.shards.iter().all(|shard| shard.replicas.len() == 3);
        let with_old = with_old.count();
        if with_old == 0 && whole {
            break;
        }
        assert!(
            Instant::now() < until,
            "{with_old} shards are still held by it"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    load.goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    // It holds nothing any more, so nobody misses it.
    cluster.kill(1).await;
    load.goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let total = load.check(&cluster, 500).await;
    say(&format!("{total:?}"));
}
