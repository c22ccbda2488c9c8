//! kill -9: of leaders, one after the other; of all nodes at once; of each node and each edge in
//! turn.

use std::time::Duration;

use everwire_cluster_tests::{Load, alone};
use everwire_core::ShardId;
use everwire_testkit::cluster::shard_of;
use everwire_testkit::machine::Quiet;
use everwire_testkit::{Cluster, Server, say};
use tokio::time::Instant;

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN, hold};

/// A leader that was killed stalls its sessions for at most so long.
const STALL_MAX: Duration = Duration::from_secs(2);
/// After a kill of all nodes the cluster serves again within this.
const ALL_WITHIN: Duration = Duration::from_secs(10);
/// Acks of each session after which it has certainly gone on.
const GOES_ON: usize = 3;

/// How many kills in a row, unless `EVERWIRE_KILLS` says otherwise.
const KILLS: u32 = 20;

fn kills() -> u32 {
    let asked = std::env::var("EVERWIRE_KILLS").ok();
    asked.map_or(KILLS, |asked| {
        asked.parse().expect("EVERWIRE_KILLS is a number")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_a_leader_in_a_row_lose_nothing() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let quiet = Quiet::watch();
    let load = Load::at(&cluster, &edges).await;
    let mut stalls = Vec::new();
    let began = Instant::now();
    for kill in 0..kills() {
        let leaders = cluster.wait_balanced(BALANCED_WITHIN).await;
        let victim = leaders.of[&ShardId(kill % 16)].expect("balanced");
        let led = leaders.led_by(victim);
        load.goes_on_everywhere(Instant::now(), 1, GOES_ON_WITHIN)
            .await;
        let killed = Instant::now();
        cluster.kill(victim).await;
        load.goes_on_everywhere(Instant::now(), GOES_ON, GOES_ON_WITHIN)
            .await;
        let hit = load
            .sessions()
            .filter(|session| led.contains(&shard_of(session)));
        stalls.extend(hit.map(|session| load.stall(session, killed)));
        cluster.start_node(victim).await;
    }
    cluster.wait_balanced(BALANCED_WITHIN).await;
    say(&format!("{} kills in {:.0?}", kills(), began.elapsed()));
    hold(
        "stall of a killed leader's sessions",
        stalls,
        STALL_MAX,
        &quiet,
    );
    let total = load.check(&cluster, 300).await;
    say(&format!("{total:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_serve_again_and_have_everything() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    let quiet = Quiet::watch();
    let load = Load::at(&cluster, &edges).await;
    let mut times = Vec::new();
    for _ in 0..2 {
        load.goes_on(500).await;
        cluster.kill_all().await;
        let down = Instant::now();
        cluster.start_all().await;
        load.goes_on_everywhere(down, 1, GOES_ON_WITHIN).await;
        times.push(down.elapsed());
    }
    hold(
        "serving again after a kill of all nodes",
        times,
        ALL_WITHIN,
        &quiet,
    );
    load.check(&cluster, 1_000).await;
}

/// Both edges come back at their addresses; their readers have gone to the other one meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn each_node_and_each_edge_killed_in_turn() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    let load = Load::at(&cluster, &edges).await;
    let [first, second] = edges;
    for node in 0..3 {
        load.goes_on_everywhere(Instant::now(), 1, GOES_ON_WITHIN)
            .await;
        cluster.kill(node).await;
        load.goes_on_everywhere(Instant::now(), GOES_ON, GOES_ON_WITHIN)
            .await;
        cluster.start_node(node).await;
    }
    let first = again(&cluster, first, &load).await;
    let second = again(&cluster, second, &load).await;
    // The one and the other at once.
    cluster.kill(0).await;
    let first = again(&cluster, first, &load).await;
    cluster.start_node(0).await;
    let total = load.check(&cluster, 300).await;
    assert!(total.moves >= 16, "every reader lost its edge: {total:?}");
    drop((first, second));
}

async fn again(cluster: &Cluster, edge: Server, load: &Load) -> Server {
    let addr = edge.http.clone();
    edge.kill().await;
    load.goes_on_everywhere(Instant::now(), GOES_ON, GOES_ON_WITHIN)
        .await;
    cluster.edge(&addr).await
}
