//! What each change does, and when it is refused; the rows of docs/protocol/topology.md.

use std::collections::BTreeSet;

use everwire_core::topology::{Change, MemberState, Placement, Topology};
use everwire_core::{Code, NodeId, ShardId};
use everwire_rules::topology::{Applied, Members, Observed, apply, plan, preferred_leader};

use crate::world::{World, form, formed, ids, join, member};

/// Applies a change that is taken and makes a difference.
fn taken(topology: &mut Topology, change: Change) -> Option<NodeId> {
    let version = topology.version;
    let applied = apply(topology, change).unwrap();
    assert!(applied.changed);
    assert_eq!(topology.version, version + 1);
    applied.node
}

/// Applies a change that makes no difference.
fn repeated(topology: &mut Topology, change: Change) -> Option<NodeId> {
    let before = topology.clone();
    let applied = apply(topology, change).unwrap();
    assert!(!applied.changed);
    assert_eq!(*topology, before);
    applied.node
}

fn refused(topology: &mut Topology, change: Change) -> (Code, String) {
    let before = topology.clone();
    let refusal = apply(topology, change).unwrap_err();
    assert_eq!(*topology, before);
    (refusal.code, refusal.message)
}

fn place(shard: u32, replicas: impl IntoIterator<Item = u64>) -> Change {
    Change::Place {
        shard: ShardId(shard),
        replicas: ids(replicas),
    }
}

fn voters(nodes: impl IntoIterator<Item = u64>) -> Change {
    Change::Voters { nodes: ids(nodes) }
}

fn retire(node: u64) -> Change {
    Change::Retire { node: NodeId(node) }
}

fn remove(node: u64) -> Change {
    Change::Remove { node: NodeId(node) }
}

#[test]
fn a_cluster_is_formed_once() {
    let mut topology = Topology::default();
    for change in [join("n1", 1), retire(1), place(0, [1]), voters([1])] {
        assert_eq!(refused(&mut topology, change).0, Code::NoQuorum);
    }
    assert_eq!(plan(&topology, &Observed::default()), None);
    taken(&mut topology, form(3, 16, 3));
    assert_eq!(topology.voters, ids([1, 2, 3]));
    let other = form(5, 4, 1);
    repeated(&mut topology, other);
    assert_eq!(topology.shards.len(), 16);
    assert_eq!(formed(2, 16, 3).voters, ids([1, 2]));
    assert_eq!(formed(4, 16, 3).voters, ids([1, 2, 3]));
    assert_eq!(formed(6, 16, 3).voters, ids([1, 2, 3, 4, 5]));
}

#[test]
fn a_formation_without_sense_is_refused() {
    for change in [
        form(0, 16, 3),
        form(3, 0, 3),
        form(3, 4097, 3),
        form(3, 16, 0),
    ] {
        let (code, _) = refused(&mut Topology::default(), change);
        assert_eq!(code, Code::Malformed);
    }
    let with = |id: u64, name: &str, state: MemberState| {
        let mut change = form(2, 16, 3);
        let Change::Form { nodes, .. } = &mut change else {
            panic!("it forms");
        };
        let mut member = member(name, 7);
        member.state = state;
        nodes.insert(NodeId(id), member);
        change
    };
    let bad = [
        with(0, "n0", MemberState::Active),
        with(3, "n1", MemberState::Active),
        with(3, "n3", MemberState::Leaving),
        with(3, "", MemberState::Active),
        with(3, &"x".repeat(257), MemberState::Active),
    ];
    for change in bad {
        let (code, _) = refused(&mut Topology::default(), change);
        assert_eq!(code, Code::Malformed);
    }
    taken(&mut Topology::default(), with(3, "n3", MemberState::Active));
}

#[test]
fn whoever_joins_gets_an_id_of_its_own() {
    let mut topology = formed(3, 16, 3);
    assert_eq!(taken(&mut topology, join("n4", 44)), Some(NodeId(4)));
    assert_eq!(repeated(&mut topology, join("n4", 44)), Some(NodeId(4)));
    // Told by its incarnation, wherever it is now.
    let moved = Change::Join {
        name: "n4".to_owned(),
        addr: "elsewhere:1".to_owned(),
        peer: "elsewhere:2".to_owned(),
        incarnation: 44,
    };
    assert_eq!(taken(&mut topology, moved), Some(NodeId(4)));
    assert_eq!(topology.nodes[&NodeId(4)].addr, "elsewhere:1");
    // Another of the same name takes its place.
    assert_eq!(taken(&mut topology, join("n4", 55)), Some(NodeId(5)));
    assert_eq!(topology.nodes[&NodeId(4)].state, MemberState::Leaving);
    assert_eq!(taken(&mut topology, join("n4", 44)), Some(NodeId(4)));
    assert_eq!(topology.nodes[&NodeId(4)].state, MemberState::Leaving);
    taken(&mut topology, remove(4));
    let (code, message) = refused(&mut topology, join("n4", 44));
    assert_eq!(code, Code::WrongState);
    assert!(message.contains("empty directory"), "{message}");
    assert_eq!(taken(&mut topology, join("n6", 66)), Some(NodeId(6)));
    assert_eq!(refused(&mut topology, join("", 1)).0, Code::Malformed);
}

#[test]
fn a_node_moves_to_other_addresses() {
    let mut topology = formed(3, 16, 3);
    let moved = |node, addr: &str| Change::Move {
        node: NodeId(node),
        addr: addr.to_owned(),
        peer: "n1:7500".to_owned(),
    };
    repeated(&mut topology, moved(1, "n1:7400"));
    taken(&mut topology, moved(1, "n1:7401"));
    assert_eq!(topology.nodes[&NodeId(1)].addr, "n1:7401");
    assert_eq!(
        refused(&mut topology, moved(9, "n1:7400")).0,
        Code::WrongState
    );
    assert_eq!(refused(&mut topology, moved(1, "")).0, Code::Malformed);
}

#[test]
fn a_node_is_retired_only_while_others_can_hold_what_it_holds() {
    let mut topology = formed(3, 16, 3);
    let (code, message) = refused(&mut topology, retire(3));
    assert_eq!(code, Code::WrongState);
    assert!(message.contains("2 nodes for 3 replicas"), "{message}");
    assert_eq!(
        refused(&mut formed(1, 16, 3), retire(1)).0,
        Code::WrongState
    );
    assert_eq!(refused(&mut topology, retire(9)).0, Code::WrongState);
    taken(&mut topology, join("n4", 44));
    taken(&mut topology, retire(3));
    repeated(&mut topology, retire(3));
    assert_eq!(refused(&mut topology, retire(4)).0, Code::WrongState);
    // With one replica of each, one other node is enough.
    taken(&mut formed(2, 16, 1), retire(2));
}

#[test]
fn a_node_is_removed_when_it_leaves_and_holds_nothing() {
    let mut topology = formed(3, 1, 3);
    taken(&mut topology, join("n4", 44));
    for node in [1, 9] {
        assert_eq!(refused(&mut topology, remove(node)).0, Code::WrongState);
    }
    taken(&mut topology, retire(1));
    assert_eq!(refused(&mut topology, remove(1)).0, Code::WrongState);
    taken(&mut topology, place(0, [4, 2, 3]));
    assert_eq!(refused(&mut topology, remove(1)).0, Code::WrongState);
    taken(&mut topology, voters([2, 3, 4]));
    taken(&mut topology, remove(1));
    repeated(&mut topology, remove(1));
    repeated(&mut topology, retire(1));
    let moved = Change::Move {
        node: NodeId(1),
        addr: "a".to_owned(),
        peer: "b".to_owned(),
    };
    assert_eq!(refused(&mut topology, moved).0, Code::WrongState);
}

#[test]
fn a_shard_changes_one_replica_at_a_time() {
    let mut topology = formed(5, 1, 3);
    taken(&mut topology, join("n6", 66));
    taken(&mut topology, retire(6));
    assert_eq!(topology.shards[0].replicas, ids([1, 2, 3]));
    for (change, code) in [
        (place(1, [1, 2, 3]), Code::Malformed),
        (place(0, [1, 2, 2]), Code::Malformed),
        (place(0, []), Code::WrongState),
        (place(0, [1, 2]), Code::WrongState),
        (place(0, [1, 2, 3, 4]), Code::WrongState),
        (place(0, [1, 4, 5]), Code::WrongState),
        (place(0, [1, 2, 6]), Code::WrongState),
        (place(0, [1, 2, 7]), Code::WrongState),
    ] {
        assert_eq!(refused(&mut topology, change).0, code);
    }
    repeated(&mut topology, place(0, [1, 2, 3]));
    // Another order leaves the group as it is; other nodes mean that it is there.
    taken(&mut topology, place(0, [3, 1, 2]));
    assert_eq!(topology.shards[0].initial, ids([1, 2, 3]));
    taken(&mut topology, place(0, [3, 1, 4]));
    assert_eq!(topology.shards[0].initial, []);
    let mut one = formed(1, 1, 3);
    taken(&mut one, join("n2", 2));
    taken(&mut one, place(0, [1, 2]));
}

#[test]
fn the_voters_are_few_and_odd() {
    let mut topology = formed(5, 16, 3);
    taken(&mut topology, join("n6", 66));
    taken(&mut topology, join("n7", 77));
    taken(&mut topology, retire(7));
    repeated(&mut topology, voters([5, 4, 3, 2, 1]));
    for (change, code) in [
        (voters([]), Code::Malformed),
        (voters([1, 1, 2]), Code::Malformed),
        (voters([1, 2, 3, 4]), Code::Malformed),
        (voters([1, 2, 3, 4, 7]), Code::WrongState),
        (voters([1, 2, 3, 4, 9]), Code::WrongState),
        (voters([1, 2, 6]), Code::WrongState),
    ] {
        assert_eq!(refused(&mut topology, change).0, code);
    }
    taken(&mut topology, voters([1, 2, 3, 4, 6]));
    taken(&mut topology, voters([1, 3, 6]));
    taken(&mut topology, voters([1, 2, 3, 5, 6]));
}

#[test]
fn the_first_replica_that_can_should_lead() {
    let placement = Placement {
        replicas: ids([3, 1, 2]),
        initial: Vec::new(),
    };
    let preferred = |alive: &[u64], caught_up: &[u64]| {
        let nodes =
            |numbers: &[u64]| -> BTreeSet<NodeId> { numbers.iter().copied().map(NodeId).collect() };
        let leader = preferred_leader(&placement, &nodes(alive), &nodes(caught_up));
        leader.map(|node| node.0)
    };
    let all = &[1, 2, 3, 4];
    assert_eq!(preferred(all, all), Some(3));
    assert_eq!(preferred(&[1, 2], all), Some(1));
    assert_eq!(preferred(all, &[2]), Some(2));
    assert_eq!(preferred(&[4], all), None);
    assert_eq!(preferred(&[1], &[2]), None);
}

#[test]
fn few_shards_move_at_once_and_only_to_the_living() {
    let mut world = World::new(3, 16, 3);
    world.change(join("n4", 44)).unwrap();
    world.change(retire(3)).unwrap();
    world.seen.alive.remove(&NodeId(4));
    assert_eq!(world.plan(), None);
    world.seen.alive.insert(NodeId(4));
    assert_eq!(world.plan(), Some(voters([1, 2, 4])));
    for _ in 0..2 {
        assert!(matches!(world.plan(), Some(Change::Place { .. })));
    }
    assert_eq!(world.plan(), None);
    // A shard that cannot tell its members is left alone, and nobody is removed meanwhile.
    let silent = world.seen.shards.remove(&ShardId(15)).unwrap();
    for _ in 0..100 {
        for group in (0..15).chain([16]) {
            world.carry_out(group);
        }
        assert!(!matches!(world.plan(), Some(Change::Remove { .. })));
    }
    assert!(world.topology.shards[15].replicas.contains(&NodeId(3)));
    world.seen.shards.insert(ShardId(15), silent);
    world.settle();
    world.check_settled();
}

#[test]
fn a_move_whose_node_died_goes_elsewhere() {
    let mut world = World::new(3, 1, 3);
    world.change(join("n4", 44)).unwrap();
    world.seen.alive.remove(&NodeId(3));
    world.change(retire(3)).unwrap();
    assert_eq!(world.plan(), Some(voters([1, 2, 4])));
    let moved = world.plan();
    assert!(matches!(moved, Some(Change::Place { .. })), "{moved:?}");
    world.seen.alive.remove(&NodeId(4));
    world.carry_out(0);
    world.carry_out(1);
    assert_eq!(world.plan(), None);
    world.change(join("n4", 55)).unwrap();
    assert_eq!(world.plan(), Some(voters([1, 2, 5])));
    world.settle();
    world.check_settled();
    let gone = [MemberState::Removed; 2];
    assert_eq!(
        [3, 4].map(|id| world.topology.nodes[&NodeId(id)].state),
        gone
    );
}

#[test]
fn a_node_is_not_removed_while_a_group_still_has_it() {
    let mut world = World::new(3, 1, 3);
    world.change(join("n4", 44)).unwrap();
    world.change(Change::Retire { node: NodeId(4) }).unwrap();
    let stray = |members: &mut Members| members.learners.insert(NodeId(4));
    stray(world.seen.shards.get_mut(&ShardId(0)).unwrap());
    assert_eq!(world.plan(), None);
    world
        .seen
        .shards
        .get_mut(&ShardId(0))
        .unwrap()
        .learners
        .clear();
    stray(&mut world.seen.metadata);
    assert_eq!(world.plan(), None);
    world.seen.metadata.learners.clear();
    assert_eq!(world.plan(), Some(remove(4)));
    let none = Applied {
        changed: false,
        node: None,
    };
    assert_eq!(world.change(remove(4)), Ok(none));
}
