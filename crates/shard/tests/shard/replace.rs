//! Nodes that come later: in the place of one that lost its disk, or beside the others.

use everwire_core::topology::MemberState;
use everwire_core::{NodeId, ShardId};

use crate::cluster::{Cluster, eventually};

const SHARDS: u32 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_replaced_by_its_successor_under_load() {
    let mut cluster = Cluster::new(3, SHARDS).await;
    cluster.post(0, "s", 0..20).await;
    // What the successor lacks is not in the others' logs any more.
    for node in 0..3 {
        eventually("all logs are purged", async || {
            cluster.set(node).purge_logs().await.unwrap();
            let mut shards = (0..SHARDS).map(ShardId);
            let purged = shards.all(|shard| cluster.set(node).handle(shard).status().purged > 0);
            purged.then_some(())
        })
        .await;
    }
    cluster.stop(0).await;
    cluster.wipe(0);
    cluster.start(0).await;
    // Whoever rolls the cluster goes on when it is ready: not before the others could spare one.
    assert!(!cluster.set(0).ready(), "its predecessor holds everything");
    let mut posted = 20_u64;
    eventually("it is ready", async || {
        cluster.post(1, "s", posted..posted + 1).await;
        posted += 1;
        cluster.set(0).ready().then_some(())
    })
    .await;
    for shard in (0..SHARDS).map(ShardId) {
        let replicas = cluster.set(0).handle(shard).status().replicas;
        assert!(
            !replicas.contains(&NodeId(1)) && replicas.len() == 3,
            "{shard}: {replicas:?}"
        );
    }
    eventually("the old node holds nothing and is gone", async || {
        cluster.post(1, "s", posted..posted + 1).await;
        posted += 1;
        let topology = cluster.set(1).topology();
        let old = NodeId(1);
        let held = (0..SHARDS).any(|shard| {
            let status = cluster.set(1).handle(ShardId(shard)).status();
            status.replicas.contains(&old) || status.replicas.len() != 3
        });
        let removed = topology
            .nodes
            .get(&old)
            .is_none_or(|member| member.state == MemberState::Removed);
        (!held && removed).then_some(())
    })
    .await;
    cluster.wait_ready().await;
    for node in 0..3 {
        let read = eventually("it serves", async || {
            cluster.read(node, "s", posted).await.ok()
        });
        assert_eq!(u64::try_from(read.await.len()).unwrap(), posted);
    }
    cluster.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_more_than_votes_on_the_topology_follows_it() {
    let mut cluster = Cluster::new(3, 4).await;
    let more = cluster.add();
    cluster.start(more).await;
    // A spare owes nothing to anybody.
    cluster.wait_ready().await;
    assert!((0..4).all(|shard| !cluster.set(more).handle(ShardId(shard)).is_held()));
    assert_eq!(cluster.set(more).topology().nodes.len(), 4);
    // What happens later reaches it too.
    let retired = cluster.set(more).identity().node;
    let version = cluster.set(0).retire(retired).await.unwrap();
    eventually("it follows, until it is let go", async || {
        let topology = cluster.set(more).topology();
        (topology.version >= version).then_some(())
    })
    .await;
    eventually("it is gone", async || {
        let topology = cluster.set(0).topology();
        let member = topology.nodes.get(&retired);
        let gone = member.is_none_or(|member| member.state == MemberState::Removed);
        gone.then_some(())
    })
    .await;
    cluster.assert_alive();
}
