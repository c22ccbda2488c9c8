//! Formations of every size, and clusters to which anything happens.

use std::collections::BTreeSet;

use everwire_core::NodeId;
use everwire_core::topology::{Change, MemberState};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::world::{World, formed, holders, join, leads, loads, spread};

#[test]
fn every_formation_is_even() {
    for nodes in 1..=7_u64 {
        for shards in 1..=64 {
            for replication in 1..=5 {
                let topology = formed(nodes, shards, replication);
                let full = usize::try_from(nodes.min(replication.into())).unwrap();
                for placement in &topology.shards {
                    let distinct: BTreeSet<_> = placement.replicas.iter().collect();
                    assert_eq!((distinct.len(), placement.replicas.len()), (full, full));
                    assert_eq!(placement.initial, placement.replicas);
                }
                let shape = format!("{nodes} nodes, {shards} shards, {replication} replicas");
                assert!(spread(&leads(&topology)) <= 1, "{shape}");
                assert!(spread(&loads(&topology)) <= 2, "{shape}");
                assert_eq!(
                    World::new(nodes, shards, replication).settle(),
                    [],
                    "{shape}"
                );
            }
        }
    }
}

#[test]
fn a_dead_leaders_shards_go_to_all_others() {
    for nodes in 3..=7_u64 {
        let topology = formed(nodes, 64, 3);
        for dead in (1..=nodes).map(NodeId) {
            let led = topology.shards.iter().map(|placement| &placement.replicas);
            let led: Vec<_> = led.filter(|replicas| replicas[0] == dead).collect();
            let next: BTreeSet<_> = led.iter().map(|replicas| replicas[1]).collect();
            assert_eq!(next.len(), topology.nodes.len() - 1, "{dead}");
            assert_eq!(
                next.len(),
                led.len().min(topology.nodes.len() - 1),
                "{dead}"
            );
        }
    }
}

#[test]
fn a_cluster_that_grows_fills_up_and_levels_its_leaders() {
    let mut world = World::new(1, 16, 3);
    for (node, voters) in (2..=7).zip([2, 3, 3, 5, 5, 5]) {
        world.change(join(&format!("n{node}"), node)).unwrap();
        world.settle();
        world.check_settled();
        assert_eq!(world.topology.voters.len(), voters);
    }
    let leads = leads(&world.topology);
    let first: Vec<_> = leads.values().take(3).collect();
    assert!(
        first.iter().all(|count| (5..=6).contains(*count)),
        "{leads:?}"
    );
    // New nodes in a full cluster get nothing until somebody leaves.
    assert_eq!(holders(&world.topology), (1..=3).map(NodeId).collect());
}

#[test]
fn each_node_in_turn_is_replaced() {
    let mut world = World::new(3, 16, 3);
    for name in ["n1", "n2", "n3", "n1"] {
        let old = *leads(&world.topology)
            .keys()
            .find(|id| world.topology.nodes[*id].name == name)
            .unwrap();
        world.seen.alive.remove(&old);
        let applied = world.change(join(name, 1_000 + old.0)).unwrap();
        assert!(applied.node > Some(old));
        world.settle();
        world.check_settled();
        assert!(!holders(&world.topology).contains(&old));
        assert_eq!(world.topology.nodes[&old].state, MemberState::Removed);
        assert!(spread(&leads(&world.topology)) <= 1);
        assert!(spread(&loads(&world.topology)) <= 1);
    }
}

/// Something that happens to a cluster.
#[derive(Clone, Debug)]
enum Event {
    /// A node of a name that nobody had, or of one that somebody has.
    JoinNew,
    Replace(Index),
    Retire(Index),
    Die(Index),
    Rise(Index),
    /// The leader of the metadata group plans.
    Plan,
    /// A group does something about what is planned.
    CarryOut(Index),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::JoinNew),
        1 => any::<Index>().prop_map(Event::Replace),
        1 => any::<Index>().prop_map(Event::Retire),
        1 => any::<Index>().prop_map(Event::Die),
        2 => any::<Index>().prop_map(Event::Rise),
        8 => Just(Event::Plan),
        16 => any::<Index>().prop_map(Event::CarryOut),
    ]
}

fn happen(world: &mut World, event: &Event, at: u64) {
    let all: Vec<NodeId> = world.topology.nodes.keys().copied().collect();
    match event {
        Event::JoinNew => {
            world.change(join(&format!("new{at}"), at)).unwrap();
        },
        Event::Replace(which) => {
            let old = *which.get(&all);
            let name = world.topology.nodes[&old].name.clone();
            world.seen.alive.remove(&old);
            let first = world.change(join(&name, 1_000 + at)).unwrap();
            let again = world.change(join(&name, 1_000 + at)).unwrap();
            assert_eq!((first.node, again.changed), (again.node, false));
        },
        Event::Retire(which) => {
            let node = *which.get(&all);
            if world.change(Change::Retire { node }).is_ok() {
                let again = world.change(Change::Retire { node }).unwrap();
                assert!(!again.changed);
            }
        },
        Event::Die(which) => {
            world.seen.alive.remove(which.get(&all));
        },
        Event::Rise(which) => {
            world.seen.alive.insert(*which.get(&all));
        },
        Event::Plan => {
            world.plan();
        },
        Event::CarryOut(which) => {
            world.carry_out(which.index(world.topology.shards.len() + 1));
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_plans_come_to_an_end_where_all_is_well(
        (nodes, shards, replication) in (1..=7_u64, 1..=12_u32, 1..=5_u32),
        events in vec(event(), 0..200),
    ) {
        let mut world = World::new(nodes, shards, replication);
        for (event, at) in events.iter().zip(100..) {
            happen(&mut world, event, at);
        }
        // With whoever is left; then with all of them.
        world.settle();
        world.seen.alive = world.given.clone();
        world.settle();
        world.check_settled();
    }
}
