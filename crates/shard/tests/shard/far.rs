//! Reads at a node that holds nothing of what it is asked for.

use std::time::Duration;

use everwire_core::row::RunState;
use everwire_core::{Code, ShardId};
use everwire_shard::{Answer, Delivery, Heard};
use futures_util::FutureExt;

use crate::cluster::{Cluster, Wanderer, eventually};
use crate::support::*;

/// The node that holds nothing, beside three that hold everything.
const SPARE: usize = 3;
/// Longest wait for what must come.
const WITHIN: Duration = Duration::from_secs(20);

async fn with_a_spare(shards: u32) -> Cluster {
    let mut cluster = Cluster::new(3, shards).await;
    cluster.post(0, "s", 0..5).await;
    let spare = cluster.add();
    assert_eq!(spare, SPARE);
    cluster.start(spare).await;
    eventually("it knows the leaders", async || {
        let read = cluster.read(SPARE, "s", 5).await;
        read.ok().map(drop)
    })
    .await;
    assert!(!cluster.shard(SPARE, "s").is_held());
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_read_is_answered_as_a_holder_answers_it() {
    let cluster = with_a_spare(4).await;
    let (far, near) = (cluster.shard(SPARE, "s"), cluster.shard(0, "s"));
    let (namespace, session) = (namespace(), name("s"));
    cluster.propose(SPARE, "s", start("s", "a")).await;
    cluster.propose(SPARE, "s", start("s", "b")).await;
    let batch = publish("s", "a", 1, &["one".into(), "two".into()]);
    published(cluster.propose(SPARE, "s", batch).await).unwrap();
    cluster.propose(SPARE, "s", cancel("s", "b")).await;

    for (from, limit) in [(1, 0), (1, 3), (4, 2), (11, 0)] {
        let there = far.read(&namespace, &session, None, at(from), limit);
        let here = near.read(&namespace, &session, None, at(from), limit);
        assert_eq!(there.await, here.await, "from {from}, {limit}");
    }
    let info = far.show(&namespace, &session).await.unwrap();
    assert_eq!(info, near.show(&namespace, &session).await.unwrap());
    assert_eq!(info.open_runs, [run_id("a")]);
    for run in ["a", "b", "c"] {
        let there = far.run(&namespace, &session, &run_id(run)).await;
        assert_eq!(there, near.run(&namespace, &session, &run_id(run)).await);
    }
    let over = far.run(&namespace, &session, &run_id("b")).await.unwrap();
    assert_eq!(over.state, RunState::Cancelled);
    for shard in (0..4).map(ShardId) {
        let (there, here) = (cluster.set(SPARE), cluster.set(0));
        let there = there.handle(shard).list(&namespace, "", None, 10).await;
        assert_eq!(
            there,
            here.handle(shard).list(&namespace, "", None, 10).await
        );
    }

    let nobody = name("t");
    let unknown = far.show(&namespace, &nobody).await.unwrap_err();
    assert_eq!(unknown.code, Code::UnknownSession);
    let unknown = far.watch_run(&namespace, &nobody, &run_id("a")).await;
    assert_eq!(unknown.unwrap_err().code, Code::UnknownSession);
    let above = far.read(&namespace, &session, None, at(90), 0).await;
    let above = above.unwrap_err();
    let same = near.read(&namespace, &session, None, at(90), 0).await;
    assert_eq!((above.code, Err(above)), (Code::Gone, same));
    let nothing = attach(&cluster.shard(SPARE, "t"), "t", None).await.unwrap();
    assert_eq!(nothing.answer, Answer::NotFound);
    assert!(nothing.subscription.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_follows_what_is_written_from_now_on() {
    let cluster = with_a_spare(1).await;
    let mut subscription = subscribe(&cluster.shard(SPARE, "s"), "s").await;
    assert_eq!(read_to(&mut subscription, 5).await.len(), 5);
    assert_eq!(subscription.position(), at(6));
    // A call that is dropped loses nothing.
    assert!(subscription.next().now_or_never().is_none());
    cluster.post(1, "s", 5..9).await;
    let events = next_events(&mut subscription).await.unwrap();
    assert_eq!(events.first().unwrap().offset, at(6));
    // Silence is told too.
    let last = loop {
        match subscription.next().await {
            Delivery::Events { to, .. } => assert!(to <= at(9)),
            Delivery::Alive { next, tail, .. } => break (next, tail),
            Delivery::Ended(refusal) => panic!("{refusal}"),
        }
    };
    assert_eq!(last, (at(10), at(9)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_lost_ends_the_reader_and_another_goes_on() {
    let mut cluster = with_a_spare(1).await;
    cluster.propose(0, "s", start("s", "a")).await;
    let shard = cluster.shard(SPARE, "s");
    let leader = cluster.leader(shard.id()).await;
    let mut subscription = subscribe(&shard, "s").await;
    assert_eq!(read_to(&mut subscription, 6).await.len(), 6);
    let (namespace, session, run) = (namespace(), name("s"), run_id("a"));
    let watched = shard.watch_run(&namespace, &session, &run);
    let mut watch = watched.await.unwrap();
    assert!(watch.heard().now_or_never().is_none());

    cluster.stop(leader).await;
    let ended = async {
        loop {
            match subscription.next().await {
                Delivery::Ended(refusal) => break refusal,
                Delivery::Alive { .. } => {},
                Delivery::Events { .. } => panic!("nothing was written"),
            }
        }
    };
    let ended = tokio::time::timeout(WITHIN, ended).await;
    let ended = ended.expect("it read at the one that left");
    assert_eq!(ended.code, Code::Stale, "{ended}");
    let mut reader = Wanderer::default();
    eventually("another holder is read", async || {
        reader.read_at(&cluster, SPARE, "s").await.ok()
    })
    .await;
    assert_eq!(reader.events.len(), 6);
    // So does the watch.
    let mut heard = async || {
        let heard = tokio::time::timeout(WITHIN, watch.heard());
        heard.await.expect("a watch does not go deaf")
    };
    assert_eq!(heard().await, Heard::Ended);
    let mut watch = eventually("another holder watches", async || {
        let watched = shard.watch_run(&namespace, &session, &run);
        watched.await.ok()
    })
    .await;
    cluster.propose(SPARE, "s", cancel("s", "a")).await;
    let heard = tokio::time::timeout(WITHIN, watch.heard());
    assert_eq!(heard.await.expect("the stop is heard"), Heard::Touched);
}

/// Each session is more than a window, and there are more readers than a connection's usual
/// hundred or two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_take_nothing_hold_up_nobody() {
    let cluster = with_a_spare(1).await;
    cluster.propose(0, "s", start("s", "a")).await;
    let long = "x".repeat(60 << 10);
    for seq in 0..4 {
        let texts = [long.clone(), long.clone()];
        let batch = publish("s", "a", 1 + 2 * seq, &texts);
        published(cluster.propose(0, "s", batch).await).unwrap();
    }
    let shard = cluster.shard(SPARE, "s");
    let mut asleep = Vec::new();
    for _ in 0..400 {
        asleep.push(subscribe(&shard, "s").await);
    }
    let mut awake = subscribe(&shard, "s").await;
    let read = tokio::time::timeout(WITHIN, read_to(&mut awake, 14));
    assert_eq!(read.await.expect("it is not held up").len(), 14);
    for mut reader in asleep {
        assert_eq!(read_to(&mut reader, 14).await.len(), 14);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_holder_the_caller_is_told() {
    let mut cluster = with_a_spare(1).await;
    for node in 0..3 {
        cluster.stop(node).await;
    }
    let shard = cluster.shard(SPARE, "s");
    let refused = eventually("nobody is there", async || {
        let shown = shard.show(&namespace(), &name("s")).await;
        shown
            .err()
            .filter(|refusal| refusal.code == Code::NotLeader)
    })
    .await;
    assert!(refused.message.contains("reached none"), "{refused}");
}
