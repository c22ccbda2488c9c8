//! A leader that is there and does nothing, for half a minute; and then believes for a moment
//! that it still leads.

use std::time::Duration;

use everwire_cluster_tests::load::agent;
use everwire_cluster_tests::{Load, alone, replicas};
use everwire_core::Offset;
use everwire_testkit::Cluster;
use everwire_testkit::cluster::shard_of;
use everwire_testkit::machine::Quiet;
use tokio::time::{Instant, sleep_until};

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN, hold};

/// How long it is stopped.
const STOPPED: Duration = Duration::from_secs(30);
/// A client finds out that a connection is dead within a few seconds, and goes elsewhere.
const STALL_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_for_half_a_minute_is_no_leader_afterwards() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    let leaders = cluster.wait_balanced(BALANCED_WITHIN).await;
    let quiet = Quiet::watch();
    let load = Load::at(&cluster, &edges).await;
    load.goes_on(300).await;

    let victim = 1;
    let led = leaders.led_by(victim);
    let stopped = Instant::now();
    cluster.pause(victim);
    load.goes_on_everywhere(stopped + Duration::from_secs(1), 5, GOES_ON_WITHIN)
        .await;
    let hit = load
        .sessions()
        .filter(|session| led.contains(&shard_of(session)));
    let stalls = hit.map(|session| load.stall(session, stopped)).collect();
    hold(
        "stall of a stopped leader's sessions",
        stalls,
        STALL_MAX,
        &quiet,
    );
    sleep_until(stopped + STOPPED).await;
    load.goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;

    // Whoever asks it now must not be told what was true half a minute ago.
    let mut hit = load
        .sessions()
        .filter(|session| led.contains(&shard_of(session)));
    let session = hit.next().expect("it led something").clone();
    drop(hit);
    let known = agent(&cluster).show_session(&session).await;
    let known = known.expect("served").tail;
    cluster.resume(victim);
    let log = replicas::log_of(&cluster, victim, &session, Offset::ZERO).await;
    let fresh = log.last().expect("events").offset;
    assert!(
        fresh >= known,
        "{fresh}: it answered with its past, {known} was known"
    );

    cluster.wait_balanced(BALANCED_WITHIN).await;
    load.check(&cluster, 1_000).await;
}
