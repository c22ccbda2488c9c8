//! The next change that the leader of the metadata group should propose.
//!
//! One at a time: each plan looks at the topology that the last one made, and at what the shards
//! have made of it so far. Asked again and again, with whatever it names carried out, it comes to
//! an end. What it never does: put anything on a node that is not alive, or move replicas only to
//! make use of a new node.

use std::collections::{BTreeMap, BTreeSet};

use everwire_core::topology::{Change, MemberState, Topology};
use everwire_core::{NodeId, ShardId};

use super::{leaders, moves, voters_wanted};

/// The members that a group really has, as its leader told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// All that vote; of both halves while a change is under way.
    pub voters: BTreeSet<NodeId>,
    /// All that only receive.
    pub learners: BTreeSet<NodeId>,
}

impl Members {
    /// Whether the group has come to what the topology says.
    pub(super) fn are(&self, nodes: &[NodeId]) -> bool {
        self.learners.is_empty() && self.voters == nodes.iter().copied().collect()
    }

    /// Whether the topology may say something else about the group: when it has come to what is
    /// said now, so that it never has two changes before it; or when only nodes go that it does
    /// not count as voters yet, so that a change whose node died can be sent elsewhere.
    pub(super) fn may_change(&self, old: &[NodeId], new: &[NodeId]) -> bool {
        let mut gone = old.iter().filter(|id| !new.contains(id)).peekable();
        let elsewhere = gone.peek().is_some() && new.len() <= old.len();
        self.are(old) || (elsewhere && gone.all(|id| !self.voters.contains(id)))
    }

    fn include(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// What the leader of the metadata group knows about the world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The nodes that answer.
    pub alive: BTreeSet<NodeId>,
    /// Each shard's members, as its leader of the highest term told; a shard without a leader
    /// is not there, and is left alone.
    pub shards: BTreeMap<ShardId, Members>,
    /// The members of the metadata group itself.
    pub metadata: Members,
}

/// The next change to propose; `None` when all is as it should be, or when nothing can be done
/// before the world changes. Always one that [`super::apply`] takes.
pub fn plan(topology: &Topology, seen: &Observed) -> Option<Change> {
    if !topology.is_formed() {
        return None;
    }
    voters(topology, seen)
        .or_else(|| moves::next(topology, seen))
        .or_else(|| leaders::balance(topology, seen))
        .or_else(|| remove(topology, seen))
}

/// The topology's shards by their numbers.
pub(super) fn shards(
    topology: &Topology,
) -> impl Iterator<Item = (ShardId, &everwire_core::topology::Placement)> {
    (0..).map(ShardId).zip(&topology.shards)
}

/// Nodes that may be given something, by id.
pub(super) fn takers<'a>(
    topology: &'a Topology,
    seen: &'a Observed,
) -> impl Iterator<Item = NodeId> + 'a {
    let active = topology.nodes.keys().copied();
    active.filter(|id| topology.active(*id).is_some() && seen.alive.contains(id))
}

fn voters(topology: &Topology, seen: &Observed) -> Option<Change> {
    let voters = &topology.voters;
    let is_active = |id: &NodeId| topology.active(*id).is_some();
    let active = topology.nodes.keys().filter(|id| is_active(id)).count();
    let wanted = voters_wanted(active);
    let mut spare = takers(topology, seen).filter(|id| !voters.contains(id));
    let mut nodes = voters.clone();
    let votes = |id: &NodeId| seen.metadata.voters.contains(id);
    if voters.len() > wanted {
        // Whoever leaves goes first, then who does not vote yet, then who is away.
        let alive = |id: &NodeId| seen.alive.contains(id);
        nodes.sort_by_key(|id| (!is_active(id), !votes(id), !alive(id), *id));
        nodes.truncate(wanted);
    } else if let Some(leaving) = nodes
        .iter_mut()
        .filter(|id| !is_active(id))
        .min_by_key(|id| votes(id))
    {
        *leaving = spare.next()?;
    } else {
        nodes.extend(spare.take(wanted - voters.len()));
        if nodes.len() < wanted {
            return None;
        }
    }
    nodes.sort();
    let may = nodes != *voters && seen.metadata.may_change(voters, &nodes);
    may.then_some(Change::Voters { nodes })
}

/// Who leaves and holds nothing, neither in the topology nor in fact. A shard that does not say
/// may still have it.
fn remove(topology: &Topology, seen: &Observed) -> Option<Change> {
    let told = shards(topology).all(|(shard, _)| seen.shards.contains_key(&shard));
    if !told || seen.metadata.voters.is_empty() {
        return None;
    }
    let leaving = topology.nodes.iter();
    let mut leaving = leaving.filter(|(_, member)| member.state == MemberState::Leaving);
    let gone = leaving.find(|(id, _)| {
        let placed = topology
            .shards
            .iter()
            .any(|shard| shard.replicas.contains(id));
        let holds = seen.shards.values().any(|members| members.include(**id));
        let votes = topology.voters.contains(id) || seen.metadata.include(**id);
        !placed && !holds && !votes
    });
    gone.map(|(id, _)| Change::Remove { node: *id })
}
