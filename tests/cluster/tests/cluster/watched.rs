//! What an operator is told while a node is away and when it is back: `everwire status` and
//! `/metrics` of those who are there.

use std::time::Duration;

use everwire_cluster_tests::alone;
use everwire_core::Draft;
use everwire_core::event::{Body, Data};
use everwire_proto::v1::StatusResponse;
use everwire_testkit::metrics::Metrics;
use everwire_testkit::{Cluster, tokens};

use crate::times::BALANCED_WITHIN;

/// Longest wait for something to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// One event in a session of each shard.
async fn write_everywhere(cluster: &Cluster) {
    let client = cluster.client(&tokens::agent(cluster.keys(), "agent"));
    for session in Cluster::session_of_each_shard("watched") {
        let data = Some(Data::Json("{}".into()));
        let name = "tick".to_owned();
        let draft = Draft::new(Body::App { name, data });
        let posted = client.post(&session, draft, None).await;
        posted.expect("a leader takes it");
    }
}

async fn metrics(cluster: &Cluster, number: usize) -> Metrics {
    Metrics::read(&cluster.node(number).admin).await
}

/// How far a node is behind, in all shards together, as `status` says.
fn lag_of(status: &StatusResponse, node: u64) -> u64 {
    let followers = status.shards.iter().flat_map(|shard| &shard.followers);
    let lags = followers.filter(|follower| follower.node == node);
    lags.map(|follower| follower.lag).sum()
}

fn total(all: &[Metrics], name: &str) -> f64 {
    all.iter().map(|one| one.sum(name)).sum()
}

async fn until_told(
    cluster: &Cluster,
    what: &str,
    asked: usize,
    told: impl Fn(&StatusResponse) -> bool,
) -> StatusResponse {
    let told = &told;
    let holds = || async move {
        cluster
            .status_of(asked)
            .await
            .is_ok_and(|status| told(&status))
    };
    Cluster::until(what, TOLD_WITHIN, holds).await;
    cluster.status_of(asked).await.expect("it is up")
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_lags_and_elections_are_told() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    write_everywhere(&cluster).await;
    let away = 2;
    let id = cluster.id_of(away).await.0;
    // Each node tells what the others said of themselves.
    for asked in 0..3 {
        let status = until_told(&cluster, "everybody's meters", asked, |status| {
            let told = status.nodes.iter().filter(|node| {
                let meters = node.meters.as_ref();
                meters.is_some_and(|meters| meters.syncs > 0 && meters.disk_total > 0)
            });
            told.count() == 3 && status.shards.iter().all(|shard| shard.followers.len() == 2)
        })
        .await;
        let leads: u32 = status.nodes.iter().map(|node| node.leads).sum();
        assert_eq!(leads, 16, "{status:?}");
        assert!(
            status
                .nodes
                .iter()
                .all(|node| node.holds == 16 && node.metadata_voter)
        );
        let leaders = status.nodes.iter().filter(|node| node.metadata_leader);
        assert_eq!(leaders.count(), 1);
    }
    let mut before = Vec::new();
    for number in 0..3 {
        before.push(metrics(&cluster, number).await);
    }
    assert_eq!(total(&before, "everwire_node_leads"), 16.0);
    assert_eq!(total(&before, "everwire_node_metadata_leads"), 1.0);
    assert_eq!(total(&before, "everwire_node_peer_alive"), 6.0);
    // A lag for each shard, from its leader.
    let lags = before.iter().flat_map(|one| one.values.keys());
    let lags = lags.filter(|name| name.starts_with("everwire_node_shard_lag{"));
    assert_eq!(lags.count(), 16);

    cluster.kill(away).await;
    until_told(&cluster, "other leaders", 0, |status| {
        let others = |leader: u64| leader != 0 && leader != id;
        status.shards.iter().all(|shard| others(shard.leader))
    })
    .await;
    write_everywhere(&cluster).await;
    let status = until_told(&cluster, "a silent node that is behind", 0, |status| {
        let node = status.nodes.iter().find(|node| node.id == id);
        node.is_some_and(|node| !node.alive && node.meters.is_none()) && lag_of(status, id) >= 16
    })
    .await;
    let node = status.nodes.iter().find(|node| node.id == id);
    assert_eq!(node.map(|node| node.leads), Some(0));
    let mut after = Vec::new();
    for number in 0..2 {
        after.push(metrics(&cluster, number).await);
    }
    assert_eq!(total(&after, "everwire_node_leads"), 16.0);
    assert_eq!(total(&after, "everwire_node_peer_alive"), 2.0);
    let peer = format!("everwire_node_peer_lag{{peer=\"{id}\"}}");
    let lag = after.iter().filter_map(|one| one.values.get(&peer));
    assert!(lag.fold(0.0, |worst: f64, lag| worst.max(*lag)) > 0.0);
    for (before, after) in before.iter().zip(&after) {
        let grew = |name| after.sum(name) - before.sum(name);
        assert!(grew("everwire_node_elections_total") > 0.0);
        assert!(grew("everwire_node_log_sync_seconds_count") > 0.0);
    }

    cluster.start_node(away).await;
    until_told(&cluster, "a node that is level again", 0, |status| {
        let node = status.nodes.iter().find(|node| node.id == id);
        node.is_some_and(|node| node.alive && node.meters.is_some()) && lag_of(status, id) == 0
    })
    .await;
}
