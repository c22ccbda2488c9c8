//! Replicas of this node that cannot be trusted any more: found by whoever reads, applies or
//! compares, taken up by the rebuild (RULES 35).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use everwire_core::ids::META_GROUP;
use everwire_core::row::SessionKey;
use everwire_core::topology::Topology;
use everwire_core::{Code, NodeId, Refusal, ShardId};
use everwire_store::{Identity, StoreError};
use tokio::sync::{Notify, watch};

/// Why a replica is rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its rows are not what was written, or are gone.
    Damaged(String),
    /// It computed something else than a majority.
    Diverged {
        /// The entry of the audit that told.
        index: u64,
        /// Whoever computed something else: nobody rebuilds from these.
        wrong: BTreeSet<NodeId>,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(what) => write!(f, "its rows are damaged: {what}"),
            Self::Diverged { index, .. } => {
                write!(
                    f,
                    "it computed something else than a majority up to {index}"
                )
            },
        }
    }
}

/// The damage of one node.
pub(crate) struct Damages {
    node: NodeId,
    shards: u32,
    /// Unset until the metadata group is open, and in a cluster of one.
    topology: OnceLock<watch::Receiver<Arc<Topology>>>,
    state: Mutex<State>,
    found: Notify,
    rebuilt: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Nobody has taken these up yet.
    found: BTreeMap<u32, Why>,
    /// These are being rebuilt.
    under_way: BTreeSet<u32>,
}

impl Damages {
    pub(crate) fn new(identity: &Identity) -> Self {
        Self {
            node: identity.node,
            shards: identity.shards,
            topology: OnceLock::new(),
            state: Mutex::default(),
            found: Notify::new(),
            rebuilt: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    /// From here on it is known who else holds what.
    pub(crate) fn follow(&self, topology: watch::Receiver<Arc<Topology>>) {
        // Once per node.
        let _ = self.topology.set(topology);
    }

    /// Whether another node holds a replica of the group.
    pub(crate) fn is_elsewhere(&self, group: u32) -> bool {
        let Some(topology) = self.topology.get() else {
            return false;
        };
        let topology = topology.borrow();
        let holders = if group == META_GROUP {
            Some(topology.voters.as_slice())
        } else {
            let placement = topology.placement(ShardId(group));
            placement.map(|placement| placement.replicas.as_slice())
        };
        holders.is_some_and(|holders| holders.iter().any(|node| *node != self.node))
    }

    /// A group of this node is to be rebuilt. `false`: there is nothing to rebuild it from.
    pub(crate) fn report(&self, group: u32, why: Why) -> bool {
        if group == META_GROUP || !self.is_elsewhere(group) {
            return false;
        }
        let mut state = self.lock();
        if !state.under_way.contains(&group) && !state.found.contains_key(&group) {
            tracing::error!(shard = group, %why, "a replica cannot be trusted any more");
            state.found.insert(group, why);
            self.found.notify_one();
        }
        true
    }

    /// The same, if an error says so.
    pub(crate) fn note(&self, error: &StoreError) -> bool {
        match error {
            StoreError::DamagedRows { group, what } => {
                self.report(*group, Why::Damaged(what.clone()))
            },
            _ => false,
        }
    }

    /// What a reader is told that met damage of a session's rows; they are rebuilt. INTERNAL if
    /// nobody else has them.
    pub(crate) fn met(&self, session: SessionKey, what: &str) -> Refusal {
        let group = ShardId::holding(session.slot, self.shards).0;
        self.refusal(&StoreError::DamagedRows {
            group,
            what: what.to_owned(),
        })
    }

    /// What a reader is told whose read failed like this.
    pub(crate) fn refusal(&self, error: &StoreError) -> Refusal {
        if self.note(error) {
            let message = "this replica is damaged and will be rebuilt from another";
            return Refusal::new(Code::Stale, message);
        }
        tracing::error!(%error, "a read failed");
        Refusal::new(Code::Internal, "the disk could not be read")
    }

    /// Whether a group is to be rebuilt, or is being rebuilt.
    pub(crate) fn is_reported(&self, group: u32) -> bool {
        let state = self.lock();
        state.found.contains_key(&group) || state.under_way.contains(&group)
    }

    /// The next one to rebuild; it counts as under way until it is finished. Cancel-safe.
    pub(crate) async fn next(&self) -> (u32, Why) {
        loop {
            {
                let mut state = self.lock();
                if let Some((group, why)) = state.found.pop_first() {
                    state.under_way.insert(group);
                    return (group, why);
                }
            }
            self.found.notified().await;
        }
    }

    /// A group is served again, if it was rebuilt; else it is not this node's any more.
    pub(crate) fn finished(&self, group: u32, rebuilt: bool) {
        self.rebuilt
            .fetch_add(u64::from(rebuilt), Ordering::Relaxed);
        self.lock().under_way.remove(&group);
    }

    /// Replicas that are to be rebuilt, or are being rebuilt.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.lock();
        state.found.len() + state.under_way.len()
    }

    /// Replicas that were rebuilt since the start.
    pub(crate) fn rebuilt(&self) -> u64 {
        self.rebuilt.load(Ordering::Relaxed)
    }
}
