//! Which node should lead which shard: as many as any other, as far as its replicas allow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use everwire_core::topology::{Change, Topology};
use everwire_core::{NodeId, ShardId};

use super::moves::under_way;
use super::plan::{Observed, shards, takers};

/// A way on which leaderships can be passed on: its length, and the shard that goes to the node
/// at its end.
struct Way {
    steps: usize,
    shard: ShardId,
    to: NodeId,
}

/// Hands the preference for one shard to another of its replicas. Only when no replica moves:
/// moves bring their own order with them.
///
/// A node that leads two shards more than another one need not share a shard with it, so this
/// looks for the shortest chain of nodes, each holding a shard that the one before it leads, and
/// does its last step. That makes the rest of the chain shorter or the leaders more even, so it
/// comes to an end, and then no chain is left: the leaders are as even as the replicas allow.
pub(super) fn balance(topology: &Topology, seen: &Observed) -> Option<Change> {
    if !under_way(topology, seen).is_empty() {
        return None;
    }
    let active = topology.nodes.keys().copied();
    let active = active.filter(|id| topology.active(*id).is_some());
    let mut leads: BTreeMap<NodeId, usize> = active.map(|id| (id, 0)).collect();
    for leader in topology.shards.iter().filter_map(|it| it.replicas.first()) {
        leads.entry(*leader).and_modify(|count| *count += 1);
    }
    let hands = hands(topology, seen);
    let ways = leads.keys().filter_map(|from| way(&hands, &leads, *from));
    let way = ways.min_by_key(|way| way.steps)?;
    let placement = topology.placement(way.shard)?;
    let others = placement.replicas.iter().copied();
    let others = others.filter(|id| *id != way.to);
    let replicas = [way.to].into_iter().chain(others).collect();
    let shard = way.shard;
    Some(Change::Place { shard, replicas })
}

/// For each leader: which of its shards could be led by whom else.
fn hands(topology: &Topology, seen: &Observed) -> BTreeMap<NodeId, Vec<(ShardId, NodeId)>> {
    let takers: BTreeSet<NodeId> = takers(topology, seen).collect();
    let mut hands: BTreeMap<NodeId, Vec<(ShardId, NodeId)>> = BTreeMap::new();
    for (shard, placement) in shards(topology) {
        let settled = seen.shards.get(&shard);
        let settled = settled.is_some_and(|members| members.are(&placement.replicas));
        if let Some((leader, others)) = placement.replicas.split_first()
            && settled
        {
            let others = others.iter().filter(|id| takers.contains(id));
            let others = others.map(|id| (shard, *id));
            hands.entry(*leader).or_default().extend(others);
        }
    }
    hands
}

/// The shortest way from a node to one that leads at least two shards less.
fn way(
    hands: &BTreeMap<NodeId, Vec<(ShardId, NodeId)>>,
    leads: &BTreeMap<NodeId, usize>,
    from: NodeId,
) -> Option<Way> {
    let most = *leads.get(&from)?;
    let mut met = BTreeSet::from([from]);
    let mut queue = VecDeque::from([(from, 1)]);
    while let Some((leader, steps)) = queue.pop_front() {
        for (shard, to) in hands.get(&leader).into_iter().flatten() {
            let (shard, to) = (*shard, *to);
            if leads.get(&to).is_some_and(|count| count + 2 <= most) {
                return Some(Way { steps, shard, to });
            }
            if met.insert(to) {
                queue.push_back((to, steps + 1));
            }
        }
    }
    None
}
