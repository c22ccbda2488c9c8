//! A subscriber gives exactly the events behind its cursor: no gap, no duplicate, no reorder.

use std::time::Duration;

use everwire_client::{SubscribeOptions, Subscriber, SubscriberEvent};
use everwire_core::{Code, Cursor, Offset};
use proptest::prelude::*;
use tokio::time::{Instant, timeout};

use crate::net::net;
use crate::node::{self, EPOCH, Fault, Reader};
use crate::{client, paused, session};

fn from(offset: u64) -> SubscribeOptions {
    let cursor = Cursor {
        session_epoch: Some(EPOCH.parse().unwrap()),
        offset: Offset::new(offset).unwrap(),
    };
    SubscribeOptions {
        cursor: Some(cursor),
        ..SubscribeOptions::default()
    }
}

/// Reads until `tail`; checks that ranges follow each other and events lie in them.
async fn read_to(subscriber: &mut Subscriber, after: u64, tail: u64) -> Vec<u64> {
    let (mut seen, mut next) = (Vec::new(), after + 1);
    while next <= tail {
        match subscriber.next().await {
            SubscriberEvent::Attached { from, .. } => assert_eq!(from.get(), next),
            SubscriberEvent::Events {
                from, to, events, ..
            } => {
                assert_eq!(from.get(), next);
                next = to.get() + 1;
                let offsets = events.iter().map(|event| event.offset.get());
                seen.extend(offsets);
                assert_eq!(subscriber.cursor().unwrap().offset, to);
            },
            SubscriberEvent::Alive { .. } | SubscriberEvent::Disconnected { .. } => {},
            other => panic!("{other:?}"),
        }
    }
    seen
}

fn reader() -> impl Strategy<Value = Reader> {
    let fault = prop_oneof![
        Just(Fault::Cut),
        Just(Fault::Hole),
        Just(Fault::Again),
        Just(Fault::Silence),
        Just(Fault::End(Code::Stale)),
        Just(Fault::End(Code::Draining)),
        Just(Fault::End(Code::SlowReader)),
        Just(Fault::End(Code::Overloaded)),
    ];
    let refuse = prop_oneof![
        Just(Code::NoQuorum),
        Just(Code::Draining),
        Just(Code::Internal)
    ];
    prop_oneof![
        6 => (0..40_u64, fault).prop_map(|(count, fault)| Reader::After(count, fault)),
        1 => refuse.prop_map(Reader::Refuse),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_reader_gets_exactly_the_suffix(
        seed: u64,
        readers in prop::collection::vec(reader(), 0..12),
        before in 0..60_usize,
        cursor in 0..60_u64,
        live in 0..60_usize,
    ) {
        paused(async move {
            let net = net();
            let node = node::start(&net, "a:1", seed);
            node.state().readers = readers.into();
            node.append_foreign(before);
            let cursor = cursor.min(before as u64);
            let mut subscriber = client(&net, &["a:1"], seed).subscribe(&session(), from(cursor));
            let (mut seen, tail) = (Vec::new(), (before + live) as u64);
            seen.extend(read_to(&mut subscriber, cursor, before as u64).await);
            let writer = async {
                for _ in 0..live {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    node.append_foreign(1);
                }
            };
            let (read, ()) = tokio::join!(read_to(&mut subscriber, before as u64, tail), writer);
            seen.extend(read);
            assert_eq!(seen, (cursor + 1..=tail).collect::<Vec<_>>());
        });
    }
}

#[test]
fn a_call_that_is_given_up_loses_nothing() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        node.append_foreign(100);
        let mut subscriber = client(&net, &["a:1"], 1).subscribe(&session(), from(0));
        let mut next = 1;
        // Give up after hardly any time, again and again; attaching still gets done.
        while next <= 100 {
            let soon = timeout(Duration::from_micros(10), subscriber.next()).await;
            if let Ok(SubscriberEvent::Events { from, to, .. }) = soon {
                assert_eq!(from.get(), next);
                next = to.get() + 1;
            }
        }
        assert_eq!(node.state().follows.len(), 1);
    });
}

#[test]
fn a_silent_socket_is_noticed() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        node.append_foreign(2);
        node.state().readers = [Reader::After(1, Fault::Silence)].into();
        let mut subscriber = client(&net, &["a:1"], 1).subscribe(&session(), from(0));
        assert!(matches!(
            subscriber.next().await,
            SubscriberEvent::Attached { .. }
        ));
        assert!(matches!(
            subscriber.next().await,
            SubscriberEvent::Events { .. }
        ));
        let begin = Instant::now();
        assert!(matches!(
            subscriber.next().await,
            SubscriberEvent::Disconnected { .. }
        ));
        assert_eq!(begin.elapsed().as_secs(), 25);
        assert_eq!(read_to(&mut subscriber, 1, 2).await, [2]);
    });
}

#[test]
fn signs_of_life_keep_a_quiet_session_attached() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        let mut subscriber = client(&net, &["a:1"], 1).subscribe(&session(), from(0));
        assert!(matches!(
            subscriber.next().await,
            SubscriberEvent::Attached { .. }
        ));
        for _ in 0..20 {
            assert!(matches!(
                subscriber.next().await,
                SubscriberEvent::Alive { .. }
            ));
        }
        assert_eq!(node.state().follows.len(), 1);
    });
}

#[test]
fn gone_and_not_found_are_told_once_and_are_final() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        let client = client(&net, &["a:1"], 1);
        for (answer, code) in [
            (Reader::Gone, Code::Gone),
            (Reader::NotFound, Code::UnknownSession),
            (Reader::Refuse(Code::UnknownSession), Code::UnknownSession),
            (Reader::Refuse(Code::Gone), Code::Gone),
        ] {
            node.state().readers = [answer].into();
            let mut subscriber = client.subscribe(&session(), from(5));
            let told = match subscriber.next().await {
                SubscriberEvent::Gone { .. } => Code::Gone,
                SubscriberEvent::NotFound => Code::UnknownSession,
                other => panic!("{other:?}"),
            };
            assert_eq!(told, code);
            let SubscriberEvent::Ended(refusal) = subscriber.next().await else {
                panic!()
            };
            assert_eq!(refusal.code, code);
        }
    });
}

#[test]
fn a_session_that_is_deleted_while_it_is_read_is_not_made_again() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        node.append_foreign(2);
        node.state().readers = [Reader::After(1, Fault::End(Code::Gone)), Reader::NotFound].into();
        let options = SubscribeOptions {
            create: true,
            ..from(0)
        };
        let mut subscriber = client(&net, &["a:1"], 1).subscribe(&session(), options);
        let mut told = Vec::new();
        while told.last() != Some(&SubscriberEvent::NotFound) {
            told.push(subscriber.next().await);
        }
        assert_eq!(told.len(), 4, "attached, events, disconnected, not found");
        let creates: Vec<_> = node
            .state()
            .follows
            .iter()
            .map(|follow| follow.create)
            .collect();
        assert_eq!(creates, [true, false]);
    });
}

#[test]
fn a_denied_reader_is_told_so_and_an_expired_token_is_asked_for_once_more() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        node.state().readers = [Reader::Refuse(Code::Denied)].into();
        let client = client(&net, &["a:1"], 1);
        let mut subscriber = client.subscribe(&session(), from(0));
        let SubscriberEvent::Ended(refusal) = subscriber.next().await else {
            panic!()
        };
        assert_eq!(refusal.code, Code::Denied);
        node.state().good_tokens = vec!["another".into()];
        let options = SubscribeOptions {
            token: Some("theirs".into()),
            ..from(0)
        };
        let mut subscriber = client.subscribe(&session(), options);
        assert!(matches!(
            subscriber.next().await,
            SubscriberEvent::Disconnected { .. }
        ));
        let SubscriberEvent::Ended(refusal) = subscriber.next().await else {
            panic!()
        };
        assert_eq!(refusal.code, Code::TokenExpired);
        assert_eq!(node.state().tokens, ["token", "theirs", "theirs"]);
    });
}

#[test]
fn readers_that_come_back_together_are_paced() {
    paused(async {
        let net = net();
        let node = node::start(&net, "a:1", 1);
        let client = client(&net, &["a:1"], 1);
        let begin = Instant::now();
        let readers: Vec<_> = (0..2000)
            .map(|_| {
                let mut subscriber = client.subscribe(&session(), from(0));
                tokio::spawn(async move {
                    assert!(matches!(
                        subscriber.next().await,
                        SubscriberEvent::Attached { .. }
                    ));
                })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap();
        }
        assert!(begin.elapsed() >= Duration::from_millis(990));
        assert_eq!(node.state().follows.len(), 2000);
    });
}
