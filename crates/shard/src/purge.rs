//! The only purge of the logs: what the event DB has durably, and nothing else (RULES 33).
//!
//! openraft purges what a snapshot covers, so each purge is a marker snapshot that says how far
//! the event DB is durable, then the purge up to there. A follower that needs what was purged
//! gets a real snapshot; the bound for lagging followers (4 GiB or 1 h) comes with the peers.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::ids::META_GROUP;
use openraft::async_runtime::WatchReceiver;

use crate::group::Shard;
use crate::meta::Meta;
use crate::raft::machine::MarkerBound;
use crate::raft::types::Raft;
use crate::reads::Reads;
use crate::set::Host;

/// How often the purge looks. What it finds moves only when the event DB was flushed, so there
/// is one purge per flush at most, and one range tombstone per purge (engine, DeleteRange).
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long one marker snapshot may take: a flush of the event DB.
const MARKER_WITHIN: Duration = Duration::from_secs(60);

/// What a purge needs of a group.
pub(crate) struct Purged {
    group: u32,
    raft: Raft,
    marker: Arc<MarkerBound>,
    reads: Reads,
}

impl Purged {
    pub(crate) fn of(shard: &Shard) -> Self {
        Self {
            group: shard.id.0,
            raft: shard.raft.raft(),
            marker: shard.marker.clone(),
            reads: shard.reads.clone(),
        }
    }

    fn of_meta(meta: &Meta, reads: &Reads) -> Self {
        Self {
            group: META_GROUP,
            raft: meta.raft.raft(),
            marker: meta.marker.clone(),
            reads: reads.clone(),
        }
    }
}

/// Purges all groups' logs behind their flushes, until `stop`.
pub(crate) async fn run(host: Arc<Host>) {
    loop {
        tokio::select! {
            () = host.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {},
        }
        let hosted = host.hosted();
        let groups = hosted.iter().map(|shard| Purged::of(shard));
        let meta = Purged::of_meta(&host.meta, &host.shared.reads);
        for group in groups.chain([meta]) {
            if let Err(reason) = purge(&group).await {
                tracing::warn!(group = group.group, %reason, "the log was not purged");
            }
        }
    }
}

/// Purges one shard's log up to what is durably applied. Returns when openraft was told to; the
/// store refuses, and ends the process, if that were too far.
pub(crate) async fn purge(shard: &Purged) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let group = shard.group;
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
