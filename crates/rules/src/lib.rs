//! The heart of Everwire: what a command does to a session, and what a change does to the
//! cluster, as two pure state machines.
//!
//! In come batches of commands and a read view of a shard's rows; out go outcomes, events and
//! changed rows. Or in come a topology and a change; out goes the next topology. Every replica computes the same from the same log. Never here: I/O, waiting,
//! a clock, a random number, configuration, a map whose order is not its keys'.
//!
//! The pages `docs/protocol/rules.md` and `docs/protocol/topology.md` say the same in prose and
//! tables.

pub mod session;
pub mod topology;

pub use session::catches_panics;
#[cfg(feature = "test-poison")]
pub use session::poison;
pub use session::resolve;
pub use session::txn::{
    ApplyError, BatchChanges, Changes, RULES_VERSION, ShardState, Txn, View, ViewError, may_raise,
};
