//! Crashes: what was acked is there again, at its place, with its bytes.

use everwire_core::Code;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acked_survives_crashes() {
    const LOOPS: u64 = 10;
    const EACH: u64 = 100;
    let mut world = World::new(2).await;
    for lap in 0..LOOPS {
        let shard = world.shard("s");
        let mut pending = Vec::new();
        for number in 0..EACH {
            let text = format!("{}", lap * EACH + number + 1);
            pending.push(shard.submit(app("s", &text)));
        }
        for (pending, number) in pending.into_iter().zip(1..) {
            assert_eq!(posted(pending).await, at(lap * EACH + number));
        }
        world.assert_alive();
        world.crash().await;
        let shard = world.shard("s");
        let mut subscription = subscribe(&shard, "s").await;
        let events = read_to(&mut subscription, (lap + 1) * EACH).await;
        for event in events {
            assert_eq!(text(&event), event.offset.to_string());
        }
    }
    let (namespace, name) = (namespace(), name("s"));
    let info = world.shard("s").show(&namespace, &name).await.unwrap();
    assert_eq!(info.tail, at(LOOPS * EACH));
}

/// Acks race with the plug: an ack that was given before it counts, whatever else is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_under_load_keeps_what_was_acked() {
    let mut world = World::new(1).await;
    let mut acked: Vec<(u64, String)> = Vec::new();
    for lap in 0..10 {
        let shard = world.shard("s");
        let writer = tokio::spawn(async move {
            let mut acked = Vec::new();
            for number in 0.. {
                let text = format!("{lap}-{number}");
                let Ok(pending) = shard.submit(app("s", &text)) else {
                    break;
                };
                match pending.await {
                    Ok(everwire_core::Outcome::Posted { offset, .. }) => {
                        acked.push((offset.get(), text));
                    },
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => break,
                }
            }
            acked
        });
        tokio::time::sleep(std::time::Duration::from_millis(20 + 7 * lap)).await;
        if lap % 3 == 1 {
            world.set().purge_logs().await.unwrap();
        }
        match lap % 2 {
            0 => world.crash().await,
            _ => world.crash_keeping(lap).await,
        }
        acked.extend(writer.await.unwrap());
        let shard = world.shard("s");
        posted(shard.submit(app("s", "after"))).await;
        let info = shard.show(&namespace(), &name("s")).await.unwrap();
        let mut subscription = subscribe(&shard, "s").await;
        let events = read_to(&mut subscription, info.tail.get()).await;
        for (offset, expected) in &acked {
            let index = usize::try_from(*offset - 1).unwrap();
            assert_eq!(text(&events[index]), expected, "at {offset}");
        }
    }
    assert!(acked.len() > 100, "only {} acks", acked.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_log_opens_again_with_everything() {
    let mut world = World::new(2).await;
    let mut expected = 0;
    for lap in 1..=3 {
        for _ in 0..50 {
            expected += 1;
            let shard = world.shard("s");
            assert_eq!(
                posted(shard.submit(app("s", &lap.to_string()))).await,
                at(expected)
            );
        }
        world.set().purge_logs().await.unwrap();
        let shard = world.shard("s");
        // The purge is queued behind nothing; it shows within moments.
        let purged = async {
            while shard.status().purged + 3 < shard.status().applied {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(10), purged).await;
        assert!(waited.is_ok(), "{:?}", shard.status());
        // Some that only the log has.
        for _ in 0..5 {
            expected += 1;
            assert_eq!(posted(shard.submit(app("s", "tail"))).await, at(expected));
        }
        world.assert_alive();
        world.crash().await;
        let shard = world.shard("s");
        let mut subscription = subscribe(&shard, "s").await;
        assert_eq!(
            read_to(&mut subscription, expected).await.len() as u64,
            expected
        );
    }
    world.assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_time_never_goes_back() {
    let mut world = World::new(1).await;
    let times = [5_000, 9_000, 2_000, 2_001, 9_500, 1];
    let shard = world.shard("s");
    for (lap, time) in times.into_iter().enumerate() {
        world.clock.set(time);
        posted(shard.submit(app("s", &lap.to_string()))).await;
    }
    drop(shard);
    // Not even over a crash, with a clock that was set back meanwhile.
    world.crash().await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "after"))).await;
    let mut subscription = subscribe(&shard, "s").await;
    let events = read_to(&mut subscription, 7).await;
    let times: Vec<_> = events.iter().map(|event| event.time.0).collect();
    assert_eq!(times, [5_000, 9_000, 9_000, 9_000, 9_500, 9_500, 9_500]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_ends_the_process_and_acks_nothing() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "before"))).await;
    world.disk.fail_next_sync();
    let refusal = shard.propose(app("s", "lost")).await.unwrap_err();
    assert_eq!(refusal.code, Code::Internal);
    assert!(!world.fatal.lock().unwrap().is_empty());
    // Whoever comes later is told so, and nobody waits for ever.
    for _ in 0..3 {
        let again = shard.propose(app("s", "later")).await;
        assert!(again.is_err(), "{again:?}");
    }
}

/// What was purged is nowhere but in the event DB. If that went back behind the purge (a drive
/// that lied about a sync, a restored directory), what it lost must not be stepped over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_from_before_the_purge_are_not_served() {
    let mut world = World::new(1).await;
    for lap in 0..2 {
        let older = world.disk.image();
        for number in 0..50 {
            let shard = world.shard("s");
            let text = format!("{lap}-{number}");
            assert_eq!(
                posted(shard.submit(app("s", &text))).await,
                at(lap * 50 + number + 1)
            );
        }
        world.set().purge_logs().await.unwrap();
        let shard = world.shard("s");
        let purged = async {
            while shard.status().purged + 3 < shard.status().applied {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(10), purged).await;
        assert!(waited.is_ok(), "{:?}", shard.status());

        let behind = World::on(older, 1);
        behind.disk.restore_log(&world.disk);
        let opened = behind.try_open().await;
        let error = opened.err().expect("the events up to the purge are lost");
        assert!(error.to_string().contains("purged"), "{error}");
    }
    world.crash().await;
    assert_eq!(
        posted(world.shard("s").submit(app("s", "next"))).await,
        at(101)
    );
}
