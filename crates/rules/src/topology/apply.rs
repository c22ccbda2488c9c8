//! What a change does to the topology. A refused change does nothing; a repeated one is answered
//! like the first and does nothing either.

use std::collections::{BTreeMap, BTreeSet};

use everwire_core::limits::{LABEL_BYTES_MAX, SLOTS};
use everwire_core::topology::{Change, Member, MemberState, Topology};
use everwire_core::{Code, NodeId, Refusal, ShardId};

use super::form::{first_voters, spread};

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Whether anything is different now; if so, the version is one higher.
    pub changed: bool,
    /// The node that a `Join` was given.
    pub node: Option<NodeId>,
}

impl Applied {
    const UNCHANGED: Self = Self {
        changed: false,
        node: None,
    };
    const CHANGED: Self = Self {
        changed: true,
        node: None,
    };
}

/// Does a change, or refuses it and leaves the topology as it is.
pub fn apply(topology: &mut Topology, change: Change) -> Result<Applied, Refusal> {
    let applied = decide(topology, change)?;
    if applied.changed {
        topology.version += 1;
    }
    Ok(applied)
}

fn decide(topology: &mut Topology, change: Change) -> Result<Applied, Refusal> {
    if !topology.is_formed() && !matches!(change, Change::Form { .. }) {
        return Err(Refusal::new(
            Code::NoQuorum,
            "the cluster is not formed yet",
        ));
    }
    match change {
        Change::Form {
            nodes,
            shards,
            replication,
        } => form(topology, nodes, shards, replication),
        Change::Join {
            name,
            addr,
            peer,
            incarnation,
        } => {
            let state = MemberState::Active;
            let member = Member {
                name,
                addr,
                peer,
                incarnation,
                state,
            };
            join(topology, member)
        },
        Change::Move { node, addr, peer } => relocate(topology, node, addr, peer),
        Change::Retire { node } => retire(topology, node),
        Change::Remove { node } => remove(topology, node),
        Change::Place { shard, replicas } => place(topology, shard, replicas),
        Change::Voters { nodes } => voters(topology, nodes),
        // These concern the group, not what it holds: whoever applies it does them.
        Change::RaiseRules { .. } | Change::Audit => Ok(Applied::UNCHANGED),
    }
}

fn form(
    topology: &mut Topology,
    nodes: BTreeMap<NodeId, Member>,
    shards: u32,
    replication: u32,
) -> Result<Applied, Refusal> {
    if topology.is_formed() {
        return Ok(Applied::UNCHANGED);
    }
    if !(1..=u32::from(SLOTS)).contains(&shards) {
        return Err(malformed(format!("a cluster has 1 to {SLOTS} shards")));
    }
    if nodes.is_empty() || nodes.contains_key(&NodeId(0)) || replication == 0 {
        let what = "a cluster has one node or more, counted from 1, and one replica or more";
        return Err(malformed(what));
    }
    let mut names = BTreeSet::new();
    for member in nodes.values() {
        check_member(member)?;
        if member.state != MemberState::Active || !names.insert(&member.name) {
            return Err(malformed(
                "the first nodes are active, each of its own name",
            ));
        }
    }
    let ids: Vec<NodeId> = nodes.keys().copied().collect();
    topology.shards = spread(&ids, shards, replication);
    topology.voters = first_voters(&ids);
    topology.replication = replication;
    topology.nodes = nodes;
    Ok(Applied::CHANGED)
}

fn join(topology: &mut Topology, member: Member) -> Result<Applied, Refusal> {
    check_member(&member)?;
    let known = topology
        .nodes
        .iter()
        .find(|(_, known)| known.name == member.name && known.incarnation == member.incarnation);
    if let Some((id, known)) = known {
        let id = *id;
        if known.state == MemberState::Removed {
            let what = "this node was removed; begin with an empty directory";
            return Err(wrong_state(what));
        }
        // It may have been given other addresses since it first asked.
        let moved = relocate(topology, id, member.addr, member.peer)?;
        let node = Some(id);
        return Ok(Applied { node, ..moved });
    }
    let newest = topology.nodes.last_key_value().map_or(0, |(id, _)| id.0);
    let id = newest
        .checked_add(1)
        .map(NodeId)
        .ok_or_else(|| Refusal::new(Code::Quota, "there are no node ids left"))?;
    for namesake in topology.nodes.values_mut() {
        if namesake.name == member.name && namesake.state == MemberState::Active {
            namesake.state = MemberState::Leaving;
        }
    }
    topology.nodes.insert(id, member);
    Ok(Applied {
        changed: true,
        node: Some(id),
    })
}

fn relocate(
    topology: &mut Topology,
    node: NodeId,
    addr: String,
    peer: String,
) -> Result<Applied, Refusal> {
    check_label(&addr)?;
    check_label(&peer)?;
    let member = member(topology, node)?;
    if member.state == MemberState::Removed {
        return Err(wrong_state(format!("node {node} was removed")));
    }
    if (&member.addr, &member.peer) == (&addr, &peer) {
        return Ok(Applied::UNCHANGED);
    }
    member.addr = addr;
    member.peer = peer;
    Ok(Applied::CHANGED)
}

fn retire(topology: &mut Topology, node: NodeId) -> Result<Applied, Refusal> {
    let widest = topology.shards.iter().map(|shard| shard.replicas.len());
    let widest = widest.max().unwrap_or_default();
    let needed = widest.min(replication(topology));
    let others = topology
        .nodes
        .iter()
        .filter(|(id, other)| **id != node && other.state == MemberState::Active);
    let others = others.count();
    let member = member(topology, node)?;
    if member.state != MemberState::Active {
        return Ok(Applied::UNCHANGED);
    }
    if others < needed {
        return Err(wrong_state(format!(
            "without node {node} there are {others} nodes for {needed} replicas; add one first"
        )));
    }
    member.state = MemberState::Leaving;
    Ok(Applied::CHANGED)
}

fn remove(topology: &mut Topology, node: NodeId) -> Result<Applied, Refusal> {
    let mut placements = topology.shards.iter();
    let holds = placements.any(|shard| shard.replicas.contains(&node));
    let votes = topology.voters.contains(&node);
    let member = member(topology, node)?;
    match member.state {
        MemberState::Removed => Ok(Applied::UNCHANGED),
        MemberState::Active => Err(wrong_state(format!("node {node} was not retired"))),
        MemberState::Leaving if holds || votes => {
            Err(wrong_state(format!("node {node} still holds something")))
        },
        MemberState::Leaving => {
            member.state = MemberState::Removed;
            Ok(Applied::CHANGED)
        },
    }
}

fn place(
    topology: &mut Topology,
    shard: ShardId,
    replicas: Vec<NodeId>,
) -> Result<Applied, Refusal> {
    let Some(placement) = topology.placement(shard) else {
        return Err(malformed(format!("there is no shard {shard}")));
    };
    if placement.replicas == replicas {
        return Ok(Applied::UNCHANGED);
    }
    let old: BTreeSet<NodeId> = placement.replicas.iter().copied().collect();
    let new: BTreeSet<NodeId> = replicas.iter().copied().collect();
    if new.len() != replicas.len() {
        return Err(malformed("a shard's replicas are distinct nodes"));
    }
    if new
        .difference(&old)
        .any(|id| topology.active(*id).is_none())
    {
        return Err(wrong_state("a new replica goes to an active node"));
    }
    if new.difference(&old).count() > 1 || old.difference(&new).count() > 1 {
        return Err(wrong_state("replicas move one at a time"));
    }
    let should = replication(topology);
    if !(old.len().min(should)..=old.len().max(should)).contains(&new.len()) {
        return Err(wrong_state(format!("a shard keeps its {should} replicas")));
    }
    let place = usize::try_from(shard.0)
        .ok()
        .and_then(|place| topology.shards.get_mut(place));
    if let Some(placement) = place {
        if old != new {
            placement.initial.clear();
        }
        placement.replicas = replicas;
    }
    Ok(Applied::CHANGED)
}

fn voters(topology: &mut Topology, mut nodes: Vec<NodeId>) -> Result<Applied, Refusal> {
    nodes.sort();
    let old: BTreeSet<NodeId> = topology.voters.iter().copied().collect();
    let new: BTreeSet<NodeId> = nodes.iter().copied().collect();
    if new == old && new.len() == nodes.len() {
        return Ok(Applied::UNCHANGED);
    }
    if new.len() != nodes.len() || ![1, 2, 3, 5].contains(&new.len()) {
        return Err(malformed("the metadata group has 1, 2, 3 or 5 voters"));
    }
    if new
        .difference(&old)
        .any(|id| topology.active(*id).is_none())
    {
        return Err(wrong_state("a new voter is an active node"));
    }
    if old.difference(&new).count() > 1 && !new.is_subset(&old) {
        return Err(wrong_state("voters are replaced one at a time"));
    }
    topology.voters = nodes;
    Ok(Applied::CHANGED)
}

fn member(topology: &mut Topology, node: NodeId) -> Result<&mut Member, Refusal> {
    let member = topology.nodes.get_mut(&node);
    member.ok_or_else(|| wrong_state(format!("there is no node {node}")))
}

/// Replicas that a shard should have once there are enough nodes.
pub(super) fn replication(topology: &Topology) -> usize {
    usize::try_from(topology.replication).unwrap_or(usize::MAX)
}

fn check_member(member: &Member) -> Result<(), Refusal> {
    [&member.name, &member.addr, &member.peer]
        .into_iter()
        .try_for_each(|label| check_label(label))
}

fn check_label(label: &str) -> Result<(), Refusal> {
    if (1..=LABEL_BYTES_MAX).contains(&label.len()) {
        return Ok(());
    }
    let what = format!("a node's name and addresses have 1 to {LABEL_BYTES_MAX} bytes");
    Err(malformed(what))
}

fn wrong_state(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::WrongState, what)
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::Malformed, what)
}
