//! A replica that cannot be trusted any more is made anew from the leader's rows (RULES 35).
//!
//! ```text
//!   found ─▶ hands over ─▶ out of service ─▶ fetches ─▶ Raft stops ─▶ installs ─▶ Raft starts
//!            (if it leads)  (readers: STALE)      ▲          │
//!                                                 └──────────┘ diverged, or its Raft has died:
//!                                                              stopped and dropped first
//! ```
//!
//! Log and vote are kept throughout: throwing them away under the same id would forget what was
//! acked. A replica that only lost some rows goes on voting until it has what it needs, so that
//! two of three that are rebuilt at once do not wait for each other's vote.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use everwire_core::ids::META_GROUP;
use everwire_core::{Code, NodeId, Refusal, ShardId};
use everwire_store::{LogPosition, SnapshotReader, Store, StoreError};
use openraft::async_runtime::WatchReceiver;
use tokio::task::JoinSet;

use crate::damage::Why;
use crate::group::Shard;
use crate::host::Host;
use crate::meters::one_more;
use crate::peer::{Links, fetch};
use crate::set::OpenError;
use crate::wait::on_disk;

/// How soon a step that did not go through is tried again.
const TRY_EVERY: Duration = Duration::from_millis(250);
/// How soon it is looked whether rows were lost that nobody asks for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Every so many tries it is said that there is still nothing.
const TELL_EVERY: u32 = 40;

/// Rebuilds whatever is found, until it is dropped.
pub(crate) async fn run(host: Arc<Host>) {
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            () = host.stop.cancelled() => return,
            (group, why) = host.shared.damages.next() => {
                let host = host.clone();
                under_way.spawn(async move { one(&host, ShardId(group), &why).await });
            },
            Some(_ended) = under_way.join_next() => {},
            () = tokio::time::sleep(LOOK_EVERY) => report_lost(&host),
        }
    }
}

/// Takes up the shards whose rows went with the whole event DB: of a quiet one nobody else tells.
fn report_lost(host: &Host) {
    for error in host.shared.store.damaged() {
        if let StoreError::DamagedRows { group, .. } = &error
            && host.local(ShardId(*group)).is_some()
        {
            host.shared.damages.note(&error);
        }
    }
}

async fn one(host: &Host, id: ShardId, why: &Why) {
    tracing::info!(shard = %id, reason = %why, "a shard is rebuilt");
    let rebuild = Rebuild { host, id, why };
    let rebuilt = rebuild.run().await;
    let is_back = matches!(rebuilt, Ok(Some(_)));
    host.shared.damages.finished(id.0, is_back);
    match rebuilt {
        Ok(Some(index)) => {
            tracing::info!(shard = %id, index, reason = %why, "a shard is rebuilt and served again");
        },
        Ok(None) => tracing::info!(shard = %id, "the shard is held elsewhere now"),
        Err(reason) => {
            let reason = format!("shard {id} cannot be rebuilt: {reason}");
            (host.shared.on_fatal)(&reason);
        },
    }
}

struct Rebuild<'h> {
    host: &'h Host,
    id: ShardId,
    why: &'h Why,
}

impl Rebuild<'_> {
    /// Answers where the replica stands then; `None`: the shard is not this node's any more. An
    /// error ends the process.
    async fn run(&self) -> Result<Option<u64>, String> {
        let mut told = 0_u32;
        loop {
            if !self.is_ours() {
                self.host.unhost(self.id).await;
                return Ok(None);
            }
            match self.attempt().await? {
                Ok(index) => return Ok(Some(index)),
                Err(reason) => {
                    if told.is_multiple_of(TELL_EVERY) {
                        tracing::info!(shard = %self.id, %reason, "a shard is not rebuilt yet");
                    }
                    told += 1;
                },
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }

    fn is_ours(&self) -> bool {
        let topology = self.host.meta.topology();
        let placement = topology.placement(self.id);
        placement.is_none_or(|placement| placement.replicas.contains(&self.host.identity.node))
    }

    /// One try. The inner error is for another one.
    async fn attempt(&self) -> Result<Result<u64, String>, String> {
        if let Some(shard) = self.host.replica(self.id) {
            if let Err(reason) = self.step_down(&shard).await {
                return Ok(Err(reason));
            }
            let message = "this replica is being rebuilt from another";
            shard.take_out_of_service(&Refusal::new(Code::Stale, message));
            if matches!(self.why, Why::Diverged { .. }) {
                // Marked on disk: whatever happens now, this is never served again.
                self.stop(&shard).await;
                self.drop_rows().await?;
            }
        }
        let reader = match self.fetch().await {
            Ok(reader) => reader,
            Err(reason) => return Ok(Err(reason)),
        };
        if let Some(shard) = self.host.replica(self.id) {
            self.stop(&shard).await;
        }
        let (store, group) = (&self.host.shared.store, self.id.0);
        let installed = on_disk(store, move |store| install(&**store, group, reader)).await;
        let installed = installed.map_err(|error| error.to_string())?;
        let index = match installed.map_err(|error| error.to_string())? {
            Ok(index) => index,
            Err(reason) => return Ok(Err(reason)),
        };
        one_more(&self.host.shared.counts.snapshots_installed);
        match self.host.open_replica(self.id, None).await {
            Ok(()) => Ok(Ok(index)),
            Err(error @ OpenError::Store(StoreError::DamagedRows { .. })) => {
                Ok(Err(error.to_string()))
            },
            Err(error) => Err(error.to_string()),
        }
    }

    /// Lets somebody else lead who is not wrong as well.
    async fn step_down(&self, shard: &Shard) -> Result<(), String> {
        if shard.applier.is_wounded() || !shard.leadership.leads() {
            return Ok(());
        }
        let voters: Vec<u64> = {
            let metrics = shard.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().voter_ids().collect()
        };
        let others = voters.into_iter().map(NodeId);
        let others = others.filter(|node| *node != self.host.identity.node && self.is_good(*node));
        for node in others.filter(|node| self.host.is_alive(*node, Duration::from_secs(1))) {
            match shard.hand_over(Some(node)).await {
                Ok(leader) => {
                    tracing::info!(shard = %self.id, %leader, "another node leads while the shard is rebuilt");
                    return Ok(());
                },
                Err(refusal) => {
                    tracing::info!(shard = %self.id, %node, %refusal, "a node did not take the leadership");
                },
            }
        }
        Err("it leads, and nobody can lead instead".to_owned())
    }

    /// Whether a node's rows may be copied.
    fn is_good(&self, node: NodeId) -> bool {
        match self.why {
            Why::Damaged(_) => true,
            Why::Diverged { wrong, .. } => !wrong.contains(&node),
        }
    }

    /// The leader's rows; whoever is asked says whether it leads.
    async fn fetch(&self) -> Result<Box<dyn SnapshotReader>, String> {
        let me = self.host.identity.node;
        let topology = self.host.meta.topology();
        let placement = topology.placement(self.id);
        let replicas = placement.map(|placement| placement.replicas.clone());
        let leader = self.host.leader_of(self.id);
        let mut asked = Vec::new();
        let mut reasons = String::new();
        for node in leader.into_iter().chain(replicas.unwrap_or_default()) {
            if node == me || !self.is_good(node) || asked.contains(&node) {
                continue;
            }
            asked.push(node);
            let shared = &self.host.shared;
            match fetch(&shared.links, &shared.store, self.id.0, node.0).await {
                Ok(reader) => return Ok(reader),
                Err(reason) => reasons.push_str(&format!(" node {node}: {reason};")),
            }
        }
        Err(format!("nobody gave its rows:{reasons}"))
    }

    /// Ends the replica's Raft; when this returns, nothing applies or installs any more.
    async fn stop(&self, shard: &Arc<Shard>) {
        self.host.unhost(self.id).await;
        let applier = shard.applier.clone();
        let store = &self.host.shared.store;
        if let Err(error) = on_disk(store, move |_store| applier.retire()).await {
            tracing::error!(shard = %self.id, %error, "a replica did not end well");
        }
    }

    async fn drop_rows(&self) -> Result<(), String> {
        let (store, group) = (&self.host.shared.store, self.id.0);
        let dropped = on_disk(store, move |store| store.drop_rows(group)).await;
        let dropped = dropped.map_err(|error| error.to_string())?;
        dropped.map_err(|error| error.to_string())
    }
}

/// Replaces a group's rows by fetched ones; its Raft must be stopped. Answers where they stand.
/// The inner error is for another try with other rows. Waits for the disk.
fn install(
    store: &dyn Store,
    group: u32,
    mut reader: Box<dyn SnapshotReader>,
) -> Result<Result<u64, String>, StoreError> {
    let Some(applied) = reader.applied().cloned() else {
        return Ok(Err("the rows came without an applied row".to_owned()));
    };
    let at = applied.position;
    if let Some(reason) = falls_short(store, group, at)? {
        return Ok(Err(reason));
    }
    let cut = cut_conflict(store, group, at)?;
    let mut install = store.install(group)?;
    if let Some(cut) = cut {
        // One FIFO: what the install waited for stood behind the cut.
        cut.recv()
            .map_err(|error| StoreError::Io(format!("the log's writer ended: {error}")))??;
    }
    loop {
        let taken = reader.next_chunk().and_then(|chunk| match chunk {
            Some(chunk) => install.chunk(chunk).map(|()| true),
            None => Ok(false),
        });
        match taken {
            Ok(true) => {},
            Ok(false) => break,
            // What fetched rows read back as is the transfer's failure; the disk's own failures
            // have ended the process already.
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
    match install.finish(applied) {
        // Lost again, with the whole event DB.
        Err(error @ StoreError::DamagedRows { .. }) => Ok(Err(error.to_string())),
        finished => finished.map(|()| Ok(at.index)),
    }
}

/// Why rows that stand at `at` do not do: the log must bring them to where this replica was. What
/// was applied above them is in the log, and is applied again.
fn falls_short(
    store: &dyn Store,
    group: u32,
    at: LogPosition,
) -> Result<Option<String>, StoreError> {
    let log = store.log_state(group)?;
    let purged = log.purged.map(|purged| purged.index);
    if purged > Some(at.index) {
        let reason = format!("the rows stand at {at}, the log is purged up to {purged:?}");
        return Ok(Some(reason));
    }
    let before = match store.applied(group) {
        Ok(before) => before.map(|before| before.position.index),
        Err(StoreError::DamagedRows { .. }) => None,
        Err(error) => return Err(error),
    };
    let last = log.last.map(|last| last.index);
    if before > Some(at.index) && before > last {
        let reason = format!("the rows stand at {at}, this replica had applied {before:?}");
        return Ok(Some(reason));
    }
    Ok(None)
}

/// Removes what an earlier leader appended in the place of what was committed: the end of this
/// log from `at` on, if it has another entry there. None of it was ever committed.
/// Answers where the store's answer will be.
fn cut_conflict(
    store: &dyn Store,
    group: u32,
    at: LogPosition,
) -> Result<Option<Receiver<Result<(), StoreError>>>, StoreError> {
    let log = store.log_state(group)?;
    let held = log.last.is_some_and(|last| last.index >= at.index)
        && log.purged.is_none_or(|purged| purged.index < at.index);
    if !held {
        return Ok(None);
    }
    let found = store.read_log(group, at.index..at.index + 1, usize::MAX)?;
    let found = found.first().map(|record| record.position.term);
    if found == Some(at.term) {
        return Ok(None);
    }
    tracing::info!(group, %at, ?found, "the log's end was never committed: it is cut");
    let (done, cut) = sync_channel(1);
    let done = Box::new(move |result| {
        // Nobody waits any more if the install failed.
        drop(done.send(result));
    });
    store.truncate_after(group, at.index.checked_sub(1), done);
    Ok(Some(cut))
}

// === The metadata group ===

/// The metadata group of this node computed something else than a majority: its rows are replaced
/// by those of a node that is right, and the process begins anew with them, because everything
/// that runs here goes by what they say. If nobody gives them in time it begins anew all the same:
/// with its rows dropped it replays its log, or asks again.
pub(crate) async fn metadata_anew(host: &Host, index: u64, wrong: &BTreeSet<NodeId>) {
    tracing::error!(
        index,
        "the metadata group here computed something else than a majority: it is made anew"
    );
    host.door.groups.remove(META_GROUP);
    // Wounded first: its Raft's end is no fault then.
    let applier = host.meta.applier.clone();
    let store = &host.shared.store;
    let dropped = on_disk(store, move |store| {
        applier.retire();
        store.drop_rows(META_GROUP)
    });
    let ended = match dropped.await {
        Ok(Ok(())) => {
            host.meta.raft.stop().await;
            let topology = host.meta.topology();
            let nodes = topology.nodes.keys();
            let good = nodes.filter(|node| **node != host.identity.node && !wrong.contains(node));
            let nodes: Vec<u64> = good.map(|node| node.0).collect();
            fetched_in_time(host, &nodes).await
        },
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    (host.shared.on_fatal)(&format!(
        "the metadata group here computed something else than a majority up to {index}; {ended}"
    ));
}

/// What came of fetching the metadata group's rows, in words.
async fn fetched_in_time(host: &Host, nodes: &[u64]) -> String {
    let mut last = String::new();
    for _ in 0..TELL_EVERY {
        match metadata(&host.shared.links, &host.shared.store, nodes).await {
            Ok(Ok(at)) => return format!("another node's rows stand at {at}: start it again"),
            Ok(Err(reason)) => last = reason,
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
    format!("its rows are dropped, start it again; {last}")
}

/// Fetches the metadata group's rows from whichever of `nodes` leads it, and installs them.
/// The inner error is for another try.
pub(crate) async fn metadata(
    links: &Links,
    store: &Arc<dyn Store>,
    nodes: &[u64],
) -> Result<Result<u64, String>, StoreError> {
    let mut reasons = String::new();
    for node in nodes {
        let reader = match fetch(links, store, META_GROUP, *node).await {
            Ok(reader) => reader,
            Err(reason) => {
                reasons.push_str(&format!(" node {node}: {reason};"));
                continue;
            },
        };
        let install = move |store: &Arc<dyn Store>| install(&**store, META_GROUP, reader);
        let installed = on_disk(store, install).await;
        return installed.map_err(|error| StoreError::Io(error.to_string()))?;
    }
    Ok(Err(format!("nobody gave its rows:{reasons}")))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use everwire_core::Timestamp;
    use everwire_store::sim::{SimDisk, SimStore};
    use everwire_store::{Applied, ApplyWrite, Identity, LogRecord, OpenOptions};

    use super::*;

    const GROUP: u32 = 0;

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition {
            term,
            node: 0,
            index,
        }
    }

    fn applied(position: LogPosition) -> Applied {
        Applied {
            position,
            membership: Bytes::new(),
            membership_position: None,
            time: Timestamp(0),
            rules_version: 1,
            state: Bytes::new(),
            audit_hash: 7,
        }
    }

    /// A store whose log has entries of term 1, purged and applied up to some.
    fn store(last: u64, purged: Option<u64>, applied_to: u64) -> Arc<dyn Store> {
        let identity = Identity {
            shards: 1,
            ..Identity::new("test", NodeId(1))
        };
        let fatal = Arc::new(|reason: &str| panic!("{reason}"));
        let options = OpenOptions::create(identity, fatal);
        let store = SimStore::open(&SimDisk::new(), options).unwrap();
        let records = (1..=last).map(|index| LogRecord {
            position: at(1, index),
            bytes: Bytes::from_static(b"entry"),
        });
        let done = || Box::new(|result: Result<(), StoreError>| result.unwrap());
        store.append(GROUP, records.collect(), done());
        let write = ApplyWrite {
            rows: std::collections::BTreeMap::new(),
            events: Vec::new(),
            erased: Vec::new(),
            applied: applied(at(1, applied_to)),
        };
        store.write(GROUP, write).unwrap();
        store.flush().unwrap();
        if let Some(purged) = purged {
            store.purge(GROUP, at(1, purged), done());
        }
        store
    }

    /// Rows that stand at `position`, as they arrive.
    fn fetched(store: &dyn Store, position: LogPosition) -> Box<dyn SnapshotReader> {
        let spool = store.spool(GROUP, applied(position)).unwrap();
        spool.finish().unwrap()
    }

    fn install_at(store: &Arc<dyn Store>, position: LogPosition) -> Result<u64, String> {
        let reader = fetched(&**store, position);
        install(&**store, GROUP, reader).unwrap()
    }

    #[test]
    fn rows_below_the_purge_or_out_of_the_logs_reach_are_not_taken() {
        let purged = store(9, Some(5), 7);
        assert!(install_at(&purged, at(1, 4)).is_err());
        assert_eq!(purged.applied(GROUP).unwrap(), Some(applied(at(1, 7))));
        // What was applied above them is in the log.
        assert_eq!(install_at(&purged, at(1, 5)), Ok(5));
        assert_eq!(purged.applied(GROUP).unwrap(), Some(applied(at(1, 5))));
        // A follower may have applied what its own log had not synced.
        let ahead = store(3, None, 6);
        assert!(install_at(&ahead, at(1, 5)).is_err());
        assert_eq!(install_at(&ahead, at(1, 6)), Ok(6));
    }

    #[test]
    fn an_end_of_the_log_that_was_never_committed_is_cut() {
        for (position, last) in [
            // The log goes on from where the rows stand.
            (at(1, 7), Some(9)),
            // Above its end: nothing to cut.
            (at(2, 12), Some(9)),
            // Another leader's entry stands there.
            (at(2, 7), Some(6)),
            (at(2, 9), Some(8)),
            (at(2, 4), None),
        ] {
            let store = store(9, Some(3), 3);
            assert_eq!(install_at(&store, position), Ok(position.index));
            let found = store.log_state(GROUP).unwrap();
            assert_eq!(found.purged, Some(at(1, 3)));
            let expected = last.unwrap_or(3);
            assert_eq!(found.last.map(|last| last.index), Some(expected));
        }
    }
}
