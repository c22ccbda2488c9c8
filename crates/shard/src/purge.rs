//! The only purge of the logs: what the event DB has durably, and nothing else (RULES 33).
//!
//! openraft purges what a snapshot covers, so each purge is a marker snapshot that says how far
//! the event DB is durable, then the purge up to there. A follower that needs what was purged
//! gets a real snapshot; the bound for lagging followers (4 GiB or 1 h) comes with the peers.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio_util::sync::CancellationToken;

use crate::group::Shard;

/// How often the purge looks. What it finds moves only when the event DB was flushed, so there
/// is one purge per flush at most, and one range tombstone per purge (engine, DeleteRange).
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long one marker snapshot may take: a flush of the event DB.
const MARKER_WITHIN: Duration = Duration::from_secs(60);

/// Purges all shards' logs behind their flushes, until `stop`.
pub(crate) async fn run(shards: Vec<Arc<Shard>>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {},
        }
        for shard in &shards {
            if let Err(reason) = purge(shard).await {
                tracing::warn!(shard = %shard.id, %reason, "the log was not purged");
            }
        }
    }
}

/// Purges one shard's log up to what is durably applied. Returns when openraft was told to; the
/// store refuses, and ends the process, if that were too far.
pub(crate) async fn purge(shard: &Shard) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let group = shard.id.0;
    let durable = shard
        .reads
        .run(move |store| Ok(store.durable_applied(group)));
    let Some(durable) = durable.await.map_err(|refusal| text(&refusal))? else {
        return Ok(());
    };
    let purged = shard.raft.metrics().borrow_watched().purged;
    if purged.is_some_and(|purged| purged.index() >= durable.index) {
        return Ok(());
    }
    shard.marker.set(durable.index);
    let trigger = shard.raft.trigger();
    trigger.snapshot().await.map_err(|error| text(&error))?;
    let covers = move |metrics: &openraft::RaftMetrics<_>| {
        let snapshot: Option<crate::raft::types::LogId> = metrics.snapshot;
        snapshot.is_some_and(|snapshot| snapshot.index() >= durable.index)
    };
    let wait = shard.raft.wait(Some(MARKER_WITHIN));
    let covered = wait.metrics(covers, "a marker snapshot").await;
    covered.map_err(|error| text(&error))?;
    let purged = trigger.purge_log(durable.index).await;
    purged.map_err(|error| text(&error))
}
