//! Pages, sessions, lists and runs.

use everwire_core::row::RunState;
use everwire_core::{Code, Offset, Seq};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_each_other_to_the_tail() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    let (namespace, name) = (namespace(), name("s"));
    for number in 1..=25 {
        posted(shard.submit(app("s", &number.to_string()))).await;
    }
    let mut from = Offset::ZERO;
    let mut epoch = None;
    let mut seen = 0;
    loop {
        let page = shard
            .read(&namespace, &name, epoch, from, 10)
            .await
            .unwrap();
        assert_eq!(page.tail, at(25));
        let Some(last) = page.events.last() else {
            break;
        };
        for event in &page.events {
            seen += 1;
            assert_eq!(event.offset, at(seen));
        }
        epoch = Some(page.session_epoch);
        from = last.offset.next();
    }
    assert_eq!(seen, 25);
    let all = shard
        .read(&namespace, &name, epoch, at(1), 0)
        .await
        .unwrap();
    assert_eq!(all.events.len(), 25);
    let above = shard.read(&namespace, &name, None, at(27), 0).await;
    assert_eq!(above.unwrap_err().code, Code::Gone);
    let other = super::support::name("t");
    let none = shard.read(&namespace, &other, None, at(1), 0).await;
    assert_eq!(none.unwrap_err().code, Code::UnknownSession);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_runs_show_how_they_stand() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    let (namespace, name) = (namespace(), name("s"));
    let none = shard.show(&namespace, &name).await.unwrap_err();
    assert_eq!(none.code, Code::UnknownSession);
    shard.propose(start("s", "a")).await.unwrap();
    shard.propose(start("s", "b")).await.unwrap();
    let batch = publish("s", "a", 1, &["one".into(), "two".into()]);
    published(shard.propose(batch).await.unwrap()).unwrap();
    shard.propose(cancel("s", "b")).await.unwrap();
    let subscription = subscribe(&shard, "s").await;
    let info = shard.show(&namespace, &name).await.unwrap();
    assert_eq!(info.open_runs, [run_id("a")]);
    assert_eq!(info.attachments, 1);
    assert_eq!(info.tail, at(6));
    assert!(info.bytes > 0);
    drop(subscription);
    let info = shard.show(&namespace, &name).await.unwrap();
    assert_eq!(info.attachments, 0);

    let live = shard.run(&namespace, &name, &run_id("a")).await.unwrap();
    assert_eq!((live.state, live.ended), (RunState::Running, None));
    assert_eq!((live.last_seq, live.last_offset), (Seq(2), at(4)));
    let over = shard.run(&namespace, &name, &run_id("b")).await.unwrap();
    assert_eq!((over.state, over.ended), (RunState::Cancelled, Some(at(5))));
    let none = shard
        .run(&namespace, &name, &run_id("c"))
        .await
        .unwrap_err();
    assert_eq!(none.code, Code::UnknownRun);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_paged_by_shard() {
    let world = World::new(3).await;
    let namespace = namespace();
    let mut made = Vec::new();
    for number in 0..40 {
        let session = format!("{}-{number}", if number % 2 == 0 { "even" } else { "odd" });
        posted(world.shard(&session).submit(app(&session, "x"))).await;
        made.push(session);
    }
    for prefix in ["", "even-", "odd-1"] {
        let mut listed = Vec::new();
        for shard in world.set().shards() {
            let mut after = None;
            loop {
                let page = shard
                    .list(&namespace, prefix, after.as_ref(), 4)
                    .await
                    .unwrap();
                let Some(last) = page.last() else {
                    break;
                };
                after = Some(last.session.clone());
                for session in page {
                    assert_eq!((session.shard, session.tail), (shard.id(), at(1)));
                    listed.push(session.session.to_string());
                }
            }
        }
        let wanted = made.iter().filter(|name| name.starts_with(prefix));
        let mut wanted: Vec<_> = wanted.cloned().collect();
        wanted.sort();
        listed.sort();
        assert_eq!(listed, wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_of_one_voter_leads_itself() {
    let world = World::new(4).await;
    for shard in world.set().shards() {
        let status = shard.status();
        assert_eq!(status.leader, Some(everwire_core::NodeId(1)));
        assert_eq!(status.replicas, [everwire_core::NodeId(1)]);
        assert!(status.term >= 1);
        assert!(status.applied >= 1 && status.committed >= status.applied);
    }
}
