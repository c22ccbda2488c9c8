//! A cluster that carries out what its topology says, one step at a time, as far as its nodes
//! are alive.

use std::collections::{BTreeMap, BTreeSet};

use everwire_core::topology::{Change, Member, MemberState, Placement, Topology};
use everwire_core::{NodeId, Refusal, ShardId};
use everwire_rules::topology::{Applied, Members, Observed, apply, plan};

pub(crate) fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

pub(crate) fn member(name: &str, incarnation: u64) -> Member {
    Member {
        name: name.to_owned(),
        addr: format!("{name}:7400"),
        peer: format!("{name}:7500"),
        incarnation,
        state: MemberState::Active,
    }
}

pub(crate) fn join(name: &str, incarnation: u64) -> Change {
    let Member {
        name, addr, peer, ..
    } = member(name, incarnation);
    Change::Join {
        name,
        addr,
        peer,
        incarnation,
    }
}

pub(crate) fn form(nodes: u64, shards: u32, replication: u32) -> Change {
    let nodes = (1..=nodes).map(|id| (NodeId(id), member(&format!("n{id}"), id)));
    Change::Form {
        nodes: nodes.collect(),
        shards,
        replication,
    }
}

pub(crate) fn formed(nodes: u64, shards: u32, replication: u32) -> Topology {
    let mut topology = Topology::default();
    apply(&mut topology, form(nodes, shards, replication)).unwrap();
    topology
}

/// How many shards each active node leads, if all of them had their way.
pub(crate) fn leads(topology: &Topology) -> BTreeMap<NodeId, usize> {
    count(topology, |placement| {
        placement.replicas.get(..1).unwrap_or_default()
    })
}

/// How many replicas each active node holds.
pub(crate) fn loads(topology: &Topology) -> BTreeMap<NodeId, usize> {
    count(topology, |placement| &placement.replicas)
}

fn count(topology: &Topology, which: impl Fn(&Placement) -> &[NodeId]) -> BTreeMap<NodeId, usize> {
    let active = topology.nodes.keys().copied();
    let active = active.filter(|id| topology.active(*id).is_some());
    let mut counts: BTreeMap<NodeId, usize> = active.map(|id| (id, 0)).collect();
    for id in topology.shards.iter().flat_map(which) {
        counts.entry(*id).and_modify(|count| *count += 1);
    }
    counts
}

pub(crate) fn spread(counts: &BTreeMap<NodeId, usize>) -> usize {
    let most = counts.values().max().copied().unwrap_or_default();
    let least = counts.values().min().copied().unwrap_or_default();
    most - least
}

pub(crate) fn holders(topology: &Topology) -> BTreeSet<NodeId> {
    let shards = topology.shards.iter();
    shards.flat_map(|shard| shard.replicas.clone()).collect()
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) topology: Topology,
    pub(crate) seen: Observed,
    /// Every id that was ever given.
    pub(crate) given: BTreeSet<NodeId>,
}

impl World {
    pub(crate) fn new(nodes: u64, shards: u32, replication: u32) -> Self {
        let topology = formed(nodes, shards, replication);
        let members = |nodes: &[NodeId]| Members {
            voters: nodes.iter().copied().collect(),
            learners: BTreeSet::new(),
        };
        let shards = topology.shards.iter();
        let shards = shards.map(|placement| members(&placement.replicas));
        let given: BTreeSet<NodeId> = topology.nodes.keys().copied().collect();
        let seen = Observed {
            alive: given.clone(),
            shards: (0..).map(ShardId).zip(shards).collect(),
            metadata: members(&topology.voters),
        };
        Self {
            topology,
            seen,
            given,
        }
    }

    /// Whoever joins is alive.
    pub(crate) fn change(&mut self, change: Change) -> Result<Applied, Refusal> {
        let before = self.topology.clone();
        let applied = apply(&mut self.topology, change.clone());
        match &applied {
            Ok(Applied {
                changed: true,
                node,
            }) => {
                assert_eq!(self.topology.version, before.version + 1, "{change:?}");
                assert_ne!(self.topology, before);
                if let Some(node) = node {
                    if !before.nodes.contains_key(node) {
                        assert!(self.given.insert(*node), "{node} was given twice");
                    }
                    self.seen.alive.insert(*node);
                }
            },
            Ok(_) | Err(_) => assert_eq!(self.topology, before, "{change:?}"),
        }
        check_step(&before, &self.topology);
        applied
    }

    /// Plans and applies once.
    pub(crate) fn plan(&mut self) -> Option<Change> {
        let change = plan(&self.topology, &self.seen)?;
        self.check_plan(&change);
        let applied = self.change(change.clone());
        assert!(applied.is_ok_and(|it| it.changed), "{change:?}: {self:#?}");
        Some(change)
    }

    fn check_plan(&self, change: &Change) {
        let alive = |id: &NodeId| self.seen.alive.contains(id);
        match change {
            Change::Place { shard, replicas } => {
                let old = &self.topology.placement(*shard).unwrap().replicas;
                let mut new = replicas.iter().filter(|id| !old.contains(id));
                assert!(new.all(alive), "{change:?}");
                assert!(replicas.first() == old.first() || alive(&replicas[0]));
                let voters = &self.seen.shards[shard].voters;
                let added = replicas.iter().filter(|id| !voters.contains(id));
                let gone = voters.iter().filter(|id| !replicas.contains(id));
                assert!(added.count() <= 1 && gone.count() <= 1, "{change:?}");
            },
            Change::Voters { nodes } => {
                let mut new = nodes.iter().filter(|id| !self.topology.voters.contains(id));
                assert!(new.all(alive), "{change:?}");
            },
            Change::Remove { node } => {
                let groups = self.seen.shards.values().chain([&self.seen.metadata]);
                for group in groups {
                    assert!(!group.voters.contains(node) && !group.learners.contains(node));
                }
            },
            Change::Form { .. }
            | Change::Join { .. }
            | Change::Move { .. }
            | Change::Retire { .. }
            | Change::RaiseRules { .. }
            | Change::Audit => panic!("not for a plan: {change:?}"),
        }
    }

    /// One group takes one step towards its placement; whether it could. Groups count from the
    /// shards on, the metadata group is the last.
    pub(crate) fn carry_out(&mut self, group: usize) -> bool {
        let count = self.topology.shards.len();
        let shard = ShardId(u32::try_from(group).unwrap());
        let (members, wanted) = if group < count {
            let wanted = &self.topology.shards[group].replicas;
            (self.seen.shards.get_mut(&shard).unwrap(), wanted)
        } else {
            (&mut self.seen.metadata, &self.topology.voters)
        };
        step(members, wanted, &self.seen.alive)
    }

    /// Plans and carries out until nothing happens any more.
    pub(crate) fn settle(&mut self) -> Vec<Change> {
        let mut planned = Vec::new();
        loop {
            let plan = self.plan();
            let mut moved = plan.is_some();
            planned.extend(plan);
            for group in 0..=self.topology.shards.len() {
                moved |= self.carry_out(group);
            }
            if !moved {
                return planned;
            }
            assert!(planned.len() < 10_000, "no end: {planned:#?}");
        }
    }

    /// All that must hold when everybody is alive and nothing is left to do.
    pub(crate) fn check_settled(&self) {
        let topology = &self.topology;
        let active: BTreeSet<NodeId> = leads(topology).into_keys().collect();
        let replication = usize::try_from(topology.replication).unwrap();
        for (shard, placement) in (0..).map(ShardId).zip(&topology.shards) {
            let nodes: BTreeSet<NodeId> = placement.replicas.iter().copied().collect();
            assert_eq!(nodes.len(), replication.min(active.len()), "{self:#?}");
            assert!(nodes.is_subset(&active), "{self:#?}");
            assert_eq!(self.seen.shards[&shard].voters, nodes, "{self:#?}");
        }
        let voters: BTreeSet<NodeId> = topology.voters.iter().copied().collect();
        let wanted = everwire_rules::topology::voters_wanted(active.len());
        assert_eq!(voters.len(), wanted, "{self:#?}");
        assert!(voters.is_subset(&active), "{self:#?}");
        for member in topology.nodes.values() {
            assert_ne!(member.state, MemberState::Leaving, "{self:#?}");
        }
    }
}

fn step(members: &mut Members, wanted: &[NodeId], alive: &BTreeSet<NodeId>) -> bool {
    let quorum = members.voters.intersection(alive).count() * 2 > members.voters.len();
    let stray = members.learners.iter().find(|id| !wanted.contains(id));
    let missing = wanted.iter().find(|id| !members.voters.contains(id));
    let leaving = members.voters.iter().find(|id| !wanted.contains(id));
    match (quorum, stray.copied(), missing.copied(), leaving.copied()) {
        (false, ..) => false,
        (true, Some(stray), ..) => members.learners.remove(&stray),
        (true, None, Some(missing), _) if !alive.contains(&missing) => {
            members.learners.insert(missing)
        },
        (true, None, Some(missing), _) => {
            if members.learners.remove(&missing) {
                members.voters.insert(missing)
            } else {
                members.learners.insert(missing)
            }
        },
        (true, None, None, Some(leaving)) => members.voters.remove(&leaving),
        (true, None, None, None) => false,
    }
}

/// What no change may do to what was there.
fn check_step(before: &Topology, after: &Topology) {
    for (id, member) in &before.nodes {
        let now = &after.nodes[id];
        assert_eq!(
            (&member.name, member.incarnation),
            (&now.name, now.incarnation)
        );
        let removed = member.state == MemberState::Removed;
        assert!(
            !removed || now.state == MemberState::Removed,
            "{id} is back"
        );
    }
    let replication = usize::try_from(after.replication).unwrap();
    for (old, new) in before.shards.iter().zip(&after.shards) {
        let set = |placement: &Placement| -> BTreeSet<NodeId> {
            placement.replicas.iter().copied().collect()
        };
        let (old_set, new_set) = (set(old), set(new));
        assert_eq!(new_set.len(), new.replicas.len(), "twice on one node");
        assert!(
            new_set.len() >= old_set.len().min(replication),
            "a replica is missing"
        );
        assert!(old_set.difference(&new_set).count() <= 1);
        assert!(new_set.difference(&old_set).count() <= 1);
        assert!(new.initial.is_empty() || new.initial == old.initial);
        assert!(new.initial.is_empty() || set(old) == new_set);
    }
}
