//! Which rules the nodes of the cluster know, as far as they have said so.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use everwire_core::NodeId;

/// The newest rules that each node knows: this one from its build, its peers from what they say
/// when they are met. A node that has said nothing counts as one that knows nothing newer.
#[derive(Debug)]
pub struct Support {
    node: NodeId,
    supported: u32,
    peers: Mutex<BTreeMap<NodeId, u32>>,
}

impl Support {
    /// What this node knows: the rules of its build
    /// ([`RULES_VERSION`](everwire_rules::RULES_VERSION)), unless another number is to show what
    /// an older or a newer build does.
    pub fn new(node: NodeId, supported: u32) -> Self {
        Self {
            node,
            supported,
            peers: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, u32>> {
        self.peers.lock().expect("no panic happens under this lock")
    }

    /// The newest rules that this node applies; it stops at an entry that needs newer ones.
    pub fn supported(&self) -> u32 {
        self.supported
    }

    /// What a peer has just said of itself.
    pub fn report(&self, peer: NodeId, supported: u32) {
        self.lock().insert(peer, supported);
    }

    /// The peer is away: it may come back as an older build, so nothing is known of it.
    pub fn forget(&self, peer: NodeId) {
        self.lock().remove(&peer);
    }

    /// The newest rules that a node knows, if it has said so.
    pub fn of(&self, node: NodeId) -> Option<u32> {
        if node == self.node {
            return Some(self.supported);
        }
        self.lock().get(&node).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_what_it_said_last_and_not_at_all_while_it_is_away() {
        let support = Support::new(NodeId(1), 2);
        support.report(NodeId(2), 2);
        support.report(NodeId(2), 1);
        // Nobody else speaks for this node.
        support.report(NodeId(1), 9);
        let known = |node| support.of(NodeId(node));
        assert_eq!((known(1), known(2), known(3)), (Some(2), Some(1), None));
        support.forget(NodeId(2));
        assert_eq!(known(2), None);
    }
}
