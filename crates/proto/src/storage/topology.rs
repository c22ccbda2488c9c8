//! The topology and its changes: the state and the log entries of the metadata group.

use std::collections::BTreeMap;

use bytes::Bytes;
use everwire_core::topology::{Change, Member, MemberState, Placement, Topology};
use everwire_core::{NodeId, ShardId};

use super::{StorageError, damaged, decode, encode};
use crate::storage_v1 as disk;
use crate::storage_v1::TopologyNodeState as DiskState;
use crate::storage_v1::topology_change::Change as DiskChange;

/// The state of the metadata group.
pub fn encode_topology(topology: &Topology) -> Bytes {
    encode(&topology_to(topology)).into()
}

/// Reads what [`encode_topology`] wrote.
pub fn decode_topology(bytes: &[u8]) -> Result<Topology, StorageError> {
    topology_from(decode("Topology", bytes)?)
}

/// What a log entry of the metadata group asks for.
pub fn encode_change(change: &Change) -> Bytes {
    encode(&change_to(change)).into()
}

/// Reads what [`encode_change`] wrote.
pub fn decode_change(bytes: &[u8]) -> Result<Change, StorageError> {
    change_from(decode("TopologyChange", bytes)?)
}

/// A topology inside a message.
pub fn topology_to(topology: &Topology) -> disk::Topology {
    disk::Topology {
        version: topology.version,
        replication: topology.replication,
        nodes: members_to(&topology.nodes),
        shards: topology.shards.iter().map(placement_to).collect(),
        voters: ids_to(&topology.voters),
    }
}

/// Reads what [`topology_to`] made.
pub fn topology_from(topology: disk::Topology) -> Result<Topology, StorageError> {
    Ok(Topology {
        version: topology.version,
        replication: topology.replication,
        nodes: members_from(topology.nodes)?,
        shards: topology.shards.into_iter().map(placement_from).collect(),
        voters: ids_from(topology.voters),
    })
}

/// A change inside a message.
pub fn change_to(change: &Change) -> disk::TopologyChange {
    let change = match change {
        Change::Form {
            nodes,
            shards,
            replication,
        } => DiskChange::Form(disk::FormCluster {
            nodes: members_to(nodes),
            shards: *shards,
            replication: *replication,
        }),
        Change::Join {
            name,
            addr,
            peer,
            incarnation,
        } => DiskChange::Join(disk::JoinNode {
            name: name.clone(),
            addr: addr.clone(),
            peer: peer.clone(),
            incarnation: *incarnation,
        }),
        Change::Move { node, addr, peer } => DiskChange::Move(disk::MoveNode {
            node: node.0,
            addr: addr.clone(),
            peer: peer.clone(),
        }),
        Change::Retire { node } => DiskChange::Retire(node.0),
        Change::Remove { node } => DiskChange::Remove(node.0),
        Change::Place { shard, replicas } => DiskChange::Place(disk::PlaceShard {
            shard: shard.0,
            replicas: ids_to(replicas),
        }),
        Change::Voters { nodes } => DiskChange::Voters(disk::SetVoters {
            nodes: ids_to(nodes),
        }),
        Change::RaiseRules { version } => DiskChange::RaiseRules(*version),
        Change::Audit => DiskChange::Audit(disk::AuditTopology {}),
    };
    disk::TopologyChange {
        change: Some(change),
    }
}

/// Reads what [`change_to`] made.
pub fn change_from(change: disk::TopologyChange) -> Result<Change, StorageError> {
    // A kind that came later reads as none: whoever meets one stops (RULES 2).
    let change = change.change.ok_or_else(|| {
        damaged("a change of the topology of a kind that this build does not know")
    })?;
    Ok(match change {
        DiskChange::Form(change) => Change::Form {
            nodes: members_from(change.nodes)?,
            shards: change.shards,
            replication: change.replication,
        },
        DiskChange::Join(change) => Change::Join {
            name: change.name,
            addr: change.addr,
            peer: change.peer,
            incarnation: change.incarnation,
        },
        DiskChange::Move(change) => Change::Move {
            node: NodeId(change.node),
            addr: change.addr,
            peer: change.peer,
        },
        DiskChange::Retire(node) => Change::Retire { node: NodeId(node) },
        DiskChange::Remove(node) => Change::Remove { node: NodeId(node) },
        DiskChange::Place(change) => Change::Place {
            shard: ShardId(change.shard),
            replicas: ids_from(change.replicas),
        },
        DiskChange::Voters(change) => Change::Voters {
            nodes: ids_from(change.nodes),
        },
        DiskChange::RaiseRules(version) => Change::RaiseRules { version },
        DiskChange::Audit(disk::AuditTopology {}) => Change::Audit,
    })
}

/// Nodes inside a message, by their ids.
pub fn members_to(members: &BTreeMap<NodeId, Member>) -> Vec<disk::TopologyNode> {
    let members = members.iter().map(|(id, member)| disk::TopologyNode {
        id: id.0,
        name: member.name.clone(),
        addr: member.addr.clone(),
        peer: member.peer.clone(),
        incarnation: member.incarnation,
        state: state_to(member.state).into(),
    });
    members.collect()
}

/// Reads what [`members_to`] made.
pub fn members_from(
    members: Vec<disk::TopologyNode>,
) -> Result<BTreeMap<NodeId, Member>, StorageError> {
    let mut by_id = BTreeMap::new();
    for member in members {
        let id = NodeId(member.id);
        let member = Member {
            state: state_from(member.state)?,
            name: member.name,
            addr: member.addr,
            peer: member.peer,
            incarnation: member.incarnation,
        };
        if by_id.insert(id, member).is_some() {
            return Err(damaged("a topology with two nodes of one id"));
        }
    }
    Ok(by_id)
}

fn state_to(state: MemberState) -> DiskState {
    match state {
        MemberState::Active => DiskState::Active,
        MemberState::Leaving => DiskState::Leaving,
        MemberState::Removed => DiskState::Removed,
    }
}

fn state_from(number: i32) -> Result<MemberState, StorageError> {
    match DiskState::try_from(number) {
        Ok(DiskState::Active) => Ok(MemberState::Active),
        Ok(DiskState::Leaving) => Ok(MemberState::Leaving),
        Ok(DiskState::Removed) => Ok(MemberState::Removed),
        Ok(DiskState::Unspecified) => Err(damaged("a node without state")),
        Err(_unknown) => Err(damaged("a node's state that is not known here")),
    }
}

fn placement_to(placement: &Placement) -> disk::Placement {
    disk::Placement {
        replicas: ids_to(&placement.replicas),
        initial: ids_to(&placement.initial),
    }
}

fn placement_from(placement: disk::Placement) -> Placement {
    Placement {
        replicas: ids_from(placement.replicas),
        initial: ids_from(placement.initial),
    }
}

fn ids_to(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

fn ids_from(nodes: Vec<u64>) -> Vec<NodeId> {
    nodes.into_iter().map(NodeId).collect()
}
