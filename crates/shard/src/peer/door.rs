//! What peers find at a node: its phase, its groups, its disk. Filled as the node comes up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};

use everwire_core::{Clock, Code, Command, NodeId, Refusal};
use everwire_proto::{internal_v1 as wire, v1};
use everwire_store::Store;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;
use tonic::{Request, Status};

use super::forward::Forwards;
use super::links::{CLUSTER_KEY, Links, NODE_KEY, TARGET_KEY};
use crate::apply::Applier;
use crate::damage::Damages;
use crate::formation::About;
use crate::group::Shard;
use crate::leadership::Leadership;
use crate::meta::Meta;
use crate::meters::{Counts, Recent};
use crate::raft::types::Raft;
use crate::space;

/// Audits of each replica that a report tells: as many as may come between two reports, and more.
const AUDITS_REPORTED: usize = 4;

/// How far a node is on its way into a cluster.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Nobody has looked at its disk yet: it may belong to any cluster, or to none.
    Opening,
    /// Its disk is empty.
    Empty,
    /// It makes a cluster, or was told that one is being made.
    Forming(wire::Formation),
    /// It belongs to a cluster.
    Member {
        /// Which.
        cluster: String,
        /// As whom.
        node: NodeId,
        /// The formation that it took part in, for those who have not heard of it yet.
        formation: Option<wire::Formation>,
    },
}

/// One group of this node, as its peers reach it.
#[derive(Clone)]
pub(crate) struct GroupEntry {
    pub(crate) raft: Raft,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) applier: Arc<Applier>,
    /// `None` for the metadata group.
    pub(crate) shard: Option<Arc<Shard>>,
}

/// The groups of this node.
#[derive(Default)]
pub(crate) struct Groups(RwLock<BTreeMap<u32, GroupEntry>>);

impl Groups {
    pub(crate) fn get(&self, group: u32) -> Option<GroupEntry> {
        let groups = self.0.read().expect("no panic happens under this lock");
        groups.get(&group).cloned()
    }

    pub(crate) fn insert(&self, group: u32, entry: GroupEntry) {
        let mut groups = self.0.write().expect("no panic happens under this lock");
        groups.insert(group, entry);
    }

    pub(crate) fn remove(&self, group: u32) {
        let mut groups = self.0.write().expect("no panic happens under this lock");
        groups.remove(&group);
    }

    pub(crate) fn all(&self) -> Vec<(u32, GroupEntry)> {
        let groups = self.0.read().expect("no panic happens under this lock");
        groups
            .iter()
            .map(|(id, entry)| (*id, entry.clone()))
            .collect()
    }
}

/// What peers find here. Filled as the node comes up.
pub(crate) struct Door {
    pub(crate) about: About,
    pub(crate) groups: Groups,
    pub(crate) links: Arc<Links>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The newest rules that this node knows.
    pub(crate) rules: u32,
    phase: Mutex<Phase>,
    store: Mutex<Option<Arc<dyn Store>>>,
    pub(crate) meta: OnceLock<Arc<Meta>>,
    pub(crate) damages: OnceLock<Arc<Damages>>,
    pub(crate) forwards: OnceLock<Arc<Forwards>>,
    pub(crate) counts: Arc<Counts>,
    recent: Mutex<Recent>,
    draining: AtomicBool,
    clock_off: AtomicBool,
}

impl Door {
    pub(crate) fn new(about: About, links: Arc<Links>, clock: Arc<dyn Clock>, rules: u32) -> Self {
        Self {
            about,
            groups: Groups::default(),
            links,
            clock,
            rules,
            phase: Mutex::new(Phase::Opening),
            store: Mutex::new(None),
            meta: OnceLock::new(),
            damages: OnceLock::new(),
            forwards: OnceLock::new(),
            counts: Arc::default(),
            recent: Mutex::default(),
            draining: AtomicBool::new(false),
            clock_off: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().expect("no panic happens under this lock")
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().clone()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        *self.lock() = phase;
    }

    /// The disk, once it is open.
    pub(crate) fn store(&self) -> Option<Arc<dyn Store>> {
        let store = self.store.lock();
        store.expect("no panic happens under this lock").clone()
    }

    /// The disk is open; or `None`, it was put aside.
    pub(crate) fn set_store(&self, store: Option<Arc<dyn Store>>) {
        *self.store.lock().expect("no panic happens under this lock") = store;
    }

    /// The node is about to stop: others should give it nothing.
    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether the node is about to stop.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Whether this node's wall clock is far off its peers': it should lead nothing.
    pub(crate) fn set_clock_off(&self, off: bool) {
        self.clock_off.store(off, Ordering::SeqCst);
    }

    /// See [`Door::set_clock_off`].
    pub(super) fn clock_is_off(&self) -> bool {
        self.clock_off.load(Ordering::SeqCst)
    }

    /// How full this node's disk is, as a report carries it.
    pub(super) fn space(&self) -> u32 {
        let store = self.store();
        store.map_or(0, |store| space::number(store.space().level))
    }

    /// Notes what was counted up to now; call it every now and then.
    pub(crate) fn note_recent(&self) {
        if let Some(store) = self.store() {
            let mut recent = self
                .recent
                .lock()
                .expect("no panic happens under this lock");
            recent.note(Instant::now(), store.meters().syncs);
        }
    }

    /// What this node says of itself.
    pub(crate) fn meters(&self) -> v1::NodeMeters {
        let Some(store) = self.store() else {
            return v1::NodeMeters::default();
        };
        let space = store.space();
        let syncs = {
            let recent = self
                .recent
                .lock()
                .expect("no panic happens under this lock");
            recent.since(Instant::now(), &store.meters().syncs)
        };
        let took = |share| {
            let took = syncs.quantile(share).unwrap_or_default();
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
        };
        let groups = self.groups.all();
        let lanes = groups.iter().filter_map(|(_, entry)| entry.shard.as_ref());
        let lanes = lanes.map(|shard| {
            let (people, agents) = shard.lanes.queued_bytes();
            wide(people) + wide(agents)
        });
        let (people, agents) = self.forward_bytes();
        v1::NodeMeters {
            disk_total: space.total,
            disk_available: space.available,
            elections: self.counts.elections.load(Ordering::Relaxed),
            queued_bytes: lanes.sum::<u64>() + people + agents,
            syncs: syncs.count(),
            sync_p50_us: took(500),
            sync_p99_us: took(990),
        }
    }

    /// Bytes of commands on their way to leaders elsewhere: people's, agents'.
    pub(crate) fn forward_bytes(&self) -> (u64, u64) {
        let forwards = self.forwards.get();
        let (people, agents) = forwards.map_or((0, 0), |forwards| forwards.waiting_bytes());
        (wide(people), wide(agents))
    }

    /// Refuses what this node's disk has no room for.
    pub(crate) fn check_space(&self, command: &Command) -> Result<(), Refusal> {
        if space::refuses(self.space(), command) {
            return Err(space::full());
        }
        Ok(())
    }

    /// How the replicas of this node stand.
    pub(crate) fn replicas(&self) -> Vec<wire::ReplicaReport> {
        let groups = self.groups.all();
        groups
            .iter()
            .map(|(id, entry)| {
                let damages = self.damages.get();
                let rebuilding = damages.is_some_and(|damages| damages.is_reported(*id));
                report(*id, entry, rebuilding)
            })
            .collect()
    }

    /// Who calls, if it may: a node of this cluster that was not removed from it.
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        let refuse = |code, message: &str| {
            let refusal = Refusal::new(code, message);
            Err(everwire_proto::refusal::to_status(&refusal))
        };
        let Phase::Member {
            cluster, node: me, ..
        } = self.phase()
        else {
            return refuse(Code::Draining, "this node does not belong to a cluster yet");
        };
        let text = |key| {
            request
                .metadata()
                .get(key)
                .and_then(|value| value.to_str().ok())
        };
        if text(CLUSTER_KEY) != Some(cluster.as_str()) {
            return refuse(Code::WrongCluster, "the caller belongs to another cluster");
        }
        // Its address may have been another node's, whom the caller means: one whose disk this
        // node does not have, and for whom it must not answer.
        if text(TARGET_KEY) != Some(me.to_string().as_str()) {
            return refuse(Code::WrongState, "the call is for another node");
        }
        let node = text(NODE_KEY).and_then(|node| node.parse().ok());
        let Some(node) = node else {
            return refuse(Code::Malformed, "the caller does not say which node it is");
        };
        if self
            .meta
            .get()
            .is_some_and(|meta| meta.is_removed(NodeId(node)))
        {
            return refuse(
                Code::WrongCluster,
                "the caller was removed from the cluster",
            );
        }
        self.links.heard(node);
        Ok(node)
    }

    pub(super) fn meta(&self) -> Result<&Arc<Meta>, Refusal> {
        let message = "this node does not belong to a cluster yet";
        self.meta
            .get()
            .ok_or_else(|| Refusal::new(Code::Draining, message))
    }

    /// A shard that can be read here.
    pub(super) fn readable(&self, shard: u32) -> Result<Arc<Shard>, Refusal> {
        if self.is_draining() {
            let message = "the node is about to stop";
            return Err(Refusal::new(Code::Draining, message));
        }
        let shard = self.shard(shard)?;
        if shard.is_in_service() {
            return Ok(shard);
        }
        let message = "this node's replica of the shard is being rebuilt";
        Err(Refusal::new(Code::Stale, message))
    }

    pub(super) fn shard(&self, shard: u32) -> Result<Arc<Shard>, Refusal> {
        let entry = self.groups.get(shard).and_then(|entry| entry.shard);
        entry.ok_or_else(|| Refusal::new(Code::NotLeader, "this node does not hold the shard"))
    }
}

fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// How one replica stands here.
fn report(id: u32, entry: &GroupEntry, rebuilding: bool) -> wire::ReplicaReport {
    let audits = entry.applier.audits().newest(AUDITS_REPORTED).into_iter();
    let audits = audits.map(|(index, hash)| wire::AuditReport {
        index,
        hash: hash.to_be_bytes().to_vec().into(),
    });
    let followers = entry.shard.as_ref().map(|shard| shard.lags());
    let followers = followers.unwrap_or_default().into_iter();
    let followers = followers.map(|(node, lag)| v1::FollowerStatus { node: node.0, lag });
    let metrics = entry.raft.metrics();
    let metrics = metrics.borrow_watched();
    let index = |id: Option<crate::raft::types::LogId>| id.map_or(0, |id| id.index());
    let membership = metrics.membership_config.membership();
    wire::ReplicaReport {
        group: id,
        leader: entry.leadership.leader().map_or(0, |leader| leader.0),
        term: metrics.current_term,
        applied: index(metrics.last_applied),
        committed: index(metrics.local_committed),
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        audits: audits.collect(),
        rebuilding,
        followers: followers.collect(),
        rules: entry.applier.rules_version(),
    }
}
