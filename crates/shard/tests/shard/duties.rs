//! What a leader does unasked.

use std::time::Duration;

use everwire_shard::ShardHandle;

use crate::support::*;

/// Waits until the shard applies something that nobody asked for.
async fn unasked(shard: &ShardHandle, what: &str) {
    let before = shard.status().applied;
    let applied = async {
        while shard.status().applied == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let applied = tokio::time::timeout(Duration::from_secs(60), applied).await;
    applied.expect(what);
}

/// A shard that changed is audited by itself; timers fire by themselves, also those that a
/// leader finds on its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audits_and_timers_are_entries_of_the_log() {
    let mut world = World::new(1).await;
    let shard = world.shard("s");
    posted(shard.submit(input("s", "i1"))).await;
    unasked(&shard, "an audit is due after ten seconds").await;
    // Nothing has changed since, so the next one is the timer of the session's keys.
    world.clock.set(26 * 3_600 * 1_000);
    unasked(&shard, "the keys are stale").await;
    let second = posted(shard.submit(input("s", "i2"))).await;
    assert_eq!(second.get(), 2, "nobody's offsets know of it");
    drop(shard);
    world.crash().await;
    let shard = world.shard("s");
    world.clock.set(53 * 3_600 * 1_000);
    // What was replayed is audited too; one entry more is the timer.
    unasked(&shard, "an audit, or the timer that is on the disk").await;
    unasked(&shard, "the other one").await;
    world.assert_alive();
}
