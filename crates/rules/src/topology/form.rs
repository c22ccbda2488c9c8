//! The first topology: which of the first nodes holds and leads what.

use std::collections::BTreeMap;

use everwire_core::NodeId;
use everwire_core::topology::Placement;

use super::voters_wanted;

/// Leaders go round, so each node leads as many shards as any other, give or take one. The other
/// replicas go to whoever holds the least, so each holds as many, give or take two; between equals, to whoever stands behind this leader
/// the least often, so that a dead leader's shards do not all go to one node.
pub(super) fn spread(nodes: &[NodeId], shards: u32, replication: u32) -> Vec<Placement> {
    let replication = usize::try_from(replication).unwrap_or(usize::MAX);
    let mut held: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut behind: BTreeMap<(NodeId, NodeId), u32> = BTreeMap::new();
    let leaders = || nodes.iter().copied().cycle().zip(0..shards);
    for (leader, _shard) in leaders() {
        *held.entry(leader).or_default() += 1;
    }
    let placements = leaders().map(|(leader, _shard)| {
        let after = nodes.iter().filter(|node| **node > leader);
        let before = nodes.iter().filter(|node| **node < leader);
        let mut others: Vec<NodeId> = after.chain(before).copied().collect();
        let stands = |node: &NodeId| behind.get(&(leader, *node)).copied();
        others.sort_by_key(|node| (held.get(node).copied(), stands(node)));
        others.truncate(replication.saturating_sub(1));
        others.sort_by_key(stands);
        if let Some(second) = others.first() {
            *behind.entry((leader, *second)).or_default() += 1;
        }
        for other in &others {
            *held.entry(*other).or_default() += 1;
        }
        let replicas: Vec<NodeId> = [leader].into_iter().chain(others).collect();
        Placement {
            initial: replicas.clone(),
            replicas,
        }
    });
    placements.collect()
}

/// The first three nodes by id; five from five on.
pub(super) fn first_voters(nodes: &[NodeId]) -> Vec<NodeId> {
    let wanted = voters_wanted(nodes.len());
    nodes.iter().copied().take(wanted).collect()
}
