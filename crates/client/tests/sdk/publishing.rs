//! A publisher delivers each draft once and in order, whatever happens on the way; it blocks at
//! its bound, and it stops when it is told to.

use std::sync::Arc;
use std::time::Duration;

use everwire_client::{AckRange, Publisher};
use everwire_core::event::Data;
use everwire_core::limits::BATCHES_REMEMBERED;
use everwire_core::{Body, Code, Details, Draft, Offset, Refusal, RunEpoch, Seq};
use everwire_proto::v1;
use proptest::prelude::*;
use tokio::time::{Instant, timeout};

use crate::net::net;
use crate::node::{self, Node};
use crate::{client, paused, run_id, session};

fn draft(name: usize, bytes: usize) -> Draft {
    Draft::new(Body::App {
        name: name.to_string(),
        data: Some(Data::Binary(vec![7; bytes].into())),
    })
}

/// Seq and name of the run's events, in the order of the log.
fn written(node: &Node) -> Vec<(u64, String)> {
    let state = node.state();
    let own = state.log.iter().filter_map(|event| {
        let seq = event.run.as_ref()?.seq?;
        let name = match event.draft.as_ref()?.body.as_ref()? {
            v1::draft::Body::App(app) => app.name.clone(),
            v1::draft::Body::RunCompleted(_) => "completed".into(),
            v1::draft::Body::RunFailed(failed) => failed.reason.clone(),
            _ => "?".into(),
        };
        Some((seq, name))
    });
    own.collect()
}

/// Sends drafts of these sizes, some to each call, completes, and checks everything.
async fn deliver(seed: u64, sizes: Vec<usize>, trouble: Option<u64>, credit: u32) {
    let net = net();
    let node = node::start(&net, "a:1", seed);
    node.trouble.lock().unwrap().once_in = trouble;
    node.state().credit = credit;
    let publisher = client(&net, &["a:1"], seed)
        .start_run(&session(), run_id(), None)
        .await;
    let publisher = publisher.expect("granted");
    let mut acks = publisher.acks();
    let acked = tokio::spawn(async move {
        let mut ranges = Vec::new();
        while let Some(range) = acks.next().await {
            ranges.push(range);
        }
        ranges
    });
    let mut sent = 0;
    for chunk in sizes.chunks(3) {
        let drafts = chunk
            .iter()
            .enumerate()
            .map(|(n, bytes)| draft(sent + n, *bytes))
            .collect();
        sent += chunk.len();
        let seq = publisher.send(drafts).await.expect("taken");
        assert_eq!(seq, Seq(sent as u64));
        if seed % 2 == 1 {
            // A model's pace, so that output leaves in many small batches.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let ack = publisher.complete().await.expect("completed");
    let mut expected: Vec<_> = (0..sent).map(|n| (n as u64 + 1, n.to_string())).collect();
    expected.push((sent as u64 + 1, "completed".into()));
    assert_eq!(written(&node), expected);
    assert_eq!(ack.seq, Seq(sent as u64 + 1));
    check_acks(&node, &acked.await.expect("read"));
    if trouble.is_some_and(|times| times <= 3) && sent > 1000 {
        let streams = node.state().streams;
        assert!(streams > 10, "only {streams} streams");
    }
    assert_eq!(node.state().wrong, Vec::<String>::new());
}

/// Each seq is acked once, in order, at the place where it stands.
fn check_acks(node: &Node, ranges: &[AckRange]) {
    let state = node.state();
    let mut places = state.runs["r1"].places.iter();
    for range in ranges {
        for (seq, offset) in (range.first_seq.0..=range.last_seq.0).zip(range.first_offset.get()..)
        {
            assert_eq!(places.next(), Some((&seq, &offset)));
        }
    }
    assert_eq!(places.next(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_draft_arrives_once_and_in_order(
        seed: u64,
        sizes in prop::collection::vec(prop_oneof![4 => 0..300_usize, 1 => 0..100_000_usize], 1..120),
        trouble in prop_oneof![Just(None), (2..20_u64).prop_map(Some)],
        credit in prop_oneof![Just(256_u32 << 10), Just(4096), Just(1), Just(0)],
    ) {
        paused(deliver(seed, sizes, trouble, credit));
    }
}

#[test]
fn two_thousand_deltas_go_through_hard_trouble() {
    paused(deliver(7, vec![200; 2000], Some(3), 64 << 10));
}

async fn started(seed: u64) -> (Arc<Node>, Publisher) {
    let net = net();
    let node = node::start(&net, "a:1", seed);
    let publisher = client(&net, &["a:1"], seed)
        .start_run(&session(), run_id(), None)
        .await;
    (node, publisher.expect("granted"))
}

#[test]
fn send_waits_for_room_and_for_nothing_else() {
    paused(async {
        let (node, publisher) = started(1).await;
        publisher.send(vec![draft(0, 10)]).await.unwrap();
        publisher.flush().await.unwrap();
        // The connection stands still: drafts are taken until the window is full.
        let connections = node.net.links();
        (0..connections).for_each(|nth| node.net.freeze(nth, true));
        let begin = Instant::now();
        let mut taken = 0;
        while timeout(
            Duration::from_secs(1),
            publisher.send(vec![draft(0, 60_000)]),
        )
        .await
        .is_ok()
        {
            taken += 1;
        }
        assert_eq!(taken, 5, "256 KiB, overdrawn by the last");
        assert!(begin.elapsed() < Duration::from_secs(2));
        (0..connections).for_each(|nth| node.net.freeze(nth, false));
        publisher.send(vec![draft(0, 60_000)]).await.unwrap();
        assert_eq!(publisher.flush().await.unwrap().seq, Seq(7));
        assert_eq!(written(&node).len(), 7);
    });
}

#[test]
fn un_acked_batches_stay_within_what_the_server_remembers() {
    paused(async {
        let (node, publisher) = started(1).await;
        publisher.send(vec![draft(0, 1)]).await.unwrap();
        publisher.flush().await.unwrap();
        (0..node.net.links()).for_each(|nth| node.net.freeze(nth, true));
        for n in 1..1000 {
            publisher.send(vec![draft(n, 1)]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (0..node.net.links()).for_each(|nth| node.net.freeze(nth, false));
        publisher.flush().await.unwrap();
        assert_eq!(written(&node).len(), 1000);
        // One alone, those that went out one by one, and all that had to wait.
        assert_eq!(node.state().batches, 1 + BATCHES_REMEMBERED + 1);
    });
}

#[test]
fn a_fence_stops_the_agent_by_every_way_it_listens() {
    paused(async {
        let (node, publisher) = started(1).await;
        publisher.send(vec![draft(0, 1)]).await.unwrap();
        publisher.flush().await.unwrap();
        let stopped = tokio::spawn(publisher.refused());
        let cancel_offset = Offset::new(9);
        let details = Details {
            cancel_offset,
            ..Details::default()
        };
        node.state().fence = Some(Refusal::with(Code::RunFenced, "cancelled", details));
        publisher.send(vec![draft(1, 1)]).await.unwrap();
        let refusal = stopped.await.unwrap();
        assert_eq!(
            (refusal.code, refusal.details.cancel_offset),
            (Code::RunFenced, cancel_offset)
        );
        assert_eq!(publisher.flush().await.unwrap_err().code, Code::RunFenced);
        assert_eq!(
            publisher.send(vec![draft(2, 1)]).await.unwrap_err().code,
            Code::RunFenced
        );
        assert_eq!(
            publisher.complete().await.unwrap_err().code,
            Code::RunFenced
        );
        assert_eq!(written(&node).len(), 1);
    });
}

fn fenced_at(offset: u64) -> Refusal {
    let details = Details {
        cancel_offset: Offset::new(offset),
        ..Details::default()
    };
    Refusal::with(Code::RunFenced, "cancelled", details)
}

#[test]
fn a_stop_reaches_a_writer_that_waits_for_its_model() {
    paused(async {
        let (node, publisher) = started(1).await;
        publisher.send(vec![draft(0, 1)]).await.unwrap();
        publisher.flush().await.unwrap();
        let stopped = publisher.refused();
        tokio::time::sleep(Duration::from_secs(60)).await;
        node.state().fence = Some(fenced_at(9));
        let begin = Instant::now();
        node.stopped.notify_waiters();
        let refusal = stopped.await;
        assert_eq!(refusal, fenced_at(9));
        assert!(begin.elapsed() <= Duration::from_millis(1));
        assert_eq!(
            publisher.send(vec![draft(1, 1)]).await.unwrap_err(),
            refusal
        );
    });
}

#[test]
fn a_stop_reaches_a_silent_writer_whose_last_ack_was_lost() {
    paused(async {
        let (node, publisher) = started(1).await;
        let stopped = publisher.refused();
        let committed = node.changed.notified();
        node.trouble.lock().unwrap().loses_answer = true;
        publisher.send(vec![draft(0, 1)]).await.unwrap();
        committed.await;
        node.state().fence = Some(fenced_at(9));
        let heard = timeout(Duration::from_secs(60), stopped).await;
        assert_eq!(heard.expect("the stop is told"), fenced_at(9));
        // What was committed before the stop is acked all the same.
        assert_eq!(publisher.flush().await.unwrap().seq, Seq(1));
        assert_eq!((written(&node).len(), node.state().streams), (1, 2));
    });
}

#[test]
fn a_stop_while_the_writer_was_cut_off_is_told_when_it_is_back() {
    paused(async {
        let (node, publisher) = started(1).await;
        publisher.send(vec![draft(0, 1)]).await.unwrap();
        publisher.flush().await.unwrap();
        let stopped = publisher.refused();
        node.net.cut(&node.addr);
        node.state().fence = Some(fenced_at(9));
        assert_eq!(stopped.await, fenced_at(9));
    });
}

#[test]
fn a_claimed_run_ends_the_old_writer_and_begins_a_new_one() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        let client = client(&net, &["a:1"], 1);
        let old = client.start_run(&session(), run_id(), None).await.unwrap();
        old.send(vec![draft(0, 1)]).await.unwrap();
        old.flush().await.unwrap();
        let new = client.claim_run(&session(), run_id()).await.unwrap();
        assert_eq!(new.run_epoch(), RunEpoch(2));
        old.send(vec![draft(1, 1)]).await.unwrap();
        assert_eq!(old.refused().await.code, Code::StaleEpoch);
        new.send(vec![draft(2, 1)]).await.unwrap();
        new.complete().await.unwrap();
        let names: Vec<_> = written(&node).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["0", "2", "completed"]);
    });
}

#[test]
fn a_writer_that_has_nothing_to_say_says_that_it_lives() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        node.state().lease_ms = 30_000;
        let client = client(&net, &["a:1"], 1);
        let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
        let lease = publisher.grant().unwrap().lease;
        assert_eq!(lease, Some(Duration::from_secs(30)));
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(node.state().beats, 6, "three in each lease");
        // Batches are signs of life themselves.
        for number in 0..60 {
            publisher.send(vec![draft(number, 1)]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(node.state().beats, 6);
        drop(publisher);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(node.state().beats, 6, "nobody lives for whoever is gone");
    });
}

#[test]
fn a_stop_that_was_seen_is_told_though_the_writer_leaves() {
    paused(async {
        let (node, publisher) = started(1).await;
        let stopped = publisher.refused();
        node.state().fence = Some(fenced_at(9));
        node.stopped.notify_waiters();
        assert_eq!(stopped.await, fenced_at(9));
        drop(publisher);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.state().observed, [9]);
    });
}

#[test]
fn dropping_a_publisher_is_no_signal() {
    paused(async {
        let (node, publisher) = started(1).await;
        let stopped = publisher.refused();
        let mut acks = publisher.acks();
        publisher.send(vec![draft(0, 1)]).await.unwrap();
        publisher.flush().await.unwrap();
        drop(publisher);
        assert!(acks.next().await.is_some() && acks.next().await.is_none());
        assert!(timeout(Duration::from_secs(3600), stopped).await.is_err());
        assert_eq!(written(&node).len(), 1, "no end of the run");
    });
}

#[test]
fn a_writer_goes_on_from_a_seq_and_what_was_there_is_a_duplicate() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        let client = client(&net, &["a:1"], 1);
        let first = client.start_run(&session(), run_id(), None).await.unwrap();
        first
            .send((0..4).map(|n| draft(n, 1)).collect())
            .await
            .unwrap();
        first.flush().await.unwrap();
        drop(first);
        let again = client.publisher(&session(), run_id(), RunEpoch(1), Seq(3));
        let mut acks = again.acks();
        assert_eq!(again.grant(), None);
        assert_eq!(
            again
                .send((2..6).map(|n| draft(n, 1)).collect())
                .await
                .unwrap(),
            Seq(6)
        );
        again.flush().await.unwrap();
        let range = acks.next().await.unwrap();
        assert_eq!(
            (range.first_seq, range.last_seq, range.duplicate),
            (Seq(3), Seq(4), true)
        );
        assert!(!acks.next().await.unwrap().duplicate);
        assert_eq!(written(&node).len(), 6);
        // A seq that leaves a gap can never be filled from here.
        let gap = client.publisher(&session(), run_id(), RunEpoch(1), Seq(9));
        gap.send(vec![draft(9, 1)]).await.unwrap();
        assert_eq!(gap.flush().await.unwrap_err().code, Code::SeqGap);
    });
}

#[test]
fn a_bad_draft_is_refused_at_once_and_ends_nothing() {
    paused(async {
        let (node, publisher) = started(1).await;
        let refusal = publisher
            .send(vec![draft(0, 1), draft(1, 300 << 10)])
            .await
            .unwrap_err();
        assert_eq!(refusal.code, Code::TooLarge);
        publisher.send(vec![draft(2, 1)]).await.unwrap();
        publisher.fail(&"ü".repeat(200)).await.unwrap();
        let (seqs, names): (Vec<_>, Vec<_>) = written(&node).into_iter().unzip();
        assert_eq!(seqs, [1, 2]);
        assert_eq!(names, ["2".to_owned(), "ü".repeat(128)]);
    });
}

#[test]
fn an_expired_token_is_asked_for_once_more_and_then_it_is_over() {
    paused(async {
        let (node, publisher) = started(1).await;
        node.state().good_tokens = vec!["another".into()];
        node.net.cut("a:1");
        publisher.send(vec![draft(0, 1)]).await.unwrap();
        assert_eq!(publisher.refused().await.code, Code::Unauthenticated);
        // One to start, one stream that was good at most, and one that was refused: not two.
        assert!(node.state().tokens.len() <= 3);
    });
}
