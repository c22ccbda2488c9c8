//! The map of the cluster as a client knows it: where nodes serve, who leads which shard.
//!
//! Pure bookkeeping: no network, and the time is passed in. Comes in: maps that nodes stream and hints that stand
//! in refusals. Goes out: an address to go straight to. Of two claims about a shard's leader the
//! one of the higher term is right, whoever made it and in whatever order they came (RULES 38).

use std::collections::{BTreeMap, BTreeSet};

use everwire_core::limits::{MAP_NODES_MAX, SLOTS};
use everwire_core::{ShardId, Slot};
use everwire_proto::v1;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::address::{self, Address};

/// See the module.
#[derive(Default)]
pub(crate) struct ClusterMap {
    cluster: String,
    version: u64,
    nodes: BTreeMap<u64, Node>,
    /// By shard id; empty until the first map came.
    shards: Vec<Shard>,
}

struct Node {
    address: Address,
    alive: bool,
}

#[derive(Default)]
struct Shard {
    leader: Option<Address>,
    /// Of the newest claim that came, with a leader or without.
    term: u64,
    /// The leader said that it does not lead: until then nobody is taken to, unless a newer
    /// claim comes. Not for ever: it may only have been the last to learn of its own election.
    denied: Option<Instant>,
    replicas: Vec<u64>,
}

/// Who leads a shard, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leader {
    /// There is no map, or the session's shard is not known.
    Unmapped,
    /// Nobody at this moment.
    Nobody,
    /// This address, in this term.
    At(Address, u64),
}

impl ClusterMap {
    /// Takes a map; answers who leads something since then, or is alive again: it is worth going
    /// there. Addresses are read as those of a client that does or does not speak TLS.
    pub(crate) fn take(&mut self, map: v1::Map, secure: bool) -> BTreeSet<Address> {
        let mut anew = BTreeSet::new();
        let shards = map.shards.len();
        if shards == 0 || shards > usize::from(SLOTS) || map.nodes.len() > MAP_NODES_MAX {
            warn!(
                shards,
                nodes = map.nodes.len(),
                "a map that cannot be right"
            );
            return anew;
        }
        if map.nodes.len() == 1 {
            // Whoever reaches a cluster of one reaches all of it, maybe by a way of its own.
            *self = Self::default();
            return anew;
        }
        if self.cluster != map.cluster || self.shards.len() != shards {
            // The first one, or a cluster that was made anew at the same addresses.
            *self = Self {
                cluster: map.cluster,
                ..Self::default()
            };
            self.shards.resize_with(shards, Shard::default);
        }
        let nodes = read_nodes(&map.nodes, secure);
        for claim in &map.shards {
            let leader = nodes.get(&claim.leader).map(|node| node.address.clone());
            if let Some(shard) = index(claim.id).and_then(|id| self.shards.get_mut(id)) {
                if shard.claim(leader.clone(), claim.term) {
                    anew.extend(leader);
                }
                if map.version >= self.version {
                    shard.replicas.clone_from(&claim.replicas);
                }
            }
        }
        if map.version >= self.version {
            let dead = |id: &u64| self.nodes.get(id).is_some_and(|node| !node.alive);
            let back = nodes.iter().filter(|(id, node)| node.alive && dead(id));
            anew.extend(back.map(|(_, node)| node.address.clone()));
            self.version = map.version;
            self.nodes = nodes;
        }
        anew
    }

    /// A node says that somebody else leads. Answers whether that is news; a hint of a lower
    /// term, or of an older topology at the same one, is not.
    pub(crate) fn hint(
        &mut self,
        slot: Slot,
        leader: Address,
        term: Option<u64>,
        now: Instant,
    ) -> bool {
        let Some(shard) = self.shard_mut(slot) else {
            return false;
        };
        let term = term.unwrap_or(shard.term);
        if term < shard.term || (term == shard.term && shard.led_by(now).is_some()) {
            debug!(%leader, term, known = shard.term, "a hint that is no news");
            return false;
        }
        shard.claim(Some(leader), term);
        true
    }

    /// `address` says of itself that it does not lead, or that it cannot.
    pub(crate) fn leads_not(&mut self, slot: Slot, address: &Address, until: Instant) {
        if let Some(shard) = self.shard_mut(slot)
            && shard.leader.as_ref() == Some(address)
        {
            shard.denied = Some(until);
        }
    }

    /// Who leads the shard that holds a slot.
    pub(crate) fn leader(&self, slot: Slot, now: Instant) -> Leader {
        match self.shard(slot) {
            None => Leader::Unmapped,
            Some(shard) => match shard.led_by(now) {
                Some(address) => Leader::At(address.clone(), shard.term),
                None => Leader::Nobody,
            },
        }
    }

    /// Where the replicas of a slot's shard serve, those that are alive.
    pub(crate) fn replicas(&self, slot: Slot) -> impl Iterator<Item = &Address> {
        let replicas = self.shard(slot).map_or(&[][..], |shard| &shard.replicas);
        let nodes = replicas.iter().filter_map(|node| self.nodes.get(node));
        nodes.filter(|node| node.alive).map(|node| &node.address)
    }

    /// Where every node that is alive serves.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &Address> {
        let alive = self.nodes.values().filter(|node| node.alive);
        alive.map(|node| &node.address)
    }

    /// Whether some node of the map serves there.
    pub(crate) fn names(&self, address: &Address) -> bool {
        self.nodes.values().any(|node| node.address == *address)
    }

    fn position(&self, slot: Slot) -> Option<usize> {
        let count = u32::try_from(self.shards.len()).ok()?;
        if count == 0 {
            return None;
        }
        index(ShardId::holding(slot, count).0)
    }

    fn shard(&self, slot: Slot) -> Option<&Shard> {
        self.shards.get(self.position(slot)?)
    }

    fn shard_mut(&mut self, slot: Slot) -> Option<&mut Shard> {
        let position = self.position(slot)?;
        self.shards.get_mut(position)
    }
}

impl Shard {
    /// Takes a claim unless it is old. In one term there is one leader, so a claim of the term
    /// that is known can only tell a leader that was not. Answers whether it is news.
    fn claim(&mut self, leader: Option<Address>, term: u64) -> bool {
        let told = leader.is_some() && leader != self.leader;
        let news = term > self.term || (term == self.term && told);
        if news {
            self.leader = leader;
            self.term = term;
            self.denied = None;
        }
        news
    }

    fn led_by(&self, now: Instant) -> Option<&Address> {
        let denied = self.denied.is_some_and(|until| now < until);
        self.leader.as_ref().filter(|_| !denied)
    }
}

fn read_nodes(nodes: &[v1::MapNode], secure: bool) -> BTreeMap<u64, Node> {
    let read = nodes.iter().filter_map(|node| {
        let address = address::parse(&node.addr, secure).ok()?;
        let alive = node.alive;
        Some((node.id, Node { address, alive }))
    });
    read.collect()
}

fn index(id: u32) -> Option<usize> {
    usize::try_from(id).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn map(version: u64, shards: &[(u64, u64)]) -> v1::Map {
        let node = |id: u64| v1::MapNode {
            id,
            addr: format!("n{id}:1"),
            alive: id != 9,
        };
        let shards = shards.iter().zip(0..).map(|((leader, term), id)| {
            let (leader, term) = (*leader, *term);
            v1::MapShard {
                id,
                leader,
                term,
                replicas: vec![1, 2, 9],
            }
        });
        v1::Map {
            version,
            cluster: "c".to_owned(),
            nodes: [1, 2, 3, 9].map(node).to_vec(),
            shards: shards.collect(),
        }
    }

    fn at(node: u64) -> Address {
        address::parse(&format!("n{node}:1"), false).unwrap()
    }

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    fn led(map: &ClusterMap, number: u16) -> Leader {
        map.leader(slot(number), Instant::now())
    }

    fn known(shards: &[(u64, u64)]) -> ClusterMap {
        let mut known = ClusterMap::default();
        known.take(map(1, shards), false);
        known
    }

    #[test]
    fn a_slot_leads_to_its_shards_leader() {
        assert_eq!(led(&ClusterMap::default(), 0), Leader::Unmapped);
        let map = known(&[(1, 5), (0, 6)]);
        assert_eq!(led(&map, 0), Leader::At(at(1), 5));
        assert_eq!(led(&map, 2047), Leader::At(at(1), 5));
        assert_eq!(led(&map, 2048), Leader::Nobody);
        assert!(map.replicas(slot(9)).eq([&at(1), &at(2)]), "9 is dead");
        assert!(map.alive().eq([&at(1), &at(2), &at(3)]));
    }

    #[test]
    fn the_claim_of_the_higher_term_is_right_in_any_order() {
        let mut one = known(&[(1, 5)]);
        one.take(map(1, &[(2, 4)]), false);
        assert_eq!(led(&one, 0), Leader::At(at(1), 5));
        // Somebody who knows of no leader in that term knows less.
        one.take(map(1, &[(0, 5)]), false);
        assert_eq!(led(&one, 0), Leader::At(at(1), 5));
        one.take(map(1, &[(0, 6)]), false);
        assert_eq!(led(&one, 0), Leader::Nobody);
        one.take(map(1, &[(1, 5)]), false);
        assert_eq!(led(&one, 0), Leader::Nobody);
        one.take(map(1, &[(2, 6)]), false);
        assert_eq!(led(&one, 0), Leader::At(at(2), 6));
    }

    #[test]
    fn hints_count_like_maps() {
        let mut map = known(&[(1, 5)]);
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        assert!(!map.hint(slot(0), at(2), Some(4), now), "an older term");
        assert!(!map.hint(slot(0), at(2), None, now), "somebody is known");
        map.leads_not(slot(0), &at(2), soon);
        assert_eq!(map.leader(slot(0), now), Leader::At(at(1), 5));
        map.leads_not(slot(0), &at(1), soon);
        assert_eq!(map.leader(slot(0), now), Leader::Nobody);
        assert_eq!(map.leader(slot(0), soon), Leader::At(at(1), 5), "forgiven");
        assert!(map.hint(slot(0), at(2), None, now));
        assert_eq!(map.leader(slot(0), now), Leader::At(at(2), 5));
        assert!(map.hint(slot(0), at(3), Some(6), now));
        assert_eq!(map.leader(slot(0), now), Leader::At(at(3), 6));
        assert!(!ClusterMap::default().hint(slot(0), at(1), Some(9), now));
    }

    #[test]
    fn an_older_topology_does_not_replace_a_newer_one_but_its_leaders_count() {
        let mut one = known(&[(1, 5)]);
        let mut newer = map(7, &[(1, 5)]);
        newer.nodes.retain(|node| node.id != 3);
        one.take(newer, false);
        assert!(!one.names(&at(3)));
        one.take(map(6, &[(3, 6)]), false);
        assert_eq!(led(&one, 0), Leader::At(at(3), 6));
        assert!(!one.names(&at(3)));
    }

    #[test]
    fn a_cluster_of_one_is_reached_as_it_was_found() {
        let mut one = known(&[(1, 5)]);
        let mut alone = map(2, &[(1, 6)]);
        alone.nodes.truncate(1);
        one.take(alone, false);
        assert_eq!(led(&one, 0), Leader::Unmapped);
        assert_eq!(one.alive().count(), 0);
        one.take(map(3, &[(2, 7)]), false);
        assert_eq!(led(&one, 0), Leader::At(at(2), 7));
    }

    #[test]
    fn who_leads_anew_or_is_back_is_told() {
        let mut one = ClusterMap::default();
        assert!(one.take(map(1, &[(1, 5)]), false).iter().eq([&at(1)]));
        assert!(one.take(map(1, &[(1, 5)]), false).is_empty());
        let mut back = map(1, &[(2, 6)]);
        for node in &mut back.nodes {
            node.alive = true;
        }
        assert!(one.take(back, false).iter().eq([&at(2), &at(9)]));
    }

    #[test]
    fn nonsense_is_left_out_and_another_cluster_begins_anew() {
        let mut one = known(&[(1, 5)]);
        one.take(v1::Map::default(), false);
        assert_eq!(led(&one, 0), Leader::At(at(1), 5));
        let mut other = map(1, &[(2, 1)]);
        other.cluster = "d".to_owned();
        other.nodes[0].addr = "no where".to_owned();
        one.take(other, false);
        assert_eq!(led(&one, 0), Leader::At(at(2), 1));
        assert!(!one.names(&at(1)));
    }
}
