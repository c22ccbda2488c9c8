//! The types that a group speaks with openraft.

use std::fmt;

use bytes::Bytes;
use everwire_core::{Outcome, Refusal};
use openraft::impls::{BoxedErrorSource, InlineBatch, leader_id_std};
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, OptionalSend, RaftTypeConfig};

use super::machine::Machine;
use crate::apply::Changed;

/// openraft's name for a set of types. Standard Raft: one leader per term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Outcomes;
    type NodeId = u64;
    type Node = Peer;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Proposal, u64, Peer>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type Responder<T>
        = Reply<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// One group.
pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;
/// One entry of a group's log.
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
/// The id of an entry.
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote.
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
/// Who belongs to a group.
pub(crate) type Membership = openraft::Membership<u64, Peer>;
/// Who belongs to a group, and since when.
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// An encoded [`Batch`](everwire_core::command::Batch). Opaque until it is applied.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Shows the size only: payloads stay out of logs.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.0.len())
    }
}

/// What applying an entry answered.
#[derive(Debug)]
pub(crate) enum Outcomes {
    /// The outcomes of its commands, in their order; empty for entries without commands.
    Sessions(Vec<Outcome>),
    /// What became of a change of the topology.
    Topology(Result<Changed, Refusal>),
}

impl Default for Outcomes {
    fn default() -> Self {
        Self::Sessions(Vec::new())
    }
}

/// A member of a group, as its log remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its address for clients.
    pub(crate) addr: String,
    /// Its address for other nodes; empty in a cluster of one.
    pub(crate) peer: String,
}

/// Hears what became of a proposal; dropped unheard when the group stops first.
pub(crate) struct Reply<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Reply<T> {
    /// Calls `done` with the result, on the thread that applied the entry: it must not wait.
    pub(crate) fn new(done: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(done))
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for Reply<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}
