//! Every replica for itself: what a node serves from its own rows, held against the others.

use std::time::Duration;

use everwire_core::{Event, Offset, SessionName};
use everwire_proto::storage::encode_event;
use everwire_testkit::cluster::shard_of;
use everwire_testkit::{Cluster, tokens};
use tokio::time::{Instant, sleep};

/// Longest wait for a replica to have what was acked.
const WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Reads a session on every node that is up and holds it; all must have the same bytes, up to
/// `at_least` or further. The log, as all of them have it.
pub async fn same_on_all(cluster: &Cluster, session: &SessionName, at_least: Offset) -> Vec<Event> {
    let leaders = cluster.leaders().await;
    let mut holders = leaders
        .replicas
        .get(&shard_of(session))
        .cloned()
        .unwrap_or_default();
    holders.retain(|number| cluster.node(*number).acts());
    let mut first: Option<Vec<Event>> = None;
    for number in holders {
        let log = log_of(cluster, number, session, at_least).await;
        match &first {
            None => first = Some(log),
            Some(first) => assert_same(session, number, first, &log),
        }
    }
    first.expect("a node that is up")
}

/// A session as one node has it; waits until it has come to `at_least`.
pub async fn log_of(
    cluster: &Cluster,
    number: usize,
    session: &SessionName,
    at_least: Offset,
) -> Vec<Event> {
    let token = tokens::agent(cluster.keys(), "bot");
    let node = cluster.direct(number, &token, ANSWER_WITHIN);
    let until = Instant::now() + WITHIN;
    loop {
        let said = match node.read_all(session).await {
            Ok(log) => match log.last().map_or(Offset::ZERO, |last| last.offset) {
                tail if tail >= at_least => return log,
                tail => format!("it has come to {tail}"),
            },
            Err(refusal) => refusal.to_string(),
        };
        let late = Instant::now() >= until;
        assert!(
            !late,
            "n{number} does not have {session} to {at_least}: {said}"
        );
        sleep(Duration::from_millis(200)).await;
    }
}

/// Both hold the same bytes as far as both go; nothing is written meanwhile, so that is all.
fn assert_same(session: &SessionName, number: usize, first: &[Event], other: &[Event]) {
    let length = (first.len(), other.len());
    assert_eq!(length.0, length.1, "{session}: n{number} has another tail");
    for (one, two) in first.iter().zip(other) {
        let same = encode_event(one) == encode_event(two);
        let at = one.offset;
        assert!(
            same,
            "{session}: n{number} has other bytes at {at}: {one:?} and {two:?}"
        );
    }
}
