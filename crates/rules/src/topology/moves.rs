//! Which replica goes where next: away from nodes that leave, and to where one is missing.

use std::collections::{BTreeMap, BTreeSet};

use everwire_core::limits::SHARD_MOVES_MAX;
use everwire_core::topology::{Change, Placement, Topology};
use everwire_core::{NodeId, ShardId};

use super::apply::replication;
use super::plan::{Observed, shards, takers};

pub(super) fn next(topology: &Topology, seen: &Observed) -> Option<Change> {
    let moves = Moves {
        under_way: under_way(topology, seen),
        takers: by_load(topology, seen),
        seen,
    };
    let active = topology.nodes.keys();
    let active = active.filter(|id| topology.active(**id).is_some()).count();
    let full = replication(topology).min(active);
    let replaced = shards(topology).find_map(|(shard, placement)| {
        let leaving = placement.replicas.iter();
        let mut leaving = leaving.filter(|id| topology.active(**id).is_none());
        leaving.find_map(|id| moves.replace(shard, placement, *id))
    });
    replaced.or_else(|| {
        shards(topology)
            .filter(|(_, placement)| placement.replicas.len() < full)
            .find_map(|(shard, placement)| moves.add(shard, placement))
    })
}

/// Shards that have not come to their placement yet, and can: one whose new replica is not alive
/// waits, and nobody waits for it.
pub(super) fn under_way(topology: &Topology, seen: &Observed) -> BTreeSet<ShardId> {
    let moving = shards(topology).filter(|(shard, placement)| {
        seen.shards.get(shard).is_some_and(|members| {
            let mut missing = placement.replicas.iter();
            let stuck = missing.any(|id| !members.voters.contains(id) && !seen.alive.contains(id));
            !members.are(&placement.replicas) && !stuck
        })
    });
    moving.map(|(shard, _)| shard).collect()
}

/// Whoever may take a replica, the least loaded first.
fn by_load(topology: &Topology, seen: &Observed) -> Vec<NodeId> {
    let mut load: BTreeMap<NodeId, usize> = takers(topology, seen).map(|id| (id, 0)).collect();
    for id in topology.shards.iter().flat_map(|shard| &shard.replicas) {
        load.entry(*id).and_modify(|held| *held += 1);
    }
    let mut takers: Vec<NodeId> = load.keys().copied().collect();
    takers.sort_by_key(|id| load.get(id).copied());
    takers
}

struct Moves<'a> {
    under_way: BTreeSet<ShardId>,
    takers: Vec<NodeId>,
    seen: &'a Observed,
}

impl Moves<'_> {
    /// The new one takes the place of the old one in the order, so it leads what that one led.
    fn replace(&self, shard: ShardId, placement: &Placement, old: NodeId) -> Option<Change> {
        let new = self.taker(placement)?;
        let replicas = placement.replicas.iter();
        let replicas = replicas.map(|id| if *id == old { new } else { *id });
        self.place(shard, placement, replicas.collect())
    }

    fn add(&self, shard: ShardId, placement: &Placement) -> Option<Change> {
        let new = self.taker(placement)?;
        let replicas = placement.replicas.iter().copied();
        self.place(shard, placement, replicas.chain([new]).collect())
    }

    fn taker(&self, placement: &Placement) -> Option<NodeId> {
        let mut takers = self.takers.iter().copied();
        takers.find(|id| !placement.replicas.contains(id))
    }

    fn place(&self, shard: ShardId, old: &Placement, replicas: Vec<NodeId>) -> Option<Change> {
        let room = self.under_way.len() < SHARD_MOVES_MAX || self.under_way.contains(&shard);
        let members = self.seen.shards.get(&shard)?;
        let may = room && members.may_change(&old.replicas, &replicas);
        may.then_some(Change::Place { shard, replicas })
    }
}
