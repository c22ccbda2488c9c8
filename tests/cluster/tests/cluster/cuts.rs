//! A network that is cut in every way between three nodes: both ways and one way, one pair and a
//! whole node. Whoever can form a majority goes on, nobody else acks anything, and nobody wins
//! elections for ever.

use std::time::Duration;

use everwire_cluster_tests::load::agent;
use everwire_cluster_tests::{Load, alone};
use everwire_core::{Code, Draft, Key, SessionName};
use everwire_promises::scene::input;
use everwire_testkit::cluster::session_on;
use everwire_testkit::{Cluster, Network, Plan, say, tokens};
use tokio::time::{Instant, sleep};

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN};

/// A cut lasts so long after everybody has gone on: long enough to see who stands for election.
const LASTS: Duration = Duration::from_secs(2);
/// A node without a majority does not keep its callers waiting for longer.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);

/// A name for what follows, and the cut.
type Cut = (&'static str, fn(&Network));

#[tokio::test(flavor = "multi_thread")]
async fn cuts_of_every_kind_stop_nobody_who_can_form_a_majority() {
    let _alone = alone().await;
    let Some(network) = Network::new(3) else {
        return;
    };
    let plan = Plan {
        network: Some(network),
        ..Plan::default()
    };
    let cluster = Cluster::start_with(3, plan).await;
    let leaders = cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::everywhere(&cluster).await;
    let cuts: [Cut; 3] = [
        ("n0 and n1, both ways", |network| network.cut(0, 1)),
        ("what n1 sends to n2", |network| network.cut_one_way(1, 2)),
        ("what n2 sends to n0", |network| network.cut_one_way(2, 0)),
    ];
    for cut in cuts {
        goes_on_when(&cluster, &load, cut).await;
    }
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let session = session_on(leaders.led_by(LONELY)[0], "lonely");
    let client = agent(&cluster);
    client.create_session(&session).await.expect("made");
    cluster.network().cut_off(LONELY);
    let asked = acks_nothing(&cluster, &session).await;
    cluster.network().heal();
    goes_on_when(
        &cluster,
        &load,
        ("n2 from everybody", |network| network.cut_off(LONELY)),
    )
    .await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    // Whether or not the attempt got through after all: it is there once.
    let (draft, key) = asked;
    let first = client
        .post(&session, draft.clone(), Some(key.clone()))
        .await;
    let again = client
        .post(&session, draft, Some(key))
        .await
        .expect("taken");
    assert_eq!(first.expect("taken").offset, again.offset);
    assert!(again.duplicate);
    let info = client.show_session(&session).await.expect("served");
    assert_eq!(info.tail.get(), 1);
    load.check(&cluster, 700).await;
}

/// Cuts, sees everybody go on, and heals.
async fn goes_on_when(cluster: &Cluster, load: &Load, (name, cut): Cut) {
    load.goes_on_everywhere(Instant::now(), 3, GOES_ON_WITHIN)
        .await;
    let before = terms(cluster).await;
    let since = Instant::now();
    cut(cluster.network());
    // What was under way at that moment still comes.
    sleep(Duration::from_secs(1)).await;
    load.goes_on_everywhere(Instant::now(), 3, GOES_ON_WITHIN)
        .await;
    let stalls = load.sessions().map(|session| load.stall(session, since));
    let stall = stalls.max().expect("some sessions");
    let settled = terms(cluster).await;
    sleep(LASTS).await;
    load.goes_on_everywhere(Instant::now(), 3, GOES_ON_WITHIN)
        .await;
    let after = terms(cluster).await;
    say(&format!(
        "cut: {name}: longest stall {stall:.1?}, terms rose by {} and then by {}",
        settled.saturating_sub(before),
        after.saturating_sub(settled),
    ));
    cluster.network().heal();
}

/// The highest terms that any node knows, all shards together: the elections that somebody won.
async fn terms(cluster: &Cluster) -> u64 {
    let mut most = 0;
    for node in cluster.acting() {
        if let Ok(status) = cluster.status_of(node).await {
            most = most.max(status.shards.iter().map(|shard| shard.term).sum());
        }
    }
    most
}

/// The node that is alone.
const LONELY: usize = 2;

/// A leader that is alone refuses, and does so in time. What it was asked.
async fn acks_nothing(cluster: &Cluster, session: &SessionName) -> (Draft, Key) {
    let token = tokens::agent(cluster.keys(), "bot");
    let lonely = cluster.direct(LONELY, &token, REFUSED_WITHIN);
    let (draft, key) = input("i1", "does anybody hear me?");
    let refusal = lonely.post(session, &draft, &key).await;
    let refusal = refusal.expect_err("there is no majority");
    let said = [Code::NoQuorum, Code::NotLeader, Code::Draining, Code::Stale];
    assert!(said.contains(&refusal.code), "{refusal}");
    (draft, key)
}
