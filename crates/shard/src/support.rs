//! Which rules the nodes of the cluster know, as far as they have said so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use everwire_core::NodeId;

/// Why this node stops at something that needs newer rules than it knows (RULES 2).
pub(crate) fn unknown_rules(what: &str, version: u32, known: u32) -> String {
    format!(
        "{what} needs rules {version}, and this build knows rules up to {known} only: nothing is \
         lost, start a newer build here"
    )
}

/// The newest rules that each node knows: this one from its build, its peers from what they say
/// when they are met. A node that has said nothing counts as one that knows nothing newer.
#[derive(Debug)]
pub struct Support {
    node: NodeId,
    supported: u32,
    /// What the metadata group speaks, as far as this node has applied it.
    metadata: AtomicU32,
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
            metadata: AtomicU32::new(1),
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

    /// The metadata group speaks these rules now.
    pub(crate) fn metadata_speaks(&self, version: u32) {
        self.metadata.fetch_max(version, Ordering::SeqCst);
    }

    /// The newest rules that a shard may be raised to. Every node is a member of the metadata
    /// group, so what that speaks each of them knows: a shard that spoke newer ones could not be
    /// moved to a node that holds it not yet.
    pub(crate) fn metadata(&self) -> u32 {
        self.metadata.load(Ordering::SeqCst)
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
