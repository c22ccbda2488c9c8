//! The heart of Everwire: what a command does to a session, as one pure state machine.
//!
//! In come batches of commands and a read view of a shard's rows; out go outcomes, events and
//! changed rows. Every replica computes the same from the same log. Never here: I/O, waiting,
//! a clock, a random number, configuration, a map whose order is not its keys'.
//!
//! The page `docs/protocol/rules.md` says the same in prose and tables.

pub mod session;

pub use session::resolve;
pub use session::txn::{
    ApplyError, BatchChanges, Changes, RULES_VERSION, ShardState, Txn, View, ViewError, may_raise,
};
