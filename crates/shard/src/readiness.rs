//! Whether a node may be counted on, and so whether another one may be taken away.
//!
//! Whoever rolls a cluster goes on to the next node when this one is ready. So a node is not ready
//! while it owes its groups a replica: one that came in the place of a lost node, with an empty
//! disk, until everything that its predecessor held is held again, and any node until it votes in
//! what the topology has placed on it. A spare node owes nothing, and is ready at once.
//!
//! Nor is it ready in the first moments of its life while its groups are about to be raised to
//! newer rules: whoever comes to a new cluster should find all that it can do.
//!
//! Nothing that brings this about waits for a node to be ready: peers reach each other before.

use std::collections::BTreeSet;
use std::time::Duration;

use everwire_core::limits::DEAD_AFTER;
use everwire_core::topology::{Member, MemberState, Topology};
use everwire_core::{NodeId, ShardId};
use everwire_rules::may_raise;
use openraft::async_runtime::WatchReceiver;

use crate::apply::Applier;
use crate::host::Host;
use crate::raft::types::Raft;

/// A node waits for so long after its start for its groups to be raised: their leaders may see
/// less than it sees.
const RAISED_WITHIN: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) fn is_ready(host: &Host) -> bool {
    let me = host.identity.node;
    let topology = host.meta.topology();
    // A node that joins reads the topologies from before it came first.
    let Some(member) = topology.nodes.get(&me) else {
        return false;
    };
    if owes_a_predecessor(&topology, me, member) {
        return false;
    }
    if topology.voters.contains(&me) && !votes(&host.meta.raft, me) {
        return false;
    }
    if host.started.elapsed() < RAISED_WITHIN && is_raised_soon(host) {
        return false;
    }
    let mut placed = (0..).map(ShardId).zip(&topology.shards);
    placed.all(|(id, placement)| {
        !placement.replicas.contains(&me)
            || host
                .local(id)
                .is_some_and(|shard| shard.leadership.leader().is_some() && votes(&shard.raft, me))
    })
}

/// Whether a group of this node's speaks older rules than all its members know, or one of them
/// lives and has not yet said what it knows.
fn is_raised_soon(host: &Host) -> bool {
    let raised_soon = |raft: &Raft, applier: &Applier| {
        let (support, spoken) = (&host.shared.support, applier.rules_version());
        if spoken >= support.supported() {
            return false;
        }
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.nodes();
        let members: Vec<_> = members.map(|(node, _)| NodeId(*node)).collect();
        let known: Vec<_> = members.iter().map(|node| support.of(*node)).collect();
        let mut told = members.iter().zip(&known);
        told.any(|(node, known)| known.is_none() && host.is_alive(*node, DEAD_AFTER))
            || may_raise(spoken, &known).is_some()
    };
    let mut shards = host.hosted().into_iter();
    raised_soon(&host.meta.raft, &host.meta.applier)
        || shards.any(|shard| raised_soon(&shard.raft, &shard.applier))
}

/// Whether a node of the same name, which this one replaces, is still to hold or to vote
/// somewhere.
fn owes_a_predecessor(topology: &Topology, me: NodeId, member: &Member) -> bool {
    let leaving = |other: &Member| other.state == MemberState::Leaving && other.name == member.name;
    let nodes = topology.nodes.iter();
    let replaced: BTreeSet<NodeId> = nodes
        .filter(|(id, other)| **id != me && leaving(other))
        .map(|(id, _)| *id)
        .collect();
    let placed = topology.shards.iter().flat_map(|shard| &shard.replicas);
    let mut held = placed.chain(&topology.voters);
    held.any(|node| replaced.contains(node))
}

/// Whether a node votes in a group for good, as its own replica knows: in the middle of a joint
/// change whoever comes does not count yet.
fn votes(raft: &Raft, node: NodeId) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let mut voters = membership.get_joint_config().iter();
    voters.len() > 0 && voters.all(|voters| voters.contains(&node.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::topology::Placement;

    fn member(name: &str, state: MemberState) -> Member {
        Member {
            name: name.to_owned(),
            addr: String::new(),
            peer: String::new(),
            incarnation: 0,
            state,
        }
    }

    #[test]
    fn only_what_a_namesake_holds_that_leaves_is_owed() {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        for (name, state, replicas, voters, owed) in [
            (
                "n1",
                MemberState::Leaving,
                &[1, 2, 3][..],
                &[2, 3][..],
                true,
            ),
            ("n1", MemberState::Leaving, &[4, 2, 3], &[1, 2, 3], true),
            ("n1", MemberState::Leaving, &[4, 2, 3], &[4, 2, 3], false),
            // Another one is let go while this node is a spare: that is not its place.
            ("n9", MemberState::Leaving, &[1, 2, 3], &[1, 2, 3], false),
            ("n9", MemberState::Active, &[1, 2, 3], &[1, 2, 3], false),
            ("n1", MemberState::Removed, &[4, 2, 3], &[4, 2, 3], false),
        ] {
            let me = member("n1", MemberState::Active);
            let topology = Topology {
                version: 2,
                replication: 3,
                nodes: [(NodeId(1), member(name, state)), (NodeId(4), me.clone())].into(),
                shards: vec![Placement {
                    replicas: ids(replicas),
                    initial: Vec::new(),
                }],
                voters: ids(voters),
            };
            let owes = owes_a_predecessor(&topology, NodeId(4), &me);
            assert_eq!(owes, owed, "{topology:?}");
        }
    }
}
