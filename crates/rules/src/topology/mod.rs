//! The state machine of the metadata group: who belongs to the cluster and who holds what.
//!
//! [`apply`] is the machine: the same topology and the same change give the same next topology
//! on every replica. [`plan`] is asked by the leader of the metadata group alone: it looks at
//! what should be and at what is, and names the next change to propose. [`preferred_leader`] is
//! asked by the leader of a shard. `docs/protocol/topology.md` holds the same as tables.

mod apply;
mod form;
mod leaders;
mod moves;
mod plan;

use std::collections::BTreeSet;

use everwire_core::NodeId;
use everwire_core::topology::Placement;

pub use apply::{Applied, apply};
pub use plan::{Members, Observed, plan};

/// Voters that the metadata group should have when so many nodes are active.
pub fn voters_wanted(active: usize) -> usize {
    match active {
        0..=2 => active,
        3..=4 => 3,
        _ => 5,
    }
}

/// The replica that should lead a shard: the first in the order of preference that is alive and
/// has all that is committed. `None` leaves the leadership where it is.
pub fn preferred_leader(
    placement: &Placement,
    alive: &BTreeSet<NodeId>,
    caught_up: &BTreeSet<NodeId>,
) -> Option<NodeId> {
    let mut replicas = placement.replicas.iter().copied();
    replicas.find(|node| alive.contains(node) && caught_up.contains(node))
}
