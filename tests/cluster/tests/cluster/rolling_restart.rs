//! Everything is restarted as for an upgrade, one after the other, while everybody works.

use everwire_cluster_tests::{Load, alone};
use everwire_testkit::machine::Quiet;
use everwire_testkit::{Cluster, say};
use tokio::time::Instant;

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN, hold};

/// A node hands its leaders over before it goes.
const STALL_MAX: std::time::Duration = std::time::Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_all_nodes_and_both_edges_is_not_noticed() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::at(&cluster, &edges).await;
    load.goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    let quiet = Quiet::watch();
    let mut stalls = Vec::new();
    for node in 0..3 {
        let leaders = cluster.wait_balanced(BALANCED_WITHIN).await;
        assert!(!leaders.led_by(node).is_empty());
        let since = Instant::now();
        assert_eq!(cluster.stop(node).await, Some(0), "n{node}");
        load.goes_on_everywhere(Instant::now(), 3, GOES_ON_WITHIN)
            .await;
        cluster.start_node(node).await;
        stalls.extend(load.sessions().map(|session| load.stall(session, since)));
    }
    hold("stall while a node is restarted", stalls, STALL_MAX, &quiet);
    let mut anew = Vec::new();
    for edge in edges {
        let addr = edge.http.clone();
        assert_eq!(edge.stop().await, Some(0), "the edge at {addr}");
        anew.push(cluster.edge(&addr).await);
    }
    let total = load.check(&cluster, 500).await;
    assert!(total.moves >= 16, "every reader had to move: {total:?}");
    say(&format!("{total:?}"));
}
