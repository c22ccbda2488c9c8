//! Any topology and any change of one.

use std::collections::BTreeMap;

use everwire_core::topology::{Change, Member, MemberState, Placement, Topology};
use everwire_core::{NodeId, ShardId};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

fn node() -> impl Strategy<Value = NodeId> {
    prop_oneof![0..10_u64, any::<u64>()].prop_map(NodeId)
}

fn ids() -> impl Strategy<Value = Vec<NodeId>> {
    vec(node(), 0..4)
}

fn members() -> impl Strategy<Value = BTreeMap<NodeId, Member>> {
    use MemberState::{Active, Leaving, Removed};
    let texts = any::<(String, String, String)>();
    let member = (texts, any::<u64>(), select(vec![Active, Leaving, Removed]));
    let member = member.prop_map(|((name, addr, peer), incarnation, state)| Member {
        name,
        addr,
        peer,
        incarnation,
        state,
    });
    btree_map(node(), member, 0..5)
}

pub(crate) fn topology() -> impl Strategy<Value = Topology> {
    let placement = (ids(), ids());
    let placement = placement.prop_map(|(replicas, initial)| Placement { replicas, initial });
    let topology = (any::<(u64, u32)>(), members(), vec(placement, 0..5), ids());
    topology.prop_map(|((version, replication), nodes, shards, voters)| Topology {
        version,
        replication,
        nodes,
        shards,
        voters,
    })
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let join = any::<(String, String, String, u64)>();
    prop_oneof![
        (members(), any::<(u32, u32)>()).prop_map(|(nodes, (shards, replication))| Change::Form {
            nodes,
            shards,
            replication,
        }),
        join.prop_map(|(name, addr, peer, incarnation)| Change::Join {
            name,
            addr,
            peer,
            incarnation,
        }),
        (node(), any::<(String, String)>()).prop_map(|(node, (addr, peer))| Change::Move {
            node,
            addr,
            peer
        }),
        node().prop_map(|node| Change::Retire { node }),
        node().prop_map(|node| Change::Remove { node }),
        (any::<u32>(), ids()).prop_map(|(shard, replicas)| Change::Place {
            shard: ShardId(shard),
            replicas,
        }),
        ids().prop_map(|nodes| Change::Voters { nodes }),
        any::<u32>().prop_map(|version| Change::RaiseRules { version }),
        Just(Change::Audit),
    ]
}
