//! The only purge of the logs: what the event DB has durably, and what no other member needs
//! any more (RULES 33).
//!
//! openraft purges what a snapshot covers, so each purge is a marker snapshot that says how far
//! the event DB is durable, then the purge up to there. What a member lacks is kept for it on
//! every replica, because any of them may lead next, but not for ever: past the bounds of
//! [`Kept`] it is purged all the same, and the member gets a real snapshot.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::NodeId;
use everwire_core::ids::META_GROUP;
use everwire_core::limits::{LOG_KEPT_BYTES_MAX, LOG_KEPT_FOR};
use openraft::async_runtime::WatchReceiver;

use crate::group::Shard;
use crate::host::Host;
use crate::meta::Meta;
use crate::raft::machine::MarkerBound;
use crate::raft::types::Raft;
use crate::reads::Reads;

/// How often the purge looks. What it finds moves only when the event DB was flushed, so there
/// is one purge per flush at most, and one range tombstone per purge (engine, DeleteRange).
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long one marker snapshot may take: a flush of the event DB.
const MARKER_WITHIN: Duration = Duration::from_secs(60);

/// How much log is kept for members that lag or are away.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Bytes, all groups together.
    pub bytes: u64,
    /// How long a member may be silent.
    pub time: Duration,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            bytes: LOG_KEPT_BYTES_MAX,
            time: LOG_KEPT_FOR,
        }
    }
}

/// What a purge needs of a group.
pub(crate) struct Purged {
    group: u32,
    /// The last entry that every other member has, as far as is known; what lies above is kept
    /// while the bounds allow it.
    needed_above: u64,
    /// The bytes that this group may keep for others.
    kept_bytes: u64,
    raft: Raft,
    marker: Arc<MarkerBound>,
    reads: Reads,
}

impl Purged {
    pub(crate) fn of(host: &Host, shard: &Shard) -> Self {
        Self {
            group: shard.id.0,
            needed_above: needed_above(host, shard.id.0, &shard.raft.raft()),
            kept_bytes: kept_bytes(host),
            raft: shard.raft.raft(),
            marker: shard.marker.clone(),
            reads: shard.reads.clone(),
        }
    }

    fn of_meta(host: &Host, meta: &Meta, reads: &Reads) -> Self {
        Self {
            group: META_GROUP,
            needed_above: needed_above(host, META_GROUP, &meta.raft.raft()),
            kept_bytes: kept_bytes(host),
            raft: meta.raft.raft(),
            marker: meta.marker.clone(),
            reads: reads.clone(),
        }
    }
}

fn kept_bytes(host: &Host) -> u64 {
    host.kept.bytes / (u64::from(host.identity.shards) + 1)
}

/// The last entry that every other member has applied. A member that was silent for too long is
/// not waited for; one that has not been heard since this node started is.
fn needed_above(host: &Host, group: u32, raft: &Raft) -> u64 {
    let members: Vec<NodeId> = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.nodes();
        members.map(|(node, _)| NodeId(*node)).collect()
    };
    let others = members
        .into_iter()
        .filter(|node| *node != host.identity.node);
    let awaited = others.filter(|node| {
        let silent = host.shared.links.silent_for(node.0);
        silent.unwrap_or_else(|| host.started.elapsed()) < host.kept.time
    });
    let applied = awaited.map(|node| {
        let report = host.report_of(node);
        let replicas = report.map(|report| report.replicas).unwrap_or_default();
        let replica = replicas.into_iter().find(|replica| replica.group == group);
        replica.map_or(0, |replica| replica.applied)
    });
    applied.min().unwrap_or(u64::MAX)
}

/// Purges all groups' logs behind their flushes, until `stop`.
pub(crate) async fn run(host: Arc<Host>) {
    loop {
        tokio::select! {
            () = host.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {},
        }
        let hosted = host.hosted();
        let groups = hosted.iter().map(|shard| Purged::of(&host, shard));
        let meta = Purged::of_meta(&host, &host.meta, &host.shared.reads);
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
    let (group, kept) = (shard.group, shard.kept_bytes);
    let looked = shard.reads.run(move |store| {
        let beyond = store.log_beyond(group, kept);
        Ok(store
            .durable_applied(group)
            .map(|durable| (durable, beyond)))
    });
    let Some((durable, beyond)) = looked.await.map_err(|refusal| text(&refusal))? else {
        return Ok(());
    };
    // Durable is the bound that is never passed; below it, what others still lack is kept.
    let wanted = shard.needed_above.max(beyond.unwrap_or_default());
    let upto = durable.index.min(wanted);
    if upto == 0 {
        return Ok(());
    }
    let purged = shard.raft.metrics().borrow_watched().purged;
    if purged.is_some_and(|purged| purged.index() >= upto) {
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
    let purged = trigger.purge_log(upto).await;
    tracing::debug!(group, upto, durable = durable.index, "the log was purged");
    purged.map_err(|error| text(&error))
}
