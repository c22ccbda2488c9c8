//! Single calls: once in effect, answered by whoever can, given up in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use everwire_client::{BoxFuture, Client, TokenSource};
use everwire_core::command::SignalOutcome;
use everwire_core::{Body, Code, Details, Draft, InputId, Key, Offset, Refusal, Seq};
use tokio::time::Instant;

use crate::net::net;
use crate::node;
use crate::{client, config, paused, run_id, session};

fn input() -> Draft {
    Draft::new(Body::Input {
        input: InputId::parse("i1").unwrap(),
        text: "hello".into(),
        data: None,
    })
}

fn scripted(code: Code) -> Refusal {
    Refusal::new(code, "scripted")
}

#[test]
fn a_call_whose_answer_was_lost_takes_effect_once() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        let client = client(&net, &["a:1"], 1);
        node.state().refuse_after = [scripted(Code::NoQuorum), scripted(Code::Internal)].into();
        let posted = client.post(&session(), input(), None).await.unwrap();
        assert!(posted.duplicate && node.state().log.len() == 1);
        node.state().refuse_after = [scripted(Code::Draining)].into();
        let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
        assert!(publisher.grant().unwrap().duplicate);
        node.state().refuse_after = [scripted(Code::Overloaded)].into();
        let cancelled = client.cancel(&session(), &run_id(), None).await.unwrap();
        assert_eq!(
            cancelled.outcome,
            SignalOutcome::Applied {
                offset: Offset::new(3).unwrap()
            }
        );
        assert!(cancelled.duplicate && node.state().log.len() == 3);
    });
}

#[test]
fn a_key_of_the_callers_own_spans_calls() {
    paused(async {
        let net = net();
        node::start(&net, "a:1", 1);
        let client = client(&net, &["a:1"], 1);
        let key = || Some(Key::parse("k1").unwrap());
        assert!(
            !client
                .post(&session(), input(), key())
                .await
                .unwrap()
                .duplicate
        );
        assert!(
            client
                .post(&session(), input(), key())
                .await
                .unwrap()
                .duplicate
        );
        assert!(
            !client
                .post(&session(), input(), None)
                .await
                .unwrap()
                .duplicate
        );
    });
}

#[test]
fn nodes_are_tried_in_turn_and_a_named_leader_at_once() {
    paused(async {
        let net = net();
        let node = node::start(&net, "b:1", 1);
        let leader = node::start(&net, "c:1", 1);
        // a:1 does not answer; b:1 does.
        for seed in 0..4 {
            let client = client(&net, &["a:1", "b:1"], seed);
            client.post(&session(), input(), None).await.unwrap();
        }
        assert_eq!(node.state().log.len(), 4);
        let details = Details {
            leader: Some("c:1".into()),
            ..Details::default()
        };
        let hint = Refusal::with(Code::NotLeader, "not here", details);
        node.state().refuse_before = [hint].into();
        let begin = Instant::now();
        client(&net, &["b:1"], 1)
            .post(&session(), input(), None)
            .await
            .unwrap();
        assert_eq!((leader.state().log.len(), node.state().log.len()), (1, 4));
        assert!(begin.elapsed() < Duration::from_millis(1));
    });
}

#[test]
fn a_call_is_given_up_at_its_deadline_with_the_last_refusal() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        node.state().refuse_before = (0..1000).map(|_| scripted(Code::NoQuorum)).collect();
        let client = client(&net, &["a:1"], 1);
        let begin = Instant::now();
        let refusal = client.post(&session(), input(), None).await.unwrap_err();
        assert_eq!(refusal.code, Code::NoQuorum);
        assert!((5..=15).contains(&begin.elapsed().as_secs()));
        let begin = Instant::now();
        let short = client.with_deadline(Duration::from_secs(1));
        short.post(&session(), input(), None).await.unwrap_err();
        assert!(begin.elapsed() <= Duration::from_secs(1));
        net.close("a:1");
        let refusal = client.post(&session(), input(), None).await.unwrap_err();
        assert_eq!(refusal.code.exit_code(), 5, "unreachable: {refusal}");
    });
}

#[test]
fn a_refusal_for_good_is_not_repeated() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        let client = client(&net, &["a:1"], 1);
        node.state().refuse_before = [scripted(Code::KeyReused)].into();
        let refusal = client.post(&session(), input(), None).await.unwrap_err();
        assert_eq!(refusal.code, Code::KeyReused);
        assert_eq!(node.state().tokens.len(), 1);
        for (code, outcome) in [
            (Code::Denied, SignalOutcome::Denied),
            (Code::UnknownRun, SignalOutcome::UnknownRun),
        ] {
            node.state().refuse_before = [scripted(code)].into();
            let cancelled = client.cancel(&session(), &run_id(), None).await.unwrap();
            assert_eq!(cancelled.outcome, outcome);
        }
    });
}

/// Gives `stale` first, then `fresh`.
struct Renewing(AtomicUsize);

impl TokenSource for Renewing {
    fn token(&self) -> BoxFuture<'_, Result<String, Refusal>> {
        let first = self.0.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move { Ok(if first { "stale" } else { "fresh" }.to_owned()) })
    }
}

#[test]
fn an_expired_token_is_asked_for_once_more() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        node.state().good_tokens = vec!["fresh".into()];
        let mut config = config(&net, &["a:1"], 1);
        config.token = Arc::new(Renewing(AtomicUsize::new(0)));
        let client = Client::new(config).unwrap();
        client.post(&session(), input(), None).await.unwrap();
        assert_eq!(node.state().tokens, ["stale", "fresh"]);
        // The very same token again need not be tried again.
        let fixed = client.with_token("theirs".into());
        let refusal = fixed.post(&session(), input(), None).await.unwrap_err();
        assert_eq!(refusal.code, Code::TokenExpired);
        assert_eq!(node.state().tokens.len(), 3);
    });
}

#[test]
fn a_stop_never_waits_behind_output() {
    paused(async {
        let net = net();
        node::start(&net, "a:1", 1);
        let client = client(&net, &["a:1"], 1);
        let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
        let output = Draft::new(Body::App {
            name: "x".repeat(200),
            data: None,
        });
        publisher.send(vec![output.clone()]).await.unwrap();
        publisher.flush().await.unwrap();
        // The connection of the output stands still, full of it.
        net.freeze(0, true);
        assert_eq!(publisher.send(vec![output; 1000]).await.unwrap(), Seq(1001));
        let begin = Instant::now();
        let cancelled = client.cancel(&session(), &run_id(), None).await.unwrap();
        assert!(matches!(cancelled.outcome, SignalOutcome::Applied { .. }));
        assert!(begin.elapsed() < Duration::from_millis(10));
        net.freeze(0, false);
        assert_eq!(publisher.refused().await.code, Code::RunFenced);
    });
}

#[test]
fn addresses_that_cannot_be_used_are_refused_at_once() {
    paused(async {
        for addrs in [&[][..], &["https://a:1"], &["a:1", "no where"]] {
            let refusal = Client::new(config(&net(), addrs, 1)).err().unwrap();
            assert_eq!(refusal.code, Code::Malformed);
        }
    });
}

#[test]
fn every_call_can_move_between_threads() {
    fn sent<T: Send>(value: T) -> T {
        value
    }
    paused(async {
        let client = client(&net(), &["a:1"], 1);
        let (session, run) = (session(), run_id());
        drop(sent(client.post(&session, input(), None)));
        drop(sent(client.cancel(&session, &run, None)));
        drop(sent(client.start_run(&session, run.clone(), None)));
        drop(sent(client.read(&session, None, Offset::ZERO, 0, None)));
        let publisher = client.publisher(&session, run, everwire_core::RunEpoch(1), Seq(1));
        drop(sent(publisher.send(Vec::new())));
        drop(sent(publisher.flush()));
        drop(sent(publisher.refused()));
        drop(sent(publisher.complete()));
        let mut subscriber = client.subscribe(&session, Default::default());
        drop(sent(subscriber.next()));
    });
}
