//! What all tasks of a node share: its groups, the way to them, and what others said of theirs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use everwire_core::limits::DEAD_AFTER;
use everwire_core::topology::MemberState;
use everwire_core::{Code, Command, Details, NodeId, Refusal, ShardId};
use everwire_proto::internal_v1 as wire;
use everwire_store::{Identity, StoreError};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::damage::Why;
use crate::formation::About;
use crate::group::{Shard, Shared, Tasks};
use crate::meta::Meta;
use crate::meters::{Meters, NodeReport, PeerMeters};
use crate::peer::{Door, GroupEntry};
use crate::purge::Kept;
use crate::raft::types::Peer;
use crate::set::OpenError;
use crate::space;

/// What every task of a node's shards shares.
pub(crate) struct Host {
    pub(crate) shared: Shared,
    pub(crate) identity: Identity,
    pub(crate) about: About,
    pub(crate) door: Arc<Door>,
    pub(crate) meta: Arc<Meta>,
    pub(crate) formation: Option<wire::Formation>,
    pub(crate) shards: RwLock<BTreeMap<u32, Arc<Shard>>>,
    pub(crate) tasks: Mutex<BTreeMap<u32, Tasks>>,
    pub(crate) kept: Kept,
    pub(crate) scrub_every: Duration,
    pub(crate) started: Instant,
    /// What the other nodes said last.
    pub(crate) reports: RwLock<BTreeMap<NodeId, wire::ReportResponse>>,
    pub(crate) stop: CancellationToken,
}

impl Host {
    /// A shard that is served from here.
    pub(crate) fn local(&self, shard: ShardId) -> Option<Arc<Shard>> {
        self.replica(shard).filter(|shard| shard.is_in_service())
    }

    /// The same, and one that waits for its rebuild.
    pub(crate) fn replica(&self, shard: ShardId) -> Option<Arc<Shard>> {
        let shards = self
            .shards
            .read()
            .expect("no panic happens under this lock");
        shards.get(&shard.0).cloned()
    }

    /// Whether this node holds a shard, or is about to hold it again.
    pub(crate) fn holds(&self, shard: ShardId) -> bool {
        self.shared.damages.is_reported(shard.0) || self.replica(shard).is_some()
    }

    /// Who else holds a shard and was heard of late, its leader first.
    pub(crate) fn holders(&self, shard: ShardId) -> Vec<NodeId> {
        let topology = self.meta.topology();
        let placement = topology.placement(shard);
        let replicas = placement.map(|placement| placement.replicas.as_slice());
        let leader = self.leader_of(shard);
        let others = replicas.unwrap_or_default().iter().copied();
        let others = others.filter(|node| Some(*node) != leader);
        let me = self.identity.node;
        let alive = |node: &NodeId| *node != me && self.is_alive(*node, DEAD_AFTER);
        leader.into_iter().chain(others).filter(alive).collect()
    }

    /// Sends a caller to a node that holds a shard.
    pub(crate) fn elsewhere(&self, shard: ShardId, message: &str) -> Refusal {
        let topology = self.meta.topology();
        let holder = self.holders(shard).first().copied();
        let holder = holder.and_then(|node| topology.nodes.get(&node));
        let details = Details {
            leader: holder.map(|member| member.addr.clone()),
            map_version: Some(topology.version),
            ..Details::default()
        };
        Refusal::with(Code::NotLeader, message, details)
    }

    /// The shards that this node holds.
    pub(crate) fn hosted(&self) -> Vec<Arc<Shard>> {
        let shards = self
            .shards
            .read()
            .expect("no panic happens under this lock");
        shards.values().cloned().collect()
    }

    /// Opens a shard that this node is to hold. One whose rows are damaged is rebuilt, if another
    /// node holds it.
    pub(crate) async fn host(
        &self,
        id: ShardId,
        voters: Option<BTreeMap<u64, Peer>>,
    ) -> Result<(), OpenError> {
        match self.open_replica(id, voters).await {
            Err(OpenError::Store(StoreError::DamagedRows { group, what })) if group == id.0 => {
                if self
                    .shared
                    .damages
                    .report(group, Why::Damaged(what.clone()))
                {
                    return Ok(());
                }
                let reason = format!("its rows are damaged, and no other node has them: {what}");
                Err(OpenError::group(group, reason))
            },
            // Its Raft met the damage while it started, perhaps because another shard's apply had
            // just met it: the whole event DB is damaged then.
            Err(OpenError::Group { shard, .. }) if self.shared.damages.is_reported(shard.0) => {
                Ok(())
            },
            opened => opened,
        }
    }

    pub(crate) async fn open_replica(
        &self,
        id: ShardId,
        voters: Option<BTreeMap<u64, Peer>>,
    ) -> Result<(), OpenError> {
        let (shard, tasks) = Shard::open(id, &self.shared, voters, self.stop.child_token()).await?;
        let entry = GroupEntry {
            raft: shard.raft.raft(),
            leadership: shard.leadership.clone(),
            applier: shard.applier.clone(),
            shard: Some(shard.clone()),
        };
        self.tasks.lock().await.insert(id.0, tasks);
        self.door.groups.insert(id.0, entry);
        let mut shards = self
            .shards
            .write()
            .expect("no panic happens under this lock");
        shards.insert(id.0, shard);
        Ok(())
    }

    /// Stops a shard that this node no longer holds.
    pub(crate) async fn unhost(&self, id: ShardId) {
        self.door.groups.remove(id.0);
        let shard = {
            let mut shards = self
                .shards
                .write()
                .expect("no panic happens under this lock");
            shards.remove(&id.0)
        };
        let tasks = self.tasks.lock().await.remove(&id.0);
        let (Some(shard), Some(mut tasks)) = (shard, tasks) else {
            return;
        };
        let refusal = Refusal::new(Code::Stale, "the shard is no longer held here");
        shard.lanes.close(refusal.clone());
        shard.feed.close(&refusal);
        tasks.stop.cancel();
        shard.raft.stop().await;
        tasks.proposer.shutdown().await;
        tasks.watcher.shutdown().await;
    }

    /// What a node said last.
    pub(crate) fn report_of(&self, node: NodeId) -> Option<wire::ReportResponse> {
        let reports = self
            .reports
            .read()
            .expect("no panic happens under this lock");
        reports.get(&node).cloned()
    }

    pub(crate) fn put_report(&self, node: NodeId, report: wire::ReportResponse) {
        let mut reports = self
            .reports
            .write()
            .expect("no panic happens under this lock");
        reports.insert(node, report);
    }

    /// Who leads a shard: as this node's replica knows, else as the others said.
    pub(crate) fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
        if let Some(local) = self.local(shard) {
            return local.leadership.leader();
        }
        let reports = self
            .reports
            .read()
            .expect("no panic happens under this lock");
        let replicas = reports.values().flat_map(|report| &report.replicas);
        let known = replicas.filter(|replica| replica.group == shard.0 && replica.leader != 0);
        let newest = known.max_by_key(|replica| replica.term)?;
        Some(NodeId(newest.leader))
    }

    /// Refuses what the disks have no room for: this one, or those of so many others that a
    /// majority is full. Deletes are always taken (RULES 35).
    pub(crate) fn check_space(&self, command: &Command) -> Result<(), Refusal> {
        self.door.check_space(command)?;
        let reports = self
            .reports
            .read()
            .expect("no panic happens under this lock");
        let full = |report: &&wire::ReportResponse| space::refuses(report.space, command);
        let others = reports.values().filter(full).count();
        drop(reports);
        let nodes = self.shared.links.known().len().max(1);
        if 2 * others > nodes {
            return Err(space::full());
        }
        Ok(())
    }

    /// What this node counts of its groups.
    pub(crate) fn meters(&self) -> Meters {
        let counts = &self.shared.counts;
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let mut lags: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (node, lag) in self.hosted().iter().flat_map(|shard| shard.lags()) {
            let worst = lags.entry(node).or_default();
            *worst = lag.max(*worst);
        }
        let topology = self.meta.topology();
        let others = topology.nodes.iter().filter(|(node, member)| {
            **node != self.identity.node && member.state != MemberState::Removed
        });
        let peers = others.map(|(node, _)| PeerMeters {
            node: *node,
            alive: self.is_alive(*node, DEAD_AFTER),
            lag: lags.get(node).copied().unwrap_or_default(),
        });
        Meters {
            elections: now(&counts.elections),
            hand_overs: now(&counts.hand_overs),
            snapshots_sent: now(&counts.snapshots_sent),
            snapshots_installed: now(&counts.snapshots_installed),
            rebuilt: self.shared.damages.rebuilt(),
            rebuilding: wide(self.shared.damages.waiting()),
            put_aside: now(&counts.put_aside),
            forward_bytes: self.door.forward_bytes(),
            append_bytes: now(&counts.append_bytes),
            feed_bytes: wide(self.shared.budget.bytes()),
            peers: peers.collect(),
            clock_ahead_ms: self.shared.links.clock_ahead(),
            leads_metadata: self.meta.leadership.leads(),
            rules_known: self.shared.support.supported(),
            metadata_rules: self.meta.applier.rules_version(),
            space: self.shared.store.space(),
            store: self.shared.store.meters(),
        }
    }

    /// What a node said of itself last; `None`: it has said nothing lately.
    pub(crate) fn node_report(&self, node: NodeId) -> Option<NodeReport> {
        let told = if node == self.identity.node {
            self.door.meters()
        } else if self.is_alive(node, DEAD_AFTER) {
            self.report_of(node)?.meters?
        } else {
            return None;
        };
        let took = |us| Duration::from_micros(us);
        Some(NodeReport {
            disk: (told.disk_total, told.disk_available),
            elections: told.elections,
            queued_bytes: told.queued_bytes,
            syncs: told.syncs,
            sync_took: (took(told.sync_p50_us), took(told.sync_p99_us)),
        })
    }

    /// Whether a node was heard lately; this node always is.
    pub(crate) fn is_alive(&self, node: NodeId, within: Duration) -> bool {
        let silent = self.shared.links.silent_for(node.0);
        node == self.identity.node || silent.is_some_and(|silent| silent < within)
    }
}
