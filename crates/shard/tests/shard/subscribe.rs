//! What readers get: everything, once, in order.

use std::time::Duration;

use everwire_core::command::Op;
use everwire_core::limits::{FEED_BYTES_MAX, HEARTBEAT_EVERY, READ_BYTES_MAX};
use everwire_core::{Code, Cursor, Outcome, SessionEpoch, SessionNo};
use everwire_shard::{Answer, Delivery};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_arrives_densely() {
    let world = World::new(2).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "first"))).await;
    let mut subscription = subscribe(&shard, "s").await;
    let mut pending = Vec::new();
    for number in 2..=300 {
        pending.push(shard.submit(app("s", &number.to_string())));
    }
    let events = read_to(&mut subscription, 300).await;
    assert_eq!(events.len(), 300);
    for (event, expected) in events.iter().zip(1..).skip(1) {
        assert_eq!(text(event), expected.to_string());
    }
    for (pending, expected) in pending.into_iter().zip(2..) {
        assert_eq!(posted(pending).await, at(expected));
    }
    world.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_joins_in_the_middle_misses_nothing() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "0"))).await;
    let publisher = {
        let shard = shard.clone();
        tokio::spawn(async move {
            for number in 1..1_000 {
                posted(shard.submit(app("s", &number.to_string()))).await;
            }
        })
    };
    let mut readers = Vec::new();
    for late in [0, 3, 10, 30] {
        tokio::time::sleep(Duration::from_millis(late)).await;
        let mut subscription = subscribe(&shard, "s").await;
        readers.push(tokio::spawn(async move {
            let events = read_to(&mut subscription, 1_000).await;
            events
                .iter()
                .map(|event| text(event).to_owned())
                .collect::<Vec<_>>()
        }));
    }
    publisher.await.unwrap();
    let expected: Vec<_> = (0..1_000).map(|number: u32| number.to_string()).collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_reader_falls_back_to_the_disk_and_sees_all() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "first"))).await;
    let mut subscription = subscribe(&shard, "s").await;
    read_to(&mut subscription, 1).await;
    // Three times what its ring holds, while nobody reads.
    let big = "x".repeat(100 << 10);
    let count = 1 + (3 * FEED_BYTES_MAX / big.len()) as u64;
    for number in 0..count {
        posted(shard.submit(app("s", &format!("{number}-{big}")))).await;
    }
    let first = next_events(&mut subscription).await.unwrap();
    let bytes: usize = first.iter().map(|event| event.payload_bytes()).sum();
    assert!(bytes <= READ_BYTES_MAX, "{bytes}");
    let rest = read_to(&mut subscription, 1 + count).await;
    assert_eq!((first.len() + rest.len()) as u64, count);
    // And it is live again.
    let pending = shard.submit(app("s", "live"));
    let last = read_to(&mut subscription, 2 + count).await;
    assert_eq!(text(&last[0]), "live");
    posted(pending).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_call_of_next_loses_nothing() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "0"))).await;
    let mut subscription = subscribe(&shard, "s").await;
    let publisher = {
        let shard = shard.clone();
        tokio::spawn(async move {
            for number in 1..300 {
                posted(shard.submit(app("s", &number.to_string()))).await;
            }
        })
    };
    let mut seen = 0;
    let mut patience = 0;
    while seen < 300 {
        patience = (patience + 37) % 900;
        let patience = Duration::from_micros(patience);
        let Ok(delivery) = tokio::time::timeout(patience, subscription.next()).await else {
            continue;
        };
        if let Delivery::Events { from, to, .. } = delivery {
            assert_eq!(from, at(seen + 1));
            seen = to.get();
        }
    }
    publisher.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_ends_subscriptions_and_the_next_session_is_another_one() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    for _ in 0..3 {
        posted(shard.submit(app("s", "x"))).await;
    }
    let mut live = subscribe(&shard, "s").await;
    read_to(&mut live, 3).await;
    let behind = subscribe(&shard, "s").await;
    let old = live.session_epoch();
    let deleted = shard
        .propose(command("s", Op::DeleteSession))
        .await
        .unwrap();
    assert_eq!(deleted, Outcome::SessionDeleted { existed: true });
    for mut subscription in [live, behind] {
        for _ in 0..2 {
            let refusal = next_events(&mut subscription).await.unwrap_err();
            assert_eq!(refusal.code, Code::Gone);
        }
    }
    let attached = attach(&shard, "s", None).await.unwrap();
    assert_eq!(attached.answer, Answer::NotFound);
    assert!(attached.subscription.is_none());

    posted(shard.submit(app("s", "anew"))).await;
    let cursor = Cursor {
        session_epoch: Some(old),
        offset: at(1),
    };
    let attached = attach(&shard, "s", Some(cursor)).await.unwrap();
    assert!(
        matches!(attached.answer, Answer::Gone { ahead: false, tail, .. } if tail == at(1)),
        "{attached:?}"
    );
    let mut subscription = subscribe(&shard, "s").await;
    assert_ne!(subscription.session_epoch(), old);
    assert_eq!(text(&read_to(&mut subscription, 1).await[0]), "anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_resume_at_the_next_event_and_foreign_ones_are_gone() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    for number in 1..=5 {
        posted(shard.submit(app("s", &number.to_string()))).await;
    }
    let epoch = subscribe(&shard, "s").await.session_epoch();
    let cursor = |session_epoch, offset| {
        Some(Cursor {
            session_epoch,
            offset: at(offset),
        })
    };
    for offset in 0..=5 {
        for session_epoch in [None, Some(epoch)] {
            let attached = attach(&shard, "s", cursor(session_epoch, offset)).await;
            let attached = attached.unwrap();
            assert!(
                matches!(attached.answer, Answer::Resumed { from, tail, .. }
                    if from == at(offset + 1) && tail == at(5)),
                "{attached:?}"
            );
            let mut subscription = attached.subscription.unwrap();
            let events = read_to(&mut subscription, 5).await;
            assert_eq!(events.len() as u64, 5 - offset);
        }
    }
    let ahead = attach(&shard, "s", cursor(None, 6)).await.unwrap();
    assert!(matches!(ahead.answer, Answer::Gone { ahead: true, .. }));
    let other = SessionEpoch {
        session_no: SessionNo(99),
        ..epoch
    };
    let foreign = attach(&shard, "s", cursor(Some(other), 2)).await.unwrap();
    assert!(matches!(foreign.answer, Answer::Gone { ahead: false, .. }));
    assert!(foreign.subscription.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_says_so_to_readers_and_writers() {
    let world = World::new(2).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "x"))).await;
    let mut subscription = subscribe(&shard, "s").await;
    read_to(&mut subscription, 1).await;
    let last = shard.submit(app("s", "admitted before"));
    world.set().shutdown().await;
    assert_eq!(posted(last).await, at(2));
    let refusal = loop {
        match next_events(&mut subscription).await {
            Ok(_) => {},
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.code, Code::Draining);
    let refused = shard.submit(app("s", "too late")).unwrap_err();
    assert_eq!(refused.code, Code::Draining);
    let refused = attach(&shard, "s", None).await.unwrap_err();
    assert_eq!(refused.code, Code::Draining);
    world.set().shutdown().await;
    world.assert_alive();
}

/// In real time: the apply threads are not the runtime's, so its clock cannot be paused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_broken_by_signs_of_life() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "x"))).await;
    let mut subscription = subscribe(&shard, "s").await;
    read_to(&mut subscription, 1).await;
    let before = tokio::time::Instant::now();
    let delivery = subscription.next().await;
    assert!(
        matches!(delivery, Delivery::Alive { next, tail, leader_seen }
            if next == at(2) && tail == at(1) && leader_seen.is_zero()),
        "{delivery:?}"
    );
    let waited = before.elapsed();
    assert!(
        waited <= HEARTBEAT_EVERY + Duration::from_secs(1),
        "{waited:?}"
    );
}

/// A delete reaches a reader that catches up just then as what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_delete_while_reading_the_disk_is_gone() {
    let world = World::new(1).await;
    for lap in 0..300 {
        let session = format!("s{lap}");
        let shard = world.shard(&session);
        for number in 0..3 {
            posted(shard.submit(app(&session, &number.to_string()))).await;
        }
        let mut readers = Vec::new();
        for _ in 0..8 {
            let (shard, session) = (shard.clone(), session.clone());
            readers.push(tokio::spawn(async move {
                let attached = attach(&shard, &session, None).await.unwrap();
                // Not there any more.
                let mut subscription = attached.subscription?;
                loop {
                    if let Delivery::Ended(refusal) = subscription.next().await {
                        return Some(refusal);
                    }
                }
            }));
        }
        shard
            .propose(command(&session, Op::DeleteSession))
            .await
            .unwrap();
        for reader in readers {
            if let Some(refusal) = reader.await.unwrap() {
                assert_eq!(refusal.code, Code::Gone, "{refusal}");
            }
        }
    }
}
