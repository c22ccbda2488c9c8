//! What a leader does unasked.

use std::time::Duration;

use crate::support::*;

/// A shard that changed is audited by itself, by an entry of its log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_changed_is_audited() {
    let world = World::new(1).await;
    let shard = world.shard("s");
    posted(shard.submit(app("s", "a change"))).await;
    let asked = shard.status().applied;
    let audited = async {
        while shard.status().applied == asked {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let audited = tokio::time::timeout(Duration::from_secs(60), audited).await;
    audited.expect("an audit is due after ten seconds");
    // Nobody's offsets know of it.
    let after = posted(shard.submit(app("s", "another"))).await;
    assert_eq!(after.get(), 2);
    world.assert_alive();
}
