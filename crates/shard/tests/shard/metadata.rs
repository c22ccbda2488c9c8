//! The metadata group has what protects shards: rules that are raised together, and replicas that
//! are held against each other.

use std::collections::BTreeMap;
use std::time::Duration;

use everwire_core::ids::META_GROUP;
use everwire_core::{Code, NodeId, ShardId};
use everwire_proto::storage;
use everwire_shard::RULES_VERSION;
use everwire_store::ApplyWrite;

use crate::cluster::*;

const SHARD: ShardId = ShardId(0);

/// Whether a node sees the metadata group and the shard speak these rules.
fn speaks(cluster: &Cluster, node: usize, rules: u32) -> bool {
    let set = cluster.set(node);
    set.metadata_rules() == rules && set.handle(SHARD).status().rules == rules
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_raised_in_all_groups_when_every_node_knows_them() {
    let mut cluster = Cluster::knowing(&[2, 2, 1], 1).await;
    eventually("it is known who knows what", async || {
        let known = |node| (1..=3).map(move |id| (node, NodeId(id)));
        let mut told = (0..3).flat_map(known);
        let told = told.all(|(node, id)| {
            let expected = if id == NodeId(3) { 1 } else { 2 };
            cluster.set(node).rules_known(id) == Some(expected)
        });
        told.then_some(())
    })
    .await;
    // Several looks of each leader.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!((0..3).all(|node| speaks(&cluster, node, 1)));

    cluster.stop(2).await;
    cluster.knows(2, 2);
    cluster.start(2).await;
    eventually("they are raised", async || {
        let all = (0..3).all(|node| speaks(&cluster, node, 2));
        all.then_some(())
    })
    .await;
    cluster.post(0, "s", 0..3).await;

    cluster.stop(2).await;
    cluster.knows(2, 1);
    let refused = cluster.refused(2).await;
    assert_eq!(refused.code(), Code::UnsupportedVersion);
    assert_eq!(
        refused.to_string(),
        "the metadata group needs rules 2, and this build knows rules up to 1 only: nothing is \
         lost, start a newer build here"
    );
    cluster.post(0, "s", 3..6).await;
    cluster.knows(2, 2);
    cluster.start(2).await;
    let read = eventually("it serves", async || cluster.read(2, "s", 6).await.ok());
    assert_eq!(read.await.len(), 6);
    cluster.assert_alive();
}

/// A spare node holds no shard, and may be given one at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_node_that_does_not_know_newer_rules_holds_them_back() {
    let mut cluster = Cluster::knowing(&[2, 2, 2, 1], 1).await;
    assert!(!cluster.set(3).handle(SHARD).is_held());
    eventually("it is known who knows what", async || {
        let known = |id| cluster.set(0).rules_known(NodeId(id));
        let told = (1..=4).map(known).collect::<Vec<_>>();
        (told == [Some(2), Some(2), Some(2), Some(1)]).then_some(())
    })
    .await;
    // Several looks of each leader.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!((0..3).all(|node| speaks(&cluster, node, 1)));
    cluster.stop(3).await;
    cluster.knows(3, 2);
    cluster.start(3).await;
    eventually("they are raised", async || {
        let all = (0..4).all(|node| speaks(&cluster, node, 2));
        all.then_some(())
    })
    .await;
    cluster.assert_alive();
}

/// A node that knows nothing newer joins a cluster that speaks it: it stops at the first thing
/// that it does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_of_an_older_build_stops_and_disturbs_nobody() {
    let newer = RULES_VERSION + 1;
    let mut cluster = Cluster::knowing(&[newer; 3], 1).await;
    eventually("they are raised", async || {
        let all = (0..3).all(|node| speaks(&cluster, node, newer));
        all.then_some(())
    })
    .await;
    let more = cluster.add();
    cluster.start(more).await;
    let said = eventually("it stops", async || {
        let said = cluster.fatal(more);
        said.first().cloned()
    })
    .await;
    assert!(said.contains(&format!("needs rules {newer}")), "{said}");
    cluster.crash(more).await;
    cluster.post(0, "s", 0..3).await;
    cluster.assert_alive();
}

/// Makes a node's replica of the metadata group one that holds something else.
async fn diverge(cluster: &mut Cluster, node: usize, name: &str) {
    cluster.stop(node).await;
    let store = cluster.store(node);
    let mut applied = store.applied(META_GROUP).unwrap().unwrap();
    let mut topology = storage::decode_topology(&applied.state).unwrap();
    name.clone_into(&mut topology.nodes.get_mut(&NodeId(2)).unwrap().name);
    applied.state = storage::encode_topology(&topology);
    let write = ApplyWrite {
        rows: BTreeMap::new(),
        events: Vec::new(),
        erased: Vec::new(),
        applied,
    };
    store.write(META_GROUP, write).unwrap();
    store.flush().unwrap();
    drop(store);
    cluster.start(node).await;
    cluster.wait_ready().await;
}

/// Changes the topology: a node is somewhere else.
async fn one_more_node(cluster: &mut Cluster) {
    let more = cluster.add();
    cluster.start(more).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_the_metadata_group_that_differs_is_made_anew() {
    let mut cluster = Cluster::new(3, 1).await;
    cluster.post(0, "s", 0..3).await;
    let wrong = 0;
    diverge(&mut cluster, wrong, "somebody else").await;
    one_more_node(&mut cluster).await;
    let said = eventually("it is found and its process ends", async || {
        cluster.fatal(wrong).first().cloned()
    })
    .await;
    assert!(
        said.starts_with("the metadata group here computed something else than a majority"),
        "{said}"
    );
    // What supervises a process starts it again.
    cluster.crash(wrong).await;
    cluster.start(wrong).await;
    cluster.wait_ready().await;
    eventually("all hold the same", async || {
        let right = cluster.set(1).topology();
        let same = (0..4).all(|node| cluster.set(node).topology() == right);
        (same && right.nodes[&NodeId(2)].name == "n1").then_some(())
    })
    .await;
    cluster.post(0, "s", 3..6).await;
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_two_equal_states_the_topology_takes_no_changes() {
    let mut cluster = Cluster::new(3, 1).await;
    diverge(&mut cluster, 1, "one").await;
    diverge(&mut cluster, 2, "two").await;
    one_more_node(&mut cluster).await;
    for node in 0..3 {
        eventually("changes are refused", async || {
            let refused = cluster.set(node).retire(NodeId(4)).await.err()?;
            (refused.code == Code::Frozen).then_some(())
        })
        .await;
    }
    // Shards go on as they are placed.
    cluster.post(0, "s", 0..3).await;
    cluster.assert_alive();
}
