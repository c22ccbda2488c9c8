//! A disk that went back in time: somebody restored an old copy of a node's directory.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use everwire_cluster_tests::{Load, alone};
use everwire_testkit::{Cluster, say};
use tokio::time::{Instant, sleep};

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN};

/// A node that has to fetch everything anew is back within this.
const HEALED_WITHIN: Duration = Duration::from_secs(120);
/// What was under way when a node was killed has come by then.
const SETTLED: Duration = Duration::from_secs(3);
/// So long two nodes of three, one of them regressed, are watched.
const WATCHED: Duration = Duration::from_secs(6);

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("cp runs").success(), "copied");
}

/// It is found out by a peer that remembers more of it than it does itself. Until it has another
/// id it has no vote: with only one good node beside it nothing is acked.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_went_back_has_no_vote_and_is_healed() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::at(&cluster, &edges).await;
    load.goes_on(300).await;
    let (regressed, good) = (0, 1);
    let old = cluster.id_of(regressed).await;
    assert_eq!(cluster.stop(regressed).await, Some(0));
    let (data, copied) = (cluster.node(regressed).data.clone(), cluster.path("copy"));
    copy(&data, &copied);
    cluster.start_node(regressed).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    load.goes_on(800).await;

    cluster.kill(regressed).await;
    copy(&copied, &data);
    cluster.kill(good).await;
    let starting = cluster.node(regressed).starting();
    sleep(SETTLED).await;
    let before = load.acked();
    sleep(WATCHED).await;
    assert_eq!(
        load.acked(),
        before,
        "a vote or an ack of a node that forgot"
    );
    let other = cluster.node(good).starting();
    let (other, starting) = tokio::join!(other.ready(), starting.ready());
    cluster.node_mut(good).started(other);
    cluster.node_mut(regressed).started(starting);

    load.goes_on_everywhere(Instant::now(), 3, GOES_ON_WITHIN)
        .await;
    cluster.wait_balanced(HEALED_WITHIN).await;
    let new = cluster.id_of(regressed).await;
    assert!(new > old, "{new}: it was to get another id than {old}");
    let total = load.check(&cluster, 1_000).await;
    say(&format!("{total:?}"));
}
