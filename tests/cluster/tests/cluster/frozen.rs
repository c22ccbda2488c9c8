//! A command on which the rules panic: its session stands still, the same on all replicas, and
//! nobody else does.

use std::time::Duration;

use everwire_cluster_tests::load::agent;
use everwire_cluster_tests::{Load, alone, replicas};
use everwire_core::{Body, Code, Draft, Key, Offset, ShardId};
use everwire_promises::scene::input;
use everwire_testkit::cluster::session_on;
use everwire_testkit::process::json_lines;
use everwire_testkit::{Cluster, Plan, run, tokens};
use tokio::time::Instant;

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN};

/// What a build for tests panics at, in a server that was told to.
const POISON: &str = "everwire.test.poison";
/// Longest wait for one answer of one node.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_command_freezes_its_session_on_all_replicas_and_no_other() {
    let _alone = alone().await;
    let plan = Plan {
        env: vec![("EVERWIRE_TEST_POISON".to_owned(), "1".to_owned())],
        ..Plan::default()
    };
    let mut cluster = Cluster::start_with(3, plan).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::everywhere(&cluster).await;
    load.goes_on(200).await;
    let session = session_on(ShardId(5), "poisoned");
    let client = agent(&cluster);
    client.create_session(&session).await.expect("made");
    let (said, key) = input("i1", "before");
    client.post(&session, said, Some(key)).await.expect("taken");

    let poison = Draft::new(Body::App {
        name: POISON.to_owned(),
        data: None,
    });
    let key = Key::parse("poison").expect("a good name");
    let refused = client.post(&session, poison, Some(key)).await;
    assert_eq!(refused.expect_err("poison").code, Code::Frozen);
    assert_frozen(&cluster, "here").await;
    load.goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;

    // Whoever replays the log, or leads the shard next, comes to the same end.
    for node in 0..3 {
        cluster.kill(node).await;
        cluster.start_node(node).await;
        cluster.wait_balanced(BALANCED_WITHIN).await;
    }
    assert_frozen(&cluster, "there").await;
    load.goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;

    let args = ["session", "unfreeze", session.as_str(), "--json"];
    let addrs = cluster.addrs().join(",");
    let output = run(&addrs, &cluster.operator(), &args).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(json_lines(&output)[0]["unfrozen"], true);
    let (said, key) = input("i2", "after");
    let posted = client.post(&session, said, Some(key)).await;
    let last = posted.expect("taken").offset;
    let log = replicas::same_on_all(&cluster, &session, last).await;
    assert_eq!(log.last().expect("events").offset, last);
    load.check(&cluster, 500).await;
}

/// Every node refuses what is written, and shows what was there before.
async fn assert_frozen(cluster: &Cluster, when: &str) {
    let session = session_on(ShardId(5), "poisoned");
    let token = tokens::agent(cluster.keys(), "bot");
    for node in cluster.acting() {
        let direct = cluster.direct(node, &token, ANSWER_WITHIN);
        let (said, key) = input(&format!("{when}-{node}"), "does it move?");
        let refused = direct.post(&session, &said, &key).await;
        let refusal = refused.expect_err("it is frozen");
        assert_eq!(refusal.code, Code::Frozen, "n{node}: {refusal}");
    }
    let log = replicas::same_on_all(cluster, &session, Offset::ZERO.next()).await;
    assert!(!log.is_empty());
}
