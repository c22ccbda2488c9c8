//! The words of the metadata group: which nodes there are, and which of them hold which shard.
//!
//! `rules::topology` changes it, `proto` encodes it, `shard` carries it out.

use std::collections::BTreeMap;

use crate::ids::{NodeId, ShardId};

/// Who belongs to the cluster and who holds what: the whole state of the metadata group.
/// `version` 0 is a cluster that has not been formed yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Rises by one with every change.
    pub version: u64,
    /// Replicas that a shard should have; fewer while there are fewer nodes.
    pub replication: u32,
    /// Every node that ever belonged, by id. Ids are never given twice.
    pub nodes: BTreeMap<NodeId, Member>,
    /// One for each shard, by its number.
    pub shards: Vec<Placement>,
    /// The voters that the metadata group should have.
    pub voters: Vec<NodeId>,
}

/// A node, as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its configured name; one living node has it at a time.
    pub name: String,
    /// Where clients reach it.
    pub addr: String,
    /// Where other nodes reach it.
    pub peer: String,
    /// Drawn by the node when it made its data directory: tells a repeated request to join from
    /// another node of the same name.
    pub incarnation: u64,
    /// Whether it may hold anything.
    pub state: MemberState,
}

/// Where a node stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Holds replicas.
    Active,
    /// Its replicas are being moved elsewhere; it goes when it holds none.
    Leaving,
    /// Gone for ever: its id is refused.
    Removed,
}

/// Who should hold a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The replicas; the first should lead when it can.
    pub replicas: Vec<NodeId>,
    /// The voters that the shard's group is made with. Any of them may make it, with these very
    /// voters, as long as its own log is empty. Empty once other nodes hold the shard: then the
    /// group is there, and nobody whose log was thrown away may make it a second time.
    pub initial: Vec<NodeId>,
}

/// A change of the topology: a command of the metadata group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The first: makes the cluster out of these nodes. Ignored when it is made already.
    Form {
        /// The nodes, by the ids that they were told.
        nodes: BTreeMap<NodeId, Member>,
        /// Shards, fixed for ever.
        shards: u32,
        /// See [`Topology::replication`].
        replication: u32,
    },
    /// A node with an empty disk asks for an id. A living node of that name is to be replaced.
    Join {
        /// Its name.
        name: String,
        /// Where clients reach it.
        addr: String,
        /// Where other nodes reach it.
        peer: String,
        /// See [`Member::incarnation`]: makes a repeated request answer like the first.
        incarnation: u64,
    },
    /// A node has other addresses now.
    Move {
        /// The node.
        node: NodeId,
        /// Where clients reach it.
        addr: String,
        /// Where other nodes reach it.
        peer: String,
    },
    /// A node's replicas shall go elsewhere, and then it.
    Retire {
        /// The node.
        node: NodeId,
    },
    /// A retired node holds nothing any more.
    Remove {
        /// The node.
        node: NodeId,
    },
    /// A shard shall be held by these.
    Place {
        /// The shard.
        shard: ShardId,
        /// See [`Placement::replicas`].
        replicas: Vec<NodeId>,
    },
    /// The metadata group shall have these voters.
    Voters {
        /// The nodes.
        nodes: Vec<NodeId>,
    },
    /// The metadata group's state speaks these rules from here on. Concerns the group alone: the
    /// topology stays as it is.
    RaiseRules {
        /// The rules.
        version: u32,
    },
    /// Changes nothing: each replica of the metadata group remembers what it holds here.
    Audit,
}

impl Topology {
    /// Whether the cluster is made.
    pub fn is_formed(&self) -> bool {
        self.version > 0
    }

    /// A node that may hold something.
    pub fn active(&self, node: NodeId) -> Option<&Member> {
        let member = self.nodes.get(&node)?;
        (member.state == MemberState::Active).then_some(member)
    }

    /// Who should hold a shard.
    pub fn placement(&self, shard: ShardId) -> Option<&Placement> {
        self.shards.get(usize::try_from(shard.0).ok()?)
    }
}
