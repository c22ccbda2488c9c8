//! A rolling upgrade to a build that knows newer rules, and one node that goes back: one program
//! stands for both builds.

use std::time::Duration;

use everwire_cluster_tests::load::Plan;
use everwire_cluster_tests::{Load, alone};
use everwire_proto::v1::StatusResponse;
use everwire_testkit::process::json_lines;
use everwire_testkit::{Cluster, run, say};
use tokio::time::Instant;

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN};

/// Heard by builds for tests only: the newest rules that a node knows.
const RULES: &str = "EVERWIRE_TEST_RULES";
/// How long nothing is to be raised. A leader looks many times a second.
const NOT_RAISED_FOR: Duration = Duration::from_secs(15);
/// Longest wait for what every node knows to be spoken by all.
const RAISED_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for a node to end that meets what it does not know.
const ENDED_WITHIN: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(250);

/// From its next start on a node is of a build that knows these rules.
fn becomes(cluster: &mut Cluster, node: usize, rules: u32) {
    let env = &mut cluster.node_mut(node).env;
    env.retain(|(key, _)| key != RULES);
    env.push((RULES.to_owned(), rules.to_string()));
}

/// A load on sessions of its own.
async fn load(cluster: &Cluster, prefix: &str) -> Load {
    let plan = Plan {
        sessions: Cluster::session_of_each_shard(prefix),
        ..Plan::everywhere()
    };
    Load::start(cluster, &plan).await
}

/// Whether the metadata group and all shards speak these rules, as one node sees them.
fn speak(status: &StatusResponse, rules: u32) -> bool {
    status.metadata_rules == rules
        && status.shards.len() == 16
        && status.shards.iter().all(|shard| shard.rules == rules)
}

/// Waits until every node that is up sees that all speak these rules.
async fn all_speak(cluster: &Cluster, rules: u32) {
    for node in cluster.acting() {
        Cluster::until("all speak the new rules", RAISED_WITHIN, async || {
            let status = cluster.status_of(node).await;
            status.is_ok_and(|status| speak(&status, rules))
        })
        .await;
    }
}

/// What the nodes know, in their order, as a node sees it; 0 is one that has said nothing lately.
async fn known(cluster: &Cluster, node: usize) -> Vec<u32> {
    let status = cluster.status_of(node).await;
    let mut nodes = status.map(|status| status.nodes).unwrap_or_default();
    nodes.sort_by_key(|node| node.id);
    nodes.iter().map(|node| node.rules).collect()
}

async fn nothing_is_raised(cluster: &Cluster) {
    let until = Instant::now() + NOT_RAISED_FOR;
    while Instant::now() < until {
        for node in cluster.acting() {
            if let Ok(status) = cluster.status_of(node).await {
                assert!(speak(&status, 1), "n{node}: {status:?}");
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Starts a node that cannot go on: it ends by itself, and says what it lacks.
async fn ends_by_itself(cluster: &Cluster, node: usize, after: &str) {
    let told = |cluster: &Cluster| {
        let precisely = "needs rules 2, and this build knows rules up to 1 only: nothing is lost";
        cluster.node(node).logged().matches(precisely).count()
    };
    let before = told(cluster);
    // It may come as far as to be ready, before it comes to the entry.
    let started = cluster.node(node).starting().ready_unless_ended().await;
    if let Some(mut server) = started {
        let until = Instant::now() + ENDED_WITHIN;
        while !server.has_ended() {
            assert!(Instant::now() < until, "after {after} it goes on");
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
    assert!(told(cluster) > before, "after {after} it does not say why");
}

/// What an operator sees.
async fn assert_told(cluster: &Cluster, rules: u32) {
    let addrs = cluster.addrs().join(",");
    let output = run(&addrs, &cluster.operator(), &["status", "--json"]).await;
    let status = &json_lines(&output)[0];
    assert_eq!(status["metadata_rules"], rules, "{status}");
    for part in ["nodes", "shards"] {
        let all = status[part].as_array().expect("a list");
        assert!(all.iter().all(|one| one["rules"] == rules), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_one_node_does_not_know_are_not_raised_and_once_raised_stop_it() {
    let _alone = alone().await;
    let mut cluster = Cluster::planned(3, everwire_testkit::Plan::default());
    becomes(&mut cluster, 0, 2);
    becomes(&mut cluster, 1, 2);
    becomes(&mut cluster, 2, 1);
    cluster.start_all().await;
    cluster.wait_balanced(BALANCED_WITHIN).await;

    let mixed = load(&cluster, "mixed").await;
    for node in cluster.acting() {
        Cluster::until("it is known who knows what", RAISED_WITHIN, async || {
            known(&cluster, node).await == [2, 2, 1]
        })
        .await;
    }
    nothing_is_raised(&cluster).await;
    // Nor does somebody else lead who would.
    assert_eq!(cluster.stop(0).await, Some(0));
    nothing_is_raised(&cluster).await;
    cluster.start_node(0).await;
    mixed
        .goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    assert_told_of_mixed(&cluster).await;
    say(&format!("mixed: {:?}", mixed.check(&cluster, 500).await));

    let raised = load(&cluster, "raised").await;
    assert_eq!(cluster.stop(2).await, Some(0));
    // Away is not the same as willing.
    nothing_is_raised(&cluster).await;
    becomes(&mut cluster, 2, 2);
    cluster.start_node(2).await;
    all_speak(&cluster, 2).await;
    assert_told(&cluster, 2).await;
    raised
        .goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    say(&format!("raised: {:?}", raised.check(&cluster, 500).await));

    let older = load(&cluster, "older").await;
    cluster.kill(2).await;
    becomes(&mut cluster, 2, 1);
    ends_by_itself(&cluster, 2, "kill -9").await;
    older
        .goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    // Put right, it catches up; stopped in good order and put wrong again, it does not even begin.
    becomes(&mut cluster, 2, 2);
    cluster.start_node(2).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    assert_eq!(cluster.stop(2).await, Some(0));
    becomes(&mut cluster, 2, 1);
    ends_by_itself(&cluster, 2, "a stop in good order").await;
    older
        .goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    becomes(&mut cluster, 2, 2);
    cluster.start_node(2).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    all_speak(&cluster, 2).await;
    older
        .goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    say(&format!("older: {:?}", older.check(&cluster, 500).await));
}

/// An operator sees in the middle of an upgrade who is still missing.
async fn assert_told_of_mixed(cluster: &Cluster) {
    let addrs = cluster.addrs().join(",");
    Cluster::until("it is told who is missing", RAISED_WITHIN, async || {
        let output = run(&addrs, &cluster.operator(), &["status", "--json"]).await;
        let status = &json_lines(&output)[0];
        let nodes = status["nodes"].as_array().expect("a list");
        let behind: Vec<_> = nodes.iter().filter(|node| node["rules"] == 1).collect();
        behind.len() == 1 && behind[0]["name"] == "n2" && status["metadata_rules"] == 1
    })
    .await;
}
