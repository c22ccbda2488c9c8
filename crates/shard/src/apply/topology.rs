//! The metadata group's state machine: one topology, kept whole in its applied row.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use everwire_core::topology::Topology;
use everwire_core::{Code, NodeId, Refusal};
use everwire_proto::storage;
use everwire_rules::topology;
use everwire_store::StoreError;
use tokio::sync::watch;

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The topology's version with it.
    pub(crate) version: u64,
    /// The node that a join was given.
    pub(crate) node: Option<NodeId>,
}

/// The topology as this node has applied it.
pub(crate) struct TopologyMachine {
    current: watch::Sender<Arc<Topology>>,
}

impl TopologyMachine {
    /// From the applied row; empty bytes are a cluster that is not formed.
    pub(crate) fn read(state: &[u8]) -> Result<Self, StoreError> {
        let current = watch::Sender::new(Arc::new(decode(state)?));
        Ok(Self { current })
    }

    /// The topology now, and each that follows.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Topology>> {
        self.current.subscribe()
    }

    /// Begins to apply some entries.
    pub(crate) fn begin(&self) -> Topology {
        Topology::clone(&self.current.borrow())
    }

    /// Those entries are written.
    pub(crate) fn publish(&self, topology: Topology) {
        self.current.send_if_modified(|current| {
            let changed = **current != topology;
            if changed {
                *current = Arc::new(topology);
            }
            changed
        });
    }

    /// An install has replaced the state.
    pub(crate) fn replace(&self, state: &[u8]) -> Result<(), StoreError> {
        self.publish(decode(state)?);
        Ok(())
    }
}

fn decode(state: &[u8]) -> Result<Topology, StoreError> {
    if state.is_empty() {
        return Ok(Topology::default());
    }
    storage::decode_topology(state).map_err(StoreError::from)
}

/// As the applied row keeps it.
pub(crate) fn encode(topology: &Topology) -> Bytes {
    if topology.is_formed() {
        storage::encode_topology(topology)
    } else {
        Bytes::new()
    }
}

/// Applies one change. A panic inside refuses it and leaves the topology as it was (RULES 3).
pub(crate) fn apply(
    topology: &mut Topology,
    change: &[u8],
) -> Result<Result<Changed, Refusal>, String> {
    let change = storage::decode_change(change).map_err(|error| error.to_string())?;
    let mut next = topology.clone();
    let changed = catch_unwind(AssertUnwindSafe(|| topology::apply(&mut next, change)));
    Ok(match changed {
        Ok(Ok(applied)) => {
            *topology = next;
            Ok(Changed {
                version: topology.version,
                node: applied.node,
            })
        },
        Ok(Err(refusal)) => Err(refusal),
        Err(_panic) => {
            tracing::error!("a change of the topology panicked and was refused");
            Err(Refusal::new(
                Code::Internal,
                "the change could not be applied",
            ))
        },
    })
}
